"""Tables carry every interval, to the terminal, Markdown and JSON; a log line is shown once."""

import io
import logging

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from lesionfast.console import (
    Cell,
    Table,
    cell,
    echo,
    estimate,
    log_to_console,
    part_of_work,
    print_table,
    printable,
    progress_bar,
)


def test_a_value_and_the_ends_of_its_interval_become_one_cell():
    df = pd.DataFrame({"class": ["mel"], "auc": [0.9], "auc_low": [0.85], "auc_high": [0.94]})
    table = Table.from_frame(df, "c")
    assert table.columns == ["class", "auc"]
    assert table.rows == [[Cell("mel"), Cell("0.900", 0.9, 0.85, 0.94)]]
    assert str(table.rows[0][1]) == "0.900 [0.850, 0.940]"


def test_value_low_high_become_one_cell_too():
    df = pd.DataFrame({"metric": ["kappa"], "value": [0.5], "low": [0.4], "high": [0.6]})
    assert Table.from_frame(df, "c").rows == [[Cell("kappa"), Cell("0.500", 0.5, 0.4, 0.6)]]


def test_what_is_missing_is_a_dash_and_counts_are_whole():
    df = pd.DataFrame({"a": [np.nan], "b": [1234], "c": [None], "d": [True]})
    cells = Table.from_frame(df, "c").rows[0]
    assert [each.text for each in cells] == ["-", "1,234", "-", "yes"]
    assert cells[0].number is None and cells[1].number == 1234
    assert cell(pd.NA) == Cell("-") and cell(35.0, "g").text == "35"


def test_an_undefined_interval_is_left_out():
    assert str(estimate({"value": 0.5, "low": np.nan, "high": np.nan})) == "0.500"
    assert str(estimate({"d": 0.1, "d_low": -0.1, "d_high": 0.3}, "d", "+.2f")) == (
        "+0.10 [-0.10, +0.30]"
    )


def test_columns_are_chosen_ordered_and_named():
    df = pd.DataFrame({"a": [1], "b": [2], "c": [3]})
    table = Table.from_frame(df, "c", {"c": "third", "a": "first"})
    assert table.columns == ["third", "first"]
    assert [each.text for each in table.rows[0]] == ["3", "1"]


@pytest.fixture
def table() -> Table:
    table = Table("Title", ["class", "balanced accuracy"], note="a note")
    table.add("[bold]a" * 30, Cell("0.900", 0.9, 0.85, 0.94), style="bold")
    table.add_line()
    table.add("b", None)
    return table


def test_a_pipe_gets_whole_cells_and_no_colours(table, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    print_table(table)
    shown = capsys.readouterr().out
    assert "[bold]a" * 30 in shown and "\x1b" not in shown
    assert "balanced" in shown and "[0.850, 0.940]" in shown and "a note" in shown


def test_a_narrow_terminal_gets_intervals_of_two_lines(table):
    from rich.console import Console

    console = Console(width=20, force_terminal=True, color_system=None, markup=False)
    with console.capture() as shown:
        console.print(table.to_rich(narrow=True))
    assert "[0.850," in shown.get() and "…" not in shown.get()


def test_it_is_markdown(table):
    lines = table.to_markdown().splitlines()
    assert lines[0] == "Title:" and lines[2:4] == ["| class | balanced accuracy |", "| --- | --- |"]
    assert lines[4].endswith(" | 0.900 [0.850, 0.940] |") and lines[5] == "| b | - |"


def test_the_console_shows_a_line_once(capsys, monkeypatch):
    logger = logging.getLogger("lesionfast")
    monkeypatch.setattr(logger, "handlers", [])
    log_to_console()
    for _ in range(2):
        logger.warning("age is missing for %d images", 57)
    logger.warning("age is missing for %d images", 58)
    assert capsys.readouterr().err.splitlines() == [
        "age is missing for 57 images",
        "age is missing for 58 images",
    ]


def test_a_progress_bar_names_the_part_of_the_work():
    def describe(bar):
        bar.add_task("epoch 1/5", total=3, note="")
        return bar.columns[0].render(bar.tasks[0]).plain

    with part_of_work("fold 2 of 5"):
        with part_of_work("tower 1 of 2"):
            assert describe(progress_bar()) == "fold 2 of 5, tower 1 of 2, epoch 1/5"
        assert describe(progress_bar()) == "fold 2 of 5, epoch 1/5"
    assert describe(progress_bar()) == "epoch 1/5"


def test_a_table_is_printed_as_rich_would_lay_it_out(capsys):
    table = Table("Title", ["name", "balanced accuracy", "text"], note="note")
    table.add("first", 0.5, "two\nlines")
    table.add_line()
    table.add("皮膚 é", None, "")
    print_table(table)
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False, emoji=False)
    console.print(table.to_rich(), "")
    assert capsys.readouterr().out == console.file.getvalue()


def test_what_can_not_be_seen_is_spelled_out():
    shown = printable("a\x1b[2J\r\x9b\u202eb\u200b\udce9")
    assert shown == r"a\x1b[2J\r\x9b\u202eb\u200b\xe9"
    assert printable("é\u200dü\n\tعربي") == "é\u200dü\n\tعربي"


def test_a_pipe_gets_a_path_as_it_is_and_a_person_what_can_be_seen(capsys):
    echo("a\x1b[2J")
    echo("a\x1b[2J", stderr=True)
    assert capsys.readouterr() == ("a\x1b[2J\n", "a\\x1b[2J\n")
