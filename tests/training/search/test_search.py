"""A search: spaces, trials of several workers, lost ones, and the run of the best."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("optuna")

from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError, TrainingInterrupted
from lesionfast.run import Run
from lesionfast.stats.bootstrap import out_of_bag_choice
from lesionfast.training.search.space import Settings, read_settings
from lesionfast.training.search.trials import Search, hide_password, make_sampler, trial_table
from lesionfast.training.search.winner import price_choice, train_best
from lesionfast.training.search.workers import run_search, search

SPACE = """
[defaults]
arch = "test_resnet"
weights = "none"
size = 32
epochs = 1
head_epochs = 0
tta = 1

[space]
lr = {log = [1e-4, 1e-2]}
dropout = {range = [0.0, 0.5]}
batch_size = [16, 32]
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """A space of short trainings on the built-in sample."""
    file = tmp_path / "space.toml"
    file.write_text(SPACE)
    return file


def command(space: Path, out: Path, *words: str) -> list[str]:
    """The command of a search whose values do not depend on the order of its trials."""
    fixed = ["--space", str(space), "--out", str(out), "--random", "--prune", "none"]
    return [sys.executable, "-m", "lesionfast", "search", *fixed, *words]


def values_of(opened: Search) -> dict[int, tuple]:
    """The values and the result of each finished trial, by its number."""
    done = opened.in_state("COMPLETE")
    found = {t.user_attrs["try"]: (sorted(t.params.items()), t.value) for t in done}
    assert len(found) == len(done), "two trials have one number"
    return found


def begin(space: Path, out: Path, **judged: str) -> Search:
    given = {"sampler": "random", "pruner": "none", "by": "macro_auc"} | judged
    storage = given.pop("storage", None)
    return Search.begin(out, read_settings(space, {}, **given), storage)


