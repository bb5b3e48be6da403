"""The commands as a person types them, in processes of their own where exit codes matter."""

import ast
import errno
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from urllib.request import urlopen

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from lesionfast import cli
from lesionfast.cli import main
from lesionfast.cli.base import app, data_app, runs_app
from lesionfast.config import TrainConfig
from lesionfast.data.sample import make_sample
from lesionfast.errors import LesionfastError
from lesionfast.run import Run

TINY = [
    *("--arch", "test_resnet", "--weights", "none", "--size", "32"),
    *("--epochs", "2", "--batch-size", "32", "--unfreeze", "none"),
    *("--precision", "float32"),
]


COMPLAINTS = re.compile("Traceback|Exception ignored")  # the latter at the end of a process


def environment():
    """What a user has, who sets nothing for matplotlib."""
    return {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}


def lesionfast(*arguments, cwd=None):
    """Run the command in a new process, as a user does, without a terminal."""
    command = [sys.executable, "-m", "lesionfast", *map(str, arguments)]
    given = {"cwd": cwd, "env": environment(), "timeout": 600}
    return subprocess.run(command, capture_output=True, text=True, **given)


def invoke(*arguments):
    """Run the command in this process; errors that the user can fix are raised."""
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one finished run in runs/."""
    folder = tmp_path_factory.mktemp("work")
    done = lesionfast("train", *TINY, cwd=folder)
    assert done.returncode == 0 and not COMPLAINTS.search(done.stderr), done.stderr
    return folder, done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", ["cache", "train --help"])
def test_output_that_a_full_disk_does_not_take_is_an_error_in_one_line(arguments, tmp_path):
    command = [sys.executable, "-m", "lesionfast", *arguments.split()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: can't write the output: the disk is full.")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    command = [sys.executable, "-m", "lesionfast", "cache"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_an_error_of_the_disk_that_no_command_foresaw_ends_in_one_line(number, monkeypatch, capsys):
    def fail():
        raise OSError(number, os.strerror(number), "/photos/1.jpg")

    monkeypatch.setattr("lesionfast.cli.app", fail)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: /photos/1.jpg can't be opened: ")


def test_an_error_of_the_disk_in_the_words_of_a_library_ends_in_one_line(monkeypatch, capsys):
    def fail():
        raise OSError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("lesionfast.cli.app", fail)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "can't write the output: the disk is full" in capsys.readouterr().err


def test_train_prints_the_path_alone_to_stdout_and_the_table_to_stderr(folder):
    folder, done = folder
    run = Run.open(folder / done.stdout.strip())
    assert done.stdout.count("\n") == 1 and run.finished
    assert "SYNTHETIC" in done.stderr
    for word in ("balanced accuracy", "macro AUC", "argmax", "balanced", "melanoma"):
        assert word.lower() in done.stderr.lower(), word
    lines = done.stderr.lower().splitlines()
    accuracy = [i for i, line in enumerate(lines) if line.strip(" │").startswith("accuracy")]
    balanced = [i for i, line in enumerate(lines) if "balanced accuracy" in line]
    assert accuracy[-1] > balanced[-1]


def test_predict_prints_a_table_alone_to_stdout(folder):
    folder, done = folder
    run = Run.open(folder / done.stdout.strip())
    told = lesionfast("predict", run.path, run.predictions["path"].iloc[0], cwd=folder)
    assert told.returncode == 0 and not COMPLAINTS.search(told.stderr), told.stderr
    assert told.stdout.startswith("image,advice,") and told.stdout.count("\n") == 2


@pytest.mark.parametrize("words", [["app"], ["labels", "--page"]], ids=["app", "labels"])
def test_a_page_in_a_new_process_answers_and_ends_without_complaints(folder, words, tmp_path):
    folder, done = folder
    command = [sys.executable, "-m", "lesionfast", *words, done.stdout.strip(), "--port", "0"]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        page = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, cwd=folder, env=environment(), text=True
        )
    late = threading.Timer(600, page.kill)
    late.start()
    try:
        with urlopen(page.stdout.readline().strip(), timeout=300) as answer:
            assert "lesionfast" in answer.read().decode()
    finally:
        page.terminate()
        assert page.communicate()[0] == ""
        late.cancel()
    assert page.returncode == 0 and not COMPLAINTS.search(log.read_text()), log.read_text()


def test_without_a_terminal_the_epochs_go_to_the_log_alone(folder):
    folder, done = folder
    log = (folder / done.stdout.strip() / "log.txt").read_text()
    assert "melanoma: mel; malignant: akiec, bcc, mel" in log
    assert " 2/2 " in log and "phase all" in log
    assert " 2/2 " not in done.stderr and "\x1b" not in done.stderr


def then_name_torch(command, cwd):
    """Run the command in a process of its own, which says at last whether it has loaded PyTorch."""
    code = (
        f"import sys\nfrom lesionfast.cli import main\nsys.argv = ['lesionfast', '{command}']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "print('LOADED', *{'torch', 'fastai', 'captum'} & set(sys.modules))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_interpret_takes_the_newest_run_and_draws_without_torch(folder):
    folder, _ = folder
    shown = then_name_torch("interpret", folder)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip().endswith("LOADED")
    figures = [line for line in shown.stdout.splitlines() if line.endswith(".png")]
    assert len(figures) >= 6 and all((folder / f).stat().st_size > 5000 for f in figures)
    assert "mel" in shown.stdout and "report.html" in shown.stdout


@pytest.mark.usefixtures("blank_figures")
def test_interpret_writes_the_report_and_report_says_where(folder, tmp_path):
    folder, done = folder
    found = json.loads(invoke("interpret", folder / done.stdout.strip(), "--json").stdout)
    assert Path(found["report"]).name == "report.html" and found["estimates"][0]["low"] is not None
    to = tmp_path / "mine.html"
    shown = invoke("report", "--out", folder / "runs", "--to", to)
    assert shown.stdout.strip() == str(to) and "Balanced accuracy" in to.read_text()


@pytest.mark.usefixtures("blank_figures")
def test_interpret_as_json_agrees_with_the_table_of_predictions(folder):
    folder, done = folder
    run = Run.open(folder / done.stdout.strip())
    for split in ("valid", "test"):
        result = invoke("interpret", run.path, "--split", split, "--rule", "argmax", "--json")
        found = json.loads(result.stdout)
        assert found["rule"] == "argmax" and found["split"] == split
        rows = run.predictions[run.predictions["split"] == split]
        decided = rows[[f"p_{c}" for c in run.classes]].to_numpy().argmax(1)
        names = pd.Series(decided, rows.index).map(dict(enumerate(run.classes)))
        missed = ((rows["target"] == "mel") & (names == "nv")).sum()
        assert len(found["melanomas_taken_for_nevi"]) == missed


def test_config_repeats_a_run_and_options_go_on_top(folder, tmp_path):
    folder, done = folder
    earlier = Run.open(folder / done.stdout.strip())
    arguments = ["train", "--config", earlier.path / "config.json", "--out", tmp_path]
    again = Run.open(invoke(*arguments).stdout.strip())
    assert (again.path / "history.csv").read_text() == (earlier.path / "history.csv").read_text()
    changed = Run.open(invoke(*arguments, "--epochs", 1, "--json").stdout and newest(tmp_path))
    assert changed.config.epochs == 1 and changed.config.arch == earlier.config.arch


def newest(folder):
    return max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)


def test_runs_lists_the_runs_with_their_metrics(folder):
    folder, done = folder
    (row,) = json.loads(invoke("runs", "--json", "--out", folder / "runs").stdout)
    assert row["run"] == str(folder / done.stdout.strip())
    assert 0 <= row["test"]["macro_auc"] <= 1
    assert "test_resnet" in lesionfast("runs", cwd=folder).stdout


@pytest.mark.parametrize("command", ["runs", "compare"])
def test_what_reads_runs_imports_no_torch(folder, command):
    done = then_name_torch(command, folder[0])
    assert done.stdout.strip().endswith("LOADED"), done.stderr


@pytest.fixture
def two_runs(folder, tmp_path):
    """A folder with two runs of the same split, which is like a study's; the first is copied."""
    run = Run.open(folder[0] / folder[1].stdout.strip())
    for name in ("first", "second"):
        shutil.copytree(run.path, tmp_path / "out" / name)
    shutil.copy(run.path / "split.csv", tmp_path / "out" / "split.csv")
    return tmp_path / "out"


