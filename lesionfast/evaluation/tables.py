"""Tables for the terminal: rich, at most 80 columns wide for HAM10000, readable without colour."""

from collections.abc import Sequence
from itertools import pairwise
from textwrap import fill
from typing import TYPE_CHECKING, Any

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.evaluation.diagnoses import full_name, gravity
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.metrics import RULES
from lesionfast.runs import Run

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table
    from rich.text import Text

    from lesionfast.data.audit import Audit
    from lesionfast.evaluation.comparison import Comparison

OVERALL = {
    "balanced_accuracy": "balanced accuracy",
    "macro_auc": "macro AUC",
    "macro_f1": "macro F1",
    "mel_sensitivity": "melanoma sensitivity",
}
MOST_ROWS = 10
MOST_CLASSES = 12
VERDICTS = {"ok": "green", "note": "yellow", "problem": "bold red"}


def print_table(table: "Table", stderr: bool = False, whole: bool = False) -> None:
    """Print a table and a blank line; a pipe gets no colours and no lost columns.

    With `whole` no cell is wrapped in a pipe, however long the lines become.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        unlimited = console.options.update(width=1000)
        needed = Measurement.get(console, unlimited, table)
        console.width = max(console.width, needed.maximum if whole else needed.minimum, 80)
    console.print(table, "")


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


def interpretation_tables(interpretation: Interpretation) -> list["Table"]:
    """Return what `lesionfast interpret` prints: classes, confusion, worst pairs, melanomas.

    The confusion matrix of more than 12 classes fits no terminal; the figure shows it.
    """
    tables = [class_table(interpretation)]
    if len(interpretation.classes) <= MOST_CLASSES:
        tables += [confusion_table(interpretation, normalize) for normalize in (False, True)]
    tables.append(most_confused_table(interpretation))
    if {"mel", "nv"} <= set(interpretation.classes):
        tables.append(taken_for_table(interpretation))
    return tables


def class_table(interpretation: Interpretation) -> "Table":
    """Return one row a class: images, sensitivity, precision, specificity, AUC, AP."""
    metrics = interpretation.metrics["rules"][interpretation.rule]
    overall = f"balanced accuracy {decimal(metrics['balanced_accuracy'])}"
    title = f"Classes, {described(interpretation)}; {overall}"
    table = new_table(title, "AP: average precision")
    columns = ("images", "sensitivity", "precision", "specificity", "AUC", "AP")
    add_columns(table, "class", *columns)
    for name, row in interpretation.sensitivity_table().iterrows():
        style = "bold" if gravity(str(name)) == 0 else None
        table.add_row(str(name), str(int(row["images"])), *map(decimal, row.iloc[1:]), style=style)
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


def most_confused_table(interpretation: Interpretation, most: int = 12) -> "Table":
    """Return the most confused pairs of classes, melanoma first."""
    pairs = interpretation.most_confused()
    first = ", melanoma first" if "mel" in interpretation.classes else ""
    title = f"Most confused{first}, {described(interpretation)}"
    more = f"the {most} of {len(pairs)} pairs with melanoma or the most images"
    table = new_table(title, more if len(pairs) > most else "")
    add_columns(table, "truth", "taken for", "images", "of truth")
    table.columns[1].justify = "left"
    weightiest = pairs.assign(mel=pairs["truth"] == "mel").nlargest(most, ["mel", "count"])
    kept = pairs.loc[sorted(weightiest.index)].reset_index(drop=True)
    for row in kept.itertuples():
        names = full_name(row.truth), full_name(row.decision)
        style = "bold" if gravity(row.truth) == 0 else None
        table.add_row(*names, str(row.count), f"{row.share:.0%}", style=style)
    for before, (position, after) in pairwise(enumerate(kept["truth"])):
        table.rows[position - 1].end_section = gravity(before[1]) != gravity(after)
    if pairs.empty:
        table.add_row("none: every decision is right")
    return table


def taken_for_table(
    interpretation: Interpretation, truth: str = "mel", decision: str = "nv"
) -> "Table":
    """Return the images of one class that were decided another, the most confident first."""
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
    if not run.finished:
        return ["-", "-", "-", "-", "not ended"]
    summary = run.metrics.get("test", run.metrics.get("valid", {}))
    decided = summary.get("rules", {}).get(run.model["rule"], {})
    values = (
        decided.get("balanced_accuracy"),
        summary.get("macro_auc"),
        decided.get("mel_sensitivity"),
    )
    minutes = f"{run.metrics['train_seconds'] / 60:.1f}"
    return [*map(decimal, values), minutes, run.metrics["status"]]


def comparison_table(comparison: "Comparison", narrow: bool = False) -> "Table":
    """Return two lines a run, the best first: values, and below them their 95 % intervals.

    With `narrow` an interval takes two lines, so that all fits into 80 columns.
    """
    table = new_table(
        f"{comparison.split}: {len(comparison.interpretations[0].rows)} images, the best run first",
        f"each under its own deciding rule; AUC and F1: means of the classes; sens. of mel, and "
        f"how much of it is taken for nv; params: parameters; time: of the training\n"
        f"in brackets: 95 % intervals of {comparison.resamples:,} resamples of the lesions, the "
        f"same for all runs\nsplit sha256 {comparison.split_sha256[:12]}",
    )
    columns = ("balanced\naccuracy", "AUC\nand F1", "mel\nsens.", "taken\nfor nv", "from\nthe best")
    add_columns(table, "run\narchitecture, fusion", *columns, "params\nand time")
    table.columns[0].overflow = "fold"
    for position, row in enumerate(comparison.table.to_dict("records")):
        name, *cells = comparison_cells(row, best=position == 0)
        cells = [cell.replace(", ", ",\n") for cell in cells] if narrow else cells
        table.add_row(name, *cells, end_section=True)
    return table


def comparison_cells(row: dict[str, Any], best: bool) -> list[str]:
    """Return the cells of one run of a comparison."""
    built = f"{plain(row['arch'])}, {plain(row['fusion'])}"
    status = "" if row["status"] in ("finished", None) else f" ({row['status']})"
    return [
        "\n".join(filter(None, (f"{row['name']}{status}", built, fill(row["options"], 34)))),
        with_interval(row, "balanced_accuracy"),
        f"{decimal(row['macro_auc'])}\n{decimal(row['macro_f1'])}",
        with_interval(row, "sensitivity_mel"),
        with_interval(row, "mel_to_nv"),
        "best" if best else with_interval(row, "difference", "+.3f"),
        f"{count(row['parameters'])}\n{duration(row['train_seconds'])}",
    ]


def plan_table(rows: Sequence[dict[str, Any]]) -> "Table":
    """Return what a study will do: one row a run, and the time of those that are not done."""
    left = sum(row["seconds"] for row in rows if row["state"] != "done")
    told = "the training steps of all epochs, measured here on random pictures"
    table = new_table(f"Plan: {duration(left)} to go at most", f"time: {told}; of done runs: taken")
    columns = ("architecture", "parameters", "pixels", "epochs", "time", "state")
    add_columns(table, "run", *columns)
    table.columns[1].justify = table.columns[-1].justify = "left"
    for row in rows:
        numbers = (count(row["parameters"]), str(row["size"]), str(row["epochs"]))
        table.add_row(row["name"], row["arch"], *numbers, duration(row["seconds"]), row["state"])
    return table


PARTS_OF_A_TRAINING = {  # as of training.bench
    "decode": "decode and resize files, once",
    "read": "read a batch from the cache",
    "augment": "augment a batch",
    "forward": "forward pass, in training mode",
    "backward": "backward pass",
    "bare step": "bare step: forward, backward, AdamW",
    "step": "whole training step",
    "bare forward": "bare forward pass, in inference mode",
    "prediction": "prediction of the validation images",
    "features": "features of the frozen backbone, once",
}


def bench_table(found: dict[str, Any]) -> "Table":
    """Return what `training.bench.bench` found, one row a part."""
    about = found["machine"]
    title = "{arch} at {size} pixels, {batch_size} a step".format(**about)
    caption = "{device}, {threads} threads, {precision}, torch {torch}".format(**about)
    table = new_table(title, caption)
    add_columns(table, "part", "images a second", "share")
    shares = {"step": found["step_share"], "prediction": found["prediction_share"]}
    for name, label in PARTS_OF_A_TRAINING.items():
        share = f"{shares[name]:.2f} of the bare" if name in shares else ""
        table.add_row(label, f"{found['parts'][name]:,.0f}", share)
    table.add_row(
        "head epoch, 8,500 cached features", f"{found['feature_epoch_seconds']:.2f} s", ""
    )
    if "compile_gain" in found:
        told = f"{found['compile_gain']:.2f} of the bare"
        table.add_row("step with --compile", f"{found['compile_seconds']:.0f} s at first", told)
    for where, size in found["peak_memory"].items():
        table.add_row(f"peak memory, {where}", f"{size / 2**30:.2f} GiB", "")
    return table


def with_interval(row: dict[str, Any], name: str, form: str = ".3f") -> str:
    """Return a value and, on a second line, its interval; '-' if it is undefined."""
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None or value != value:
        return "-"
    return f"{value:{form}}\n[{low:{form}}, {high:{form}}]"


def count(value: Any) -> str:
    """Return a number of parameters as "3.4 M" or "110 k", '-' if it is not known."""
    import pandas as pd

    if pd.isna(value):
        return "-"
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def duration(seconds: float | None) -> str:
    """Return seconds as "45 s", "12 min" or "3.5 h", '-' if they are not known."""
    if seconds is None or seconds != seconds:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def audit_table(report: "Audit") -> list["Table"]:
    """Return the checks of a dataset, and its near-duplicates if there are any."""
    from rich.text import Text

    table = new_table("Dataset check")
    add_columns(table, "check", "count", "verdict", "detail")
    table.columns[2].justify = table.columns[3].justify = "left"
    table.columns[3].overflow = "fold"
    for row in report.table().itertuples():
        verdict = Text(row.verdict, style=VERDICTS.get(row.verdict, ""))
        table.add_row(row.check, str(row.count), verdict, row.detail)
    pairs = report.near_duplicates
    return [table] if pairs is None or pairs.empty else [table, duplicates_table(pairs)]


def duplicates_table(pairs: "pd.DataFrame") -> "Table":
    """Return the pairs of images that look like one lesion but have different lesion ids."""
    more = f"{MOST_ROWS} of {len(pairs)} pairs" if len(pairs) > MOST_ROWS else ""
    table = new_table("Near-duplicates under different lesion ids", more)
    add_columns(table, *pairs.columns)
    for row in pairs.head(MOST_ROWS).itertuples(index=False):
        table.add_row(*map(plain, row))
    return table


def new_table(title: str, caption: str = "") -> "Table":
    """Return an empty table in the one style that all have."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        title=title,
        caption=caption or None,
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="dim",
    )


def add_columns(table: "Table", first: str, *others: str) -> None:
    """Add one column for text, on the left, and others for numbers, on the right."""
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")


def described(interpretation: Interpretation) -> str:
    """Return "test, rule balanced"."""
    return f"{interpretation.split}, rule {interpretation.rule}"


def mark(rule: str, deciding: str) -> str:
    """Return a rule's name, marked if it is the one that decides."""
    return f"{rule} (decides)" if rule == deciding else rule


def label_of(name: str, summary: dict[str, Any]) -> str:
    """Return "mel (melanoma), n 167"."""
    return f"{full_name(name)}, n {summary['counts'][name]}"


def decimal(value: float | None) -> str:
    """Return a number with three decimals, '-' if it is undefined."""
    return "-" if value is None or value != value else f"{value:.3f}"


def plain(value: Any) -> str:
    """Return a value as people write it: whole numbers without decimals, '-' if missing."""
    if value is None or value != value:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(value: float, normalize: bool, hit: bool) -> "Text":
    """Return one cell of a confusion matrix, the diagonal bold, nothing dim."""
    from rich.text import Text

    text = ("-" if value != value else f"{value:.0%}") if normalize else str(value)
    return Text(text, style="bold" if hit else "" if value else "dim")
