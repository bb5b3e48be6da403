"""Ensembles: their means and weights, the run they leave, and what they refuse."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import Comparison
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import sha256
from lesionfast.reporting.metrics import training
from lesionfast.run import Run, list_runs, newest_run
from lesionfast.training.ensembles.combining import combine

EVEN = [1 / 7] * 7


@pytest.fixture
def members(make_run, make_worse):
    """Three runs of the same images with one prior, the rows of the others in another order."""
    first = make_run()
    (first.path / "split.csv").write_text("image_id,group,target,split\n")
    return [first, make_worse(first, "second", 0.8), make_worse(first, "third", 2.5)]


def table_of(run, split="test"):
    """The probabilities of one split by image id."""
    rows = run.predictions[run.predictions["split"] == split].set_index("image_id").sort_index()
    return rows[[f"p_{name}" for name in run.classes]]


def test_the_mean_is_of_each_image_whatever_the_order_of_the_rows(members, tmp_path):
    run = combine(members, tmp_path / "new")
    expected = sum(table_of(each) for each in members) / 3
    np.testing.assert_allclose(table_of(run), expected, atol=1e-12)
    assert run.model["prior"] == members[0].model["prior"]
    assert run.model["footing"] == "as predicted" and run.model["weights"] == [1 / 3] * 3


def test_the_geometric_mean_is_that_of_the_logarithms(members, tmp_path):
    run = combine(members, tmp_path / "new", mean="geometric")
    expected = np.exp(sum(np.log(table_of(each)) for each in members) / 3)
    np.testing.assert_allclose(table_of(run), expected.div(expected.sum(axis=1), axis=0))


def test_different_priors_are_divided_out_first(members, make_worse, tmp_path, caplog):
    """The same model with a uniform prior has the same balanced probabilities, and decisions."""
    caplog.set_level("INFO", "lesionfast")
    twin = make_worse(members[0], "twin", 0.0, prior=EVEN)
    run = combine([members[0], twin], tmp_path / "new")
    np.testing.assert_allclose(table_of(run), table_of(twin), atol=1e-9)
    assert run.model["prior"] == pytest.approx(EVEN) and run.model["rule"] == "balanced"
    assert "divided by" in caplog.text and "prior" in (run.path / "log.txt").read_text()
    rules = run.metrics["test"]["rules"]
    assert rules["argmax"] == rules["balanced"]
    alone = members[0].metrics["test"]["rules"]["balanced"]
    assert rules["balanced"]["sensitivity"] == alone["sensitivity"]


def test_weights_are_chosen_on_validation_alone(members, tmp_path):
    run = combine(members, tmp_path / "one", fit_weights=True)
    assert run.model["weights_from"] == "validation" and run.model["weights"][0] > 0.5
    table = members[2].predictions.copy()
    test = table["split"] == "test"
    columns = [f"p_{name}" for name in run.classes]
    table.loc[test, columns] = np.eye(7)[table.loc[test, "target"].map(run.classes.index)]
    table.to_csv(members[2].path / "predictions.csv", index=False)
    again = combine([*members[:2], Run(members[2].path)], tmp_path / "two", fit_weights=True)
    assert again.model["weights"] == pytest.approx(run.model["weights"], abs=1e-9)


def test_an_ensemble_is_a_run_like_any_other(members, tmp_path):
    root = members[0].path.parent
    run = combine(members, root)
    names = {path.name for path in run.path.iterdir()}
    assert names == {
        ".manifest.lock",
        "manifest.json",
        "config.json",
        "environment.json",
        "log.txt",
        "metrics.json",
        "model.json",
        "predictions.csv",
        "split.csv",
    }
    assert newest_run(root).path == run.path and len(list_runs(root)) == 4
    assert sha256(run.path / "split.csv") == sha256(members[0].path / "split.csv")
    assert run.metrics["train_seconds"] == 270 and run.metrics["status"] == "finished"
    assert [(run.path / each).resolve() for each in run.model["members"]] == [
        each.path.resolve() for each in members
    ]
    assert run.model["parameters"] is None  # the first member is an old run
    assert combine(members[1:], root).model["parameters"] == 6_800_000
    read = Interpretation.from_run(run)
    assert read.metrics == run.metrics["test"] and read.rows["group"].notna().all()
    assert training(Findings(read)) is None
    assert run.path in [each.path for each in Comparison.from_runs([*members, run]).runs]
    nested = combine([run, members[2]], root)
    assert nested.config.arch == "ensemble"


def test_an_ensemble_knows_the_melanoma_that_its_members_were_told(members, tmp_path):
    for member in members:
        named = member.model | {"melanoma": "bcc"}
        (member.path / "model.json").write_text(json.dumps(named))
    run = combine([Run(member.path) for member in members], tmp_path / "new")
    rule = run.metrics["test"]["rules"]["balanced"]
    assert rule["mel_sensitivity"] == rule["sensitivity"]["bcc"] != rule["sensitivity"]["mel"]


def test_members_that_do_not_fit_are_refused(members, make_run, tmp_path):
    with pytest.raises(LesionfastError, match="needs two members or more; found 1"):
        combine(members[:1], tmp_path)
    with pytest.raises(LesionfastError, match="named twice"):
        combine([members[0], members[0]], tmp_path)
    with pytest.raises(LesionfastError, match="Did you mean 'geometric'"):
        combine(members, tmp_path, mean="geometrc")
    with pytest.raises(LesionfastError, match="different classes"):
        combine([members[0], make_run(("mel", "nv"))], tmp_path)
    with pytest.raises(LesionfastError, match="different valid images"):
        combine([members[0], make_run(n=300)], tmp_path)
    other = json.loads((members[1].path / "metrics.json").read_text()) | {"split_sha256": "e" * 64}
    (members[1].path / "metrics.json").write_text(json.dumps(other))
    with pytest.raises(LesionfastError, match="different splits"):
        combine([members[0], Run(members[1].path)], tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith("ensemble")]


def test_an_ensemble_can_be_moved_with_its_members(members, tmp_path):
    run = combine(members, members[0].path.parent)
    moved = shutil.move(members[0].path.parent, tmp_path / "moved")
    run = Run(tmp_path / "moved" / run.path.name)
    assert all((run.path / each / "config.json").is_file() for each in run.model["members"]), moved


def test_an_ensemble_of_an_earlier_version_is_called_so_too(members, tmp_path):
    run = combine(members, tmp_path / "new")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(replace(run.config, arch="committee").to_json())
    (tmp_path / "old" / "model.json").write_text(json.dumps(run.model | {"arch": "committee"}))
    assert Run.open(tmp_path / "old").model == run.model
