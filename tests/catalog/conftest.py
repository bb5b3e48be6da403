"""What the tests of lists of runs share."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lesionfast.cli.base import app
from lesionfast.config import TrainConfig
from lesionfast.run import Run


@pytest.fixture
def invoke() -> Callable:
    """A function that runs a command in this process; errors that the user can fix are raised."""
    return lambda *words: CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)


@pytest.fixture
def make(make_run, tmp_path) -> Callable[..., Run]:
    """A function that writes a small finished run under runs/, each a minute younger."""
    first = Run(make_run(n=30).path.rename(tmp_path / "first"))
    (tmp_path / "runs").rmdir()
    made: list[Run] = []

    def write(name: str, accuracy: float = 0.5, parts: str = "valid test", **options) -> Run:
        path = tmp_path / "runs" / name
        shutil.copytree(first.path, path)
        told = {k: v for k, v in first.metrics.items() if k not in ("valid", "test")}
        for part in parts.split():
            value = {"balanced_accuracy": accuracy if part == "test" else 1 - accuracy}
            rules = {k: v | value for k, v in first.metrics[part]["rules"].items()}
            told[part] = first.metrics[part] | {"rules": rules}
        (path / "metrics.json").write_text(json.dumps(told))
        (path / "config.json").write_text(TrainConfig(**options).to_json())
        made.append(Run(path))
        for file in path.iterdir():
            os.utime(file, (1e9 + 60 * len(made),) * 2)
        return made[-1]

    return write


@pytest.fixture
def root(make) -> Path:
    """A folder with three runs: the oldest is neither the best nor the first by name."""
    make("middle", 0.6, arch="densenet121", size=64, epochs=5)
    make("good", 0.8, arch="resnet18", size=224, lr=1e-4)
    return make("bad", 0.3, arch="densenet169", compile=True, monitor="macro_auc").path.parent