def test_compare_prints_table_and_figures_or_json(two_runs):
    shown = invoke("compare", "--out", two_runs, "--csv", two_runs / "table.csv").stdout
    assert "first" in shown and "second" in shown and "test_resnet, concat" in shown
    files = shown.splitlines()[-3:]
    assert [Path(each).name for each in files] == ["table.csv", "training.png", "confusion.png"]
    assert all(Path(each).is_file() for each in files)
    chosen = ["compare", two_runs / "second", "--split", "valid", "--json", "--out", two_runs]
    (row,) = json.loads(invoke(*chosen).stdout)["runs"]
    assert row["name"] == "second" and row["parameters"] > 100_000


def test_report_of_two_runs_compares_them(two_runs):
    pair = [two_runs / "first", two_runs / "second"]
    page = Path(invoke("report", *pair, "--out", two_runs).stdout.strip())
    assert page.parent.name == "comparison" and "second" in page.read_text()


@pytest.mark.usefixtures("blank_figures")
def test_ensemble_prints_the_path_of_a_run_that_runs_and_interpret_know(two_runs):
    members = [two_runs / "first", two_runs / "second"]
    made = Run.open(invoke("ensemble", *members, "--fit-weights", "--out", two_runs).stdout.strip())
    assert made.path.parent == two_runs and made.model["weights_from"] == "validation"
    assert made.path.name in invoke("runs", "--out", two_runs).stdout
    assert invoke("interpret", "--out", two_runs, "--json").exit_code == 0


