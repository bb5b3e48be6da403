"""An ONNX model of 8-bit numbers, and what they do to the test images."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lesionfast.evaluation.metrics import balanced_accuracy, decide, sensitivity
from lesionfast.runs import Run
from lesionfast.serving.bundle import Bundle
from lesionfast.serving.onnx_engine import IMAGE, METADATA, OnnxEngine
from lesionfast.serving.onnx_export import add_bundle, outliers_in
from lesionfast.serving.sampling import draw_images

logger = logging.getLogger("lesionfast")

IMAGES = 200  # of the training, from which the ranges of numbers are taken
LOSS_TOLD = 0.03  # of balanced accuracy, from which a warning says so
EXACT = ("Cast", "Concat", "Div", "Gemm", "Log", "MatMul", "Softmax", "Sub")


def write_int8(run: Run, bundle: Bundle, source: Path, to: Path) -> dict[str, Any]:
    """Write an ONNX file of 8-bit numbers and return what that does to the test images.

    Static quantisation by onnxruntime, its ranges from up to 200 training images; the calibration
    at the end stays float32. Returned are images, balanced_accuracy and sensitivity_mel of both
    files under the run's rule. Raises `LesionfastError` if the run's data is elsewhere.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _, pixels, metadata = draw_images(run, bundle, "train", IMAGES)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder, quiet_root():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(to),
            Batches(pixels, metadata),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=exact_nodes(prepared),
        )
    found = int8_change(run, bundle, source, to)
    add_bundle(to, bundle, files=outliers_in(to.parent), int8=found)
    told = "{images} test images: balanced accuracy {before:.3f} in float32, {after:.3f} in int8"
    before, after = (found[name]["balanced_accuracy"] for name in ("float32", "int8"))
    level = logging.WARNING if before - after > LOSS_TOLD else logging.INFO
    logger.log(level, "%s", told.format(images=found["images"], before=before, after=after))
    return found


@contextmanager
def quiet_root() -> Iterator[None]:
    """Keep Python's root logger as it is: onnxruntime tells it things, which gives it a handler."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def exact_nodes(path: Path) -> list[str]:
    """Return the nodes that stay float32, for they cost little: both ends of the graph."""
    import onnx

    return [each.name for each in onnx.load(path).graph.node if each.op_type in EXACT]


class Batches:
    """Gives onnxruntime the images that it takes the ranges of numbers from, one at a time."""

    def __init__(self, pixels: np.ndarray, metadata: np.ndarray) -> None:
        self.rows = self.each(pixels, metadata)

    def each(self, pixels: np.ndarray, metadata: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Yield the inputs of one image."""
        for i in range(len(pixels)):
            yield {IMAGE: pixels[i : i + 1], METADATA: metadata[i : i + 1]}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next inputs, None after the last."""
        return next(self.rows, None)


def int8_change(run: Run, bundle: Bundle, source: Path, to: Path) -> dict[str, Any]:
    """Return balanced accuracy and melanoma sensitivity of both files on the test images."""
    df, pixels, metadata = draw_images(run, bundle, "test")
    truth = df["target"].map(bundle.classes.index).to_numpy()
    found: dict[str, Any] = {"images": len(truth), "rule": bundle.model["rule"]}
    for name, path in {"float32": source, "int8": to}.items():
        probabilities, _ = OnnxEngine(path)(pixels, metadata)
        decision = decide(probabilities, bundle.model["rule"], bundle.model["prior"])
        reached = balanced_accuracy(truth, decision, len(bundle.classes))
        found[name] = {"balanced_accuracy": float(reached)}
        if melanoma := bundle.classes.melanoma:
            found[name]["sensitivity_mel"] = float(
                sensitivity(truth, decision, bundle.classes.index(melanoma))
            )
    return found