def test_killed_worker_costs_one_trial_and_changes_nothing(space: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    first = subprocess.Popen(command(space, out, "--trials", "1000", "--workers", "2"))
    try:
        wait_for(lambda: len(in_training(out)) == 2)
        kill_when(helper_of(first.pid), lambda: len(in_training(out)) == 2)
        ended = len(list(out.glob("try-*/metrics.json")))
        wait_for(lambda: len(list(out.glob("try-*/metrics.json"))) > ended + 1)
        kill_when(first.pid, lambda: len(in_training(out)) == 1)  # the lost one was tried again
    finally:
        first.kill()
        first.wait()
    begun = len(list(out.glob("try-*/")))
    again = begin(space, out)
    run_search(again, begun)
    assert not again.in_state("RUNNING", "WAITING")

    whole = begin(space, tmp_path / "whole")
    run_search(whole, begun)
    assert sorted(values_of(again)) == list(range(begun)) and values_of(again) == values_of(whole)
    assert again.best.params == whole.best.params


@pytest.mark.parametrize("drawn", [0, 1, 2, 3])
def test_worker_killed_while_it_drew_values_leaves_all_of_them_to_the_next(
    space: Path, tmp_path: Path, drawn: int
) -> None:
    wanted = begin(space, tmp_path / "whole").claim(None).values
    begun = begin(space, tmp_path / "killed")
    for _ in range(2):  # the one that tries again is killed as well
        begun.study.sampler = make_sampler(begun.settings, 0)
        trial = begun.study.ask()
        if "try" not in trial.user_attrs:
            trial.set_user_attr("try", 0)
        for one in begun.settings.space[:drawn]:
            one.suggest(trial)
        begun.reap()
    claim = begun.claim(None)
    assert claim.values == wanted and claim.trial.user_attrs["try"] == 0


def test_worker_killed_while_it_gave_a_trial_up_leaves_it_queued_once(
    space: Path, tmp_path: Path
) -> None:
    begun = begin(space, tmp_path / "s")
    claim = begun.claim(None)
    begun.study.enqueue_trial(claim.values, user_attrs={"try": 0, "again": claim.values})
    claim.lock.release()  # killed before it recorded that the trial was lost
    begun.reap()
    begun.reap()
    assert len(begun.in_state("WAITING")) == 1 and not begun.in_state("RUNNING")
    assert begun.claim(None).values == claim.values


def test_search_reads_its_data_once(
    space: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = begin(space, tmp_path / "s")
    config = replace(begun.settings.base, split=str(tmp_path / "s" / "split.csv"))
    kept = begun.load(config)
    assert caplog.text.count("using the built-in SYNTHETIC sample") == 1
    read = load_dataset(config, split=tmp_path / "s" / "split.csv")
    pd.testing.assert_frame_equal(kept, read)
    assert kept.attrs == read.attrs


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def in_training(out: Path) -> list[Path]:
    """The trials that have begun and not ended."""
    return [one for one in out.glob("try-*/") if not (one / "metrics.json").exists()]


def helper_of(pid: int) -> int:
    """The second worker of a search, which its first worker has started."""
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = [one for one in started if b"--join" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return int(found)


def kill_when(pid: int, condition: Callable[[], bool]) -> None:
    """Kill a process at a moment when a condition holds, which stopping it keeps from passing."""

    def is_the_moment() -> bool:
        os.kill(pid, signal.SIGSTOP)
        found = condition()
        os.kill(pid, signal.SIGKILL if found else signal.SIGCONT)
        return found

    wait_for(is_the_moment)


def test_trials_never_see_test_images_and_the_best_does(space: Path, tmp_path: Path) -> None:
    found = search(space, tmp_path / "s", trials=2, prune="none", sampler="random")
    for trial in found.search.in_state("COMPLETE"):
        run = found.search.run_of(trial)
        assert set(run.split["split"]) == {"train", "valid"}
        assert "test" not in run.metrics and not run.holds("weights.safetensors")
    assert "test" in found.run.metrics and found.run.holds("weights.safetensors")
    best = found.search.best
    assert found.run.config.lr == best.params["lr"]
    assert found.run.metrics["valid"]["macro_auc"] == pytest.approx(best.value)
    again = search(space, tmp_path / "s", trials=2, prune="none", sampler="random")
    assert again.run.metrics == found.run.metrics  # it was not trained again


def test_trial_that_fails_is_recorded_and_the_others_go_on(space: Path, tmp_path: Path) -> None:
    space.write_text(SPACE + 'loss = ["cross_entropy", "logit_adjusted"]\ntau = [0.5]\n')
    begun = begin(space, tmp_path / "s")
    begun.work(6)
    table = trial_table(begun)
    failed = table[table["state"] == "fail"]
    assert (failed["loss"] == "cross_entropy").all() and len(failed)
    assert failed["error"].str.contains("--tau needs --loss logit_adjusted").all()
    assert (table.loc[table["state"] == "complete", "loss"] == "logit_adjusted").all()


def test_hopeless_trials_are_pruned(space: Path, tmp_path: Path) -> None:
    space.write_text(SPACE.replace("epochs = 1", "epochs = 4").replace("[1e-4", "[1e-9"))
    begun = begin(space, tmp_path / "s", pruner="asha")
    begun.work(10)
    pruned = begun.in_state("PRUNED")
    assert pruned and len(pruned) + len(begun.in_state("COMPLETE")) == 10
    assert {max(t.intermediate_values) for t in pruned} == {2}  # the rung before the last epoch
    assert not any(begun.run_of(t).path.exists() for t in pruned)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning = [1]", "unknown field 'learning'"),
        ("val = [0.1, 0.2]", "share data, split, seed"),
        ("ema = {log = [0.1, 1.5]}", "ema"),
        ("ema = {log = [0.0, 0.5]}", "above 0"),
        ("ema = 0.5", "Write a list of values"),
        ('augment = {range = ["none", "strong"]}', "is not numeric"),
        ("weight_decay = {range = [0.1, 0.01]}", "the lower one first"),
    ],
)
def test_spaces_are_checked_before_anything_is_trained(
    space: Path, line: str, message: str
) -> None:
    space.write_text(SPACE + line + "\n")
    with pytest.raises(LesionfastError, match=re.escape(message)):
        read_settings(space, {})


def test_spaces_of_the_package_hold_and_typed_options_are_not_searched() -> None:
    for heads in (False, True):
        settings = read_settings(None, {"dropout": 0.1}, heads=heads)
        assert settings.base.dropout == 0.1
        assert "dropout" not in {one.name for one in settings.space}
        assert Settings.from_json(settings.to_json()) == settings


def test_other_settings_or_data_are_refused(space: Path, tmp_path: Path) -> None:
    begin(space, tmp_path / "s")
    with pytest.raises(LesionfastError, match=r"its by was another.*another --out"):
        begin(space, tmp_path / "s", by="log_loss")
    other = space.with_name("other.toml")
    other.write_text(SPACE.replace("size = 32", "size = 48"))
    with pytest.raises(LesionfastError, match="size was 32 and is 48 now"):
        begin(other, tmp_path / "s")
    with pytest.raises(LesionfastError, match="Leave --storage out"):
        Search(tmp_path / "s", "sqlite:///x")
    text = (tmp_path / "s" / "split.csv").read_text().replace("train", "valid", 1)
    (tmp_path / "s" / "split.csv").write_text(text)
    with pytest.raises(LesionfastError, match="data no longer gives its split.csv"):
        begin(space, tmp_path / "s")


def test_choosing_the_best_of_noise_is_priced() -> None:
    rng = np.random.default_rng(0)
    n = 300
    truth, lesions = rng.integers(0, 2, n), np.arange(n)
    scores = rng.random((20, n))  # no model is better than another: the true mean is 0.5

    def mean_of(values: np.ndarray):
        return lambda weights: (weights * values).sum(axis=1) / weights.sum(axis=1)

    metrics = [mean_of(values) for values in scores]
    drawn = out_of_bag_choice(metrics, truth, lesions, resamples=1000)
    best = scores.mean(axis=1).max()
    assert abs(drawn.mean() - 0.5) < abs(best - 0.5)
    with_rare = np.where(
        np.arange(n) == 7, 2, truth
    )  # the only lesion of its class is drawn always
    assert np.isnan(out_of_bag_choice(metrics, with_rare, lesions, resamples=1000)).all()
    alone = out_of_bag_choice(metrics[:1], truth, lesions, resamples=1000)
    assert alone.mean() == pytest.approx(scores[0].mean(), abs=0.003)


def test_folds_are_judged_by_pooled_predictions(space: Path, tmp_path: Path) -> None:
    options = {"folds": 2, "trials": 2, "prune": "none"}
    found = search(space, tmp_path / "s", **options)
    run = found.search.run_of(found.search.best)
    counts = run.split["split"].value_counts()
    assert run.is_out_of_fold and run.metrics["valid"]["n"] == len(run.predictions)
    assert counts.get("test", 0) == 0 and price_choice(found.search).trials == 2


def test_head_alone_learns_on_features_that_are_kept(tmp_path: Path) -> None:
    space = tmp_path / "heads.toml"
    space.write_text(
        '[defaults]\nunfreeze = "head"\nsize = 32\ntta = 1\n[space]\nhead_lr = {log = [1e-3, 1e-1]}'
    )
    found = search(space, tmp_path / "s", trials=2)
    assert set(found.run.history["phase"]) == {"head"}
    assert len(found.run.history) == found.run.config.head_epochs
    assert found.search.settings.unpruned == "trials of the head alone take seconds"


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a database that a server started here has."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    user = shutil.which("runuser") if os.getuid() == 0 else None
    if not programs or (os.getuid() == 0 and not user):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="its driver is missing: pip install psycopg[binary]")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    as_user = [user, "-u", "postgres", "--"] if user else []
    if user:
        shutil.chown(folder, "postgres")
    pg_ctl, data = str(programs[-1]), str(folder / "data")

    def run(*words: str) -> None:
        subprocess.run([*as_user, pg_ctl, "-D", data, *words], check=True, cwd=folder)

    run("initdb", "-o", "--auth=trust --username=postgres")
    run("start", "-w", "-l", str(folder / "log"), "-o", f"-c listen_addresses='' -k {folder}")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        run("stop", "-m", "immediate")
        shutil.rmtree(folder, ignore_errors=True)


