"""The trials of a search: any number of workers claim, train and record them, and may be killed."""

import logging
import math
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pandas as pd
from fastai.callback.core import Callback
from filelock import FileLock, Timeout

from lesionfast.config import TrainConfig
from lesionfast.data.split import format_split, load_dataset, write_split
from lesionfast.errors import DamageError, LesionfastError, TrainingInterrupted, shell_quote
from lesionfast.files import (
    REASONS,
    check_shape,
    check_target,
    damage_explained,
    error_number,
    format_bytes,
    read_json,
    read_small_text,
    write_json,
    write_text,
)
from lesionfast.run import FEATURES, Run
from lesionfast.training.callbacks.schedule import current_phase
from lesionfast.training.callbacks.tracking import history_columns
from lesionfast.training.search.space import OBJECTIVES, Settings, find_difference
from lesionfast.training.study import SharedData
from lesionfast.training.trackers.recording import check_trackers

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger("lesionfast")

SETTINGS, SPLIT, JOURNAL = "search.json", "split.csv", "journal.log"
PLACE = "place.json"  # where the trials are kept, and the name that they have there
PASSWORD = re.compile(r"(://[^:/@]*):[^@]*@")
HOPELESS = 3  # trials that fail before any has finished
FIRST_RUNG = 2  # epochs of the last phase before a trial can be stopped
NAME = "try-{:04d}"
HEAVY = ("weights.safetensors", FEATURES)  # what is removed when a trial has ended
# what a trial says of itself; `AGAIN` are the values of one that is tried again
LOST, TRY, ERROR, SECONDS, AGAIN = "lost", "try", "error", "seconds", "again"
ABOUT = {"lost?": bool, "try?": range(10**6), "error?": str, "seconds?": float}
ABOUT |= {"again?": {str: object}}
MOST_SECONDS = 1e9  # of a trial: thirty years
MOST_JOURNAL = 2**28  # bytes: ten thousand trials of a hundred epochs have 160 MB
COPY = "Copy the whole folder again, or type another --out for a new search."


