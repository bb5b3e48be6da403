"""The forest plot shows the table: every interval, few cases hollow."""

import numpy as np

from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.subgroups import draw_subgroups


def test_dots_and_bars_are_the_tables(make_run, tmp_path, drawn):
    interpretation = Interpretation.from_run(make_run())
    table = interpretation.subgroups()
    path = draw_subgroups(interpretation, tmp_path)
    assert path.name == "subgroups.png" and path.with_suffix(".svg").is_file()
    panels = list(dict.fromkeys(zip(table["metric"], table["of"], strict=True)))
    assert len(next(iter(drawn.values())).axes) == len(panels) == 5
    for axis, (metric, of) in zip(next(iter(drawn.values())).axes, panels, strict=True):
        part = table[(table["metric"] == metric) & (table["of"] == of)]
        part = part[part["low"].notna()]
        bars, dots = axis.lines[0::2], axis.lines[1::2]
        assert np.allclose([each.get_xdata() for each in bars], part[["low", "high"]])
        assert np.allclose([each.get_xdata()[0] for each in dots], part["value"])
        hollow = [each.get_markerfacecolor() == "white" for each in dots]
        assert hollow == part["few"].tolist() and any(hollow)
    names = [label.get_text() for label in next(iter(drawn.values())).axes[0].get_yticklabels()]
    for group, lesions in zip(table["group"], table["lesions"], strict=True):
        assert f"{group}  ({lesions} lesions)" in names


def test_a_dataset_without_such_columns_says_so(make_run, tmp_path, drawn):
    run = make_run(n=50)
    run.predictions.drop(columns=["age", "sex"], inplace=True)
    draw_subgroups(Interpretation.from_run(run), tmp_path)
    words = [text.get_text() for text in next(iter(drawn.values())).axes[0].texts]
    assert words == ["the dataset has no column sex, age or localization"]
