"""Runs side by side as a table and as pictures, and the list of runs."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from lesionfast.console import print_table
from lesionfast.evaluation.comparison import Comparison, comparison_table
from lesionfast.reporting.comparison import (
    draw_comparison,
    push_apart,
    run_label,
)


@pytest.fixture
def runs(make_run, make_worse):
    """Three runs of the same images, the second and third worse and in another order of rows."""
    first = make_run()
    return [first, make_worse(first, "worse", 0.5), make_worse(first, "a" * 70, 1.5)]


def test_the_table_shows_a_dash_for_what_is_not_known(runs, capsys):
    print_table(comparison_table(Comparison.from_runs(runs)))
    shown = capsys.readouterr().out
    assert "…" not in shown and "a" * 70 in shown
    lines = shown.splitlines()
    first = next(line for line in lines if line.startswith(runs[0].path.name))
    assert " best " in first and first.endswith(" -")
    assert "3.4 M" in shown and "resnet18" in shown
    for value in Comparison.from_runs(runs).table["balanced_accuracy"]:
        assert f"{value:.3f}" in shown


def test_a_terminal_of_80_columns_loses_no_number(runs):
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(comparison_table(Comparison.from_runs(runs)).to_rich(narrow=True))
    assert "…" not in shown.get() and "3.4" in shown.get() and "2 min" in shown.get()
    for value in Comparison.from_runs(runs).table["balanced_accuracy"]:
        assert f"{value:.3f}" in shown.get()


def test_classes_without_melanoma_are_compared_without_it(make_run, make_worse):
    first = make_run(("bcc", "df", "vasc"))
    comparison = Comparison.from_runs([first, make_worse(first, "other", 1)])
    assert "mel_to_nv" not in comparison.table
    assert len(list(filter(None, comparison_table(comparison).rows))) == 2


def test_a_run_in_a_picture_has_its_balanced_accuracy_and_the_interval(runs):
    comparison = Comparison.from_runs(runs)
    for run, row in zip(comparison.runs, comparison.table.to_dict("records"), strict=True):
        ends = f"[{row['balanced_accuracy_low']:.3f}, {row['balanced_accuracy_high']:.3f}]"
        assert run_label(run, comparison).endswith(f"test {row['balanced_accuracy']:.3f} {ends}")


def test_pictures_are_drawn_and_a_run_without_history_is_no_trouble(runs, tmp_path):
    (runs[1].path / "history.csv").unlink()
    files = draw_comparison(Comparison.from_runs(runs), tmp_path / "comparison")
    assert [file.name for file in files] == ["training.png", "confusion.png"]
    for file in files:
        assert np.asarray(Image.open(file).convert("L")).std() > 10
    for run in runs:
        (run.path / "history.csv").unlink(missing_ok=True)
    alone = draw_comparison(Comparison.from_runs(runs[:1]), tmp_path / "one")
    assert [file.name for file in alone] == ["confusion.png"]


def test_labels_that_would_overlap_are_pushed_apart():
    apart = push_apart(np.array([0.1, 0.11, 0.5, 0.505]), 0.05)
    np.testing.assert_allclose(apart, [0.1, 0.15, 0.5, 0.55])
