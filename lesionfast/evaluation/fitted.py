"""What is fitted on a run's validation, kept as JSON in the run, and never fitted on test."""

import json
from typing import Any

import numpy as np

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.runs import Run

OF_THE_WEIGHTS = (  # what a run says of its weights, which further training changes
    *("metrics.json", "predictions.csv", "features.safetensors"),
    *("operating.json", "calibration.json", "conformal.json", "referral.json"),
    "outliers.safetensors",
)


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
    return rows["group"].to_numpy() if "group" in rows else np.arange(len(rows))


def read_fitted(run: Run, name: str, make: str) -> dict[str, Any]:
    """Return what was fitted on a run's validation and kept as JSON; `make` says how to make it.

    Raises `LesionfastError` if there is none, or it is of other classes or another split.
    """
    path = run.path / name
    if not path.is_file():
        raise LesionfastError(f"{run.path} has no {name}. Make it: {make}")
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("fitted_on") != "valid" or found.get("classes") != list(run.classes):
        raise LesionfastError(
            f"{path} is of the split '{found.get('fitted_on')}' and the classes "
            f"{found.get('classes')}, the run of 'valid' and {list(run.classes)}. Make it: {make}"
        )
    return found
