"""The subgroups chapter: who the model fails for, with and without metadata, on odd images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lesionfast.console import Table, estimate
from lesionfast.diagnoses import Classes, full_name
from lesionfast.evaluation.comparison import (
    ENDS,
    WITHHELD,
    contribution_metrics,
    describe_loss,
    describe_missed_melanomas,
)
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.labels import disagreeing_duplicates
from lesionfast.reporting.images import draw_words
from lesionfast.reporting.page import (
    GREY,
    Section,
    draw_picture,
    new_figure,
    save,
    style_axis,
    subtitle,
)
from lesionfast.stats.metrics import ALL, metric_name
from lesionfast.stats.subgroups import FEWEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SITE = {"localization": "site"}
COLOUR = "#0072B2"
MOST_ROWS = 12  # of a list that is shown in part

Places = dict[tuple[str, str], float]  # (column, group) -> height in the figure


def subgroups(findings: Findings) -> Section | None:
    """Return the metrics of each sex, age band and site, and the gaps between them."""
    read = findings.interpretation
    groups = read.subgroups()
    if groups.empty:
        return None
    words = [
        f"Groups with fewer than {FEWEST} relevant lesions are marked (few), not ranked. A gap is "
        "the best group minus the worst. Chance alone makes gaps, so each is shown with the gap "
        "expected by chance and with p, the share of random groups "
        "with a gap at least as large (not corrected for the number of rows).",
    ]
    tables, gaps = [groups_table(groups, read.classes)], read.gaps()
    if gaps["value"].notna().any():
        tables.append(gaps_table(gaps[gaps["value"].notna()], groups))
    picture = draw_picture(findings, draw_subgroups, "Sensitivity and AUC of each group")
    return Section("Subgroups", words, tables, [picture])


def groups_table(groups: pd.DataFrame, classes: Classes) -> Table:
    """Return one row a group, one column a metric, and the lesions behind each sensitivity."""
    keys = metric_keys(groups)
    columns = ["by", "group", "images", "lesions"]
    for metric, of in keys:
        columns.append(metric_name(metric, of, classes))
        if of != ALL and metric == "sensitivity":
            columns.append(metric_name("lesions", of, classes))
    table = Table("Groups of patients", columns)
    for (column, group), rows in groups.groupby(["column", "group"], sort=False):
        cells = [column, group, rows["images"].iloc[0], rows["lesions"].iloc[0]]
        rows = rows.set_index(["metric", "of"])
        for metric, of in keys:
            row = rows.loc[(metric, of)]
            cells.append(estimate(row))
            if of != ALL and metric == "sensitivity":
                cells.append(f"{row['positives']} (few)" if row["few"] else str(row["positives"]))
        table.add(*cells)
    return table


def metric_keys(groups: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what a table measures, (metric, of), in its order."""
    return list(dict.fromkeys(zip(groups["metric"], groups["of"], strict=True)))


def gaps_table(gaps: pd.DataFrame, groups: pd.DataFrame) -> Table:
    """Return the gaps between the ranked groups of a table, and which it has too few cases of."""
    keys = ["column", "of", "metric"]
    few = groups[groups["few"].astype(bool)].groupby(keys)["group"].agg(", ".join)
    rows = gaps.join(few, on=keys).fillna({"group": ""})
    rows["metric"] = [
        metric_name(metric, of) for metric, of in zip(gaps["metric"], gaps["of"], strict=True)
    ]
    names = {"column": "by", "metric": "metric", "value": "gap", "best": "best", "worst": "worst"}
    names |= {"expected": "expected by chance", "p": "p", "group": "left out: too few lesions"}
    return Table.from_frame(rows, "Gaps", names)


def draw_subgroups(interpretation: Interpretation, folder: Path) -> Path:
    """Draw the metrics of each group as dots with 95 % intervals, few cases hollow and grey."""
    table = interpretation.subgroups()
    title = "Sensitivity and AUC by subgroup"
    path = folder / "subgroups.png"
    if table.empty:
        nothing = "the dataset has no column sex, age or localization"
        return save(draw_words(title, subtitle(interpretation), nothing), path, interpretation)
    panels = metric_keys(table)
    places = place_groups(table)
    text = (
        f"{subtitle(interpretation)}; bars: 95 % intervals over lesions; n: positive lesions, for "
        f"balanced accuracy those of the rarest class\nhollow: fewer than {FEWEST} lesions to "
        "count, not ranked; empty: undefined, or without an interval"
    )
    height = 0.27 * max(places.values()) + 2.4
    figure = new_figure(3.2 + 2.3 * len(panels), height, title, text)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (metric, of) in zip(axes, panels, strict=True):
        draw_panel(axis, table[(table["metric"] == metric) & (table["of"] == of)], places)
        name = metric_name(metric)
        axis.set_title(name if of == ALL else f"{name}\n{full_name(of)}", fontsize=10)
        axis.set_xlabel("share (0 to 1)" if metric != "auc" else "AUC (0.5 is chance)")
    name_groups(axes[0], table, places)
    return save(figure, path, interpretation)


