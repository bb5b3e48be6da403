"""What every test shares: one torch thread, a cache folder, the real data, runs made up."""

import gc
import io
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from copy import copy
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from lesionfast.config import TrainConfig
from lesionfast.run import Run
from lesionfast.stats.metrics import summarize

os.environ.setdefault("OMP_NUM_THREADS", "1")  # must be set before torch is imported
os.environ.setdefault("MPLBACKEND", "Agg")

COMMAND = "import runpy; runpy.run_module('lesionfast', run_name='__main__', alter_sys=True)"
PATIENCE = 600  # seconds that a test waits for a process on a busy machine
LIBRARIES = ["torchvision", "fastai.data.all", "fastai.callback.core"]  # seconds to import
BEGIN = """
import os, sys, tempfile
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
for number, path in enumerate(outputs, 1):
    os.dup2(os.open(path, os.O_WRONLY), number)
tempfile.tempdir = None  # that of this environment
sys.argv = ["lesionfast", *arguments]
exec(code, {"__name__": "__main__"})
"""

SLOWEST_FIRST = (  # so that no worker is left with minutes of work at the end
    *("test_notebooks.py", "training/test_processes.py", "training/test_experiment.py"),
    *("data/layouts/test_as_a_user.py", "test_cli.py", "serving/test_onnx.py"),
    *("serving/test_ensembles.py", "serving/web/test_app.py", "training/search/test_search.py"),
    *("serving/labelling/test_page.py", "serving/labelling/test_candidates.py"),
    *("serving/test_export_hub.py", "training/ensembles/test_folds.py", "test_registered.py"),
    *("training/test_learner_failures.py", "data/test_duplicates.py", "models/test_features.py"),
    *("evaluation/test_findings.py", "training/ensembles/test_towers.py", "test_front_door.py"),
    *("training/test_pretrain.py", "training/test_fastai.py", "serving/test_predictor.py"),
    *("serving/test_export.py", "reporting/test_overview.py", "data/test_audit.py"),
    *("models/test_backbones.py", "training/test_heads.py", "evaluation/test_explain.py"),
    *("training/callbacks/test_cached_features.py", "data/test_table.py", "data/test_sample.py"),
)