def test_workers_share_a_database(space: Path, tmp_path: Path, postgres: str) -> None:
    out = tmp_path / "s"
    words = ("--trials", "6", "--workers", "2", "--storage", postgres)
    subprocess.run(command(space, out, *words), check=True)
    assert sorted(values_of(Search(out, postgres))) == list(range(6))
    assert not (out / "journal.log").exists()


@pytest.mark.parametrize("address", ["postgresql://nobody@localhost:1/x", "nonsense"])
def test_database_that_does_not_answer_is_said(space: Path, tmp_path: Path, address: str) -> None:
    with pytest.raises(LesionfastError, match=r"--storage .* can't be opened"):
        begin(space, tmp_path / "s", storage=address)


def test_wrong_data_leaves_the_folder_free_and_hopeless_searches_stop(
    space: Path, tmp_path: Path
) -> None:
    missing = read_settings(space, {"data": str(tmp_path / "nothing")})
    with pytest.raises(LesionfastError):
        Search.begin(tmp_path / "s", missing)
    space.write_text(SPACE + "tau = [0.5]\n")
    begun = begin(space, tmp_path / "s")
    with pytest.raises(LesionfastError, match=r"the first 3 trials .* --tau needs"):
        begun.work(20)
    assert len(begun.trials) == 3