def test_study_shows_its_plan_then_compares_what_is_done_and_names_what_failed(two_runs, tmp_path):
    given = [each.removeprefix("--").replace("-", "_") for each in TINY]
    pairs = zip(given[::2], TINY[1::2], strict=True)
    fields = "\n".join(f"{k} = {v if v.isdigit() else repr(v)}" for k, v in pairs)
    runs = "[[run]]\nname = 'first'\n[[run]]\nname = 'second'\n[[run]]\nname = 'third'\nloss='no'"
    (tmp_path / "two.toml").write_text(f"[defaults]\n{fields}\n{runs}")
    command = ["study", tmp_path / "two.toml", "--out", two_runs]
    plan = invoke(*command, "--dry-run").stdout
    assert plan.count("done") == 3 and plan.count("to do") == 1  # the caption says done as well
    failed = CliRunner().invoke(app, [*map(str, command)])
    assert isinstance(failed.exception, LesionfastError)
    assert "there is no loss 'no'" in str(failed.exception)
    assert "test_resnet, concat" in failed.stdout and "confusion.png" in failed.stdout


@pytest.mark.parametrize(
    "what", ["archs", "augmentations", "balances", "fusions", "losses", "trackers"]
)
def test_list_names_each_thing_with_a_sentence(what):
    lines = invoke("list", what).stdout.splitlines()
    assert len(lines) >= 2 and all(len(line.split(None, 1)) == 2 for line in lines)


def test_list_narrows_by_a_part_of_the_name():
    names = [line.split()[0] for line in invoke("list", "archs", "densenet").stdout.splitlines()]
    assert "densenet121" in names and all("densenet" in name for name in names)
    with pytest.raises(LesionfastError, match="Type fewer letters"):
        invoke("list", "archs", "zzzz")
    with pytest.raises(LesionfastError, match="Did you mean 'archs'"):
        invoke("list", "arcs")


