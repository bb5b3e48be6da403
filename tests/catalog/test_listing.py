"""Runs filtered, sorted and shown, and what the list costs."""

import json
import shutil
import subprocess
import sys

import pytest

import lesionfast as lf
from lesionfast.catalog.listing import find_runs, folders_of_runs, is_less, runs, select_runs
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.run import Run, list_runs


def names(listed) -> list[str]:
    return [run.path.name for run in listed]


def test_runs_come_oldest_first_or_by_what_they_are_sorted_by(root):
    assert names(lf.runs(root)) == names(list_runs(root)) == ["middle", "good", "bad"]
    assert names(runs(root, sort="balanced_accuracy")) == ["good", "middle", "bad"]
    assert names(runs(root, sort="-balanced_accuracy")) == ["bad", "middle", "good"]
    assert names(runs(root, sort="valid.balanced_accuracy")) == ["bad", "middle", "good"]
    assert names(runs(root, sort="size")) == ["middle", "bad", "good"]
    assert names(runs(root, sort="-size")) == ["good", "bad", "middle"]
    assert names(runs(root, sort="arch")) == ["middle", "bad", "good"]
    assert names(runs(root, sort="run")) == ["bad", "good", "middle"]
    assert runs(root, sort="-balanced_accuracy").title == "Runs by balanced_accuracy, worst first"


def test_less_is_better_of_losses_and_calibration_errors_alone(make):
    for metric in ("log_loss", "test.log_loss", "brier", "ece", "adaptive_ece", "valid_loss"):
        assert is_less(metric)
    for metric in ("macro_auc", "sensitivity.mel", "average_precision.ece2", "accuracy"):
        assert not is_less(metric)
    small, large = make("small"), make("large")
    told = large.metrics | {"test": large.metrics["test"] | {"log_loss": 9.0}}
    (large.path / "metrics.json").write_text(json.dumps(told))
    assert names(runs(small.path.parent, sort="log_loss")) == ["small", "large"]
    assert names(runs(small.path.parent, sort="-log_loss")) == ["large", "small"]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("balanced_accuracy>0.5", ["middle", "good"]),
        ("test.balanced_accuracy>0.5", ["middle", "good"]),
        ("valid.balanced_accuracy>0.5", ["bad"]),
        (["balanced_accuracy>0.5", "arch~dense"], ["middle"]),
        ("arch=resnet18", ["good"]),
        ("size>=112", ["good", "bad"]),
        ("epochs<8", ["middle"]),
        ("compile=true", ["bad"]),
        ("monitor=none", ["middle", "good"]),
        ("lr<=1e-4", ["good"]),
        ("run~d", ["middle", "good", "bad"]),
        ("status=finished", ["middle", "good", "bad"]),
        ("sensitivity.mel>=0", ["middle", "good", "bad"]),
        ("rules.argmax.balanced_accuracy>0.7", ["good"]),
        ("n>1", ["middle", "good", "bad"]),
        ("train_seconds>90", []),
    ],
)
def test_only_runs_that_meet_all_conditions_are_listed(root, where, expected):
    assert names(runs(root, where)) == expected


def test_a_name_that_no_run_has_is_said_with_what_exists(root):
    for wrong in ({"where": "balanced_acuracy>0.7"}, {"sort": "-balanced_acuracy"}):
        with pytest.raises(LesionfastError, match="Did you mean 'balanced_accuracy'") as error:
            runs(root, **wrong)
        for word in ("macro_auc", "auc.CLASS", "batch_size", "note", "valid.NAME"):
            assert word in str(error.value)
    assert names(runs(root, "batch-size=32", sort="bs")) == ["middle", "good", "bad"]


def test_a_run_without_test_images_shows_validation_and_the_note_says_so(make):
    root = make("one", 0.6, parts="valid").path.parent
    assert "on validation images" in runs(root).to_table().note
    make("two", 0.9)
    listed = runs(root, "balanced_accuracy<0.5", sort="macro_auc")
    assert names(listed) == ["one"]
    assert "on test images (1 run without any: on validation)" in runs(root).to_table().note
    assert names(runs(root, sort="test.balanced_accuracy")) == ["two", "one"]  # missing last
    assert names(runs(root, sort="-test.balanced_accuracy")) == ["two", "one"]


def test_the_table_shows_what_was_named_and_notes(root, render, line_of):
    Run(root / "good").note = "the best\nof  all"
    listed = runs(root, ["size>=112", "valid.macro_auc>0", "balanced_accuracy>0"], sort="macro_auc")
    table = listed.to_table()
    assert table.columns[6:] == ["size", "valid.macro_auc", "note"]
    lines = render(table, 200)
    assert "224" in line_of(lines, "good") and "the best of all" in " ".join(lines)
    assert "2 of 3 runs with size>=112 and valid.macro_auc>0" in table.note
    assert "note" not in runs(root, "size=64").to_table().columns
    assert "the best" in runs(root)._repr_html_()


def test_ended_and_unfinished_runs_are_told_apart(make, render, line_of):
    done, broken = make("done"), make("broken")
    (broken.path / "metrics.json").unlink()
    lines = render(select_runs([done, broken], done.path.parent).to_table())
    rules = done.metrics["test"]["rules"]["balanced"]
    words = line_of(lines, "done")
    assert words[1] == f"{rules['balanced_accuracy']:.3f}"
    assert words[3] == f"{rules['mel_sensitivity']:.3f}"
    assert words[4:] == ["1.5", "finished"]
    assert line_of(lines, "broken")[-2:] == ["not", "ended"]
    root = done.path.parent
    assert names(runs(root, "status=not ended")) == ["broken"]
    assert names(runs(root, "arch~lite")) == ["done", "broken"]


