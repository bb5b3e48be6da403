"""The imports point one way, and what needs no torch imports none."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lesionfast"
LOW = (
    *("errors", "registry", "quoting", "config", "emphasis", "diagnoses"),
    *("shapes", "files", "manifest"),
)
BELOW = {
    "errors": set(),
    "registry": {"errors"},
    "shapes": set(),
    "files": {"errors", "shapes"},
    "diagnoses": {"errors", "quoting"},
    "manifest": {"errors", "files"},
    "quoting": set(),
    "config": {"errors", "quoting"},
    "emphasis": {"errors", "quoting"},
    "console": set(),
    "cache": {"errors", "files"},
    "options": {"config"},
    "runs": {"config", "diagnoses", "errors", "files", "manifest"},
    "data": {*LOW, "runs", "cache", "console"},
    "models": {*LOW, "runs", "cache", "data"},
    "evaluation": {*LOW, "runs", "data"},
    "serving": {*LOW, "runs", "data", "models", "evaluation", "console"},
    "training": {
        *(*LOW, "runs", "cache", "data", "models", "evaluation", "console", "serving"),
    },
}
RUN_THE_MODEL = {"explain.py", "attribution.py", "outlier_features.py"}  # of the evaluation
TORCH_FREE = [
    "config",
    "runs",
    "cli",
    "data.metadata",
    "data.images",
    "data.audit",
    "data.splits",
    "data.sample",
    "data.dataset",
    "evaluation.bootstrap",
    "evaluation.metrics",
    "evaluation.interpretation",
    "evaluation.comparison",
    "evaluation.comparison_figures",
    "evaluation.committee",
    "evaluation.figures",
    "evaluation.run_tables",
    "evaluation.comparison_tables",
    "evaluation.bench_tables",
    "evaluation.audit_tables",
    "evaluation.report",
    "evaluation.explain",
    "evaluation.contribution",
    "emphasis",
    "training.study",
    "serving.predictor",
    "serving.batch",
]


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """The rooms of lesionfast that a file imports, lazy imports too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{each.name}" for each in node.names]
        elif isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("lesionfast.")}
    return rooms


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_points_up(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in ("cli", "commands", "__init__"):
        return
    more = {"models", "console"} if path.name in RUN_THE_MODEL else set()
    assert imported_rooms(path) <= BELOW[room] | {room} | more


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_torch_free_floor_imports_no_torch(module):
    code = f"import sys, lesionfast.{module}; print(*{{'torch', 'fastai'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_imports_neither_torch_nor_pandas():
    code = (
        "import sys\nfrom lesionfast.cli import main\nsys.argv = ['lesionfast', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('LOADED', *{'torch', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "interpret" in done.stdout
    assert done.stdout.strip().endswith("LOADED")


def test_the_house_keeps_no_utils():
    assert not [p for p in modules() if p.stem in ("utils", "helpers", "common")]