class Search:
    """A search in its folder: settings, split, the journal of its trials, and their runs.

    All its workers share the folder. `storage` is the address of a database in place of the
    journal, such as postgresql://user@host/name. Raises `LesionfastError` for a folder that is not
    a search, for another storage than it began with, and without Optuna.
    """

    def __init__(self, path: str | Path, storage: str | None = None) -> None:
        self.path, self.address = Path(path), storage
        if not (self.path / PLACE).is_file():
            raise LesionfastError(
                f"{path} is not a search. Begin one with lesionfast search, or type its folder."
            )
        self.place = read_json(self.path / PLACE, {"name": str, "storage": (str, None)}, COPY)
        if self.place["storage"] != hide_password(storage):
            began = self.place["storage"]
            raise LesionfastError(
                f"{path} keeps its trials in {began or 'its own folder'}. "
                f"{f'Type --storage {shell_quote(began)}' if began else 'Leave --storage out.'}"
            )
        with damage_explained(self.path / SETTINGS, COPY):
            self.settings = Settings.from_json(read_small_text(self.path / SETTINGS))
        self.load = SharedData(self.path / SPLIT)
        self.study = self.open_study()
        with damage_explained(self.path / (PLACE if storage else JOURNAL), COPY):
            check_trials(self.study.get_trials(deepcopy=False), self.settings)

    @classmethod
    def begin(cls, path: str | Path, settings: Settings, storage: str | None = None) -> "Search":
        """Make a search, or join one of the same settings and data that is there.

        Raises `LesionfastError` if the one that is there is another.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / ".begin.lock"):
            check_trackers(settings.base.log)
            df = load_dataset(settings.base)
            if not (path / PLACE).is_file():
                write_split(df, path / SPLIT)
                write_text(path / SETTINGS, settings.to_json())
                place = {"name": f"lesionfast-{uuid4().hex}", "storage": hide_password(storage)}
                write_json(path / PLACE, place)
        search = cls(path, storage)
        changed = find_difference(search.settings, settings)
        if not changed and (path / SPLIT).read_bytes() != format_split(df).encode():
            changed = f"the data no longer gives its {SPLIT}"
        if changed:
            raise LesionfastError(
                f"{path} was begun with other options: {changed}. Type the earlier ones to go on "
                "with it, or another --out for a new search."
            )
        search.load.keep(df, settings.base)
        return search

    def open_study(self) -> "Study":
        """Return Optuna's study, made by the first that asks."""
        optuna = import_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if (self.address or "").startswith("redis"):
            raise LesionfastError(
                "--storage names a Redis server, which keeps pickles: who may write there may run "
                "code here. Type the address of a database such as postgresql://user@host/name."
            )
        try:
            return optuna.create_study(
                storage=self.address or open_journal(self.path / JOURNAL),
                study_name=self.place["name"],
                direction="maximize" if self.settings.more_is_better else "minimize",
                load_if_exists=True,
            )
        except Exception as error:  # of whichever driver and server
            if not self.address:
                raise DamageError(describe_damage(self.path / JOURNAL, error)) from None
            raise LesionfastError(
                f"--storage {hide_password(self.address)} can't be opened: "
                f"{hide_password(str(error).splitlines()[0])} Install its driver (for PostgreSQL: "
                "pip install 'psycopg[binary]'), and check that the server is running."
            ) from None

    @property
    def trials(self) -> "list[FrozenTrial]":
        """The trials that count: all but those that were lost with their worker."""
        return [t for t in self.study.get_trials(deepcopy=False) if not t.user_attrs.get(LOST)]

    def in_state(self, *states: str) -> "list[FrozenTrial]":
        """Return the trials that are in one of Optuna's states, by their names."""
        return [trial for trial in self.trials if trial.state.name in states]

    @property
    def best(self) -> "FrozenTrial":
        """The best finished trial; of equal ones the first. Raises `LesionfastError` for none."""
        finished = [t for t in self.in_state("COMPLETE") if t.value is not None]
        if not finished:
            failed = self.in_state("FAIL")
            why = f" The first error: {failed[0].user_attrs.get(ERROR)}" if failed else ""
            raise LesionfastError(
                f"no trial of {self.path} has finished.{why} Type the command again for more, "
                "with a higher --trials or a longer --budget."
            )
        sign = 1 if self.settings.more_is_better else -1
        return max(finished, key=lambda t: (sign * t.value, -number_of(t)))

    def run_of(self, trial: "FrozenTrial") -> Run:
        """Return the run of a trial, which has no weights."""
        return Run(self.path / NAME.format(number_of(trial)))

    # Claiming

    def claim(self, wanted: int | None) -> "Claim | None":
        """Return the next trial, which is this worker's; None if `wanted` have begun.

        A trial whose worker is gone is lost, and tried again with the same values.
        """
        with FileLock(self.path / ".claim.lock"):
            self.reap()
            begun = [t for t in self.trials if t.state.name != "WAITING"]
            if wanted is not None and len(begun) >= wanted:
                return None
            queued = [number_of(trial) for trial in self.in_state("WAITING")]
            tries = [number_of(trial) for trial in self.study.get_trials(deepcopy=False)]
            number = queued[0] if queued else max(tries, default=-1) + 1
            self.study.sampler = make_sampler(self.settings, number)
            self.study.pruner = make_pruner(self.settings)
            trial = self.study.ask()
            if TRY not in trial.user_attrs:
                trial.set_user_attr(TRY, number)
            values = {one.name: one.suggest(trial) for one in self.settings.space}
            lock = FileLock(self.lock_of(trial.number))
            lock.acquire(timeout=0)
        return Claim(trial, values, lock)

    def reap(self) -> None:
        """Give up trials whose workers are gone, and queue their values again."""
        from optuna.trial import Trial

        for old in self.in_state("RUNNING"):
            lock = FileLock(self.lock_of(old.number))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            lock.release()
            if any(
                t.number == old.number for t in self.in_state("RUNNING")
            ):  # it has not just ended
                logger.info("%s was lost with its worker; it is tried again", self.run_of(old).path)
                self.give_up(Trial(self.study, old._trial_id))

    def give_up(self, trial: "Trial") -> None:
        """Queue the values of a trial for the next claim, and record that it was lost.

        A worker may be gone before it has drawn all of them: then they are drawn again, and come
        out the same. One that is gone in here leaves the trial queued, once.
        """
        number = trial.user_attrs.get(TRY)
        values = trial.user_attrs.get(AGAIN, {}) | trial.params
        if values.keys() < {one.name for one in self.settings.space}:
            values = {}
        others = self.study.get_trials(deepcopy=False)
        queued = any(t.number > trial.number and number_of(t) == number for t in others)
        if number is not None and not queued:
            self.study.enqueue_trial(values, user_attrs={TRY: number, AGAIN: values})
        trial.set_user_attr(LOST, True)
        self.study.tell(trial.number, state=trial_state("FAIL"))

    def lock_of(self, number: int) -> Path:
        """Return the file that the worker of a trial holds."""
        return self.path / f".trial-{number}.lock"

    # Training

    def work(self, wanted: int | None, until: float | None = None) -> None:
        """Try until `wanted` trials have begun, or the time `until` (of `time.monotonic`) is near.

        Raises `TrainingInterrupted` after Ctrl-C; its trial is tried again later.
        """
        while until is None or time.monotonic() + self.mean_seconds() <= until:
            if (claim := self.claim(wanted)) is None:
                break
            try:
                self.attempt(claim)
            finally:
                claim.lock.release()
                self.lock_of(claim.trial.number).unlink(missing_ok=True)
            logger.info("%s", self.describe(wanted))
            failed = self.in_state("FAIL")
            if len(failed) >= HOPELESS and len(failed) == len(self.trials):
                raise LesionfastError(
                    f"the first {len(failed)} trials of {self.path} failed. The first error: "
                    f"{failed[0].user_attrs.get(ERROR)} Type the corrected command with another "
                    "--out."
                )

    def attempt(self, claim: "Claim") -> None:
        """Train a trial, and record its value, that it was pruned, or why it failed."""
        import optuna

        trial, started = claim.trial, time.monotonic()
        name = NAME.format(trial.user_attrs[TRY])
        try:
            run = self.train(trial, self.settings.configure(claim.values), name)
            value = read_objective(run, self.settings.by)
        except optuna.TrialPruned:
            trial.set_user_attr(SECONDS, round(time.monotonic() - started, 2))
            self.study.tell(trial, state=trial_state("PRUNED"))
            shutil.rmtree(self.path / name, ignore_errors=True)
        except (TrainingInterrupted, KeyboardInterrupt):
            self.give_up(trial)
            raise TrainingInterrupted(
                f"the search was interrupted in {self.path / name}. Type the same command again "
                "to continue."
            ) from None
        except Exception as error:  # whatever goes wrong with one must not stop the others
            if error_number(error) in REASONS:  # but with the disk it would be the same for all
                self.give_up(trial)
                raise
            Run(self.path / name).remove(*HEAVY)
            kind = "" if isinstance(error, LesionfastError) else f"{type(error).__name__}: "
            logger.warning("%s failed: %s%s", self.path / name, kind, error)
            trial.set_user_attr(ERROR, f"{kind}{error}")
            self.study.tell(trial, state=trial_state("FAIL"))
        else:
            trial.set_user_attr(SECONDS, round(time.monotonic() - started, 2))
            self.study.tell(trial, value)

    def train(self, trial: "Trial", config: TrainConfig, name: str) -> Run:
        """Return the run of a trial, without weights: trained on images that are not test."""
        from lesionfast.training.experiment import find_composite, train_once

        shutil.rmtree(self.path / name, ignore_errors=True)  # of a worker that was killed
        config = replace(config, split=str(self.path / SPLIT))
        df = self.load(config)
        df = df[df["split"] != "test"].reset_index(drop=True)
        prunes = not self.settings.unpruned and find_composite(config) is None
        cbs = [ReportEpochs(trial, OBJECTIVES[self.settings.by][0])] if prunes else []
        with quiet_console():
            run = train_once(df, config, self.path, name, cbs=cbs)
        if run.metrics["status"] == "interrupted":
            raise TrainingInterrupted(f"{run.path} was interrupted.")
        run.remove(*HEAVY)
        return run

    def mean_seconds(self) -> float:
        """Return how long a finished trial took on average, 0 while there is none."""
        ended = self.in_state("COMPLETE", "PRUNED")
        took = [trial.user_attrs[SECONDS] for trial in ended if SECONDS in trial.user_attrs]
        return sum(took) / len(took) if took else 0.0

    def describe(self, wanted: int | None) -> str:
        """Return the state in one line: tries, the best, pruned and failed ones, time left."""
        ended = self.in_state("COMPLETE", "PRUNED", "FAIL")
        parts = [f"{len(ended)}{f' of {wanted}' if wanted else ''} trials"]
        if self.in_state("COMPLETE"):
            best = self.best
            parts.append(
                f"best {self.settings.by} {best.value:.4f} ({self.run_of(best).path.name})"
            )
        counts = {"pruned": len(self.in_state("PRUNED")), "failed": len(self.in_state("FAIL"))}
        parts += [f"{count} {word}" for word, count in counts.items() if count]
        running = max(1, len(self.in_state("RUNNING")) + 1)
        if wanted and (left := wanted - len(ended)) > 0:
            parts.append(
                f"about {max(1, round(left * self.mean_seconds() / running / 60))} min left"
            )
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Claim:
    """A trial that one worker has: Optuna's, its values, and the lock that says it is alive."""

    trial: "Trial"
    values: dict[str, Any]
    lock: FileLock


