"""The score of ISIC 2018 Task 3 by the challenge's own rules, and its submission files.

The rules are those of github.com/ImageMarkup/isic-challenge-scoring.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.data.encoder import as_number
from lesionfast.data.table import list_columns, read_table
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import write_text
from lesionfast.stats.bootstrap import Found, interval, resampled
from lesionfast.stats.metrics import (
    as_codes,
    as_probabilities,
    check_shapes,
    json_safe,
    mean_defined,
    ratio,
)

COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def isic_score(
    truth: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    lesions: ArrayLike | None = None,
) -> dict[str, Any]:
    """Return balanced_accuracy, per_class, macro_average and n, as the challenge scores them.

    Balanced accuracy is the mean recall of the classes that occur, the decision the largest
    column; an image with two largest columns is wrong. Per class, flagged above 0.5: accuracy,
    sensitivity, specificity, f1, ppv, npv (1 where undefined, as the challenge says), auc,
    auc_above_80 and average_precision (None where undefined). With `lesions` (n,) balanced
    accuracy has an interval, balanced_accuracy_low and _high. Raises `LesionfastError` unless the
    classes are the seven of the challenge.
    """
    order = challenge_order(classes)
    probabilities, truth = as_probabilities(probabilities), as_codes(truth, len(classes))
    check_shapes(truth, probabilities, classes)
    truth, probabilities = np.argsort(order)[truth], probabilities[:, order]
    per_class = {
        name: class_score(truth == number, probabilities[:, number])
        for number, name in enumerate(COLUMNS)
    }
    every = pd.DataFrame(per_class)
    found = {"n": len(truth), **accuracy_of(truth, probabilities, lesions)}
    return json_safe(
        found | {"macro_average": every.mean(axis=1).to_dict(), "per_class": per_class}
    )


def challenge_order(classes: Sequence[str]) -> list[int]:
    """Return the number of the class of each column; raises unless they are the same seven."""
    upper = [str(name).upper() for name in classes]
    missing = [name for name in COLUMNS if name not in upper]
    unknown = [str(name) for name, each in zip(classes, upper, strict=True) if each not in COLUMNS]
    if missing or unknown or len(upper) != len(COLUMNS):
        raise LesionfastError(
            f"ISIC 2018 Task 3 has the classes {', '.join(COLUMNS)}; found "
            f"{', '.join(map(str, classes))} (missing: {', '.join(missing) or 'none'}; unknown: "
            f"{', '.join(unknown) or 'none'}). Use a run on those seven, each once."
        )
    return [upper.index(name) for name in COLUMNS]


def accuracy_of(
    truth: np.ndarray, probabilities: np.ndarray, lesions: ArrayLike | None
) -> dict[str, float]:
    """Return balanced accuracy where ties are wrong, and with lesions its interval."""
    largest = probabilities == probabilities.max(axis=1, keepdims=True)
    right = (largest.sum(axis=1) == 1) & largest[np.arange(len(truth)), truth]
    onehot = np.eye(len(COLUMNS))[truth]

    def find(weights: np.ndarray) -> Found:
        recall = ratio(weights @ (onehot * right[:, None]), weights @ onehot)
        return {"balanced_accuracy": np.array([mean_defined(each) for each in recall])}

    if lesions is None:
        return {"balanced_accuracy": float(find(np.ones((1, len(truth))))["balanced_accuracy"][0])}
    values, drawn = resampled(find, truth, lesions)
    low, high = interval(drawn["balanced_accuracy"])
    return values | {"balanced_accuracy_low": low, "balanced_accuracy_high": high}


def class_score(positive: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """Return the challenge's metrics of one class against the rest."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    flagged = score > 0.5
    hit, false = (flagged & positive).sum(), (flagged & ~positive).sum()
    missed, right = (~flagged & positive).sum(), (~flagged & ~positive).sum()
    found = {
        "accuracy": (hit + right) / len(positive),
        "sensitivity": share(hit, hit + missed),
        "specificity": share(right, right + false),
        "f1": share(2 * hit, 2 * hit + false + missed),
        "ppv": share(hit, hit + false),
        "npv": share(right, right + missed),
    }
    curves = {
        "auc": roc_auc_score,
        "auc_above_80": area_above,
        "average_precision": average_precision_score,
    }
    defined = positive.any() and not positive.all()
    areas = {name: area(positive, score) if defined else np.nan for name, area in curves.items()}
    return found | areas


