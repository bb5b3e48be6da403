"""The model in ONNX: pixels and metadata in, probabilities and features out, without PyTorch."""

import json
import logging
from pathlib import Path

import numpy as np

from lesionfast.data.sources import count_threads
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import OOD, load_ood
from lesionfast.serving.bundle import FILE, Bundle, check_file, check_listed, read_json
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
        self.path = path
        try:
            import onnxruntime
        except ImportError:
            raise LesionfastError(
                f"{path} is run by onnxruntime, which is not installed. "
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
        self.inputs = {each.name for each in self.session.get_inputs()}

    @property
    def told(self) -> dict | None:
        """What the file says of its model, None if it is not of lesionfast."""
        found = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        try:
            told = json.loads(found or "null")
        except ValueError:
            return None
        return told if isinstance(told, dict) else None

    def __call__(self, pixels: np.ndarray, metadata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the plain probabilities (n, k) and the features (n, F), as `TorchEngine`."""
        found = self.run(pixels, metadata)
        return found[PLAIN], found[FEATURES]

    def run(self, pixels: np.ndarray, metadata: np.ndarray) -> dict[str, np.ndarray]:
        """Return all outputs, float32 (n, …), of uint8 (n, size, size, 3) and (n, width)."""
        given, names = {IMAGE: pixels, METADATA: metadata}, [CALIBRATED, PLAIN, FEATURES]
        parts = []
        for start in range(0, len(pixels), AT_ONCE):
            chosen = {
                name: np.ascontiguousarray(each[start : start + AT_ONCE])
                for name, each in given.items()
                if name in self.inputs
            }
            parts.append(self.session.run(names, chosen))
        columns = zip(*parts, strict=True)
        return {name: np.concatenate(each) for name, each in zip(names, columns, strict=True)}


def open_onnx(path: Path, views: int | None) -> tuple[Bundle, OnnxEngine]:
    """Return what an ONNX file says of its model, and what runs it.

    Outliers are found if their file lies beside it. Raises `LesionfastError` for a file that is
    no model of lesionfast, was changed since its export, or is asked for other views than its own.
    """
    if not path.is_file():
        raise LesionfastError(f"there is no {path}. Make it: lesionfast export RUN --to DIR --onnx")
    if (path.parent / FILE).is_file():
        check_listed(path)
    engine = OnnxEngine(path)
    told = engine.told
    if told is None:
        raise LesionfastError(
            f"{path} is no model of lesionfast: it does not say how to use it. "
            "Make one: lesionfast export RUN --to DIR --onnx"
        )
    ood = ood_beside(path, told.get("files") or {}) if told.get("outliers") else None
    bundle = Bundle.from_dict(told, ood)
    own = bundle.model["tta"]
    if views not in (None, own):
        raise LesionfastError(
            f"the {own} views of {path} are built in. Leave --tta out, or name the exported folder."
        )
    return bundle, engine


def ood_beside(path: Path, files: dict[str, str]) -> OODScorer | None:
    """Return the OOD score, if its file lies beside an ONNX file; else log a warning.

    `files` are the SHA-256 that the ONNX file has of others; of an old one, those of model.json.
    """
    if not files and (path.parent / FILE).is_file():
        files = read_json(path.parent / FILE)["files"]
    file = path.parent / OOD.file
    if OOD.file in files and file.is_file():
        check_file(file, files[OOD.file])
        return load_ood(file)
    why = "is not beside" if not file.is_file() else "is not vouched for by"
    logger.warning("%s %s %s: predictions have no OOD score", OOD.file, why, path.name)
    return None
