"""A whole search: its workers on this machine, the best trial trained again, and what was found."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lesionfast.config import TrainConfig, read_options
from lesionfast.errors import LesionfastError
from lesionfast.files import check_target
from lesionfast.models.fusion import REGISTRIES
from lesionfast.run import Run
from lesionfast.training.search.space import read_settings
from lesionfast.training.search.trials import Search, import_optuna, trial_table
from lesionfast.training.search.winner import Price, price_choice, train_best
from lesionfast.training.speed.budget import read_duration

logger = logging.getLogger("lesionfast")

TRIALS, PAUSE = 20, 1.0  # by default; seconds
LOG, STORAGE = "worker-{}.log", "LESIONFAST_STORAGE"


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found: itself, the run of the best trial, and what its choosing costs."""

    search: Search
    run: Run
    price: Price

    def __repr__(self) -> str:
        return f"{self.search.path}: {self.price.words()}"

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial: its number, state, value, options, seconds, and error if it failed."""
        return trial_table(self.search)

    def draw(self) -> list[Path]:
        """Draw values, options and what matters, to figures of its folder; return their paths."""
        from lesionfast.reporting.search import draw_search, find_importance

        study, folder = self.search.study, self.search.path / "figures"
        return draw_search(study, folder, self.price.by, find_importance(study))


def search(
    space: str | Path | Mapping[str, Any] | None = None,
    out: str | Path = "runs/search",
    *,
    trials: int | None = None,
    workers: int = 1,
    budget: str | None = None,
    storage: str | None = None,
    heads: bool = False,
    by: str = "macro_auc",
    sampler: str = "tpe",
    prune: str = "asha",
    **options: Any,
) -> Found:
    """Try values of options, train the best trial again, and return what was found.

    `space` is a TOML file or what one has below [space], such as `{"lr": {"log": [1e-4, 1e-2]}}`;
    by default it is the space of this package (with `heads` that of heads alone). `options` are
    those of `lesionfast train`, which stay. One metric decides: of the validation images, or of all
    out-of-fold predictions with `folds`. Trials predict no test images; the best, trained again,
    does. There are `trials` (default: 20), or as many as the `budget` of time allows, such as "2h".
    The same call again goes on with the search in the folder `out`, also from other machines at
    the same time. Raises `LesionfastError` for whatever the user can fix, and
    `TrainingInterrupted` after Ctrl-C.

    >>> small = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1}
    >>> lf.search({"lr": [1e-3, 1e-2]}, trials=1, **small).run.finished
    True
    """
    import_optuna()
    options = read_options(TrainConfig, options)
    settings = read_settings(space, options, heads=heads, by=by, sampler=sampler, pruner=prune)
    check_numbers(trials, workers, budget)
    return run_search(Search.begin(out, settings, storage), trials, workers, budget)


def run_search(
    search: Search, trials: int | None = None, workers: int = 1, budget: str | None = None
) -> Found:
    """Work on a search with so many workers on this machine; return what it found."""
    check_numbers(trials, workers, budget)
    until, wanted = end_of(budget), count_wanted(trials, budget)
    if why := search.settings.unpruned:
        logger.info("no trial is stopped early: %s", why)
    with threads_shared(workers), ExitStack() as stack:
        helpers = [
            stack.enter_context(start_worker(search, number, wanted, budget))
            for number in range(2, workers + 1)
        ]
        search.work(wanted, until)
        for number, helper in enumerate(helpers, 2):
            if helper.wait():
                logger.warning(
                    "worker %d stopped with an error, so the others did its trials; see %s",
                    *(number, search.path / LOG.format(number)),
                )
    search.work(wanted, until)  # what a worker lost that was killed
    wait_for_others(search)
    price = price_choice(search)
    return Found(search, train_best(search), price)


def check_numbers(trials: int | None, workers: int, budget: str | None) -> None:
    """Raise `LesionfastError` for numbers and times that no search takes, before data is read."""
    count_wanted(trials, budget)
    end_of(budget)
    if workers < 1:
        raise LesionfastError(f"--workers is {workers}; type a whole number from 1, such as 2.")


def count_wanted(trials: int | None, budget: str | None) -> int | None:
    """Return how many trials are wanted, None if the time decides."""
    if trials is not None and trials < 1:
        raise LesionfastError(f"--trials is {trials}; type a whole number from 1, such as 20.")
    return trials or (None if budget else TRIALS)


def end_of(budget: str | None) -> float | None:
    """Return when a budget of time ends, by `time.monotonic`; None without one."""
    return time.monotonic() + read_duration(budget) if budget else None


def wait_for_others(search: Search) -> None:
    """Wait for the trials of workers elsewhere, which may be better than all that have ended."""
    while search.in_state("RUNNING"):
        time.sleep(PAUSE)
        search.reap()


def join(path: str | Path, trials: int | None, budget: str | None, storage: str | None) -> None:
    """Work on a search that is there, and leave its end to others."""
    wanted, until = count_wanted(trials, budget), end_of(budget)
    Search(path, storage).work(wanted, until)


@contextmanager
def start_worker(
    search: Search, number: int, wanted: int | None, budget: str | None
) -> Iterator[subprocess.Popen]:
    """Run another process that joins a search, until this one is left. Its log is in the folder.

    Raises `LesionfastError` for what was registered in a notebook, which it could not find.
    """
    modules = {m for registry in REGISTRIES.values() for m in registry.modules.values() if m}
    if "__main__" in modules:
        raise LesionfastError(
            "other workers can't find what was registered in a notebook or a script. Move it into "
            "a module and import that, or leave --workers out."
        )
    imports = [word for module in sorted(modules) for word in ("--import", module)]
    given: Mapping[str, Any] = {"--trials": wanted, "--budget": budget}
    typed = [word for flag, value in given.items() if value for word in (flag, str(value))]
    command = [sys.executable, "-m", "lesionfast", *imports, "search"]
    hidden = {STORAGE: search.address} if search.address else {}  # with its password
    check_target(search.path / LOG.format(number))
    with (search.path / LOG.format(number)).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(  # noqa: S603 - this Python, a list without a shell
            [*command, "--join", str(search.path), *typed],
            **{"stdout": log, "stderr": log, "env": os.environ | hidden},
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


@contextmanager
def threads_shared(workers: int) -> Iterator[None]:
    """Give each of several workers its share of the processors."""
    import torch

    if workers == 1:
        yield
        return
    before, threads = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    share = max(1, threads // workers)
    os.environ["OMP_NUM_THREADS"] = str(share)
    torch.set_num_threads(share)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
