"""Terminal tables of a run and of runs, at most 80 columns wide for HAM10000."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lesionfast.diagnoses import full_name
from lesionfast.errors import DamageError, LesionfastError, did_you_mean
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.metrics import RULES
from lesionfast.evaluation.tables import (
    MOST_ROWS,
    add_columns,
    decimal,
    new_table,
    plain,
    with_interval,
)
from lesionfast.evaluation.utility import mean_costs
from lesionfast.runs import Run

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table
    from rich.text import Text

OVERALL = {
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "macro_f1": "macro F1",
    "mel_sensitivity": "melanoma sensitivity",
}


MOST_CLASSES = 12
OF_A_CLASS = {
    "sensitivity": "sensitivity",
    "precision": "precision",
    "specificity": "specificity",
    "auc": "AUC",
}


def metrics_table(run: Run, split: str = "test") -> "Table":
    """Return the metrics of one split under both rules, the deciding one marked.

    Raises `LesionfastError` for a split that the run has no metrics of.
    """
    summary = metrics_of(run, split)
    rules = summary["rules"]
    title = f"{split}: {summary['n']} images of {len(run.classes)} classes"
    table = new_table(title, f"split sha256 {run.metrics['split_sha256'][:12]}")
    add_columns(table, "metric", *(mark(rule, run.model["rule"]) for rule in RULES))
    for key, label in OVERALL.items():
        values = [summary.get(key, rules[rule].get(key)) for rule in RULES]
        if key in summary or key in rules[RULES[0]]:
            style = "bold" if key == "balanced_accuracy" else None
            table.add_row(label, *map(decimal, values), style=style)
    for key in ("sensitivity", "precision"):
        table.add_section()
        table.add_row(key)
        for name in run.classes:
            values = [rules[rule][key][name] for rule in RULES]
            table.add_row(f"  {label_of(name, summary)}", *map(decimal, values))
    table.add_section()
    table.add_row("accuracy", *(decimal(rules[rule]["accuracy"]) for rule in RULES))
    return table


def metrics_of(run: Run, split: str) -> dict[str, Any]:
    """Return the metrics of one split; raises `LesionfastError` if there are none."""
    known = [name for name in ("valid", "test") if name in run.metrics]
    if split not in known:
        raise LesionfastError(
            f"{run.path} has no metrics of the split '{split}'; it has: {', '.join(known)}."
            f"{did_you_mean(split, known)} Choose one with --split."
        )
    return run.metrics[split]


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
    for row in mean_costs(findings).to_dict("records"):
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
    truth, decision = interpretation.error_named(truth, decision)
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


def nearest_table(nearest: "pd.DataFrame") -> "Table":
    """Return the training lesions most similar to an image, the first row of `nearest`."""
    query = nearest.iloc[0]
    truth = f", {full_name(query['target'])}" if query["target"] else ""
    told = f"Training lesions most similar to {query['image_id']}{truth}"
    table = new_table(told, "similarity: cosine of the features, less their mean")
    add_columns(table, "image", "class", "similarity", "age", "sex")
    table.columns[1].justify = "left"
    for _, row in nearest.iloc[1:].iterrows():
        person = (plain(row.get(name)) for name in ("age", "sex"))
        names = str(row["image_id"]), full_name(row["target"])
        table.add_row(*names, decimal(row["similarity"]), *person)
    return table


def runs_table(runs: Sequence[Run]) -> "Table":
    """Return one row a run: its metrics on the test images under the rule that decides."""
    caption = "on the test images, by the rule that decides; min: minutes of training"
    table = new_table("Runs, oldest first", caption)
    columns = ("balanced\naccuracy", "macro\nAUC", "mel\nsens.", "min", "status")
    add_columns(table, "run", *columns)
    table.columns[0].overflow = "fold"
    table.columns[-1].justify = "left"
    for run in runs:
        table.add_row(run.path.name, *run_cells(run))
    return table


def run_cells(run: Run) -> list[str]:
    """Return the cells of one run after its name."""
    try:
        return metric_cells(run) if run.finished else ["-", "-", "-", "-", "not ended"]
    except DamageError:
        return ["-", "-", "-", "-", "damaged"]


def metric_cells(run: Run) -> list[str]:
    """Return the metrics, the minutes and the status of a run that has ended."""
    summary = run.metrics.get("test", run.metrics.get("valid", {}))
    decided = summary.get("rules", {}).get(run.model["rule"], {})
    values = (
        decided.get("balanced_accuracy"),
        summary.get("macro_auc"),
        decided.get("mel_sensitivity"),
    )
    minutes = f"{run.metrics['train_seconds'] / 60:.1f}"
    return [*map(decimal, values), minutes, run.metrics["status"]]


def verified_table(conditions: Mapping[Run, tuple[str, dict[str, str]]]) -> "Table":
    """Return one row a run: whether its files are what was written, and what is wrong."""
    table = new_table("Runs and their files, oldest first")
    add_columns(table, "run", "state", "what is wrong")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "left"
    for run, (state, problems) in conditions.items():
        told = "\n".join(f"{name}: {why}" for name, why in problems.items())
        table.add_row(run.path.name, state, told)
    return table


def described(interpretation: Interpretation) -> str:
    """Return "test, rule balanced"."""
    return f"{interpretation.split}, rule {interpretation.rule}"


def mark(rule: str, deciding: str) -> str:
    """Return a rule's name, marked if it is the one that decides."""
    return f"{rule} (decides)" if rule == deciding else rule


def label_of(name: str, summary: dict[str, Any]) -> str:
    """Return "mel (melanoma), n 167"."""
    return f"{full_name(name)}, n {summary['counts'][name]}"
