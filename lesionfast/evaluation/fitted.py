"""What is fitted on a run's validation, kept as JSON in the run, and never fitted on test."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lesionfast.data.metadata import some
from lesionfast.errors import DamageError, DiskError, LesionfastError
from lesionfast.evaluation.features import read_features
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.outliers import NAME as OUTLIERS
from lesionfast.evaluation.outliers import OutlierScorer
from lesionfast.files import disk_errors, read_json
from lesionfast.runs import FEATURES, FITTED, WITHOUT_METADATA, Run

logger = logging.getLogger("lesionfast")

FEWEST = 10  # validation lesions of a class
SAID: set[Path] = set()  # runs that can't take what was chosen, of which that was said
OF_THE_WEIGHTS = (  # what a run says of its weights, which further training changes
    *("metrics.json", "predictions.csv", WITHOUT_METADATA),
    *FITTED,
)
SHAPES = {
    "operating.json": {
        "points": [
            {
                **{"of": str, "goal": str},
                **dict.fromkeys(("level", "threshold", "sensitivity", "specificity"), float),
            }
        ]
    },
    "calibration.json": (
        {"classes": [str], "method": "none"},
        {"classes": [str], "method": "temperature", "parameters": {"temperature": float}},
        {"classes": [str], "method": "vector", "parameters": {"weight": [float], "bias": [float]}},
        {
            "classes": [str],
            "method": "dirichlet",
            "parameters": {"weight": [[float]], "bias": [float]},
        },
    ),
    "conformal.json": {
        "coverage": float,
        "classes": [str],
        "marginal": (float, None),
        "by_class": [(float, None)],
        "lesions": [int],
    },
    "referral.json": {"share": float, "threshold": float, "rule": str, "classes": [str]},
}


def require_validation(valid: Interpretation, what: str) -> None:
    """Raise `LesionfastError` unless the split is validation: nothing is fitted on test."""
    if valid.split != "valid":
        raise LesionfastError(
            f"a {what} is fitted on the split 'valid'; found '{valid.split}'. "
            "Pass Interpretation.of(run, 'valid')."
        )


def require_other(test: Interpretation) -> None:
    """Raise `LesionfastError` for the split that a calibration is fitted on."""
    if test.split == "valid":
        raise LesionfastError(
            "before and after are shown on a split that nothing was fitted on; found 'valid'. "
            "Pass Interpretation.of(run, 'test')."
        )


def lesions_of(interpretation: Interpretation) -> np.ndarray:
    """Return the lesion of each image (n,); without a column `group` each image is its own."""
    rows = interpretation.rows
    return rows["group" if "group" in rows else "image_id"].to_numpy()


def few_words(valid: Interpretation) -> str:
    """Return a warning that names the classes of fewer than ten validation lesions, or ''.

    What is fitted for them rests on so few lesions that it would be another with others.
    """
    lesions = lesions_of(valid)
    counts = {
        name: len(np.unique(lesions[valid.truth == number]))
        for number, name in enumerate(valid.classes)
    }
    few = [f"{name} ({count})" for name, count in counts.items() if count < FEWEST]
    if not few:
        return ""
    return (
        f"Warning: validation has fewer than {FEWEST} lesions of {some(few, 10)}. What is chosen "
        "or measured for these classes, such as thresholds, calibration and limits of prediction "
        "sets, is hardly more than chance."
    )


def images_in(run: Run) -> dict[str, int]:
    """Return how many images of validation there were to fit on, as a file of the run says it."""
    return {"images": int((run.predictions["split"] == "valid").sum())}


def write_fitted(run: Run, name: str, fitted: dict[str, Any]) -> Path:
    """Write what was fitted on a run's validation to a JSON file of the run."""
    return run.write_json(name, fitted | {"fitted_on": "valid"})


def keep(run: Run, write: Callable[[], Any]) -> None:
    """Write a choice into a run; where that can't be done, say so once and go on with it."""
    try:
        with disk_errors(run.path):
            write()
    except DiskError as error:  # read-only or full, or a folder of somebody else
        say_not_kept(run.path, error.problem)


def say_not_kept(folder: Path, why: str) -> None:
    """Warn, once a process, that a run can't take what was chosen on its validation."""
    if folder not in SAID:
        SAID.add(folder)
        logger.warning(
            "%s What is chosen on validation is used, but not kept: the next command chooses it "
            "again",
            why,
        )


def discard_damaged(run: Run) -> list[str]:
    """Remove what a run keeps of its validation, and its features, where they are damaged.

    It is said, and made anew when it is asked for. Returns the names of the files.
    """
    damaged = {name: why for name in FITTED if (why := damage_of(run, name))}
    for name, why in damaged.items():
        logger.warning("it is made anew: %s", why)
        run.remove(name)
    return list(damaged)


def damage_of(run: Run, name: str) -> str | None:
    """Return what is wrong with one of these files, None if it can be used or there is none."""
    readers = {FEATURES: lambda: read_features(run), OUTLIERS: lambda: OutlierScorer.load(file)}
    try:
        if not run.holds(name):
            return None
        file = run.file(name)
        readers.get(name, lambda: read_json(file, SHAPES[name], ""))()
    except DamageError as error:
        return str(error).removesuffix(run.remedy(name)).strip()
    return None


def read_fitted(run: Run, name: str, make: str) -> dict[str, Any]:
    """Return what was fitted on a run's validation and kept as JSON; `make` says how to make it.

    Raises `LesionfastError` if there is none, or it is of other classes or another split.
    """
    if not run.holds(name):
        raise LesionfastError(f"{run.path} has no {name}. Make it: {make}")
    path = run.file(name)
    found = read_json(path, SHAPES[name], run.remedy(name))
    if found.get("fitted_on") != "valid" or found.get("classes") != list(run.classes):
        raise LesionfastError(
            f"{path} is of the split '{found.get('fitted_on')}' and the classes "
            f"{found.get('classes')}, the run of 'valid' and {list(run.classes)}. "
            "Remove it, and it is chosen anew."
        )
    return found
