"""The terminal tables: right numbers, at most 80 columns, legible without colour."""

import io

import pandas as pd
import pytest
from rich.console import Console

from lesionfast.console import print_table
from lesionfast.data.audit import Audit, Finding, audit_table
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report.comparison import runs_table
from lesionfast.report.errors import (
    confusion_table,
    interpretation_tables,
    most_confused_table,
    taken_for_table,
)
from lesionfast.report.metrics import metrics_table


def render(table, width: int = 80) -> list[str]:
    """Return the lines of a table as a terminal of that width without colours shows them."""
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False)
    console.print(table.to_rich())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def line_of(lines: list[str], start: str) -> list[str]:
    """Return the words of the first line that starts with `start`."""
    return next(line for line in lines if line.strip().startswith(start)).split()


def test_metrics_table_shows_both_rules_and_which_decides(make_run):
    run = make_run()
    lines, rules = render(metrics_table(run, "test")), run.metrics["test"]["rules"]
    assert "argmax" in lines[1] and lines[0].endswith("rule in use: balanced")
    for label, key in (("balanced accuracy", "balanced_accuracy"), ("macro F1", "macro_f1")):
        expected = [f"{rules[rule][key]:.3f}" for rule in ("argmax", "balanced")]
        assert line_of(lines, label)[2:] == expected
    assert line_of(lines, "macro AUC")[2] == f"{run.metrics['test']['macro_auc']:.3f}"
    body = [line for line in lines if line.strip()]
    assert body[-2].startswith("accuracy")
    assert "split sha256 0123456789ab" in body[-1]


def test_metrics_table_has_sensitivity_and_precision_of_each_class(make_run):
    run = make_run(rule="argmax")
    lines, rules = render(metrics_table(run, "valid")), run.metrics["valid"]["rules"]
    assert lines[0].endswith("rule in use: argmax")
    found = [line.split()[-2:] for line in lines if line.strip().startswith("mel (melanoma)")]
    assert found == [
        [f"{rules[rule][key]['mel']:.3f}" for rule in ("argmax", "balanced")]
        for key in ("sensitivity", "precision")
    ]


def test_metrics_table_of_other_classes_has_no_melanoma(make_run):
    text = "\n".join(render(metrics_table(make_run(classes=("benign", "malignant"), n=40))))
    assert "melanoma" not in text and "malignant, n " in text


def test_metrics_table_names_an_unknown_split(make_run):
    with pytest.raises(LesionfastError, match="'tset'.*Did you mean 'test'"):
        metrics_table(make_run(), "tset")


def test_everything_fits_80_columns(make_run):
    run = make_run(localization="lower extremity")
    tables = [*interpretation_tables(Findings.of(run)), metrics_table(run), runs_table([run])]
    for table in tables:
        natural = render(table, 200)
        assert max(map(len, natural)) <= 80
        assert not any("…" in line for line in render(table, 80))


def test_confusion_table_has_the_counts(make_run):
    interpretation = Interpretation.of(make_run())
    lines, confusion = render(confusion_table(interpretation)), interpretation.confusion()
    for name in interpretation.classes:
        expected = [*confusion.loc[name], confusion.loc[name].sum()]
        assert line_of(lines, f"{name} ")[1:] == [str(value) for value in expected]
    shares = render(confusion_table(interpretation, normalize=True))
    expected = confusion.loc["nv", "nv"] / confusion.loc["nv"].sum()
    assert f"{expected:.0%}" in line_of(shares, "nv ")


def test_many_long_names_get_numbered_columns(make_run):
    classes = tuple(f"some rare diagnosis {letter}" for letter in "abcdefghij")
    lines = render(confusion_table(Interpretation.of(make_run(classes=classes, n=80))))
    assert line_of(lines, "truth")[-11:] == [*map(str, range(1, 11)), "all"]
    assert any(line.startswith("10 some rare diagnosis j") for line in lines)


def test_a_matrix_of_too_many_classes_is_left_to_the_figure(make_run):
    many = Findings.of(make_run(classes=tuple(f"class {i}" for i in range(13)), n=100))
    titles = [table.title for table in interpretation_tables(many)]
    assert not any(title.startswith("Confusion") for title in titles)
    assert any(title.startswith("Most confused") for title in titles)


def test_most_confused_table_starts_with_melanoma(make_run):
    interpretation = Interpretation.of(make_run())
    lines = render(most_confused_table(interpretation))
    first = interpretation.most_confused().iloc[0]
    assert lines[3].startswith("mel (melanoma)")
    assert lines[3].split()[-2:] == [str(first["count"]), f"{first['share']:.0%}"]


def test_the_pair_with_the_most_images_is_shown_whatever_its_class(make_run, monkeypatch):
    interpretation = Interpretation.of(make_run())
    rows = [("mel", "nv", 3, 0.1), ("bcc", "akiec", 5, 0.2), ("nv", "mel", 181, 0.2)]
    pairs = pd.DataFrame(rows, columns=["truth", "decision", "count", "share"])
    monkeypatch.setattr(type(interpretation), "most_confused", lambda self: pairs)
    shown = "\n".join(render(most_confused_table(interpretation, most=2)))
    assert "181" in shown and shown.index("mel (") < shown.index("181")
    assert "bcc" not in shown and "the 2 of 3 pairs" in shown


def test_taken_for_table_counts_and_lists(make_run):
    interpretation = Interpretation.of(make_run(rule="argmax"))
    taken = interpretation.taken_for()
    lines = render(taken_for_table(interpretation), 100)
    assert len(taken) > 10
    assert f"mel taken for nv: {len(taken)} of" in " ".join(lines)
    shown = [line.split()[0] for line in lines if line.startswith("ISIC_")]
    assert shown == taken["image_id"].head(10).tolist()
    assert f"the 10 most confident of {len(taken)}" in " ".join(lines)


def test_runs_table_shows_ended_and_unfinished_runs(make_run):
    done, broken = make_run(), make_run(n=50)
    (broken.path / "metrics.json").unlink()
    lines = render(runs_table([done, broken]))
    rules = done.metrics["test"]["rules"]["balanced"]
    words = line_of(lines, done.path.name)
    assert words[1] == f"{rules['balanced_accuracy']:.3f}"
    assert words[3] == f"{rules['mel_sensitivity']:.3f}"
    assert words[4:] == ["1.5", "finished"]
    assert line_of(lines, broken.path.name)[-2:] == ["not", "ended"]


def test_audit_table_shows_verdicts_and_near_duplicates():
    checks = [
        Finding("corrupt images", 2, "problem", "a.jpg, [b].jpg"),
        Finding("images without age", 57, "note", "kept with an indicator"),
    ]
    pairs = pd.DataFrame(
        {"image_a": ["i1"], "image_b": ["i2"], "score": [0.98], "transform": ["turned by 90"]}
    )
    first, second = map(render, audit_table(Audit(checks, pairs)))
    assert line_of(first, "corrupt")[2:] == ["2", "problem", "a.jpg,", "[b].jpg"]
    assert line_of(second, "i1")[:3] == ["i1", "i2", "0.980"]
    assert len(audit_table(Audit(checks, pairs.head(0)))) == 1


def test_print_table_writes_whole_tables_to_pipes(make_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    print_table(metrics_table(make_run(classes=("[bold]a", "b"), n=40)), stderr=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[bold]a, n " in captured.err and "\x1b" not in captured.err
