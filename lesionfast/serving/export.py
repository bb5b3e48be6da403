"""A run as one folder that is the whole model, shared on the Hugging Face hub and fetched there."""

import json
import logging
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import numpy as np
import pandas as pd
from huggingface_hub import errors

from lesionfast.console import Table, escape_markdown, estimate
from lesionfast.diagnoses import probability_columns
from lesionfast.errors import DamageError, DiskError, LesionfastError, shell_quote
from lesionfast.evaluation.decisions import OOD
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.outliers import save_ood
from lesionfast.files import (
    disk_errors,
    format_bytes,
    free_bytes,
    workspace,
    write_text,
)
from lesionfast.models.hub.failures import PREFIX, explain_errors
from lesionfast.models.lineage import KEY
from lesionfast.reporting.advice.limits import find_limits, list_limits
from lesionfast.reporting.checklist.chapter import checklist_of_card
from lesionfast.reporting.overview import data_card, model_card
from lesionfast.reporting.page import NOT_A_DEVICE
from lesionfast.run import Run, list_runs_of
from lesionfast.serving.bundle import (
    CARD,
    FILE,
    INT8,
    ONNX,
    WEIGHTS,
    Bundle,
    read_checked,
    read_description,
)

logger = logging.getLogger("lesionfast")

COMPARED = 32  # validation images
TOLERANCE = 0.05  # of a probability: other machines, precisions and decoders differ by less
BESIDE = 1_000_000  # bytes for model.json, card and folder
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
ESTIMATES = {
    ("balanced_accuracy", "all"): "balanced accuracy",
    ("macro_auc", "all"): "macro AUC",
    ("sensitivity", "melanoma"): "melanoma sensitivity",
    ("specificity", "melanoma"): "melanoma specificity",
    ("auc", "melanoma"): "melanoma AUC",
    ("sensitivity", "cancer"): "malignant sensitivity",
    ("accuracy", "all"): "accuracy",
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

The model is FILES. No file here is a pickle. `model.json` has the SHA-256 of each, which is
checked.
"""


def export(
    run: Run,
    to: Path,
    *,
    onnx: bool = False,
    int8: bool = False,
    cost: str | None = None,
    prior: str | None = None,
) -> Path:
    """Write a run as a folder that needs nothing else, and return its path.

    It holds model.safetensors (with the digests of what it learned from), model.json (architecture,
    classes, preprocessing, encoder, rule, calibration, thresholds, prediction sets, costs, split
    hash, versions, the SHA-256 of every file), README.md (a model card), outliers.safetensors if
    the run keeps features, and with `onnx` model.onnx, with `int8` also one of 8-bit numbers. No
    file is a pickle. `cost` and `prior` are as in `Predictor`; the model keeps them. The folder
    appears when it is whole, its weights loaded and compared with the run's predictions. Raises
    `LesionfastError` if there is one of that name, for a run that can't predict, for weights that
    are not the run's own, and for a full disk and the like.
    """
    to = Path(to).expanduser()
    if to.exists():
        raise exists_already(to)
    bundle = replace(Bundle.from_run(run), limits=find_limits(run)).restated(cost, prior)
    needed = estimate_size(run, bundle, onnx or int8, int8)
    check_room(to, needed)
    with disk_errors(to, needed), workspace(to.parent) as unfinished:
        folder = unfinished / "model"
        folder.mkdir()
        write_files(run, bundle, folder, onnx or int8, int8)
        folder.chmod(0o755)
        for path in folder.iterdir():
            path.chmod(0o644)
        try:
            os.rename(folder, to)
        except OSError:
            if to.exists():  # another export was faster
                raise exists_already(to) from None
            raise
    return to


def exists_already(to: Path) -> LesionfastError:
    """Return the error for a folder, which is never overwritten."""
    return LesionfastError(f"{to} exists already. Type another --to, or remove it first.")


def estimate_size(run: Run, bundle: Bundle, onnx: bool, int8: bool) -> int:
    """Return about how many bytes an export takes while it is written."""
    files = [leaf.path / "weights.safetensors" for leaf in list_runs_of(run)]
    weights = sum(file.stat().st_size for file in files if file.is_file())  # loading them says more
    ood = sum(array.nbytes for array in bundle.ood.tensors.values()) if bundle.ood else 0
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
    change = None
    if onnx:
        from lesionfast.serving.onnx import write_int8, write_onnx

        write_onnx(run, bundle, folder / ONNX)
        change = write_int8(run, bundle, folder / ONNX, folder / INT8) if int8 else None
    names = sorted(path.name for path in folder.iterdir())
    bundle.write(folder)
    split = "test" if "test" in set(run.predictions["split"]) else "valid"
    findings = Findings(Interpretation.from_run(run, split))
    write_text(folder / CARD, write_card(findings, bundle, names, change))


def write_weights(run: Run, path: Path) -> None:
    """Write the run's weights, with what they learned from in the header.

    Raises `LesionfastError` unless they are the whole model that the run's model.json describes.
    """
    from safetensors.torch import save_file

    from lesionfast.models.ensemble import load_any, read_lineages

    tensors = {name: value.contiguous() for name, value in load_any(run).state_dict().items()}
    lineage = read_lineages(run)
    header = None if lineage is None else {KEY: lineage.to_dict()}
    save_file(tensors, path, metadata={"header": json.dumps(header)})


def check_predictions(run: Run, bundle: Bundle, weights: Path) -> None:
    """Raise `LesionfastError` unless the weights reproduce predictions of the run.

    Where the run's data is not found there is a warning, and nothing is compared. Nor is anything
    of a run of folds without test images, for validation was predicted by one model at a time.
    """
    from lesionfast.models.ensemble import open_engine

    split = bundle.reproduced(run)
    if split is None:
        logger.warning(
            "the weights were not compared with predictions.csv: none of them is of the mean of "
            "the models, as the run has no test images"
        )
        return
    try:
        df, pixels, metadata = bundle.draw_images(run, split, COMPARED)
    except DamageError:
        raise
    except LesionfastError as error:
        logger.warning("the weights were not compared with predictions.csv: %s", error)
        return
    engine = open_engine(weights, bundle.model, precision=bundle.precision)
    found, _ = engine(pixels, metadata)
    columns = probability_columns(bundle.classes)
    expected = run.predictions.set_index("image_id")[columns].reindex(df["image_id"]).to_numpy()
    differences = np.abs(found - expected).max(axis=1)
    compared = np.isfinite(differences)
    if not compared.any():
        logger.warning("the weights were not compared: predictions.csv has none of these images")
        return
    difference = float(differences[compared].max())
    if difference > TOLERANCE:
        raise LesionfastError(
            f"the weights of {run.path} do not reproduce predictions.csv: a probability of "
            f"{len(df)} {split} images differs by {difference:.2f}. The weights, the predictions "
            "or the data do not belong to this run. Copy them again, or train again: "
            f"lesionfast train --config {shell_quote(run.path / 'config.json')}"
        )
    logger.info("%d %s images match predictions.csv within %.0e", compared.sum(), split, difference)


def write_card(
    findings: Findings, bundle: Bundle, files: list[str], int8: dict[str, Any] | None = None
) -> str:
    """Return the README.md of an exported model: use, estimates with intervals, data, limits.

    `int8` is the effect of 8-bit numbers on the test images, where there is such a file.
    """
    read = findings.interpretation
    words, tables = data_card(findings)
    listed, checked = checklist_of_card()
    about = hub.ModelCardData(
        library_name="lesionfast",
        pipeline_tag="image-classification",
        tags=["dermoscopy", "skin-lesion", "medical"],
    )
    title = f"{bundle.name}: {bundle.model['arch']}, {bundle.size} pixels"
    parts = [
        f"---\n{about.to_yaml()}\n---\n",
        f"# {escape_markdown(title)}\n",
        f"**{NOT_A_DEVICE}**\n",
        USE.replace("FILES", ", ".join([FILE, *files])),
        f"## Estimates on {len(read.rows):,} {read.split} images, rule {read.rule}\n",
        f"Split SHA-256 {bundle.split_sha256}.\n",
        tabulate_estimates(findings).to_markdown(),
        *([describe_int8(int8)] if int8 else []),
        "## Data\n",
        *(f"{escape_markdown(paragraph)}\n" for paragraph in words),
        *(table.to_markdown() for table in tables),
        "## Intended use and limits\n",
        *(f"{escape_markdown(paragraph)}\n" for paragraph in model_card(findings.run)),
        *(f"{escape_markdown(words)}\n" for words in list_limits(bundle.limits, bundle.classes)),
        "## Checklist\n",
        *(f"{escape_markdown(paragraph)}\n" for paragraph in listed),
        *(table.to_markdown() for table in checked),
    ]
    return "\n".join(parts)


def tabulate_estimates(findings: Findings) -> Table:
    """Return the metrics that matter, each with its interval."""
    classes = findings.interpretation.classes
    roles = {"melanoma": classes.melanoma, "cancer": classes.cancer}
    table = Table("With 95 % intervals", ["metric", "value"])
    for (metric, of), name in ESTIMATES.items():
        found = findings.measure(metric, roles.get(of, of))
        if found is not None and not pd.isna(found["value"]):
            table.add(name, estimate(found))
    return table


def describe_int8(change: dict[str, Any]) -> str:
    """Return the effect of 8-bit numbers on the decisions."""
    before, after = change["float32"], change["int8"]
    words = f"balanced accuracy {before['balanced_accuracy']:.3f} in float32"
    words += f", in 8-bit numbers {after['balanced_accuracy']:.3f}"
    if "sensitivity_mel" in after:
        words += f"; melanoma sensitivity {before['sensitivity_mel']:.3f}"
        words += f" and {after['sensitivity_mel']:.3f}"
    return f"On {change['images']:,} test images: {words}.\n"


def push(source: Path, name: str, *, public: bool = False, onnx: bool = False) -> str:
    """Upload a run, or a folder that `export` wrote, to the hub as user/name; return hf://user/name.

    The repository is made if there is none, private unless `public`. The user is who logged in
    with `hf auth login`, or whose HF_TOKEN is set. Raises `LesionfastError` for a wrong name,
    without a token or the right to write, and without the network.
    """
    if not NAME.fullmatch(name):
        raise LesionfastError(
            f"{name!r} is not a name on the hub. Type user/name, such as clinic/lesions."
        )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(source)
        if (folder / "config.json").is_file():
            folder = export(Run.open(folder), Path(made) / "model", onnx=onnx)
        paths = list_files_to_share(folder)
        with explain_errors(name):
            api = hub.HfApi()
            api.create_repo(name, private=not public, exist_ok=True)
            files = [hub.CommitOperationAdd(path.name, path) for path in paths]
            for file in files:  # one by one, so that answers come to this thread and are checked
                api.preupload_lfs_files(name, [file], num_threads=1)
            api.create_commit(name, files, commit_message="Upload a model of lesionfast")
    return f"{PREFIX}{name}"


def list_files_to_share(folder: Path) -> list[Path]:
    """Return the files of an exported folder that are uploaded: its own, by name, nothing else.

    Raises `LesionfastError` for one that is not what was exported, or is a link to elsewhere.
    """
    files = read_checked(folder)["files"]
    plain = [folder / name for name in (FILE, CARD) if os.path.lexists(folder / name)]
    plain += [folder / name for name in files]
    for path in plain:
        if path.is_symlink() or not path.is_file():
            raise LesionfastError(
                f"{path} is not an ordinary file, so it is not shared. Export the run again: "
                "lesionfast export RUN --to DIR"
            )
    return plain


def fetch(address: str) -> Path:
    """Return the local folder of hf://user/name, or the file of hf://user/name/model.onnx.

    `@revision` after the name takes another than the newest. What is in the hub's cache is not
    loaded again, and is used without a network or with HF_HUB_OFFLINE=1. Raises `LesionfastError`
    for a repository that does not exist, is not allowed, or holds no model of lesionfast.
    """
    name, file, revision = split_address(address)
    with explain_errors(name):
        folder = Path(hub.hf_hub_download(name, FILE, revision=revision)).parent
    files = read_description(folder)["files"]
    if file and file not in files:
        raise LesionfastError(
            f"{PREFIX}{name} has no {file}; it has: {', '.join(files)}. "
            f"Type {PREFIX}{name}, or one of these after it."
        )
    # ONNX files are fetched only if they are named
    wanted = [path for path in files if path == file or not path.endswith(".onnx")]
    with explain_errors(name):
        for path in wanted:
            with suppress(errors.RemoteEntryNotFoundError):  # said when the folder is checked
                hub.hf_hub_download(name, path, revision=folder.name)
    return folder / file if file else folder


def split_address(address: str) -> tuple[str, str, str | None]:
    """Return name, file ('' for the folder) and revision of hf://user/name[@revision][/file]."""
    found = re.fullmatch(
        rf"{PREFIX}(?P<name>{NAME.pattern})(@(?P<revision>\w[\w.-]*))?(/(?P<file>[\w.-]+))?/?",
        address,
    )
    if found is None:
        raise LesionfastError(
            f"{address!r} is not an address of a model. Type hf://user/name, with @revision or "
            "/model.onnx after it if you like."
        )
    return found["name"], found["file"] or "", found["revision"]