def place_groups(table: pd.DataFrame) -> Places:
    """Return the height of each (column, group), from the top down, a space between columns."""
    places: Places = {}
    height, last = 0.0, None
    for key in dict.fromkeys(zip(table["column"], table["group"], strict=True)):
        height += 1 if key[0] == last or last is None else 2.2
        places[key], last = height, key[0]
    return places


def draw_panel(axis: Axes, part: pd.DataFrame, places: Places) -> None:
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
    style_axis(axis, xlim=(-0.02, 1.02))
    axis.grid(visible=False, axis="y")
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)


def name_groups(axis: Axes, table: pd.DataFrame, places: Places) -> None:
    """Write the groups with their numbers of lesions at the left, under the name of the column."""
    counts = table.groupby(["column", "group"])["lesions"].first()
    labels = [f"{key[1]}  ({counts[key]} lesions)" for key in places]
    axis.set_yticks(list(places.values()), labels, fontsize=9)
    axis.set_ylim(max(places.values()) + 0.7, -0.4)
    firsts = {column: y for (column, _), y in reversed(places.items())}
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


def metadata(findings: Findings) -> Section | None:
    """Return what withholding all metadata at prediction changes, if the run has tried it."""
    contribution = findings.contribution
    if contribution is None:
        return None
    columns = findings.run.model["metadata"]
    loses = f"Withholding {' and '.join(columns)} at prediction"
    words = [
        f"{describe_loss(contribution, WITHHELD, loses)}.",
        describe_missed_melanomas(contribution, columns),
    ]
    names = {"whole": "with metadata", WITHHELD: "without"}
    table = contribution_table(contribution, findings.interpretation.classes, names)
    return Section("Without metadata", list(filter(None, words)), [table])


def contribution_table(
    contribution: pd.DataFrame, classes: Classes, names: dict[str, str] | None = None
) -> Table:
    """Return the metrics of each system, and below each its differences from the whole run."""
    keys = [key for key in contribution_metrics(classes) if key in metric_keys(contribution)]
    table = Table(
        "What each input contributes",
        ["system", *(metric_name(metric, of, classes) for metric, of in keys)],
        note="the same images; differences over the same resamples of lesions",
    )
    for system, rows in contribution.groupby("system", sort=False):
        rows = rows.set_index(["metric", "of"])
        named = names or {"whole": "image and metadata"}
        table.add(named.get(system, system), *(estimate(rows.loc[key]) for key in keys))
        if system != "whole":
            differences = (estimate(rows.loc[key], ENDS[0], "+.3f") for key in keys)
            table.add("  difference, paired", *differences)
    return table


def out_of_distribution(findings: Findings) -> Section | None:
    """Return how many images look unlike the training images."""
    scores = findings.ood_scores
    if scores is None:
        return None
    scorer, scored = findings.decisions.ood, findings.interpretation.rows.loc[scores.index]
    flagged = scored.assign(score=scores)[scores > scorer.threshold]
    words = [
        f"{len(flagged)} of {len(scored)} images ({len(flagged) / len(scored):.1%}) are less like "
        f"the training images than {scorer.level:.0%} of the validation images are (OOD score: "
        "distance to the training images). `lesionfast predict` gives such an image no decision; "
        "the metrics here count the model's decision for all images.",
    ]
    worst = flagged.sort_values("score", ascending=False).head(MOST_ROWS)
    names = {"image_id": "image", "score": "OOD score", "truth": "truth", "decision": "decision"}
    return Section(
        "Out of distribution", words, [Table.from_frame(worst, "The highest scores", names)]
    )


def labels(findings: Findings) -> Section | None:
    """Return images of one lesion that were decided differently."""
    if "group" not in findings.interpretation.rows:
        return None
    pairs = disagreeing_duplicates(findings.interpretation)
    if pairs.empty:
        return None
    melanoma = findings.interpretation.classes.melanoma
    grave = (pairs["truth_a"] == melanoma) | (pairs["truth_b"] == melanoma)
    words = [
        f"{len(pairs)} pairs of images of one lesion are decided differently; {int(grave.sum())} "
        "of them are of melanomas and come first. The difference is half the summed absolute "
        "differences of their probabilities. The command lesionfast labels lists labels that may "
        "be wrong.",
    ]
    rows = pd.concat([pairs[grave], pairs[~grave]]).head(MOST_ROWS)
    rows["truth"] = rows["truth_a"].map(full_name)
    names = {"image_a": "image", "decision_a": "decision", "image_b": "other image"}
    names |= {"decision_b": "other decision", "truth": "truth", "difference": "difference"}
    return Section("One lesion, two decisions", words, [Table.from_frame(rows, "Pairs", names)])
