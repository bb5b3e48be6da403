"""A run as one folder that is the whole model: weights, choices, card, and ONNX where asked for."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.errors import DamageError, DiskError, LesionfastError
from lesionfast.evaluation.decisions import OOD, save_ood
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import (
    disk_errors,
    format_bytes,
    free_bytes,
    sha256,
    workspace,
    write_json,
    write_text,
)
from lesionfast.models.lineage import KEY, read_lineage
from lesionfast.report.overview import data_card, model_card
from lesionfast.report.page import Table
from lesionfast.runs import Run
from lesionfast.serving.bundle import CARD, FILE, INT8, ONNX, WEIGHTS, Bundle

logger = logging.getLogger("lesionfast")

FRONT = """---
library_name: lesionfast
pipeline_tag: image-classification
tags:
- dermoscopy
- skin-lesion
- medical
---
"""
TOLD = {
    ("balanced_accuracy", "all"): "balanced accuracy",
    ("macro_auc", "all"): "macro AUC",
    ("sensitivity", "melanoma"): "melanoma sensitivity",
    ("specificity", "melanoma"): "melanoma specificity",
    ("auc", "melanoma"): "melanoma AUC",
    ("sensitivity", "cancer"): "malignant sensitivity",
    ("accuracy", "all"): "plain accuracy",
}
USE = """## Use it

```
pip install lesionfast
lesionfast predict THIS_FOLDER image.jpg --set age=55 --set sex=female
```

```python
from lesionfast.serving.predictor import Predictor

Predictor("THIS_FOLDER")("image.jpg", age=55, sex="female")
```

