"""The subgroups as a figure: each group's metrics with their intervals, side by side."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.contribution import ENDS, WITHHELD, in_words, melanomas_missed
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.labels import disagreeing_duplicates
from lesionfast.report.images import draw_words
from lesionfast.report.page import (
    GREY,
    Section,
    Table,
    new_figure,
    picture_of,
    save,
    sign,
    table_of,
    told,
)
from lesionfast.stats.subgroups import FEWEST

SITE = {"localization": "site"}
COLOUR = "#0072B2"


def draw_subgroups(
    interpretation: Interpretation, folder: Path, table: pd.DataFrame | None = None
) -> Path:
    """Draw the metrics of each group as dots with 95 % intervals; return the path.

    Groups with few cases are hollow and grey. `table` is that of
    `Interpretation.subgroups`, if it is there already.
    """
    table = interpretation.subgroups() if table is None else table
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


MOST_PAIRS = 12
PAIRED = "The same images; differences over the same resamples of lesions"


def subgroups(findings: Findings) -> Section | None:
    """Return the metrics of each sex, age band and site, and the gaps between them."""
    read = findings.interpretation
    found = read.subgroups()
    if found.empty:
        return None
    words = [
        f"Groups with fewer than {FEWEST} lesions to count are marked as few and take no part in "
        "the gaps. A gap is the best group less the worst, which is above 0 even where groups do "
        "not differ: beside it stands the gap to expect then, and p, the share of random groups "
        "with a gap at least as large (not corrected for the number of rows).",
    ]
    picture = picture_of(findings.drawn(draw_subgroups), "Sensitivity and AUC of each group")
    gaps = read.gaps()
    titles = {read.classes.melanoma: "melanoma"}
    tables = [subgroups_wide(found, titles), gaps_table(gaps[gaps["value"].notna()], found)]
    return Section("Subgroups", words, tables, [picture])


def subgroups_wide(found: pd.DataFrame, titles: dict[str | None, str]) -> Table:
    """Return one row a group, one column a metric; 'few' where its cases are."""
    rows = []
    for (column, group), cells in found.groupby(["column", "group"], sort=False):
        row: dict[str, object] = {"by": column, "group": group}
        row |= {"images": int(cells["images"].iloc[0]), "lesions": int(cells["lesions"].iloc[0])}
        for each in cells.itertuples():
            of = "" if each.of == "all" else f"{titles.get(each.of, each.of)} "
            name = f"{of}{each.metric.replace('_', ' ').replace('auc', 'AUC')}"
            row |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
            if each.of != "all" and each.metric == "sensitivity":
                few = " (few)" if each.few else ""
                row[f"{of}lesions"] = f"{each.positives}{few}"
        rows.append(row)
    return table_of(pd.DataFrame(rows), "Groups of patients")


def gaps_table(gaps: pd.DataFrame, found: pd.DataFrame) -> Table:
    """Return the gaps between the ranked groups of a table, and which it has too few cases of."""
    keys = ["column", "of", "metric"]
    few = found[found["few"].astype(bool)].groupby(keys)["group"].agg(", ".join)
    told = gaps.join(few, on=keys).fillna({"group": ""})
    told["metric"] = gaps["of"].replace("all", "") + " " + gaps["metric"].str.replace("_", " ")
    names = {"column": "by", "metric": "metric", "value": "gap", "best": "best", "worst": "worst"}
    names |= {"expected": "expected by chance", "p": "p", "group": "not in it, too few"}
    return table_of(told, "Gaps", names)


def metadata(findings: Findings) -> Section | None:
    """Return what withholding all metadata at prediction changes, if the run has tried it."""
    found = findings.contribution
    if found is None:
        return None
    columns = findings.run.model["metadata"]
    loses = f"Withholding {' and '.join(columns)} at prediction"
    words = [f"{in_words(found, WITHHELD, loses)}.", melanomas_missed(found, columns)]
    names = {"system": "predicted", "metric": "metric", "of": "of"}
    names |= {"value": "value", "difference": "difference, paired"}
    told = found.replace({"system": {"whole": "with metadata", WITHHELD: "without"}})
    told.loc[found["system"] == "whole", list(ENDS)] = float("nan")
    told["metric"] = told["metric"].str.replace("_", " ").str.replace("auc", "AUC")
    return Section("Without metadata", [w for w in words if w], [table_of(told, PAIRED, names)])


def out_of_distribution(findings: Findings) -> Section | None:
    """Return how many images look unlike the training images."""
    if not (findings.on_test and findings.keeps_features):
        return None
    try:
        scorer = findings.ood
    except LesionfastError as error:
        findings.left_out("the OOD score", error)
        return None
    rows, features = findings.interpretation.rows, findings.features
    known = rows[rows["image_id"].isin(features.index)]
    scores = pd.Series(scorer.score(features.loc[known["image_id"]]), known.index)
    flagged = known.assign(score=scores)[scores > scorer.threshold]
    words = [
        f"{len(flagged)} of {len(known)} images ({len(flagged) / len(known):.1%}) look less like "
        f"the training images than {scorer.level:.0%} of the validation images do "
        "(OOD score: distance to the nearest training images). On such images trust the "
        "model less.",
    ]
    worst = flagged.sort_values("score", ascending=False).head(MOST_PAIRS)
    names = {"image_id": "image", "score": "score", "truth": "truth", "decision": "decision"}
    return Section("Out of distribution", words, [table_of(worst, "The furthest", names)])


def labels(findings: Findings) -> Section | None:
    """Return images of one lesion that were decided differently."""
    if "group" not in findings.interpretation.rows:
        return None
    found = disagreeing_duplicates(findings.interpretation)
    if found.empty:
        return None
    melanoma = findings.interpretation.classes.melanoma
    grave = (found["truth_a"] == melanoma) | (found["truth_b"] == melanoma)
    ordered = pd.concat([found[grave], found[~grave]])
    words = [
        f"{len(found)} pairs of images of one lesion are decided differently, {int(grave.sum())} "
        "of them of melanomas; those first. The difference is half the sum of what their "
        "probabilities differ by. `lesionfast labels` looks for labels that may be wrong.",
    ]
    names = {
        "image_a": "image",
        "decision_a": "decided",
        "image_b": "other image",
        "decision_b": "decided ",
        "truth_a": "truth",
        "difference": "difference",
    }
    told = ordered.head(MOST_PAIRS).assign(truth_a=lambda d: d["truth_a"].map(full_name))
    return Section("One lesion, two decisions", words, [table_of(told, "Pairs", names)])
