"""The score of ISIC 2018 Task 3 by the challenge's own rules, and its submission files.

The rules are those of github.com/ImageMarkup/isic-challenge-scoring.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lesionfast.errors import LesionfastError
from lesionfast.files import write_text
from lesionfast.stats.bootstrap import Found, interval, resampled
from lesionfast.stats.metrics import check_predictions, mean_defined, ratio

COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def isic_score(
    truth: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], lesions: ArrayLike
) -> dict[str, float]:
    """Return balanced_accuracy, balanced_accuracy_low and _high, as the challenge scores it.

    It is the mean recall of the classes that occur; the decision is the most probable class, and
    an image with two of them counts as wrong. `lesions` (n,) are those that the interval
    resamples. Raises `LesionfastError` unless the classes are the seven of the challenge.
    """
    order = challenge_order(classes)
    truth, probabilities = check_predictions(truth, probabilities, classes)
    truth, probabilities = np.argsort(order)[truth], probabilities[:, order]
    largest = probabilities == probabilities.max(axis=1, keepdims=True)
    right = (largest.sum(axis=1) == 1) & largest[np.arange(len(truth)), truth]
    onehot = np.eye(len(COLUMNS))[truth]

    def find(weights: np.ndarray) -> Found:
        recall = ratio(weights @ (onehot * right[:, None]), weights @ onehot)
        return {"balanced_accuracy": mean_defined(recall)}

    values, drawn = resampled(find, truth, lesions)
    low, high = interval(drawn["balanced_accuracy"])
    return values | {"balanced_accuracy_low": low, "balanced_accuracy_high": high}


def challenge_order(classes: Sequence[str]) -> list[int]:
    """Return the class number of each column; raises `LesionfastError` for other classes."""
    upper = [str(name).upper() for name in classes]
    missing = [name for name in COLUMNS if name not in upper]
    unknown = [str(name) for name in classes if str(name).upper() not in COLUMNS]
    if missing or unknown or len(upper) != len(COLUMNS):
        raise LesionfastError(
            f"ISIC 2018 Task 3 has the classes {', '.join(COLUMNS)}; found "
            f"{', '.join(map(str, classes))} (missing: {', '.join(missing) or 'none'}; unknown: "
            f"{', '.join(unknown) or 'none'}). Use a run on those seven, each once."
        )
    return [upper.index(name) for name in COLUMNS]


def challenge_columns(columns: Iterable[str]) -> list[str]:
    """Return the columns p_<class> of a table in the order of the challenge."""
    names = [name for name in columns if str(name).startswith("p_")]
    return [names[i] for i in challenge_order([name.removeprefix("p_") for name in names])]


def write_submission(table: pd.DataFrame, path: Path) -> Path:
    """Write a table of image_id and p_<class> in the challenge's CSV format.

    Raises `LesionfastError` for other classes than the challenge's, ids that repeat, and values
    that are not probabilities.
    """
    if table.empty:
        raise LesionfastError("the table has no rows. Pass predictions of one image or more.")
    if "image_id" not in table:
        raise LesionfastError(
            f"the table has no column image_id; it has: {', '.join(map(str, table.columns))}. "
            "Pass one of image_id and p_<class>, such as predictions.csv."
        )
    rows = table[challenge_columns(table.columns)].set_axis(list(COLUMNS), axis=1)
    rows.insert(0, "image", table["image_id"].astype(str))
    repeated = rows.loc[rows["image"].duplicated(), "image"].unique().tolist()
    if repeated:
        raise LesionfastError(
            f"the table has {len(repeated)} images more than once, such as {repeated[0]}. "
            "Give one row per image."
        )
    values = rows[list(COLUMNS)].apply(pd.to_numeric, errors="coerce").to_numpy()
    bad = ~((values >= 0) & (values <= 1)).all(axis=1)
    if bad.any():
        raise LesionfastError(
            f"{bad.sum()} of {len(rows)} rows have values that are not between 0 and 1, such as "
            f"{rows['image'][bad].iloc[0]}. Pass probabilities."
        )
    return write_text(Path(path), rows.to_csv(index=False, lineterminator="\n"))