No file here is a pickle. `model.json` has the SHA-256 of each, which is checked.
"""


def card_of(
    findings: Findings, bundle: Bundle, files: list[str], int8: dict[str, Any] | None = None
) -> str:
    """Return the README.md of an exported model: use, estimates with intervals, data, limits.

    `int8` is what 8-bit numbers do to the test images, where there is such a file.
    """
    read = findings.interpretation
    words, tables = data_card(findings)
    parts = [
        FRONT,
        f"# {bundle.name}: {bundle.model['arch']}, {bundle.size} pixels\n",
        "**Not a medical device: for research, not for diagnosis.**\n",
        USE.replace(
            "No file here", f"The model is {', '.join(['model.json', *files])}. No file here"
        ),
        f"## Estimates on {len(read.rows):,} {read.split} images, rule {read.rule}\n",
        f"With 95 % intervals. Split SHA-256 {bundle.split_sha256}.\n",
        estimates(findings),
        *([eight_bits(int8)] if int8 else []),
        "## Data\n",
        *(f"{each}\n" for each in words),
        *(markdown(each) for each in tables),
        "## What it is for, and its limits\n",
        *(f"{each}\n" for each in model_card(findings.run)),
    ]
    return "\n".join(parts)


def estimates(findings: Findings) -> str:
    """Return a Markdown table of the metrics that matter, each with its interval."""
    classes, rows = findings.interpretation.classes, []
    roles = {"melanoma": classes.melanoma, "cancer": classes.cancer}
    for (metric, of), name in TOLD.items():
        found = findings.measure(metric, roles.get(of, of))
        if found is not None and not pd.isna(found["value"]):
            ends = f"[{found['low']:.3f}, {found['high']:.3f}]"
            rows.append(f"| {name} | {found['value']:.3f} | {ends} |")
    return "\n".join(["| | value | 95 % interval |", "|---|---|---|", *rows, ""])


def eight_bits(change: dict[str, Any]) -> str:
    """Return what 8-bit numbers do to the decisions."""
    before, after = change["float32"], change["int8"]
    told = f"balanced accuracy {before['balanced_accuracy']:.3f} in float32"
    told += f", in 8-bit numbers {after['balanced_accuracy']:.3f}"
    if "sensitivity_mel" in after:
        told += f"; melanoma sensitivity {before['sensitivity_mel']:.3f}"
        told += f" and {after['sensitivity_mel']:.3f}"
    return f"On {change['images']:,} test images: {told}.\n"


def markdown(table: Table) -> str:
    """Return a table of the report as Markdown."""
    lines = [" | ".join(cell.text for cell in row) for row in table.rows]
    head = [" | ".join(table.columns), "|".join(["---"] * len(table.columns))]
    return "\n".join([f"{table.caption}:\n", *(f"| {line} |" for line in [*head, *lines]), ""])


COMPARED = 32  # validation images
TOLERANCE = 0.05  # of a probability: other machines, precisions and decoders differ by less
BESIDE = 1_000_000  # bytes for model.json, card and folder


def export(run: Run, to: Path, *, onnx: bool = False, int8: bool = False) -> Path:
    """Write a run as a folder that needs nothing else, and return its path.

    It holds model.safetensors (with the digests of what it learned from), model.json (architecture,
    classes, preprocessing, encoder, rule, calibration, thresholds, prediction sets, split hash,
    versions, the SHA-256 of every file), README.md (a model card), outliers.safetensors if the run
    keeps features, and with `onnx` model.onnx, with `int8` also one of 8-bit numbers. No file is a
    pickle. The folder appears when it is whole, its weights loaded and compared with the run's
    predictions. Raises `LesionfastError` if there is one of that name, for a run that can't be
    predicted with, for weights that are not the run's own, and for a full disk and the like.
    """
    to = Path(to).expanduser()
    if to.exists():
        raise already_there(to)
    bundle = Bundle.of(run)
    needed = size_of(run, bundle, onnx or int8, int8)
    check_room(to, needed)
    with disk_errors(to, needed), workspace(to.parent) as unfinished:
        folder = unfinished / "model"
        folder.mkdir()
        write_files(run, bundle, folder, onnx or int8, int8)
        folder.chmod(0o755)
        for each in folder.iterdir():
            each.chmod(0o644)
        try:
            os.rename(folder, to)
        except OSError:
            if to.exists():  # another export was faster
                raise already_there(to) from None
            raise
    return to


def already_there(to: Path) -> LesionfastError:
    """Return the error for a folder that is never overwritten."""
    return LesionfastError(f"{to} is there already. Type another --to, or remove it first.")


def size_of(run: Run, bundle: Bundle, onnx: bool, int8: bool) -> int:
    """Return about how many bytes an export takes while it is written."""
    file = run.path / "weights.safetensors"
    weights = file.stat().st_size if file.is_file() else 0  # that it is missing is said later
    ood = bundle.ood.train.nbytes if bundle.ood else 0
    return BESIDE + ood + round(weights * (1 + 1.2 * onnx + 2.5 * int8))


def check_room(to: Path, needed: int) -> None:
    """Raise `DiskError` if the disk has less room than is needed."""
    free = free_bytes(to)
    if free < needed:
        raise DiskError(
            f"{to} needs about {format_bytes(needed)}, and {format_bytes(free)} are free.",
            "Free some space, or type another --to.",
        )


def write_files(run: Run, bundle: Bundle, folder: Path, onnx: bool, int8: bool) -> None:
    """Write all files of an exported model."""
    write_weights(run, folder / WEIGHTS)
    check_predictions(run, bundle, folder / WEIGHTS)
    if bundle.ood:
        save_ood(bundle.ood, folder / OOD.file)
    if onnx:
        from lesionfast.serving.onnx_export import write_onnx

        write_onnx(run, bundle, folder / ONNX)
    change = None
    if int8:
        from lesionfast.serving.onnx_export import write_int8

        change = write_int8(run, bundle, folder / ONNX, folder / INT8)
    names = sorted(each.name for each in folder.iterdir())
    findings = Findings(Interpretation.of(run, reported_split(run)))
    write_bundle(bundle, folder)
    write_text(folder / CARD, card_of(findings, bundle, names, change))


def write_weights(run: Run, path: Path) -> None:
    """Write the run's weights, with what they learned from in the header.

    Raises `LesionfastError` unless they are the whole model that the run's model.json describes.
    """
    from safetensors.torch import save_file

    from lesionfast.models.fusion import load_model

    tensors = {name: each.contiguous() for name, each in load_model(run).state_dict().items()}
    lineage = read_lineage(run.path)
    header = None if lineage is None else {KEY: lineage.to_dict()}
    save_file(tensors, path, metadata={"header": json.dumps(header)})


def check_predictions(run: Run, bundle: Bundle, weights: Path) -> None:
    """Raise `LesionfastError` unless weights give some validation images what the run predicted.

    Where the run's data is elsewhere that is said, and nothing is compared.
    """
    from lesionfast.models.inference import TorchEngine
    from lesionfast.serving.onnx_export import draw_images

    try:
        df, pixels, metadata = draw_images(run, bundle, "valid", COMPARED)
    except DamageError:
        raise
    except LesionfastError as error:
        logger.warning("the weights were not compared with predictions.csv: %s", error)
        return
    engine = TorchEngine.open(
        bundle.model, weights, views=bundle.model["tta"], precision=bundle.precision
    )
    found, _ = engine(pixels, metadata)
    columns = [f"p_{name}" for name in bundle.classes]
    predicted = run.predictions.set_index("image_id")[columns].reindex(df["image_id"]).to_numpy()
    differences = np.abs(found - predicted).max(axis=1)
    compared = np.isfinite(differences)
    if not compared.any():
        logger.warning("the weights were not compared: predictions.csv has none of these images")
        return
    difference = float(differences[compared].max())
    if difference > TOLERANCE:
        raise LesionfastError(
            f"{run.path / 'weights.safetensors'} does not predict what predictions.csv says: of "
            f"{len(df)} validation images a probability differs by {difference:.2f}. One of them, "
            f"or the data, is not the run's own. Bring it back, or train again: lesionfast train "
            f"--config {run.path / 'config.json'}"
        )
    logger.info(
        "%d validation images: as in predictions.csv, within %.0e", compared.sum(), difference
    )


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Write model.json beside the files that it vouches for, which are there already."""
    files = {each.name: sha256(each) for each in sorted(folder.iterdir())}
    write_json(folder / FILE, bundle.to_dict() | {"files": files})


def reported_split(run: Run) -> str:
    """Return 'test', or 'valid' of a run without test images."""
    return "test" if "test" in set(run.predictions["split"]) else "valid"
