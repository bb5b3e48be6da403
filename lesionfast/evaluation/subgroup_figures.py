"""The subgroups as a figure: each group's metrics with their intervals, side by side."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from lesionfast.diagnoses import full_name
from lesionfast.evaluation.canvas import GREY, new_figure, save, sign
from lesionfast.evaluation.figures import told
from lesionfast.evaluation.grids import draw_words
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.subgroups import FEWEST, subgroup_table

SITE = {"localization": "site"}
COLOUR = "#0072B2"


def draw_subgroups(
    interpretation: Interpretation, folder: Path, table: pd.DataFrame | None = None
) -> Path:
    """Draw the metrics of each group as dots with 95 % intervals; return the path.

    Groups with few cases are hollow and grey. `table` is that of `subgroup_table`, if it has been
    made already.
    """
    table = subgroup_table(interpretation) if table is None else table
    title = "Who it fails for: sensitivity and AUC in groups of patients"
    if table.empty:
        words = "the dataset names no sex, age or localization"
        figure = draw_words(title, told(interpretation), words)
    else:
        panels = list(dict.fromkeys(zip(table["metric"], table["of"], strict=True)))
        places = places_of(table)
        subtitle = (
            f"{told(interpretation)}; bars: 95 % intervals over lesions; n: positive lesions, "
            f"for balanced accuracy those of the rarest class\nhollow: fewer than {FEWEST} "
            "lesions to count, not ranked; empty: undefined, or without an interval"
        )
        height = 0.27 * max(places.values()) + 2.4
        figure = new_figure(3.2 + 2.3 * len(panels), height, title, subtitle)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (metric, of) in zip(axes, panels, strict=True):
            part = table[(table["metric"] == metric) & (table["of"] == of)]
            draw_panel(axis, part, places)
            name = metric.replace("_", " ").replace("auc", "AUC")
            axis.set_title(name if of == "all" else f"{name}\n{full_name(of)}", fontsize=10)
            axis.set_xlabel("share (0 to 1)" if metric != "auc" else "AUC (0.5 is chance)")
        name_groups(axes[0], table, places)
    sign(figure, interpretation)
    return save(figure, folder / "subgroups.png")


def places_of(table: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Return the height of each (column, group), from the top down, a space between columns."""
    places: dict[tuple[str, str], float] = {}
    height, last = 0.0, None
    for key in dict.fromkeys(zip(table["column"], table["group"], strict=True)):
        height += 1 if key[0] == last or last is None else 2.2
        places[key], last = height, key[0]
    return places


def draw_panel(axis: Axes, part: pd.DataFrame, places: dict[tuple[str, str], float]) -> None:
    """Draw one metric of all groups, with its number of positive lesions at the right."""
    for row in part.itertuples():
        y = places[row.column, row.group]
        look = {"color": "0.6" if row.few else COLOUR, "linewidth": 1 if row.few else 2}
        if row.low == row.low:  # no number without its interval
            axis.plot([row.low, row.high], [y, y], solid_capstyle="butt", **look)
            face = "white" if row.few else COLOUR
            dot = {"markersize": 6, "markerfacecolor": face, "color": look["color"]}
            axis.plot(row.value, y, "o", clip_on=False, **dot)
        axis.text(1.08, y, row.positives, va="center", fontsize=7.5, color=GREY, clip_on=False)
    axis.text(1.08, 0.1, "n", fontsize=7.5, color=GREY, style="italic", va="center")
    axis.set(xlim=(-0.02, 1.02))
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axis.grid(color="0.92", axis="x")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def name_groups(axis: Axes, table: pd.DataFrame, places: dict[tuple[str, str], float]) -> None:
    """Write the groups with their numbers of lesions at the left, under the name of the column."""
    counts = table.groupby(["column", "group"])["lesions"].first()
    axis.set_yticks(
        list(places.values()), [f"{key[1]}  ({counts[key]} lesions)" for key in places], fontsize=9
    )
    axis.set_ylim(max(places.values()) + 0.7, -0.4)
    firsts: dict[str, float] = {}
    for (column, _), y in places.items():
        firsts.setdefault(column, y)
    for column, y in firsts.items():
        axis.annotate(
            SITE.get(column, column),
            (0, y - 0.95),
            xycoords=("axes fraction", "data"),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            weight="bold",
            fontsize=9,
            annotation_clip=False,
        )
