"""A run as one folder that is the whole model: weights, choices, card, and ONNX where asked for."""

import os
import shutil
import tempfile
from pathlib import Path

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.outliers import NAME as OUTLIERS
from lesionfast.files import sha256, write_json, write_text
from lesionfast.runs import Run
from lesionfast.serving.bundle import FILE, ONNX, WEIGHTS, Bundle
from lesionfast.serving.card import card_of

INT8 = "model-int8.onnx"


def export(run: Run, to: Path, *, onnx: bool = False, int8: bool = False) -> Path:
    """Write a run as a folder that needs nothing else, and return its path.

    It holds model.safetensors, model.json (architecture, classes, preprocessing, encoder, rule,
    calibration, thresholds, prediction sets, split hash, versions, the SHA-256 of every file),
    README.md (a model card), outliers.safetensors if the run keeps features, and with `onnx`
    model.onnx, with `int8` also one of 8-bit numbers. No file is a pickle. The folder appears
    when it is whole. Raises `LesionfastError` if there is one of that name, and for a run that
    can't be predicted with.
    """
    to = Path(to).expanduser()
    if to.exists():
        raise LesionfastError(f"{to} is there already. Type another --to, or remove it first.")
    bundle = Bundle.of(run)
    to.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        write_files(run, bundle, aside, onnx or int8, int8)
        aside.chmod(0o755)
        for each in aside.iterdir():
            each.chmod(0o644)
        os.rename(aside, to)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return to


def write_files(run: Run, bundle: Bundle, folder: Path, onnx: bool, int8: bool) -> None:
    """Write all files of an exported model."""
    shutil.copyfile(run.file("weights.safetensors"), folder / WEIGHTS)
    if bundle.outliers:
        bundle.outliers.save(folder / OUTLIERS)
    if onnx:
        from lesionfast.serving.onnx_export import write_onnx

        write_onnx(run, bundle, folder / ONNX)
    change = None
    if int8:
        from lesionfast.serving.quantization import write_int8

        change = write_int8(run, bundle, folder / ONNX, folder / INT8)
    names = sorted(each.name for each in folder.iterdir())
    findings = Findings(Interpretation.of(run, reported_split(run)))
    write_bundle(bundle, folder)
    write_text(folder / "README.md", card_of(findings, bundle, names, change))


def write_bundle(bundle: Bundle, folder: Path) -> None:
    """Write model.json beside the files that it vouches for, which are there already."""
    files = {each.name: sha256(each) for each in sorted(folder.iterdir())}
    write_json(folder / FILE, bundle.to_dict() | {"files": files})


def reported_split(run: Run) -> str:
    """Return 'test', or 'valid' of a run without test images."""
    return "test" if "test" in set(run.predictions["split"]) else "valid"