def share(part: int, whole: int) -> float:
    """Return part / whole, and 1 where nothing is counted, which the challenge gives for free."""
    return float(part / whole) if whole else 1.0


def area_above(positive: np.ndarray, score: np.ndarray, level: float = 0.8) -> float:
    """Return the area under the ROC curve from where it reaches a sensitivity of `level`.

    The challenge's: not normalised, so a perfect score has 1 and chance (1 - level^2) / 2.
    """
    from sklearn.metrics import auc, roc_curve

    alarms, found, _ = roc_curve(positive, score, drop_intermediate=False)
    first = int(np.searchsorted(found, level))
    around = slice(first - 1, first + 1)
    start = np.interp(level, found[around], alarms[around])
    return float(auc(np.r_[start, alarms[first:]], np.r_[level, found[first:]]))


def challenge_score(interpretation: Interpretation) -> dict[str, Any]:
    """Return `isic_score` of a run's predictions, with the interval over lesions."""
    truth, probabilities = interpretation.truth, interpretation.probabilities
    return isic_score(truth, probabilities, interpretation.classes, interpretation.lesions)


def write_submission(table: pd.DataFrame, path: Path) -> Path:
    """Write a table of image_id and p_<class> in the challenge's CSV format.

    Raises `LesionfastError` for other classes than the challenge's, ids that repeat, and values
    that are no probabilities.
    """
    if "image_id" not in table:
        raise LesionfastError(
            f"the table has no column image_id; it has: {', '.join(map(str, table.columns))}. "
            "Pass one of image_id and p_<class>, such as predictions.csv."
        )
    names = [name for name in table.columns if str(name).startswith("p_")]
    order = challenge_order([name.removeprefix("p_") for name in names])
    found = table[[names[number] for number in order]].set_axis(list(COLUMNS), axis=1)
    found.insert(0, "image", table["image_id"].astype(str))
    check_submission(found, "the table")
    return write_text(Path(path), found.to_csv(index=False, lineterminator="\n"))


def read_submission(path: Path) -> pd.DataFrame:
    """Return a submission, columns image and the challenge's seven in its order, checked."""
    first = "Its first line must be image," + ",".join(COLUMNS)
    table = read_table(Path(path), {"image": ""}, option=None)
    if sorted(table.columns) != sorted(["image", *COLUMNS]):
        raise LesionfastError(f"{path} has the columns {list_columns(list(table))}. {first}.")
    numbers = table[list(COLUMNS)].map(as_number)
    table = numbers.assign(image=table["image"])
    check_submission(table, str(path))
    return table[["image", *COLUMNS]].reset_index(drop=True)


def check_submission(table: pd.DataFrame, name: str) -> None:
    """Raise `LesionfastError` unless ids are unique and values are from 0 to 1."""
    repeated = table.loc[table["image"].duplicated(), "image"].unique().tolist()
    if repeated:
        raise LesionfastError(
            f"{name} has {len(repeated)} images more than once, such as {repeated[0]}. "
            "Give one row an image."
        )
    values = table[list(COLUMNS)].apply(pd.to_numeric, errors="coerce").to_numpy()
    bad = ~((values >= 0) & (values <= 1)).all(axis=1)
    if bad.any() or table.empty:
        which = f"such as {table['image'][bad].iloc[0]}" if bad.any() else "no row at all"
        raise LesionfastError(
            f"{name} has values that are no probabilities in {bad.sum()} of {len(table)} rows, "
            f"{which}. Give numbers from 0 to 1."
        )
