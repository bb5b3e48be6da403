"""A run that was trained, and exported, once for all tests."""

import json
import shutil
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from filelock import FileLock

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.run import Run
from lesionfast.serving.bundle import hash_description
from lesionfast.serving.export import export

PATIENCE = 600  # seconds that a test waits for a page on a busy machine


@pytest.fixture(scope="session")
def change_description() -> Callable[[Path, Callable[[dict], object]], None]:
    """A function that changes the model.json of an exported folder, and its SHA-256 with it."""

    def apply(folder: Path, change: Callable[[dict], object]) -> None:
        file = folder / "model.json"
        told = json.loads(file.read_text("utf-8"))
        change(told)
        file.write_text(json.dumps(told | {"sha256": hash_description(told)}), "utf-8")

    return apply


@pytest.fixture(scope="session")
def trained(tmp_path_factory, cache_folder) -> Run:
    """A small run on the built-in sample, with metadata, views and features.

    The first worker that needs it trains it; each has a copy of its own.
    """
    from lesionfast.training.experiment import train

    config = TrainConfig(
        size=64,
        epochs=1,
        head_epochs=2,
        views=1,
        tta=2,
        batch_size=16,
        precision="float32",
        label_smoothing=0.1,  # which is undone in every probability
    )
    shared = cache_folder.with_name("trained")
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            made = train(load_dataset(config), config, tmp_path_factory.mktemp("runs"))
            made.path.rename(shared)
    return Run(shutil.copytree(shared, tmp_path_factory.mktemp("runs") / "trained"))


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory) -> Path:
    """That run as a folder."""
    return export(trained, tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="session")
def photos(trained) -> list[str]:
    """The paths of its test images."""
    df = load_dataset(trained.config, split=trained.path / "split.csv")
    return df.loc[df["split"] == "test", "path"].tolist()


@pytest.fixture(scope="session")
def wordy(exported, tmp_path_factory, change_description) -> Path:
    """That folder with names of several words, with commas and HTML in them."""
    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("wordy") / "model"))
    text = (folder / "model.json").read_text("utf-8")
    named = {"bcc": "basal cell, carcinoma", "bkl": "<b>bkl", "sex": "sex at birth"}
    for name, other in named.items():
        text = text.replace(f'"{name}"', f'"{other}"')
    (folder / "model.json").write_text(text, "utf-8")
    change_description(folder, lambda told: None)
    return folder


@pytest.fixture(scope="session")
def start_page(start_apart) -> Callable[..., tuple[BaseProcess, str, Path]]:
    """A function that starts a command with a page; returns it, the address and the log."""

    def start(*arguments: object, **more: object) -> tuple[BaseProcess, str, Path]:
        process, stdout, log = start_apart(*arguments, "--port", "0", **more)
        end = time.monotonic() + PATIENCE
        while "\n" not in stdout.read_text() and process.is_alive() and time.monotonic() < end:
            time.sleep(0.05)
        url = stdout.read_text().strip()
        assert url.startswith("http://127.0.0.1:"), log.read_text()
        return process, url, log

    return start


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, or a skip that says how to have it."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        system = Path("/usr/bin/chromium")
        path = {"executable_path": str(system)} if system.is_file() else {}
        try:
            opened = playwright.chromium.launch(args=["--no-sandbox"], **path)
        except Error:
            pytest.skip("no Chromium here; type: playwright install chromium")
        yield opened
        opened.close()