class ReportEpochs(Callback):
    """Report each epoch to a trial, and stop it if the pruner finds it hopeless.

    `column` is that of the history. Epochs are those of the last phase, whose cycle is the same for
    all trials: the head alone, before it, costs next to nothing.
    """

    order = 66  # after the epoch has been written

    def __init__(self, trial: "Trial", column: str) -> None:
        self.trial, self.column = trial, column

    def after_epoch(self) -> None:
        """Raise `optuna.TrialPruned` for a hopeless trial."""
        import optuna

        phase = current_phase(self.learn)
        if phase.end < self.n_epoch:
            return
        place = history_columns(self.learn).index(self.column)
        value = float(self.recorder.values[-1][place])
        self.trial.report(value, step=self.epoch + 1 - phase.first)
        if self.epoch + 1 < self.n_epoch and self.trial.should_prune():
            raise optuna.TrialPruned(f"epoch {self.epoch + 1}")  # fastai reads the words


@contextmanager
def quiet_console() -> Iterator[None]:
    """Keep what a training says out of the console; its own log.txt has all of it."""
    handlers = list(logger.handlers)

    def says_nothing(record: logging.LogRecord) -> bool:
        return False

    for handler in handlers:
        handler.addFilter(says_nothing)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(says_nothing)


def import_optuna() -> Any:
    """Return Optuna; raises `LesionfastError` with what to type if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise LesionfastError(
            "a search needs Optuna. Type: pip install 'lesionfast[search]'"
        ) from None
    return optuna


def open_journal(file: Path) -> Any:
    """Return Optuna's storage in a file that many processes append to."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    check_target(file)
    if file.exists() and file.stat().st_size > MOST_JOURNAL:
        raise LesionfastError(
            f"{file} has {format_bytes(file.stat().st_size)}, and at most "
            f"{format_bytes(MOST_JOURNAL)} are read. Type another --out for a new search."
        )
    lock = file.with_name(f"{file.name}.lock")
    if lock.is_symlink():  # not ours; one that leads nowhere would be waited for without an end
        lock.unlink()
    return JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))