def test_a_damaged_run_is_listed_whatever_the_conditions(root, invoke):
    (root / "middle" / "metrics.json").write_text("{")
    assert names(runs(root)) == ["middle", "good", "bad"]
    listed = runs(root, "size>200", sort="-balanced_accuracy")
    assert names(listed) == ["good", "middle"] and len(listed.damages) == 1
    assert listed.note.startswith("1 of 3 runs")
    with pytest.raises(DamageError, match="1 of 3 runs are damaged.*lesionfast runs --verify"):
        invoke("runs", "--out", root)


def test_a_run_of_an_earlier_version_has_the_options_of_its_time(root):
    path = root / "good" / "config.json"
    told = json.loads(path.read_text())
    del told["metadata_dropout"], told["views"]
    path.write_text(json.dumps(told | {"retired": 3}))
    assert names(runs(root, "metadata-dropout=0")) == ["good"]
    assert len(runs(root, "views=1")) == 3
    assert names(runs(root, "retired=3")) == ["good"]


def test_runs_in_folders_are_listed_if_asked_for_but_not_those_inside_a_run(make, tmp_path):
    root = make("outer").path.parent
    make("study/first")
    make("outer/fold-0")
    make("search/trials/0")
    (root / "loop").symlink_to(root)
    assert names(runs(root)) == ["outer"]
    assert names(runs(root, nested=True)) == ["outer", "first", "0"]
    assert [row.name for row in runs(root, nested=True).rows][1:] == [
        "study/first",
        "search/trials/0",
    ]
    assert folders_of_runs(root) == ["search", "study"]
    assert names(runs(root / "study")) == ["first"] and find_runs(tmp_path / "none") == []


def test_json_has_the_metrics_the_note_and_what_was_named(root, invoke):
    Run(root / "good").note = "the best"
    rows = json.loads(invoke("runs", "--json", "--out", root).stdout)
    assert rows[0] == {"run": str(root / "middle")} | Run(root / "middle").metrics
    (row,) = json.loads(invoke("runs", "--json", "--out", root, "--where", "size=224").stdout)
    assert row["columns"] == {"size": 224} and row["note"] == "the best"


def test_the_list_says_where_more_runs_are(make, invoke):
    root = make("study/first").path.parents[1]
    with pytest.raises(
        LesionfastError, match=f"below it, in study. Type --nested, or --out {root}"
    ):
        invoke("runs", "--out", root)
    assert "study/first" in invoke("runs", "--nested", "--out", root).stdout
    make("one")
    assert "more runs in: study; list them with --nested" in invoke("runs", "--out", root).stdout


def test_verify_takes_the_conditions_too(root, invoke):
    shown = invoke("runs", "--verify", "--out", root, "--where", "size<100", "--json")
    (row,) = json.loads(shown.stdout)
    assert row["run"] == str(root / "middle") and row["state"] == "not verifiable"


def test_an_option_before_a_sub_command_is_refused(root, invoke):
    with pytest.raises(LesionfastError, match="--where before 'rm' would have no effect"):
        invoke("runs", "--where", "size=1", "rm", "--yes", root / "good")
    assert (root / "good").is_dir()


def test_a_list_imports_neither_torch_nor_pandas_nor_numpy(root):
    code = (
        "import sys\nfrom lesionfast.cli import app\n"
        f"sys.argv = ['lesionfast', 'runs', '--out', {str(root)!r}, '--where', 'size>1']\n"
        "try: app()\nexcept SystemExit: pass\n"
        "print('LOADED', *{'torch', 'pandas', 'numpy', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "good" in done.stdout and done.stdout.strip().endswith("LOADED")


def test_a_note_is_kept_shown_and_removed_and_the_run_stays_whole(tmp_path, invoke):
    run = Run.create(tmp_path, lf.TrainConfig(), "first")
    told = {"split_sha256": "", "train_seconds": 1.0, "status": "finished"}
    run.write_json("metrics.json", told)
    assert invoke("runs", "note", run.path, "a\nb \udce9").stdout.strip() == str(run.path)
    assert run.note.startswith("a\nb") and Run(run.path).condition() == ("whole", {})
    assert invoke("runs", "note", run.path).stdout.startswith("a\nb")
    run.seal()
    assert Run(run.path).condition()[0] == "whole" and run.note
    invoke("runs", "note", run.path, " ")
    assert run.note == "" and not (run.path / "note.txt").exists()
    run.note = ""
    with pytest.raises(LesionfastError, match="there is no run"):
        invoke("runs", "note", tmp_path / "none", "x")


def test_a_note_does_not_follow_a_link_and_does_not_change_the_order(root, tmp_path):
    (tmp_path / "mine").write_text("mine")
    run = Run(root / "middle")
    (run.path / "note.txt").symlink_to(tmp_path / "mine")
    with pytest.raises(LesionfastError, match="is a symbolic link"):
        run.note = "other"
    assert (tmp_path / "mine").read_text() == "mine"
    Run(root / "bad").note = "x"
    assert names(runs(root)) == ["middle", "good", "bad"]
    shutil.rmtree(root)
    assert runs(root) == []
