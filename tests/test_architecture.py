"""The imports point one way, every room is of a size to know, and what is named exists."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lesionfast"
FLOOR = {"errors", "registry", "diagnoses", "config", "console"}
FLOOR |= {"files", "manifest", "cache", "notebook", "run"}
BELOW = {  # a room -> what it may import, besides itself
    "errors": set(),
    "registry": {"errors"},
    "diagnoses": {"errors"},
    "config": {"errors", "diagnoses", "files"},
    "console": {"errors"},
    "files": {"errors"},
    "manifest": {"errors", "files"},
    "cache": {"errors", "files"},
    "notebook": {"errors", "diagnoses", "console", "stats"},
    "run": {"errors", "diagnoses", "config", "files", "manifest", "notebook", "stats"},
    "catalog": FLOOR,
    "data": FLOOR,
    "models": {*FLOOR, "data"},
    "stats": {"errors", "diagnoses"},
    "evaluation": {*FLOOR, "data", "models", "stats"},
    "reporting": {*FLOOR, "data", "stats", "evaluation"},
    "serving": {*FLOOR, "data", "models", "stats", "evaluation", "reporting"},
    "training": {*FLOOR, "data", "models", "stats", "evaluation", "reporting", "serving"},
    "cli": {
        *FLOOR,
        "catalog",
        "data",
        "models",
        "stats",
        "evaluation",
        "reporting",
        "serving",
        "training",
    },
    "__main__": {"cli"},
}
MOST_MODULES = 12  # Python files in a folder, but one a public dataset in data/layouts
MOST_LINES = 45  # of a function
TORCH_FREE = [
    *("config", "run", "cli", "console", "cache", "data.metadata", "data.images", "data.audit"),
    *("data.split", "data.sample", "stats.bootstrap", "stats.metrics", "stats.measures"),
    *("stats.rules", "catalog.listing", "catalog.removal"),
    *("stats.calibration", "stats.conformal", "stats.thresholds", "stats.selective"),
    *("stats.subgroups", "stats.ood", "evaluation.interpretation", "evaluation.findings"),
    *("evaluation.decisions", "evaluation.comparison", "evaluation.features"),
    *("evaluation.labels", "evaluation.isic", "reporting.overview"),
    *("reporting.comparison", "training.ensembles.combining", "training.study"),
    *("training.trackers.services", "training.trackers.delivery"),
    *("data.corrections.applying", "evaluation.labelling.corrected"),
    *("evaluation.labelling.exports", "serving.labelling.page"),
    *("serving.predictor", "serving.outputs", "serving.onnx", "serving.web.app"),
]
OPTIONS_OF_OTHERS = {  # of pip, uv, apt and timm; between the processes of the benchmarks
    *("--upgrade", "--python", "--resolution", "--extra", "--no-deps"),
    *("--no-install-recommends", "--sched-on-updates"),
    *("--folder", "--system"),
    *("--headless", "--disable-gpu", "--no-sandbox", "--no-pdf-header-footer"),  # of Chromium
    *("--print-to-pdf", "--user-data-dir"),
    *("--logdir", "--backend-store-uri", "--project"),  # of tensorboard, mlflow and trackio
}
NAMES_OPTIONS = [
    *(ROOT / "README.md", ROOT / ".ci" / "run"),
    *(path for path in sorted((ROOT / "tests" / "bench").iterdir()) if path.is_file()),
    *sorted((ROOT / "nbs").glob("*.ipynb")),
]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


NAMES = {name_of(path) for path in modules()}


def imported(path: Path) -> Iterator[str]:
    """Every module of lesionfast that a file imports: lazily, for typing, by import_module too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in NAMES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            text = ast.unparse(node.args[0])
            assert not text.startswith("f"), f"{path}: import_module({text}) hides what it imports"
            yield text.strip("'\"")


def imports(path: Path) -> set[str]:
    return {name for name in imported(path) if name.startswith("lesionfast.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: name_of(path))
def test_no_import_points_up(path):
    here = room(name_of(path))
    if here != "__init__":
        assert {room(name) for name in imports(path)} <= BELOW[here] | {here}


def test_there_is_no_cycle():
    graph = {name_of(path): imports(path) for path in modules()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_folder_holds_no_more_than_a_person_can_know():
    folders = {path.parent for path in modules()} - {ROOT / "lesionfast" / "data" / "layouts"}
    counts = {str(f.relative_to(ROOT)): len(list(f.glob("*.py"))) for f in folders}
    assert {name: n for name, n in counts.items() if n > MOST_MODULES} == {}


@pytest.mark.parametrize("path", modules(), ids=lambda path: name_of(path))
def test_a_function_fits_a_screen(path):
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = [node for node in found if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


OPTION = r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![-{])"


@cache
def options() -> set[str]:
    """Every option of every command, and of the benchmarks."""
    import typer

    from lesionfast.cli import app

    waiting, found = [typer.main.get_command(app)], {"--help", "--show-completion"}
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for parameter in command.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    for script in (ROOT / "tests" / "bench").glob("*.py"):
        found |= set(re.findall(rf'add_argument\(\s*"({OPTION})"', script.read_text("utf-8")))
    return found | OPTIONS_OF_OTHERS


@pytest.mark.parametrize(
    "path",
    [*modules(), *NAMES_OPTIONS],
    ids=lambda path: name_of(path) if PACKAGE in path.parents else str(path.relative_to(ROOT)),
)
def test_every_option_that_is_named_exists(path):
    text = re.sub(r"data:image/[^\"]*|\"image/png\": \"[^\"]*\"", "", path.read_text("utf-8"))
    assert set(re.findall(OPTION, text)) - options() == set()


def test_the_torch_free_floor_imports_no_torch():
    code = (  # one process for all: what one of them loads is loaded after it
        "import sys\nfrom importlib import import_module\n"
        "for module in sys.argv[1:]:\n"
        "    import_module(f'lesionfast.{module}')\n"
        "    if {'torch', 'fastai'} & set(sys.modules): sys.exit(f'{module} loads PyTorch')"
    )
    done = subprocess.run([sys.executable, "-c", code, *TORCH_FREE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


def test_the_readme_is_short_and_starts_with_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) < 200
    assert len(text.split("```sh\n")[1].split("```")[0].splitlines()) == 2  # .ci/run types them
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all((ROOT / link).is_file() for link in links)


def python_of(path: Path) -> str:
    """The Python in a script, a notebook or a Markdown file."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
        return "\n".join(line for line in lines if not line.startswith(("!", "%")))
    return (
        "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
        if path.suffix == ".md"
        else text
    )


@pytest.mark.parametrize(
    "path",
    [path for path in NAMES_OPTIONS if path.suffix in (".py", ".md", ".ipynb")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_what_is_imported_exists(path):
    nodes = [node for node in ast.walk(ast.parse(python_of(path)))]
    for node in [node for node in nodes if isinstance(node, ast.ImportFrom)]:
        if (node.module or "").startswith("lesionfast"):
            file = ROOT / node.module.replace(".", "/")
            file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
            parts = ast.parse(file.read_text("utf-8")).body
            defined = {getattr(part, "name", None) for part in parts}
            defined |= {ast.unparse(t) for part in parts for t in getattr(part, "targets", [])}
            defined |= {
                ast.unparse(part.target) for part in parts if isinstance(part, ast.AnnAssign)
            }
            defined |= {module.stem for module in file.parent.iterdir()}
            assert {alias.name for alias in node.names} <= defined, ast.unparse(node)
