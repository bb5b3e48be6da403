"""The forest plot shows the table: every interval, few cases hollow."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.subgroup_figures import draw_subgroups
from lesionfast.evaluation.subgroups import subgroup_table


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that are saved while a test runs."""
    found, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (found.append(f), save(f, *a, **k)))
    return found


def test_dots_and_bars_are_the_tables(make_run, tmp_path, figures):
    interpretation = Interpretation.of(make_run())
    table = subgroup_table(interpretation)
    path = draw_subgroups(interpretation, tmp_path, table)
    assert path.name == "subgroups.png" and path.with_suffix(".svg").is_file()
    panels = list(dict.fromkeys(zip(table["metric"], table["of"], strict=True)))
    assert len(figures[0].axes) == len(panels) == 5
    for axis, (metric, of) in zip(figures[0].axes, panels, strict=True):
        part = table[(table["metric"] == metric) & (table["of"] == of)]
        part = part[part["low"].notna()]
        bars, dots = axis.lines[0::2], axis.lines[1::2]
        assert np.allclose([each.get_xdata() for each in bars], part[["low", "high"]])
        assert np.allclose([each.get_xdata()[0] for each in dots], part["value"])
        hollow = [each.get_markerfacecolor() == "white" for each in dots]
        assert hollow == part["few"].tolist() and any(hollow)
    names = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    for group, lesions in zip(table["group"], table["lesions"], strict=True):
        assert f"{group}  ({lesions} lesions)" in names


def test_a_dataset_without_such_columns_says_so(make_run, tmp_path, figures):
    run = make_run(n=50)
    run.predictions.drop(columns=["age", "sex"], inplace=True)
    draw_subgroups(Interpretation.of(run), tmp_path)
    words = [text.get_text() for text in figures[0].axes[0].texts]
    assert words == ["the dataset names no sex, age or localization"]