def test_lr_find_prints_one_number_and_draws(tmp_path):
    figure = tmp_path / "lr.png"
    result = invoke("lr-find", *TINY, "--figure", figure)
    assert 1e-7 < float(result.stdout.splitlines()[-1]) < 10
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_classifier_starts_from_what_pretrain_printed(tmp_path):
    tiny = [*("--arch", "vanilla_cnn", "--size", "32", "--epochs", "1"), "--out", tmp_path]
    pretrained = Path(invoke("pretrain", *tiny).stdout.strip())
    assert (pretrained / "figures" / "reconstructions.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LesionfastError, match="Make one: lesionfast train"):
        invoke("runs", "--out", tmp_path)
    run = Run.open(invoke("train", *tiny, "--weights", pretrained).stdout.strip())
    assert run.model["weights_origin"] == f"weights of the run {pretrained}"
    (row,) = json.loads(invoke("runs", "--json", "--out", tmp_path).stdout)
    assert row["run"] == str(run.path)


def test_pretrain_has_the_options_that_it_uses():
    shown = " ".join(invoke("pretrain", "--help").stdout.split())
    assert "--augment" in shown and "--seed" in shown
    assert not any(option in shown for option in ("--fusion", "--balance", "--rule", "--monitor"))


def test_data_split_writes_the_split_that_train_uses(folder, tmp_path):
    folder, done = folder
    sample = make_sample()
    file = tmp_path / "split.csv"
    assert invoke("data", "split", sample, "--out", file).stdout.strip().endswith(str(file))
    earlier = Run.open(folder / done.stdout.strip())
    assert file.read_bytes() == (earlier.path / "split.csv").read_bytes()
    out = tmp_path / "runs"
    invoke("train", *TINY, "--epochs", 1, "--data", sample, "--split", file, "--out", out)
    assert (newest(out) / "split.csv").read_bytes() == file.read_bytes()


def test_data_check_ends_with_0_or_2(tmp_path, monkeypatch, capsys):
    sample, folder = make_sample(), tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    table = pd.read_csv(next(sample.glob("*.csv"))).head(60)
    table.to_csv(folder / "metadata.csv", index=False)
    for name in table["image_id"]:
        shutil.copy(sample / "images" / f"{name}.jpg", folder / "images")
    good = invoke("data", "check", folder)
    assert good.exit_code == 0, good.output
    assert "mel" in good.stdout
    (folder / "images" / f"{table['image_id'][0]}.jpg").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["lesionfast", "data", "check", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and table["image_id"][0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--arch", "densnet121"], "Did you mean 'densenet121'"),
        (["train", "--target", "diagnosis"], "--target"),
        (["train", "--lr", "fast"], "Type a number"),
        (["train", "--resume", "nowhere"], "there is no run"),
        (["train", "--resume", "x", "--epochs", "3"], "Type only --resume"),
        (["train", "--config", "nowhere.json"], "there is no file nowhere.json"),
        (["interpret"], "Make one: lesionfast train"),
        (["runs"], "Make one: lesionfast train"),
        (["compare"], "Make one: lesionfast train"),
        (["ensemble", "nowhere"], "there is no run"),
        (["committee", "nowhere"], "there is no run"),
        (["study"], "lesionfast study --author"),
        (["study", "nowhere.toml"], "there is no file nowhere.toml"),
        (["data", "check", "nowhere"], "nowhere"),
    ],
)
def test_what_the_user_can_fix_is_one_line_and_exit_code_2(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lesionfast", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert shown.out == "" and message in shown.err
    assert shown.err.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_a_run_can_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    epoch = [*TINY[:7], "1", *TINY[8:]]
    assert invoke("train", *epoch, "--name", "mine").stdout.strip() == "runs/mine"
    with pytest.raises(LesionfastError, match="already has a directory mine"):
        invoke("train", *epoch, "--name", "mine")


def test_the_version_is_that_of_the_package():
    assert invoke("--version").stdout.strip() == version("lesionfast")


def test_the_help_lists_what_an_option_takes():
    shown = " ".join(re.findall(r"[^\s│╭╮╰╯─]+", invoke("train", "--help").stdout))
    assert "One of: auto, cpu, cuda, mps." in shown
    assert "One of: auto, float32, bfloat16, float16." in shown


def test_bench_measures_this_machine(monkeypatch):
    for name, value in {"ROUNDS": 1, "STEPS": 2, "ENOUGH": 0.01, "EPOCH": 300}.items():
        monkeypatch.setattr(f"lesionfast.training.speed.bench.{name}", value)
    tiny = [each for each in TINY if each not in ("--epochs", "2")]
    shown = invoke("bench", *tiny).stdout
    assert "whole training step" in shown and "of the bare" in shown and "float32" in shown
    measured = json.loads(invoke("bench", *tiny, "--json").stdout)
    assert measured["machine"]["size"] == 32 and measured["parts"]["step"] > 0


def test_a_mistyped_option_names_the_nearest():
    done = CliRunner().invoke(app, ["train", "--archs", "resnet18"])
    assert done.exit_code == 2 and "--arch" in done.output


def test_every_field_is_an_option_with_its_help():
    words = re.findall(r"[^\s│╭╮╰╯─]+", invoke("train", "--help").stdout)
    shown = " ".join(words)
    for each in fields(TrainConfig):
        assert f"--{each.name.replace('_', '-')}" in re.split(r"[\s/]", shown)
        assert each.metadata["help"] in shown


def test_the_help_shows_every_word_that_was_written():
    """Square brackets are markup there, and vanish."""
    commands = [one for each in (app, data_app, runs_app) for one in each.registered_commands]
    commands.append(runs_app.registered_callback)
    assert len(commands) > 10
    for each in commands:
        parameters = inspect.signature(each.callback).parameters.values()
        written = [
            p.annotation.__metadata__[0].help
            for p in parameters
            if hasattr(p.annotation, "__metadata__")
        ]
        for text in [each.callback.__doc__, *written]:
            assert "[" not in text


def test_labels_lists_and_draws_doubtful_labels(folder, tmp_path):
    folder, done = folder
    file = tmp_path / "labels.csv"
    shown = invoke("labels", folder / done.stdout.strip(), "--csv", file)
    assert shown.exit_code == 0 and "Doubtful labels" in shown.stdout
    assert "Same lesion or near-duplicate, different decisions" in shown.stdout
    assert file.read_text().startswith("image_id,group,target,suggested")
    assert Path(shown.stdout.strip().splitlines()[-1]).is_file()


@pytest.mark.usefixtures("blank_figures")
def test_interpret_writes_a_submission_and_explains(folder, tmp_path):
    folder, done = folder
    file = tmp_path / "submission.csv"
    given = ["--submission", file, "--explain", "--cost", "mel:nv=10", "--json"]
    found = json.loads(invoke("interpret", folder / done.stdout.strip(), *given).stdout)
    assert file.read_text().startswith("image,MEL,NV,BCC,AKIEC,BKL,DF,VASC")
    names = {Path(each).stem for each in found["figures"]}
    assert {"attribution_top_losses", "operating_points", "atlas_melanoma_right"} <= names


def test_ablate_says_what_the_metadata_adds(folder):
    folder, done = folder
    shown = invoke("ablate", folder / done.stdout.strip())
    assert shown.exit_code == 0 and "metadata alone" in shown.stdout
    withheld, melanomas = shown.stdout.strip().splitlines()[-2:]
    assert withheld.startswith("withholding age and sex")
    assert melanomas.startswith("Melanoma sensitivity is ")


@pytest.mark.parametrize(
    "command",
    [
        "interpret --submission {link}",
        "labels --csv {link}",
        "report --to {link}",
        "predict {run} {run} --out {link}",
        "data split --out {link}",
    ],
)
def test_a_link_that_is_named_as_output_is_left_as_it_is(folder, tmp_path, command):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    run = folder[0] / folder[1].stdout.strip()
    with pytest.raises(LesionfastError, match="link is a symbolic link, so nothing is written"):
        invoke(*command.format(link=tmp_path / "link", run=run).split())
    assert (tmp_path / "link").is_symlink() and (tmp_path / "mine").read_text() == "mine"


def test_a_path_that_is_not_utf8_is_printed_as_it_is(folder, tmp_path):
    code = (
        "import sys; from lesionfast import cli; cli.app = lambda: print(sys.argv[1]); cli.main()"
    )
    name = b"m\xe9l.csv"
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, check=True)
    assert done.stdout == name + b"\n"


def test_shards_of_a_table_are_joined_to_the_rows_of_one_process(folder, tmp_path, monkeypatch):
    from lesionfast.data.sample import make_sample
    from lesionfast.serving import predictor

    monkeypatch.setattr(predictor, "CHUNK", 8)
    run = folder[0] / folder[1].stdout.strip()
    command = ["predict", run, make_sample(), "--set", "sex=female", "--tta", 1, "--out"]
    invoke(*command, tmp_path / "whole.csv")
    for number in (1, 2):
        invoke(*command, tmp_path / f"part{number}.csv", "--shard", f"{number}/2")
    joined = invoke("predict", "--join", tmp_path / "part*.csv", "--out", tmp_path / "all.csv")
    assert joined.stdout.strip() == str(tmp_path / "all.csv") and " 0 failed" in joined.stderr
    assert (tmp_path / "all.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    "given, told",
    [
        (["--tta", 2, "--out", "a.csv"], "so --tta changes nothing. Leave it out"),
        ([], "--join writes a file. Name it with --out"),
    ],
)
def test_joining_takes_no_option_that_predicts(given, told):
    with pytest.raises(LesionfastError, match=told):
        invoke("predict", "--join", "part1.csv", *given)
    with pytest.raises(LesionfastError, match="no input after part1.csv. Name images"):
        invoke("predict", "part1.csv")


def test_the_cache_is_listed_and_cleared(tmp_path, monkeypatch):
    from lesionfast.data.images import open_images
    from lesionfast.data.sample import make_sample

    paths = sorted((make_sample() / "images").iterdir())[:3]
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path))
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", "20M")
    images = open_images(paths, 32)
    shown = invoke("cache").stdout
    assert "3 images of 32 x 32 pixels" in shown and "yes" in shown
    assert "LESIONFAST_CACHE_SIZE is 20.0 MB" in shown
    found = json.loads(invoke("cache", "--json").stdout)
    (array,) = found["arrays"]
    assert found["limit"] == 20_000_000 and array["bytes"] < found["bytes"] and array["in_use"]
    assert invoke("cache", "clear").stderr.startswith("kept 1 array in use, 9.")
    del images
    assert invoke("cache", "clear", "--older", "1d").stdout == "removed 0 arrays, 0 bytes\n"
    assert invoke("cache", "clear", "--only", "features").stdout == "removed 0 arrays, 0 bytes\n"
    assert invoke("cache", "clear", "--only", "images").stdout.startswith("removed 1 array, 9.")
    assert "is empty" in invoke("cache").stdout
    with pytest.raises(LesionfastError, match="--older is '30', which .* such as --older 30d"):
        invoke("cache", "clear", "--older", "30")
    with pytest.raises(LesionfastError, match="no 'feature'. Did you mean 'features'?"):
        invoke("cache", "clear", "--only", "feature")