def test_interrupted_training_of_the_best_is_resumed(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lesionfast.training import experiment

    begun = begin(space, tmp_path / "s")
    begun.work(1)
    whole = experiment.train_once

    def interrupted(*given: object, **named: object) -> Run:
        run = whole(*given, **named)
        run.write_json("metrics.json", run.metrics | {"status": "interrupted"})
        return Run(run.path)

    monkeypatch.setattr(experiment, "train_once", interrupted)
    with pytest.raises(TrainingInterrupted, match="best-0000 was interrupted"):
        train_best(begun)
    monkeypatch.undo()
    run = train_best(begun)
    assert run.path.name == "best-0000" and run.metrics["status"] == "finished"


def test_what_can_not_be_compared_by_epoch_is_not_pruned(space: Path) -> None:
    def settings(line: str, by: str = "macro_auc") -> Settings:
        space.write_text(SPACE.replace("epochs = 1\n", "").replace("head_0", "") + line)
        return read_settings(space, {}, by=by)

    space.write_text(SPACE)
    assert read_settings(space, {}).unpruned == ""
    assert "different epochs" in settings("epochs = [1, 2]\n").unpruned
    assert "losses" in settings('loss = ["focal", "ldam"]\n', "log_loss").unpruned


def test_show_and_join_say_what_is_no_search_and_what_was_typed_in_vain(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from lesionfast.cli import app

    for words, message in (
        (["show", str(tmp_path)], "is not a search"),
        (["--join", str(tmp_path)], "is not a search"),
        (["--join", str(tmp_path), "--lr", "0.1"], "--lr was given too"),
    ):
        done = CliRunner().invoke(app, ["search", *words])
        assert isinstance(done.exception, LesionfastError) and message in str(done.exception)


def test_passwords_are_hidden() -> None:
    assert hide_password("postgresql://me:secret@host/db") == "postgresql://me:…@host/db"
    assert hide_password(None) is None


@pytest.mark.parametrize("text", [None, "{}", "[]", '{"base": 7, "space": {}}', "{"])
def test_settings_of_a_wrong_form_are_a_sentence(tmp_path, text):
    (tmp_path / "place.json").write_text('{"name": "x", "storage": null}')
    if text is not None:
        (tmp_path / "search.json").write_text(text)
    with pytest.raises(LesionfastError, match=r"search\.json is .*Copy the whole folder"):
        Search(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", '{"name": 7, "storage": null}', '{"name": "x"}', "{"])
def test_a_place_of_a_wrong_form_is_a_sentence(tmp_path, text):
    (tmp_path / "place.json").write_text(text)
    with pytest.raises(LesionfastError, match=r"place\.json is damaged: .*Copy the whole folder"):
        Search(tmp_path)
