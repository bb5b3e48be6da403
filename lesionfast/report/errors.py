"""The most suspicious labels as a grid of pictures."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lesionfast.console import MOST_ROWS, add_columns, decimal, new_table, plain, with_interval
from lesionfast.diagnoses import NAMES, full_name
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.labels import coverage, suspicious_labels
from lesionfast.report.images import draw_grid, draw_melanomas_taken_for_nevi, patient, per_cent
from lesionfast.report.page import (
    GREY,
    Section,
    Table,
    count_drawn,
    described,
    drawn_classes,
    new_figure,
    picture_of,
    pivot,
    save,
    sign,
    told,
)
from lesionfast.runs import Run

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table
    from rich.text import Text


def draw_confusion(interpretation: Interpretation, folder: Path) -> Path:
    """Draw the confusion matrix, each cell its share of the truth and its count."""
    names = drawn_classes(interpretation)
    whole = interpretation.confusion()
    counts = whole.loc[names, names]
    shares = interpretation.confusion(normalize=True).loc[names, names]
    k = len(names)
    side = max(0.85 * k if k <= 12 else 0.55 * k, 3.7)
    subtitle = f"{told(interpretation)}; per cent of the truth, and images"
    subtitle += count_drawn(interpretation)
    figure = new_figure(side + 2.8, side + 1.5, "Confusion matrix", subtitle)
    axis = figure.subplots()
    axis.imshow(shares.fillna(0), cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(k, k):
        share, count = shares.iat[i, j], counts.iat[i, j]
        write_cell(axis, i, j, share, count, size=9.5 if k <= 12 else 6.5)
    totals = whole.sum(axis=1)
    rows = [f"{full_name(name)}\nn {totals[name]}" for name in counts.index]
    axis.set_yticks(range(k), rows)
    short = all(name in NAMES or len(name) <= 8 for name in counts)
    turned = {} if short else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(k), counts.columns, **turned)
    axis.set(xlabel="decision", ylabel="truth")
    axis.tick_params(length=0)
    sign(figure, interpretation)
    return save(figure, folder / "confusion.png")


def write_cell(axis: Axes, i: int, j: int, share: float, count: int, size: float) -> None:
    """Write one cell of the confusion matrix; nothing where there is nothing."""
    if count:
        color = "white" if share > 0.7 else "black"
        weight = "bold" if i == j else "normal"
        text = f"{per_cent(share)}\n{count}"
        axis.text(j, i, text, ha="center", va="center", color=color, weight=weight, fontsize=size)


def melanoma(findings: Findings) -> Section | None:
    """Return what becomes of the melanomas."""
    read = findings.interpretation
    melanoma = read.classes.melanoma
    if melanoma is None:
        return None
    confused = read.most_confused()
    confused = confused[confused["truth"] == melanoma]
    total = int((read.rows["truth"] == melanoma).sum())
    missed = int(confused["count"].sum())
    words = [f"{missed} of {total} melanomas are decided to be something else."]
    pictures = []
    if read.classes.costliest:
        taken = read.taken_for()
        words.append(f"{len(taken)} are taken for nevi, the costliest error.")
        file = findings.drawn(draw_melanomas_taken_for_nevi)
        pictures.append(picture_of(file, "The melanomas taken for nevi, most confident first"))
    return Section("Melanoma", [" ".join(words)], [pivot(findings.measures, [melanoma])], pictures)


def confusion(findings: Findings) -> Section:
    """Return the confusion matrix and the errors, the gravest first."""
    picture = picture_of(findings.drawn(draw_confusion), "Truth by decision")
    return Section("Confusion", pictures=[picture])


MOST_CLASSES = 12
OF_A_CLASS = {
    "sensitivity": "sensitivity",
    "precision": "precision",
    "specificity": "specificity",
    "auc": "AUC",
}


def interpretation_tables(findings: Findings) -> list["Table"]:
    """Return what `lesionfast interpret` prints: classes, confusion, worst pairs, melanomas.

    The confusion matrix of more than 12 classes fits no terminal; the figure shows it.
    """
    interpretation, tables = findings.interpretation, [class_table(findings)]
    if len(interpretation.classes) <= MOST_CLASSES:
        tables += [confusion_table(interpretation, normalize) for normalize in (False, True)]
    tables.append(most_confused_table(interpretation))
    if interpretation.classes.costliest:
        tables.append(taken_for_table(interpretation))
    if findings.cost:
        tables.append(costs_table(findings))
    return tables


def costs_table(findings: Findings) -> "Table":
    """Return the mean cost an image of each rule, and of the rule of least expected cost."""
    told = f"{findings.cost}; any other error costs 1"
    table = new_table("Mean cost an image", told)
    add_columns(table, "rule", "cost")
    for row in findings.mean_costs.to_dict("records"):
        table.add_row(row["rule"], with_interval(row, "value"))
    return table


def class_table(findings: Findings) -> "Table":
    """Return two lines a class: sensitivity, precision, specificity, AUC, and their intervals."""
    read, measures = findings.interpretation, findings.measures
    told = with_interval(findings.measure("balanced_accuracy", "all").to_dict(), "value")
    title = f"Classes, {described(read)}; balanced accuracy {' '.join(told.split(chr(10)))}"
    table = new_table(title, "in brackets: 95 % intervals over lesions")
    add_columns(table, "class", "n", *OF_A_CLASS.values())
    groups = {read.classes.cancer} & set(measures["of"]) - set(read.classes)
    for name in [*read.classes, *groups]:
        rows = measures[measures["of"] == name].set_index("metric")
        cells = [with_interval(rows.loc[metric].to_dict(), "value") for metric in OF_A_CLASS]
        style = "bold" if name == read.classes.melanoma else None
        table.add_row(name, str(int(rows["n"].iloc[0])), *cells, style=style)
    return table


def confusion_table(interpretation: Interpretation, normalize: bool = False) -> "Table":
    """Return truth (rows) by decision (columns): counts, or per cent of the truth."""
    confusion = interpretation.confusion(normalize)
    what = "% of the truth" if normalize else "images"
    table = new_table(f"Confusion in {what}, {described(interpretation)}")
    # More than a line can hold: numbers head the columns, and the rows say which is which.
    names = interpretation.classes
    long = sum(max(len(name), 4) + 3 for name in names) + max(map(len, names)) > 72
    marks = [str(i) for i in range(1, len(names) + 1)] if long else names
    rows = [f"{m} {n}" if long else n for m, n in zip(marks, names, strict=True)]
    add_columns(table, "truth \\ decided", *marks, *([] if normalize else ["all"]))
    table.columns[0].min_width = max(map(len, rows))
    for position, label in enumerate(rows):
        values = confusion.iloc[position].tolist()
        cells = [cell(v, normalize, i == position) for i, v in enumerate(values)]
        table.add_row(label, *cells, *([] if normalize else [str(sum(values))]))
    return table


def cell(value: float, normalize: bool, hit: bool) -> "Text":
    """Return one cell of a confusion matrix, the diagonal bold, nothing dim."""
    from rich.text import Text

    text = ("-" if value != value else f"{value:.0%}") if normalize else str(value)
    return Text(text, style="bold" if hit else "" if value else "dim")


def most_confused_table(interpretation: Interpretation, most: int = 12) -> "Table":
    """Return the most confused pairs of classes, melanoma first."""
    pairs = interpretation.most_confused()
    first = ", melanoma first" if interpretation.classes.melanoma else ""
    title = f"Most confused{first}, {described(interpretation)}"
    more = f"the {most} of {len(pairs)} pairs with melanoma or the most images"
    table = new_table(title, more if len(pairs) > most else "")
    add_columns(table, "truth", "taken for", "images", "of truth")
    table.columns[1].justify = "left"
    classes = interpretation.classes
    first = pairs["truth"] == classes.melanoma
    weightiest = pairs.assign(first=first).nlargest(most, ["first", "count"])
    kept = pairs.loc[sorted(weightiest.index)].reset_index(drop=True)
    for row in kept.itertuples():
        names = full_name(row.truth), full_name(row.decision)
        style = "bold" if row.truth == classes.melanoma else None
        table.add_row(*names, str(row.count), f"{row.share:.0%}", style=style)
    for before, (position, after) in pairwise(enumerate(kept["truth"])):
        table.rows[position - 1].end_section = classes.gravity(before[1]) != classes.gravity(after)
    if pairs.empty:
        table.add_row("none: every decision is right")
    return table


def taken_for_table(
    interpretation: Interpretation, truth: str | None = None, decision: str | None = None
) -> "Table":
    """Return the images of one class that were decided another, the most confident first.

    Unless they are named, these are melanomas taken for nevi.
    """
    truth, decision = interpretation.name_error(truth, decision)
    rows = interpretation.taken_for(truth, decision)
    total = int((interpretation.rows["truth"] == truth).sum())
    title = f"{truth} taken for {decision}: {len(rows)} of {total} images"
    more = f"the {MOST_ROWS} most confident of {len(rows)}" if len(rows) > MOST_ROWS else ""
    table = new_table(f"{title}, {described(interpretation)}", more)
    told = [name for name in ("age", "sex", "localization") if name in rows]
    add_columns(table, "image", f"p({decision})", f"p({truth})", *told)
    for _, row in rows.head(MOST_ROWS).iterrows():
        chances = decimal(row["probability"]), decimal(row["probability_of_truth"])
        table.add_row(str(row["image_id"]), *chances, *(plain(row[name]) for name in told))
    if rows.empty:
        table.add_row("none")
    return table


def labels_table(doubted: "pd.DataFrame") -> "Table":
    """Return the images whose label is doubted, the least likely first."""
    more = f"the {MOST_ROWS} least likely of {len(doubted)}; not proof that they are wrong"
    table = new_table("Doubtful labels", more)
    add_columns(table, "image", "lesion", "label", "p(label)", "suggested", "p")
    for row in doubted.head(MOST_ROWS).itertuples():
        chances = decimal(row.self_confidence), decimal(row.probability)
        table.add_row(
            row.image_id, str(row.group), row.target, chances[0], row.suggested, chances[1]
        )
    return table


def contradictions_table(pairs: "pd.DataFrame") -> "Table":
    """Return pairs of images of the same thing that were decided differently."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in pairs["kind"].value_counts().items())
    more = f"{min(len(pairs), MOST_ROWS)} of {len(pairs)} pairs ({kinds})" if len(pairs) else ""
    table = new_table("The same in two images, decided differently", more)
    add_columns(table, "kind", "image", "truth", "decided", "other image", "truth", "decided", "by")
    for row in pairs.head(MOST_ROWS).itertuples():
        first = row.image_a, row.truth_a, row.decision_a
        second = row.image_b, row.truth_b, row.decision_b
        table.add_row(row.kind, *first, *second, decimal(row.difference))
    if pairs.empty:
        table.add_row("none")
    return table


