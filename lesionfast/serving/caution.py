"""What to know before a model predicts without metadata that it was never withheld from."""

from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.encoder import MetadataEncoder
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.contribution import without_metadata
from lesionfast.evaluation.features import read_features
from lesionfast.evaluation.interpretation import Interpretation, predictions_of
from lesionfast.runs import Run


def caution(model: dict[str, Any], run: Run | None = None) -> str:
    """Return what to know before a model predicts without metadata: '' if it has learned to.

    `model` is its model.json; with its `run` it says what that does to the validation images.
    """
    if model.get("metadata_dropout") or model.get("fusion") == "none" or not model.get("metadata"):
        return ""
    columns = " and ".join(model["metadata"])
    measured = effect_on_validation(run) if run is not None else ""
    return (
        f"the model was trained without --metadata-dropout, so unknown {columns} may speak for a "
        f"class{measured}. Say what is known, or train again with --metadata-dropout 0.25."
    )


def effect_on_validation(run: Run) -> str:
    """Return how withholding all metadata moves the validation images, '' if that is not known."""
    try:
        known, unknown = (
            (Interpretation.of(run, "valid"), kept)
            if (kept := without_metadata(run, "valid"))
            else from_features(run)
        )
    except (LesionfastError, OSError, KeyError):  # not all that it takes was kept
        return ""
    means = [read.probabilities.mean(axis=0) for read in (known, unknown)]
    most = int(np.argmax(means[1] - means[0]))
    words = f": on validation {run.classes[most]} has a mean probability of {means[1][most]:.2f}"
    words += f" without, {means[0][most]:.2f} with metadata"
    melanoma = run.classes.melanoma
    if melanoma in set(known.rows["truth"]):
        without, with_it = (
            read.metrics["rules"][read.rule]["sensitivity"][melanoma] for read in (unknown, known)
        )
        words += f"; melanoma sensitivity is {without:.2f} without, {with_it:.2f} with it"
    return words


def from_features(run: Run) -> tuple[Interpretation, Interpretation]:
    """Return the validation predictions with and without metadata, from the kept features.

    They are of one view. Raises `LesionfastError` if no features were kept.
    """
    import torch

    from lesionfast.models.fusion import load_model

    rows = predictions_of(run, "valid")
    features = torch.tensor(read_features(run).loc[rows["image_id"]].to_numpy())
    encoder = MetadataEncoder.of(run)
    told = torch.from_numpy(encoder.transform(rows))
    model, found = load_model(run), []
    for metadata in (told, torch.from_numpy(encoder.unknown).expand_as(told)):
        with torch.inference_mode():
            probabilities = model.classify(features, metadata).softmax(dim=1).numpy()
        columns = [f"p_{name}" for name in run.classes]
        scores = pd.DataFrame(probabilities.astype(float), rows.index, columns)
        found.append(Interpretation.of_table(run, rows.assign(**scores), "valid"))
    return found[0], found[1]
