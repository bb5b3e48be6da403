"""Tables carry every interval, pictures carry themselves, and nothing in a value becomes HTML."""

import base64

import numpy as np
import pandas as pd

from lesionfast.report.page import Cell, Section, pairs_table, picture_of, render, table_of

PAGE = dict(title="t", subtitle="s", headline=None, numbers=[], footer="f", version="1")


def test_a_value_and_the_ends_of_its_interval_become_one_cell():
    df = pd.DataFrame({"class": ["mel"], "auc": [0.9], "auc_low": [0.85], "auc_high": [0.94]})
    table = table_of(df, "c")
    assert table.columns == ["class", "auc"]
    assert table.rows == [[Cell("mel"), Cell("0.900", 0.9, "[0.850, 0.940]")]]


def test_value_low_high_become_one_cell_too():
    df = pd.DataFrame({"metric": ["kappa"], "value": [0.5], "low": [0.4], "high": [0.6]})
    assert table_of(df, "c").rows == [[Cell("kappa"), Cell("0.500", 0.5, "[0.400, 0.600]")]]


def test_what_is_missing_is_a_dash_and_counts_are_whole():
    df = pd.DataFrame({"a": [np.nan], "b": [1234], "c": [None], "d": [True]})
    cells = table_of(df, "c").rows[0]
    assert [each.text for each in cells] == ["–", "1,234", "–", "yes"]
    assert cells[0].number is None and cells[1].number == 1234


def test_columns_are_chosen_ordered_and_named():
    df = pd.DataFrame({"a": [1], "b": [2], "c": [3]})
    table = table_of(df, "c", {"c": "third", "a": "first"})
    assert table.columns == ["third", "first"]
    assert [each.text for each in table.rows[0]] == ["3", "1"]


def test_a_picture_carries_its_file(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    kind, data = picture_of(tmp_path / "p.png", "words").source.split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == b"\x89PNG"


def test_no_value_becomes_html():
    evil = "<script>alert(1)</script>"
    section = Section("A part", [evil], [pairs_table({evil: evil}, evil)])
    text = render("report.html", sections=[section], **PAGE | {"title": evil})
    assert evil not in text and text.count("&lt;script&gt;") >= 5


def test_a_section_is_linked_by_its_anchor():
    text = render("report.html", sections=[Section("Data card")], **PAGE)
    assert '<a href="#data-card">Data card</a>' in text and 'id="data-card"' in text