def pytest_collection(session: pytest.Session) -> None:
    """Collect no garbage while modules are imported, most of whose objects stay."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(SLOWEST_FIRST)}
    assert all(path.is_file() for path in places), "a file of SLOWEST_FIRST was renamed"
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported out of all later collections of garbage."""
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Path:
    """One for all workers, which keeps the user's own cache folder out of the tests."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["LESIONFAST_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power, so none waits until its thousands of files are on the disk.

    What is neither a file nor a folder, such as a pipe, is refused as ever.
    """
    wait = os.fsync

    def skip(descriptor: int) -> None:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            wait(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", skip)
        yield


@pytest.fixture
def on_disk(monkeypatch) -> list[tuple[str, int, bytes]]:
    """What a test puts on the disk and renames, in order: how, the inode, all bytes by then."""
    done, replace = [], os.replace

    def note_sync(descriptor: int) -> None:
        state = os.fstat(descriptor)
        folder = stat.S_ISDIR(state.st_mode)
        data = b"" if folder else os.pread(descriptor, state.st_size, 0)
        done.append(("sync", state.st_ino, data))

    def note_replace(source: Path, target: Path) -> None:
        done.append(("replace", os.stat(source).st_ino, Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    return done


@pytest.fixture(scope="session")
def start_apart(
    cache_folder, tmp_path_factory
) -> Iterator[Callable[..., tuple[BaseProcess, Path, Path]]]:
    """A function that starts the command, or Python code, in a process of its own.

    It is forked from a process that has loaded PyTorch and fastai and done nothing else: a new
    one needs five seconds for that. Returns it with the files of its stdout and stderr. What still
    runs at the end is killed. Such a process has imported much already, and ends without what
    Python does at its end: for tests of either, run `python -m lesionfast`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    started: list[BaseProcess] = []

    def start(
        *arguments: object,
        code: str = COMMAND,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> tuple[BaseProcess, Path, Path]:
        told = tmp_path_factory.mktemp("told")
        outputs = told / "stdout", told / "stderr"
        for file in outputs:
            file.touch()
        names = {"folder": cwd or Path.cwd(), "environment": dict(env or os.environ)}
        names |= {"outputs": outputs, "arguments": [*map(str, arguments)], "code": code}
        process = context.Process(target=exec, args=(BEGIN, names))
        process.start()
        started.append(process)
        return process, *outputs

    yield start
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


@pytest.fixture(scope="session")
def run_apart(start_apart) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that does so, and waits for the end, at most so many seconds."""

    def run(
        *arguments: object, patience: float = PATIENCE, **more: object
    ) -> subprocess.CompletedProcess[str]:
        process, *outputs = start_apart(*arguments, **more)
        process.join(patience)
        said = [file.read_text("utf-8") for file in outputs]
        if process.is_alive():
            process.kill()
            pytest.fail(f"{arguments} did not end in {patience:g} s; it said: {said}")
        return subprocess.CompletedProcess(arguments, process.exitcode, *said)

    return run


def keep_registries() -> Iterator[None]:
    """What is registered meanwhile is gone afterwards."""
    fusion = sys.modules.get("lesionfast.models.fusion")  # a test without torch has no registries
    kept = [] if fusion is None else list(fusion.REGISTRIES.values())
    before = [{name: copy(value) for name, value in vars(registry).items()} for registry in kept]
    yield
    for registry, names in zip(kept, before, strict=True):
        vars(registry).update(names)


registries = pytest.fixture(autouse=True)(keep_registries)
registries_of_modules = pytest.fixture(scope="module", autouse=True)(keep_registries)


@pytest.fixture(scope="session")
def ham10000() -> Path:
    """The folder of HAM10000 as downloaded, or a skip that says how to have it."""
    beside = Path(__file__).parents[2] / "shared" / "ham10000"
    folder = Path(os.environ.get("LESIONFAST_DATA", beside))
    if not (folder / "HAM10000_metadata.csv").is_file():
        pytest.skip("HAM10000 is not here; set LESIONFAST_DATA to its folder")
    return folder


@pytest.fixture
def blank_figures(monkeypatch) -> None:
    """Figures are built but one dot is written, which takes a tenth: for tests of other things."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    class AtOnce(Executor):
        """Runs functions in this process: a second one would draw the figures."""

        def submit(self, function, /, *given, **named) -> Future:
            future = Future()
            future.set_result(function(*given, **named))
            return future

    def write_dot(canvas, path: Path, **options) -> None:
        Image.new("L", (1, 1)).save(path, "PNG")

    def write_nothing(canvas, path: Path, **options) -> None:
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", write_dot)
    monkeypatch.setattr(FigureCanvasSVG, "print_svg", write_nothing)
    monkeypatch.setattr("lesionfast.reporting.overview.second_process", AtOnce)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("a small file system can't be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only() -> Iterator[Callable[[Path], None]]:
    """A function after which nothing can be written into a folder, by root neither."""
    undo: list[Callable[[], object]] = []

    def mount(*options: str | Path) -> None:
        if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
            pytest.skip("root can't mount a folder read-only here")

    def close(folder: Path) -> None:
        if os.geteuid():
            folder.chmod(0o555)
            undo.append(lambda: folder.chmod(0o755))
            return
        mount("--bind", folder, folder)  # a mode does not stop root
        undo.append(lambda: subprocess.run(["umount", folder], check=True))
        mount("-o", "remount,ro,bind", folder)

    yield close
    for each in undo:
        each()


SHARES = {
    "akiec": 0.033,
    "bcc": 0.051,
    "bkl": 0.110,
    "df": 0.012,
    "mel": 0.111,
    "nv": 0.669,
    "vasc": 0.014,
}
COLUMNS = (
    "epoch,phase,lr,train_loss,valid_loss,balanced_accuracy,macro_auc,mel_sensitivity,accuracy"
)
HISTORY = f"""{COLUMNS}
1,head,0.002,1.52,1.21,0.52,0.87,0.40,0.61
2,head + last 1 stage,0.0018,1.20,1.02,0.61,0.91,0.52,0.66
3,head + last 2 stages,0.0014,1.05,0.95,0.66,0.92,0.60,0.70
4,all,0.0009,0.97,0.90,0.70,0.94,0.63,0.72
5,all,0.0004,0.92,0.88,0.72,0.94,0.66,0.73
6,all,0.0001,0.90,0.87,0.71,0.94,0.64,0.73
"""


def predict(classes: list[str], n: int, seed: int) -> pd.DataFrame:
    """Return n rows of target, p_<class>, age and sex; every class occurs."""
    rng = np.random.default_rng(seed)
    shares = np.array([SHARES.get(name, 0.1) for name in classes])
    drawn = rng.choice(len(classes), n - len(classes), p=shares / shares.sum())
    truth = np.concatenate([np.arange(len(classes)), drawn])
    logits = rng.normal(size=(n, len(classes))) + np.log(shares)
    logits[np.arange(n), truth] += rng.normal(2.5, 1.5, n)
    odds = np.exp(logits)
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    ages = np.where(rng.random(n) < 0.05, np.nan, rng.integers(1, 18, n) * 5.0)
    return pd.DataFrame(
        {
            "target": np.asarray(classes, dtype=object)[truth],
            **{f"p_{name}": probabilities[:, i] for i, name in enumerate(classes)},
            "age": ages,
            "sex": rng.choice(np.array(["male", "female", None], dtype=object), n),
        }
    )


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Run]:
    """A function that writes a finished run and returns it."""

    def make(
        classes: tuple[str, ...] = tuple(SHARES), n: int = 600, rule: str = "balanced", **columns
    ) -> Run:
        path = tmp_path / "runs" / f"20260102-030405-{len(classes)}-{n}-{rule}"
        path.mkdir(parents=True)
        names = list(classes)
        prior = np.array([SHARES.get(name, 0.1) for name in names])
        prior /= prior.sum()
        tables = [
            predict(names, n, seed).assign(split=split)
            for seed, split in enumerate(("valid", "test"))
        ]
        table = pd.concat(tables, ignore_index=True)
        ids = [f"ISIC_{i:07d}" for i in range(len(table))]
        paths = [str(tmp_path / "images" / f"{name}.jpg") for name in ids]
        table.insert(0, "image_id", ids)
        table = table.assign(group=ids, path=paths, **columns)
        summaries = {
            split: summarize(
                rows["target"].map(names.index).to_numpy(),
                rows[[f"p_{name}" for name in names]].to_numpy(),
                names,
                prior,
            )
            for split, rows in table.groupby("split")
        }
        told = {"split_sha256": "0123456789abcdef" * 4, "train_seconds": 90.0}
        told |= {"best_epoch": 5, "status": "finished", "images_per_second": 12.0}
        model = {"arch": "resnet18", "classes": names, "prior": prior.tolist(), "rule": rule}
        (path / "config.json").write_text(TrainConfig(arch="resnet18", rule=rule).to_json())
        (path / "model.json").write_text(json.dumps(model))
        (path / "history.csv").write_text(HISTORY)
        (path / "metrics.json").write_text(json.dumps(told | summaries))
        table.to_csv(path / "predictions.csv", index=False)
        table[["image_id", "group", "split"]].to_csv(path / "split.csv", index=False)
        return Run(path)

    return make


@pytest.fixture
def images(tmp_path) -> Callable[[pd.DataFrame], None]:
    """A function that writes a small JPEG file for each row of a table with `path`."""

    def write(rows: pd.DataFrame) -> None:
        rng = np.random.default_rng(0)
        (tmp_path / "images").mkdir(exist_ok=True)
        for path in rows["path"]:
            small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((40, 30)).save(path)

    return write


@pytest.fixture
def make_worse() -> Callable[[Run, str, float], Run]:
    """A function that copies a run with noise on its logits, other rows first, and a count."""

    def make(run: Run, name: str, noise: float, prior: list[float] | None = None) -> Run:
        path = run.path.with_name(name)
        shutil.copytree(run.path, path, copy_function=shutil.copy)  # newer than the first
        rng = np.random.default_rng(int(noise * 100))
        table = run.predictions.sample(frac=1, random_state=1)
        columns = [f"p_{each}" for each in run.classes]
        odds = np.exp(np.log(table[columns]) + rng.normal(0, noise, (len(table), len(columns))))
        odds *= 1 if prior is None else np.divide(prior, run.model["prior"])
        table[columns] = odds.div(odds.sum(axis=1), axis=0)
        table.to_csv(path / "predictions.csv", index=False)
        model = run.model | {"parameters": 3_400_000, "fusion": "film"}
        model |= {} if prior is None else {"prior": prior}
        (path / "model.json").write_text(json.dumps(model))
        return Run(path)

    return make


@pytest.fixture
def drawn(monkeypatch) -> dict[str, Figure]:
    """The figures that are saved while a test runs, by their file's name without suffix."""
    found: dict[str, Figure] = {}
    print_png = FigureCanvasAgg.print_png

    def remember(self, path, **options):
        found[path.stem] = self.figure
        print_png(self, path, **options)

    monkeypatch.setattr(FigureCanvasAgg, "print_png", remember)
    return found


@pytest.fixture
def render() -> Callable:
    """A function that gives the lines of a table on a terminal of a width, without colours."""

    def lines(table, width: int = 80) -> list[str]:
        console = Console(file=io.StringIO(), width=width, color_system=None, markup=False)
        console.print(table.to_rich())
        return [line.rstrip() for line in console.file.getvalue().splitlines()]

    return lines


@pytest.fixture
def line_of() -> Callable:
    """A function that gives the words of the first line that starts with a text."""

    def find(lines: list[str], start: str) -> list[str]:
        return next(line for line in lines if line.strip().startswith(start)).split()

    return find