def test_what_is_set_may_have_equals_signs_in_quotes():
    from lesionfast.cli.serving import read_pairs

    assert read_pairs("--set", ["age=55", "sex=a=b", '"x=y"=1'], "age=55") == {
        "age": "55",
        "sex": "a=b",
        "x=y": "1",
    }
    with pytest.raises(LesionfastError, match="--set age has no value"):
        read_pairs("--set", ["age"], "age=55")


def command_lines():
    """What the package tells a person to type: file, words; what is filled in is VALUE."""
    for path in sorted(Path(cli.__file__).parents[1].rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "") for part in node.values]
                text = "".join(part if isinstance(part, str) else "VALUE" for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = "" if id(node) in inside else node.value
            else:
                continue
            for match in re.finditer(
                r"\blesionfast ((?:[\w./:*={}<>,%-]+[ \n]+)*[\w./:*={}<>,%-]+)", text
            ):
                yield path.name, match[1].split()


def test_every_line_that_is_printed_to_be_typed_has_options_of_its_own_command():
    commands, seen = typer.main.get_command(app).commands, 0
    for file, words in command_lines():
        name, *rest = [word.rstrip(".,:") for word in words]
        if name not in commands:
            continue
        command = commands[name]
        if rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        own = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}
        end = next(
            (i for i, word in enumerate(words) if word.endswith((".", ":", ";"))), len(words)
        )
        flags = [word for word in rest[:end] if word.startswith("--")]
        assert set(flags) <= own, f"{file}: lesionfast {' '.join(words)}"
        seen += 1
    assert seen > 100


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A folder with data/, whose table can't be read, so that whoever reads it first fails."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"no picture")
    (tmp_path / "data" / "t.csv").write_text('image,dx\n"a,mel\n')
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("predict gone x.jpg --cost missed_melanom=3", "--cost missed_melanom=3"),
        ("predict gone x.jpg --prior mel", "--prior"),
        ("predict gone x.jpg --tta 9", "--tta"),
        ("predict gone x.jpg --shard 9/8", "--shard"),
        ("app gone --prior mel", "--prior"),
        ("app gone --lang xx", "--lang"),
        ("train --data data --arch never", "--arch"),
        ("train --data data --loss never", "--loss"),
        ("train --data data --balance never", "--balance"),
        ("train --data data --fusion never", "--fusion"),
        ("train --data data --augment never", "--augment"),
        ("train --data data --mix never", "--mix"),
        ("train --data data --head never", "--head"),
        ("train --data data --log never", "--log"),
        ("train --data data --class-weight mel=x", "--class-weight"),
        ("train --data data --beta 0.9", "--beta"),
        ("train --data data --seeds 0", "--seeds"),
        ("train --data data --precision float16 --device cpu", "--precision"),
        ("lr-find --data data --loss never", "--loss"),
        ("bench --data data --arch never", "--arch"),
        ("search --data data --by never", "--by"),
        ("search --data data --trials 0", "--trials"),
        ("search --data data --workers 0", "--workers"),
        ("search --data data --budget never", "--budget"),
    ],
)
def test_wrong_options_are_said_before_anything_is_read(broken, words, option):
    if words.startswith("search"):
        pytest.importorskip("optuna")
    with pytest.raises(LesionfastError) as error:
        invoke(*words.split())
    assert option in str(error.value) and "there is no file" not in str(error.value)


def test_wrong_shares_are_said_before_a_run_keeps_anything(folder):
    run = Run(folder[0] / folder[1].stdout.strip())
    before = run.melanoma_sensitivity
    for option, value in (("--coverage", 7), ("--refer", 7)):
        with pytest.raises(LesionfastError, match=option):
            invoke("interpret", run.path, option, value, "--melanoma-sensitivity", 0.5)
    assert Run(run.path).melanoma_sensitivity == before


def test_a_device_that_is_none_is_an_error_of_the_user(folder):
    run = folder[0] / folder[1].stdout.strip()
    with pytest.raises(LesionfastError, match="--device is 'tpu', which is no device"):
        invoke("predict", run, run / "config.json", "--device", "tpu")