def describe_damage(file: Path, error: Exception) -> str:
    """Return what is wrong with a journal that Optuna can't read."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
    return f"{file} is damaged: {why}. {COPY}"


def check_trials(trials: "list[FrozenTrial]", settings: Settings) -> None:
    """Raise `ValueError` unless trials say of themselves what this search wrote."""
    space = {one.name: one for one in settings.space}
    for trial in trials:
        check_shape(trial.user_attrs, ABOUT, f"trial {trial.number}")
        check_shape(trial.values, ([float], None), f"the values of trial {trial.number}")
        if len(trial.values or [0]) != 1 or trial.values == []:
            raise ValueError(f"trial {trial.number} has not one value")
        if not 0 <= trial.user_attrs.get(SECONDS, 0) <= MOST_SECONDS:
            raise ValueError(f"trial {trial.number} took {trial.user_attrs[SECONDS]} s")
        for name, value in (trial.user_attrs.get(AGAIN, {}) | trial.params).items():
            if name not in space or not space[name].has(value):
                raise ValueError(f"trial {trial.number} has {str(name)[:40]!r}: {value!r:.40}")


def make_sampler(settings: Settings, number: int) -> "BaseSampler":
    """Return the sampler of one try, the same for the same seed and number."""
    from optuna.samplers import RandomSampler, TPESampler

    seed = (settings.base.seed * 1_000_003 + number) % 2**32
    if settings.sampler == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, constant_liar=True)


def make_pruner(settings: Settings) -> "BasePruner":
    """Return the pruner; steps are epochs of the last phase."""
    from optuna.pruners import HyperbandPruner, NopPruner, SuccessiveHalvingPruner

    first, last = FIRST_RUNG, max(settings.base.epochs, FIRST_RUNG)
    if settings.pruner == "asha":
        return SuccessiveHalvingPruner(min_resource=first, reduction_factor=2)
    if settings.pruner == "hyperband":
        return HyperbandPruner(min_resource=first, max_resource=last, reduction_factor=2)
    return NopPruner()


def read_objective(run: Run, by: str) -> float:
    """Return the metric of a run on validation; balanced accuracy is by the rule in use.

    Raises `LesionfastError` where it is not defined.
    """
    valid = run.metrics["valid"]
    found = valid["rules"][run.model["rule"]] if by == "balanced_accuracy" else valid
    if found[by] is None or not math.isfinite(found[by]):
        raise LesionfastError(
            f"{by} is not defined on the validation images, which may lack a class. Type another "
            "--by, or a larger --val."
        )
    return float(found[by])


def hide_password(address: str | None) -> str | None:
    """Return an address without its password."""
    return address and PASSWORD.sub(r"\1:…@", address)


def number_of(trial: "FrozenTrial") -> int:
    """Return which try a trial is; one that is tried again keeps its number."""
    return int(trial.user_attrs.get(TRY, -1))


def trial_state(name: str) -> Any:
    """Return Optuna's state of that name."""
    from optuna.trial import TrialState

    return TrialState[name]


def trial_table(search: Search) -> pd.DataFrame:
    """Return one row a trial that counts: number, state, value, its options, seconds and error."""
    rows = [
        {
            "try": number_of(trial), "state": trial.state.name.lower(),
            search.settings.by: trial.value if trial.state.name == "COMPLETE" else None,
            **trial.params,
            "seconds": trial.user_attrs.get(SECONDS), "error": trial.user_attrs.get(ERROR),
        }
        for trial in search.trials
    ]  # fmt: skip
    return pd.DataFrame(rows).sort_values("try", ignore_index=True) if rows else pd.DataFrame()
