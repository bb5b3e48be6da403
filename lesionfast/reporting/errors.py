"""The errors chapter: what is confused with what, melanoma first, and labels that may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lesionfast.console import MOST_ROWS, Table, cell, estimate, percent
from lesionfast.diagnoses import NAMES, full_name
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.labels import describe_coverage, doubtful_labels
from lesionfast.reporting.decisions import costs_table
from lesionfast.reporting.images import (
    describe_image,
    draw_grid,
    draw_melanomas_taken_for_nevi,
    rounded_percent,
)
from lesionfast.reporting.metrics import class_table, price_table
from lesionfast.reporting.page import (
    Section,
    count_drawn,
    draw_picture,
    drawn_classes,
    new_figure,
    save,
    subtitle,
)
from lesionfast.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_IN_TERMINAL = 12  # classes of a confusion matrix; the figure shows more
IN_TERMINAL = ("sensitivity", "precision", "specificity", "auc")
UNCALIBRATED = "p: probability of the model, uncalibrated"


def melanoma(findings: Findings) -> Section | None:
    """Return what becomes of the melanomas."""
    read = findings.interpretation
    melanoma = read.classes.melanoma
    if melanoma is None:
        return None
    truth = read.rows["truth"] == melanoma
    missed = int((truth & (read.rows["decision"] != melanoma)).sum())
    words = f"{missed} of {int(truth.sum())} melanomas are misclassified by the rule {read.rule}."
    more = [findings.fewer_melanomas] if findings.fewer_melanomas else []
    pictures = []
    if read.classes.costliest:
        words += f" {len(read.taken_for())} are taken for nevi, the costliest error."
        caption = "The melanomas taken for nevi, most confident first"
        pictures.append(draw_picture(findings, draw_melanomas_taken_for_nevi, caption))
    tables = [class_table(read.measures, [melanoma], "Against the rest, by image")]
    if findings.price_of_weight:
        tables.append(price_table(findings.run, findings.price_of_weight))
    return Section("Melanoma", [words, *more], tables, pictures)


def confusion(findings: Findings) -> Section:
    """Return the confusion matrix."""
    picture = draw_picture(findings, draw_confusion, "Truth by decision")
    return Section("Confusion", pictures=[picture])


def draw_confusion(interpretation: Interpretation, folder: Path) -> Path:
    """Draw the confusion matrix, each cell its share of the truth and its count."""
    names = drawn_classes(interpretation)
    whole = interpretation.confusion()
    counts = whole.loc[names, names]
    shares = interpretation.confusion(normalize=True).loc[names, names]
    k = len(names)
    side = max(0.85 * k if k <= 12 else 0.55 * k, 3.7)
    notes = "per cent of the truth, and images", count_drawn(interpretation)
    text = subtitle(interpretation, *notes)
    figure = new_figure(side + 2.8, side + 1.5, "Confusion matrix", text)
    axis = figure.subplots()
    texts = [
        [f"{rounded_percent(share)}\n{n}" if n else "" for share, n in zip(*row, strict=True)]
        for row in zip(shares.to_numpy(), counts.to_numpy(), strict=True)
    ]
    draw_shares(axis, shares, texts, 9.5 if k <= MOST_IN_TERMINAL else 6.5)
    totals = whole.sum(axis=1)
    axis.set_yticks(range(k), [f"{full_name(name)}\nn {totals[name]}" for name in names])
    short = all(name in NAMES or len(name) <= 8 for name in names)
    turned = {} if short else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axis.set_xticks(range(k), names, **turned)
    axis.set(xlabel="decision", ylabel="truth")
    return save(figure, folder / "confusion.png", interpretation)


def draw_shares(axis: Axes, shares: pd.DataFrame, texts: list[list[str]], size: float) -> None:
    """Draw a confusion matrix with a text in each cell, the diagonal in bold."""
    axis.imshow(shares.fillna(0), cmap="Blues", vmin=0, vmax=1)
    axis.tick_params(length=0)
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            look = {"weight": "bold" if i == j else "normal", "fontsize": size}
            look["color"] = "white" if shares.iat[i, j] > 0.65 else "black"
            axis.text(j, i, text, ha="center", va="center", **look)


def interpretation_tables(findings: Findings) -> list[Table]:
    """Return what `lesionfast interpret` prints: classes, confusion, worst pairs, melanomas."""
    interpretation = findings.interpretation
    classes = interpretation.classes
    overall = estimate(findings.measure("balanced_accuracy", "all"))
    title = f"Classes: {subtitle(interpretation)}; balanced accuracy {overall}"
    names = list(dict.fromkeys([*classes, classes.cancer]))
    tables = [
        class_table(
            interpretation.measures,
            names,
            title,
            IN_TERMINAL,
            classes.melanoma,
            short=True,
        )
    ]
    tables[0].note = "in brackets: 95 % intervals over lesions"
    if findings.price_of_weight:
        tables.append(price_table(findings.run, findings.price_of_weight))
    if len(classes) <= MOST_IN_TERMINAL:
        tables += [confusion_table(interpretation, normalize) for normalize in (False, True)]
    tables.append(most_confused_table(interpretation))
    if classes.costliest:
        tables.append(taken_for_table(interpretation))
    if findings.cost:
        tables.append(costs_table(findings))
    return tables


def confusion_table(interpretation: Interpretation, normalize: bool = False) -> Table:
    """Return truth (rows) by decision (columns): counts, or per cent of the truth."""
    confusion = interpretation.confusion(normalize)
    what = "per cent of the truth" if normalize else "images"
    names = interpretation.classes
    # Numbers head the columns if the names do not fit into a line; the rows say which is which.
    long = sum(max(len(name), 4) + 3 for name in names) + max(map(len, names)) > 72
    marks = [str(i) for i in range(1, len(names) + 1)] if long else list(names)
    columns = ["truth \\ decision", *marks, *([] if normalize else ["all"])]
    table = Table(f"Confusion in {what}: {subtitle(interpretation)}", columns)
    for position, (mark, name) in enumerate(zip(marks, names, strict=True)):
        values = confusion.iloc[position].tolist()
        cells = [percent(value) if normalize else cell(value) for value in values]
        styled = [
            replace(share, style="bold" if i == position else "" if value else "dim")
            for i, (share, value) in enumerate(zip(cells, values, strict=True))
        ]
        total = [] if normalize else [sum(values)]
        table.add(f"{mark} {name}" if long else name, *styled, *total)
    return table


def most_confused_table(interpretation: Interpretation, most: int = 12) -> Table:
    """Return the most confused pairs of classes, melanoma first."""
    pairs, classes = interpretation.most_confused(), interpretation.classes
    order = ", melanoma first" if classes.melanoma else ""
    note = f"the {most} of {len(pairs)} pairs with melanoma or the most images"
    table = Table(
        f"Most confused{order}: {subtitle(interpretation)}",
        ["truth", "taken for", "images", "of truth"],
        note=note if len(pairs) > most else "",
    )
    first = pairs["truth"] == classes.melanoma
    weightiest = pairs.assign(first=first).nlargest(most, ["first", "count"])
    before = None
    for row in pairs.loc[sorted(weightiest.index)].itertuples():
        if before is not None and classes.gravity(before) != classes.gravity(row.truth):
            table.add_line()
        names = full_name(row.truth), full_name(row.decision)
        style = "bold" if row.truth == classes.melanoma else ""
        table.add(*names, int(row.count), percent(row.share), style=style)
        before = row.truth
    if pairs.empty:
        table.add("none: every decision is correct")
    return table


def taken_for_table(interpretation: Interpretation) -> Table:
    """Return the melanomas taken for nevi, the most confident first."""
    truth, decision = interpretation.name_error(None, None)
    rows = interpretation.taken_for()
    total = int((interpretation.rows["truth"] == truth).sum())
    more = f"the {MOST_ROWS} most confident of {len(rows)}; " if len(rows) > MOST_ROWS else ""
    about = [name for name in ("age", "sex", "localization") if name in rows]
    table = Table(
        f"{truth} taken for {decision}: {len(rows)} of {total}; {subtitle(interpretation)}",
        ["image", f"p({decision})", f"p({truth})", *about],
        note=f"{more}{UNCALIBRATED}",
    )
    for row in rows.head(MOST_ROWS).to_dict("records"):
        patient = (cell(row[name], "g") for name in about)
        table.add(row["image_id"], row["probability"], row["probability_of_truth"], *patient)
    if rows.empty:
        table.add("none")
    return table


def labels_table(doubted: pd.DataFrame) -> Table:
    """Return the images whose label is doubted, the least likely first."""
    shown = f"the {min(len(doubted), MOST_ROWS)} least likely of {len(doubted)}"
    note = f"{shown}; not proof that they are wrong"
    if not doubted["calibrated"].all():
        note += f"; {UNCALIBRATED}"
    names = {"image_id": "image", "group": "lesion", "target": "label"}
    names |= {"self_confidence": "p(label)", "suggested": "suggested", "probability": "p"}
    return Table.from_frame(doubted.head(MOST_ROWS), "Doubtful labels", names, note)


def contradictions_table(pairs: pd.DataFrame) -> Table:
    """Return pairs of images of the same thing that were decided differently."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in pairs["kind"].value_counts().items())
    shown = f"{min(len(pairs), MOST_ROWS)} of {len(pairs)} pairs ({kinds}); " if len(pairs) else ""
    note = f"{shown}differs by: half the sum of absolute differences of probabilities"
    about = ("image", "truth", "decision")
    names = {"kind": "kind", **{f"{name}_a": name for name in about}}
    names |= {f"{name}_b": f"other\n{name}" for name in about} | {"difference": "differs\nby"}
    title = "Same lesion or near-duplicate, different decisions"
    table = Table.from_frame(pairs.head(MOST_ROWS), title, names, note)
    if pairs.empty:
        table.add("none")
    return table


def draw_suspicious_labels(
    runs: Sequence[Run], folder: Path, table: pd.DataFrame | None = None, k: int = 12
) -> Path:
    """Draw the k images whose label is the least likely; return the path.

    `table` is that of `doubtful_labels`, if it has been made already.
    """
    table = doubtful_labels(runs) if table is None else table
    shown = f"{len(table)} doubted"
    if len(table) > k:
        shown += f", the {k} least likely of them shown"
    title = "Labels that the model contradicts (not proof that they are wrong)"
    text, nothing = f"{describe_coverage(runs)}\n{shown}", "no label is in doubt"
    figure = draw_grid(table.head(k), title, text, nothing, label_caption)
    names = ("run " if len(runs) == 1 else "runs ") + ", ".join(run.path.name for run in runs)
    return save(figure, folder / "suspicious_labels.png", names)


def label_caption(row: pd.Series) -> str:
    """Return label and suggestion with their probabilities, the patient, and how it was found."""
    method = row.get("dx_type")
    diagnosed = "" if pd.isna(method) else f"diagnosed by: {method}"
    label, suggested = ("target", "self_confidence"), ("suggested", "probability")
    return describe_image(row, diagnosed, label=label, suggested=suggested)
