"""Drift: nothing is said of pictures like those of validation, and what changed is named."""

import re
from collections import Counter
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from lesionfast.cli import app
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import move_prior
from lesionfast.errors import LesionfastError
from lesionfast.run import Run
from lesionfast.serving.bundle import Bundle
from lesionfast.serving.monitoring.display import describe_drift, draw_drift, drift_to_dict
from lesionfast.serving.monitoring.drift import (
    ALIKE,
    ANSWERS,
    DIFFERS,
    FEW,
    compare_counts,
    compare_outliers,
    cut_periods,
    group_numbers,
    index_by_chance,
    measure_drift,
    pictures_needed,
    stability_index,
)
from lesionfast.serving.monitoring.log import DIGITS, Lines, classify, hash_decisions, read_log
from lesionfast.serving.predictor import Predictor

WEIGHTS = b"weights"


@pytest.fixture
def checked(make_run) -> Run:
    """A run with 2,000 validation images of people with ages and sexes."""
    rng = np.random.default_rng(0)
    n = 4000
    ages = np.where(rng.random(n) < 0.05, np.nan, rng.normal(52, 16, n).clip(0, 85) // 5 * 5)
    run = make_run(n=n // 2, age=ages, sex=rng.choice(["female", "male"], n))
    encoder = MetadataEncoder(["age", "sex"]).fit(run.predictions)
    run.write_text("encoder.json", encoder.to_json())
    run.write("weights.safetensors", lambda path: path.write_bytes(WEIGHTS))
    return Run(run.path)


def log_of(run: Run, rows: pd.DataFrame, start: str = "2026-01-01", hours: float = 1) -> Lines:
    """The log that predicting the rows of a run's predictions writes."""
    bundle, names = Bundle.from_run(run), list(run.classes)
    probabilities = rows[[f"p_{name}" for name in names]].to_numpy()
    decision = np.array(names)[run.decision_rule.decide(probabilities)]
    times = pd.date_range(start, periods=len(rows), freq=f"{hours}h", tz="UTC")
    about = {"version": "0", "model": "m", "decisions": hash_decisions(bundle), "split": "s"}
    chances = bundle.calibrator.apply(probabilities)
    lines = []
    for place, row in enumerate(rows.to_dict("records")):
        known = {one["name"]: classify(one, row[one["name"]]) for one in bundle.encoder.learned}
        answer = {"decision": str(decision[place])}
        answer |= {"probabilities": dict(zip(names, chances[place].tolist(), strict=True))}
        line = {"time": times[place].isoformat(), "input": str(place), **about}
        lines.append(line | {"metadata": known, "answer": answer})
    return Lines(lines)


def test_validation_images_and_others_like_them_raise_no_alarm(checked):
    for split in ("valid", "test"):
        rows = checked.predictions_of(split)
        drift = measure_drift(checked, log_of(checked, rows, hours=0.5))
        assert {shift.verdict for shift in drift.shifts.values()} == {ALIKE}
        assert not drift.alarms and len(drift.periods) > 2
        assert describe_drift(drift)[0].startswith("The 2,000 pictures are like those")


def test_draws_of_one_population_are_alike_but_for_one_in_a_hundred(checked):
    rng, rows = np.random.default_rng(1), checked.predictions_of("valid")
    lines = log_of(checked, rows).lines
    alarms = 0
    for _ in range(40):
        places = enumerate(rng.integers(0, 2000, 150))
        some = [lines[place] | {"input": str(n)} for n, place in places]
        drift = measure_drift(checked, Lines(some), "1000")
        alarms += bool(drift.alarms)
    assert alarms <= 2


def test_older_patients_are_named(checked):
    rows = checked.predictions_of("test")
    rows["age"] = (rows["age"] + 25).clip(upper=100)
    drift = measure_drift(checked, log_of(checked, rows))
    assert [shift.what for shift in drift.alarms] == ["age"]
    assert describe_drift(drift)[0].startswith(
        "The pictures differ from those the model was checked on: age (stability index"
    )


def test_another_prevalence_is_named(checked):
    rows = checked.predictions_of("test")
    rows = rows[(rows["target"] != "nv") | (np.arange(len(rows)) % 8 == 0)]
    drift = measure_drift(checked, log_of(checked, rows))
    assert [shift.what for shift in drift.alarms] == [ANSWERS]
    before, now, error = drift.means["nv"]
    assert before - now > error


@pytest.mark.parametrize("last", ["own", "clinic"])
def test_lines_for_other_class_shares_are_moved_to_those_of_the_last(checked, caplog, last):
    own, bundle = log_of(checked, checked.predictions_of("test")), Bundle.from_run(checked)
    clinic = np.linspace(1, 3, len(bundle.classes))
    clinic = (clinic / clinic.sum()).tolist()
    other = deepcopy(own)
    for line in other.lines:
        chances = np.array([[*line["answer"]["probabilities"].values()]])
        moved = move_prior(chances, bundle.prevalence, clinic)[0].round(DIGITS).tolist()
        line["answer"]["probabilities"] = dict(zip(bundle.classes, moved, strict=True))
        line["prior"] = clinic
    before, after = (own, other) if last == "clinic" else (other, own)
    expected = measure_drift(checked, after)
    assert "other class shares" not in caplog.text
    mixed = measure_drift(checked, Lines(before.lines[:900] + after.lines[900:]))
    for name, row in expected.means.items():
        np.testing.assert_allclose(mixed.means[name], row, atol=1e-4)
    assert mixed.periods[0].means == pytest.approx(expected.periods[0].means, abs=1e-4)
    assert "900 lines of the log were predicted for other class shares" in caplog.text


def test_a_change_of_the_last_month_is_found_in_a_log_of_years(checked):
    rows = pd.concat([checked.predictions_of("valid")] * 3 + [checked.predictions_of("test")[:400]])
    late = np.arange(len(rows)) >= len(rows) - 400
    rows["sex"] = np.where(late, "male", rows["sex"])
    drift = measure_drift(checked, log_of(checked, rows, hours=1.5))
    assert drift.shifts["sex"].verdict == ALIKE
    assert [shift.what for shift in drift.alarms] == ["sex"]
    assert "in 2027-0" in drift.alarms[0].change


def test_too_few_pictures_say_how_many_are_needed(checked):
    drift = measure_drift(checked, log_of(checked, checked.predictions_of("test")[:30]))
    assert drift.shifts["age"].verdict == FEW
    needed = drift.shifts["age"].needed
    assert any(f"it takes about {needed}" in sentence for sentence in describe_drift(drift))
    rows = checked.predictions_of("test")[: needed + 5]
    assert measure_drift(checked, log_of(checked, rows)).shifts["age"].verdict == ALIKE
    assert pictures_needed(10, 50) is None
    assert index_by_chance(10, 2000, needed) < index_by_chance(10, 2000, needed - 20)


def test_stability_index():
    assert stability_index(np.array([50, 50]), np.array([500, 500])) == pytest.approx(0, abs=1e-3)
    expected, found = np.array([9000, 1000]), np.array([5000, 5000])
    assert stability_index(expected, found) == pytest.approx(0.4 * np.log(9), rel=0.01)


def test_numbers_are_joined_with_neighbours_and_missing_stays():
    ages = Counter({"0-4": 1, "40-44": 40, "45-49": 3, "50-54": 40, "90+": 1, None: 15})
    assert group_numbers(ages) == {
        "0-4": "0-44",
        "40-44": "0-44",
        "45-49": "45+",
        "50-54": "45+",
        "90+": "45+",
    }
    shift = compare_counts("age", ages, Counter({"95-99": 50, "45-49": 50}), 100, numeric=True)
    assert shift.change == "45+ 100% instead of 44%"


def test_outliers_are_an_alarm_when_surely_twice_as_many():
    assert compare_outliers([True] * 12, 0.05).verdict == DIFFERS
    assert compare_outliers([False] * 12, 0.05).verdict == FEW
    assert compare_outliers([True] * 50 + [False] * 950, 0.05).verdict == ALIKE
    assert compare_outliers([True] * 200 + [False] * 800, 0.05).verdict == DIFFERS


def test_a_log_of_eleven_years_is_compared_by_week_and_a_longer_one_says_what_to_type():
    weeks = pd.date_range("2015-01-05", periods=574, freq="7D", tz="UTC")
    lines = [{"time": time.isoformat()} for time in weeks]
    assert len(cut_periods(lines, "week")) == 574
    with pytest.raises(LesionfastError, match="1,148 periods") as refused:
        cut_periods(lines * 2, "1")
    advised = re.search(r"--every (\d+)", str(refused.value))[1]
    assert len(cut_periods(lines * 2, advised)) == 574


def test_periods_are_weeks_months_or_blocks():
    def lines(*days: str) -> list[dict]:
        return [{"time": f"{day}T00:00:00+00:00"} for day in days]

    def cut(days: list[dict], every: str = "") -> dict[str, int]:
        return {name: len(part) for name, part in cut_periods(days, every)}

    few = lines("2026-01-01", "2026-01-02", "2026-01-09")
    assert cut(few) == {"2026-W01": 2, "2026-W02": 1}
    assert cut(lines("2025-01-01", "2026-01-02")) == {"2025-01": 1, "2026-01": 1}
    assert cut(few, "2") == {"1 to 2": 2, "3 to 3": 1}
    with pytest.raises(LesionfastError, match="Did you mean 'week'"):
        cut_periods(few, "weak")


def test_a_figure_has_its_numbers_in_words(checked, tmp_path, drawn):
    drift = measure_drift(checked, log_of(checked, checked.predictions_of("test")))
    found = drift_to_dict(drift, draw_drift(checked, drift, tmp_path))
    assert len(drawn["drift"].axes) == 3
    for period in drift.periods:
        assert f"{period.name}, {period.pictures:,} pictures" in found["figure_in_words"]


def test_the_log_of_another_model_is_refused(checked):
    log = log_of(checked, checked.predictions_of("test")[:5])
    log.lines[0]["decisions"] = "other"
    assert "1 line of another model" in measure_drift(checked, log).left_out
    for line in log.lines:
        line["decisions"] = "other"
    with pytest.raises(LesionfastError, match="has no answer of"):
        measure_drift(checked, log)


def test_other_pictures_raise_an_alarm_from_predict_to_monitor(trained, tmp_path):
    log, rng = tmp_path / "log.jsonl", np.random.default_rng(0)
    for number in range(12):
        noise = rng.integers(0, 255, (80, 80, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    predictor = Predictor(trained, log=log)
    df = load_dataset(trained.config, split=trained.path / "split.csv")
    predictor.predict(df[df["split"] == "test"])
    command = ["monitor", str(trained.path), str(log)]
    before = CliRunner().invoke(app, command)
    assert before.exit_code == 0 and "differ from those" not in before.output
    assert "Too few pictures to tell" in before.output
    predictor.predict(pd.DataFrame({"path": [str(p) for p in tmp_path.glob("*.png")] * 2}))
    assert len(read_log(log).lines) == (df["split"] == "test").sum() + 24
    after = CliRunner().invoke(app, command)
    assert "The pictures differ from those the model was checked on: " in after.output
    assert "outliers (" in after.output.splitlines()[0]
    assert "12 lines of pictures that were predicted again" in after.output
    assert Path(after.output.splitlines()[-1]).is_file()
