"""What every test shares: one torch thread, a cache folder of its own, the real data if present."""

import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")  # must be set before torch is imported
os.environ.setdefault("MPLBACKEND", "Agg")

SLOWEST_FIRST = (  # so that no worker is left with minutes of work at the end
    *("test_notebooks.py", "test_cli.py", "training/test_experiment.py"),
    *("evaluation/test_findings.py", "serving/test_hub.py", "serving/test_onnx.py"),
    *("serving/test_export.py", "evaluation/test_report.py", "serving/test_predictor.py"),
)


def pytest_collection(session: pytest.Session) -> None:
    """Collect no garbage while modules are imported, most of whose objects stay."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest."""
    folder = Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported out of all later collections of garbage."""
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Path:
    """Keep the user's own cache folder out of the tests."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["LESIONFAST_CACHE"] = str(folder)
    return folder


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
    from lesionfast.evaluation.canvas import FigureCanvasAgg, FigureCanvasSVG

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
    monkeypatch.setattr("lesionfast.evaluation.sections.second_process", AtOnce)


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