LINE = 42  # letters of a caption


def draw_suspicious_labels(
    runs: Sequence[Run], folder: Path, table: pd.DataFrame | None = None, k: int = 12
) -> Path:
    """Draw the k images whose label is the least likely; return the path.

    `table` is that of `suspicious_labels`, if it has been made already.
    """
    table = suspicious_labels(runs) if table is None else table
    shown = f"{len(table)} doubted"
    if len(table) > k:
        shown += f", the {k} least likely of them shown"
    subtitle = f"{coverage(runs)}\n{shown}"
    table = table.head(k)
    rows = table.assign(
        truth=table["target"],
        decision=table["suggested"],
        probability_of_truth=table["self_confidence"],
    )
    title = "Labels that the model contradicts (not proof that they are wrong)"
    figure = draw_grid(rows, title, subtitle, "no label is in doubt", label_caption)
    names = ("run " if len(runs) == 1 else "runs ") + ", ".join(run.path.name for run in runs)
    figure.supxlabel(names, x=0.012, ha="left", fontsize=7.5, color=GREY)
    return save(figure, folder / "suspicious_labels.png")


def label_caption(row: pd.Series) -> str:
    """Return label and suggestion with their probabilities, the patient, and how it was found."""
    lines = [
        f"label: {full_name(row['target'])}, {per_cent(row['self_confidence'])}",
        f"suggested: {full_name(row['suggested'])}, {per_cent(row['probability'])}",
        patient(row),
    ]
    if "dx_type" in row and pd.notna(row["dx_type"]):
        lines.append(f"diagnosed by: {row['dx_type']}")
    return "\n".join(fill(line, LINE) for line in lines if line)
