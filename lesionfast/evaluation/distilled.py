"""What a student loses against the models that taught it, on test images. Torch-free."""

from typing import Any

from lesionfast.evaluation.comparison import contribution_table
from lesionfast.evaluation.interpretation import Interpretation, records
from lesionfast.run import Run
from lesionfast.stats.metrics import ALL, METRIC_NAMES

NAME = "student"  # of the run in a run of folds, and in its metrics.json


def compare_student(run: Run, student: Run) -> list[dict[str, Any]]:
    """Return what a student loses against its teacher on test images, with paired intervals.

    One row a metric: metric, of, value (of the student), low, high, difference (from the teacher)
    and its ends. Empty without test images.
    """
    if "test" not in run.metrics or "test" not in student.metrics:
        return []
    whole, other = (Interpretation.from_run(one, "test") for one in (run, student))
    wanted = [("balanced_accuracy", ALL), ("macro_auc", ALL)]
    if melanoma := run.classes.melanoma:
        wanted += [("sensitivity", melanoma), ("auc", melanoma)]
    table = contribution_table(whole, {NAME: other}, wanted)
    table = table[table["system"] == NAME].drop(columns="system").set_index(["metric", "of"])
    return records(table.loc[wanted].reset_index())


def describe_student(run: Run, student: dict[str, Any]) -> str:
    """Return what the student of a run loses, as metrics.json has it, in words."""
    path, rows, n = run.path / student["run"], student["against"], len(run.model["members"])
    if not rows:
        return f"student {path}: without test images it is not compared with its teachers"
    parts = [
        f"{METRIC_NAMES[row['metric']]}{'' if row['of'] == ALL else ' of ' + row['of']} "
        f"{row['value']:.3f} ({row['difference']:+.3f} [{row['difference_low']:+.3f}, "
        f"{row['difference_high']:+.3f}])"
        for row in rows
        if row["value"] is not None
    ]
    against = f"in brackets the difference to the mean of its {n} teachers"
    return f"student {path} on test, {against}: {'; '.join(parts)}"
