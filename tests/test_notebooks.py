"""Every notebook runs, on the public names alone; an interrupt harms no kernel."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager, start_new_kernel
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


TINY = '"arch": "test_resnet", "weights": "none"'
QUICK = {  # in notebooks, by the parts of their names: instead of what takes a minute
    "00": {'"size": 48, "epochs": 1': f'"size": 32, "epochs": 1, {TINY}'},
    "01": {'"arch": "vgg16"': '"arch": "vanilla_cnn"'},
    "02": {"size=48, epochs=1": 'size=32, epochs=1, arch="test_resnet", weights="none"'},
    "03": {'"size": 48, "epochs": 1': f'"size": 32, "epochs": 1, {TINY}'},
    "04": {"trials=12": "trials=4"},
}


@pytest.fixture(scope="module")
def one_kernel(tmp_path_factory):
    """A kernel for one notebook after the other, which nbclient starts, and a folder for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LESIONFAST_DATA", raising=False)
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        manager = AsyncKernelManager(kernel_name="python3")
        yield manager, tmp_path_factory.mktemp("notebooks")
        run_sync(manager.shutdown_kernel)(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path, one_kernel):
    manager, root = one_kernel
    folder = root / path.stem
    folder.mkdir()
    text = path.read_text("utf-8")
    for long, short in QUICK[path.stem[:2]].items():
        long, short = (json.dumps(each)[1:-1] for each in (long, short))
        assert long in text, long
        text = text.replace(long, short)
    notebook = nbformat.reads(text, as_version=4)
    begin = f"%reset -f\nimport os\nos.chdir({str(folder)!r})"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    client = NotebookClient(notebook, km=manager, timeout=600, startup_timeout=600)
    client.execute()
    client.kc.stop_channels()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert any(path.name == "metrics.json" for path in folder.rglob("*"))


def python_parts(path: Path) -> list[str]:
    """The Python of each code cell of a notebook, or of each Python block of a Markdown file."""
    if path.suffix == ".md":
        return re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    cells = nbformat.read(path, as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    return [re.sub(r"^\s*[!%].*$", "", source, flags=re.MULTILINE) for source in sources]


def imports_of_ours(source: str) -> list[str]:
    """The statements that import lesionfast or a part of it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [(n, alias.name) for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    names += [(n, n.module or "") for n in nodes if isinstance(n, ast.ImportFrom)]
    return [ast.unparse(node) for node, name in names if name.split(".")[0] == "lesionfast"]


SMALL = {  # instead of what takes minutes, or a folder that is not here
    '"HAM10000"': "",
    'arch="densenet121"': 'arch="test_resnet", weights="none", size=32, epochs=1, tta=1',
    '"densenet121", fusion="film"': '"test_resnet", fusion="film", weights="none"',
    'train(df, fusion="film")': 'train(df, arch="test_resnet", weights="none", size=32, epochs=1)',
    "train(df, seeds=3)": 'train(df, arch="small", size=32, epochs=1, tta=1, seeds=3)',
    'loss="brier", seeds=3': 'loss="brier", size=32, epochs=1, tta=1, seeds=3',
    "size=128": "size=32",
    "fine_tune(4)": "fine_tune(1)",
}


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    code = "\n".join(python_parts(ROOT / "README.md"))
    for long, short in SMALL.items():
        assert long in code, long
        code = code.replace(long, short)
    code += "\nassert by_hand.finished and len(mine) == 3"
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md"], ids=lambda path: path.stem)
def test_nothing_of_ours_is_imported_but_the_front_door(path):
    statements = [name for source in python_parts(path) for name in imports_of_ours(source)]
    assert set(statements) == {"import lesionfast as lf"}


@pytest.mark.parametrize("statement", ["from lesionfast.run import Run", "import lesionfast.run"])
def test_a_private_import_is_noticed_in_a_function_too(statement):
    assert imports_of_ours(f"def load():\n    {statement}") == [statement]


BEFORE = """
import lesionfast as lf
from fastai.callback.core import Callback

df = lf.load_data()
small = {"arch": "test_resnet", "weights": "none", "size": 32, "tta": 1}
run = lf.train(df, epochs=500, **small)
"""
FITTED = """
class PrintEpoch(Callback):
    def after_epoch(self):
        print(f" {self.epoch + 1}/500 ")

dls = lf.LesionDataLoaders.from_df(df, size=32)
learn = lf.lesion_learner(dls, "test_resnet", weights="none")
learn.fit(500, cbs=PrintEpoch())
"""
AFTER = """
assert lf.Run(run.path).metrics["status"] == "interrupted"
assert 1 <= len(run.history) < 500
path = df["path"].iloc[0]
assert lf.Predictor(run)(path, age=55)["decision"] in (*run.classes, None)
learn.fit_one_cycle(1, 1e-3)
assert learn.predict(path, age=55)[0] in run.classes
assert lf.Run.from_learner(learn, "runs/by-hand").finished
assert lf.train(df, epochs=1, **small).metrics["status"] == "finished"
"""


@pytest.fixture
def kernel(tmp_path):
    """A real kernel: a function that runs a cell, interrupted once the first epoch has ended."""
    manager, client = start_new_kernel(startup_timeout=600, cwd=str(tmp_path))

    def run_cell(code: str, interrupt: bool = True) -> dict:
        done = []

        def read_output(message: dict) -> None:
            text = message["content"].get("text", "")
            if interrupt and not done and " 1/500 " in text:
                done.append(text)
                manager.interrupt_kernel()

        reply = client.execute_interactive(code, timeout=600, output_hook=read_output)
        assert bool(done) == interrupt
        return reply["content"]

    yield run_cell
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_after_an_interrupt_the_kernel_trains_and_predicts(kernel):
    assert kernel(BEFORE)["status"] == "ok"  # the run keeps what it has learned
    assert kernel(FITTED)["ename"] == "KeyboardInterrupt"  # as any Learner of fastai
    reply = kernel(AFTER, interrupt=False)
    assert reply["status"] == "ok", "\n".join(reply.get("traceback", []))
