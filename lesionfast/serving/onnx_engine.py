"""The model in ONNX: pixels and metadata in, probabilities and features out, without PyTorch."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from lesionfast.data.sources import count_threads
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import OOD, load_ood
from lesionfast.serving.bundle import FILE, Bundle, check_file, read_description
from lesionfast.stats.ood import OODScorer

logger = logging.getLogger("lesionfast")

KEY = "lesionfast"
IMAGE, METADATA = "image", "metadata"
CALIBRATED, PLAIN, FEATURES = "probabilities", "model_probabilities", "features"
AT_ONCE = 16  # images


class OnnxEngine:
    """Runs an ONNX file by onnxruntime."""

    leaves_cpu_free = False

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise LesionfastError(
                f"{path} needs onnxruntime, which is not installed. "
                "Type: pip install 'lesionfast[onnx]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_threads()
        options.log_severity_level = 3  # errors: warnings are about the graph's own form
        try:
            self.session = onnxruntime.InferenceSession(
                path.as_posix(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has an exception of its own for each cause
            raise LesionfastError(
                f"{path} can't be read as ONNX: {str(error).splitlines()[0]}. Export it again."
            ) from None
        self.inputs = {given.name for given in self.session.get_inputs()}

    @property
    def description(self) -> dict[str, Any] | None:
        """The bundle of the model as JSON, None if the file is not of lesionfast."""
        text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        try:
            described = json.loads(text or "null")
        except ValueError:
            return None
        return described if isinstance(described, dict) else None

    def __call__(self, pixels: np.ndarray, metadata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the plain probabilities (n, k) and the features (n, F), as `TorchEngine`."""
        outputs = self.run(pixels, metadata)
        return outputs[PLAIN], outputs[FEATURES]

    def run(self, pixels: np.ndarray, metadata: np.ndarray) -> dict[str, np.ndarray]:
        """Return all outputs, float32 (n, …), of uint8 (n, size, size, 3) and (n, width)."""
        given, names = {IMAGE: pixels, METADATA: metadata}, [CALIBRATED, PLAIN, FEATURES]
        parts = []
        for start in range(0, len(pixels), AT_ONCE):
            batch = {
                name: np.ascontiguousarray(values[start : start + AT_ONCE])
                for name, values in given.items()
                if name in self.inputs
            }
            parts.append(self.session.run(names, batch))
        columns = zip(*parts, strict=True)
        return {name: np.concatenate(column) for name, column in zip(names, columns, strict=True)}


def open_onnx(path: Path, views: int | None) -> tuple[Bundle, OnnxEngine]:
    """Return the bundle of an ONNX file, and what runs it.

    OOD scores are computed if their file lies beside it. Raises `LesionfastError` for a file that
    is not a model of lesionfast, was changed since its export, or is asked for other views than
    its own.
    """
    if not path.is_file():
        raise LesionfastError(f"there is no {path}. Make it: lesionfast export RUN --to DIR --onnx")
    if (path.parent / FILE).is_file():
        check_listed(path)
    engine = OnnxEngine(path)
    described = engine.description
    if described is None:
        raise LesionfastError(
            f"{path} is not a model of lesionfast: it does not say how to use it. "
            "Make one: lesionfast export RUN --to DIR --onnx"
        )
    has_ood, files = described.get("outliers"), described.get("files") or {}
    bundle = Bundle.from_dict(described, load_ood_beside(path, files) if has_ood else None)
    own = bundle.model["tta"]
    if views not in (None, own):
        raise LesionfastError(
            f"the {own} views of {path} are built in. Leave --tta out, or name the exported folder."
        )
    return bundle, engine


def check_listed(path: Path) -> None:
    """Raise `LesionfastError` unless a file of an exported folder is the one that was exported."""
    files = read_description(path.parent)["files"]
    if path.name not in files:
        raise LesionfastError(
            f"{path.parent / FILE} has no SHA-256 of {path.name}, so it was not exported with it. "
            f"Name one of: {', '.join(files)}; or export the run again with --onnx."
        )
    check_file(path, files[path.name])


def load_ood_beside(path: Path, files: dict[str, str]) -> OODScorer | None:
    """Return the OOD score, if its file lies beside an ONNX file; else log a warning.

    `files` are the SHA-256 in the ONNX file; for one of an earlier version, those in model.json.
    """
    if not files and (path.parent / FILE).is_file():
        files = read_description(path.parent)["files"]
    file = path.parent / OOD.file
    if OOD.file in files and file.is_file():
        check_file(file, files[OOD.file])
        return load_ood(file)
    problem = "has no SHA-256 in" if file.is_file() else "is not beside"
    logger.warning("%s %s %s: predictions have no OOD score", OOD.file, problem, path.name)
    return None
