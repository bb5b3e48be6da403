"""A run written as ONNX, in float32 and in 8-bit numbers, and compared with the run."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.decisions import OOD
from lesionfast.files import sha256
from lesionfast.models.fusion import FusionModel, load_model
from lesionfast.models.inference import TorchEngine, folded
from lesionfast.runs import Run
from lesionfast.serving.bundle import Bundle
from lesionfast.serving.onnx_engine import (
    CALIBRATED,
    FEATURES,
    IMAGE,
    KEY,
    METADATA,
    PLAIN,
    OnnxEngine,
)
from lesionfast.stats.calibration import TINY
from lesionfast.stats.metrics import balanced_accuracy, decide, sensitivity

logger = logging.getLogger("lesionfast")

OPSET = 18
COMPARED = 200  # images
TOLERANCE = 1e-4
IMAGES = 200  # of the training, from which the ranges of 8-bit numbers are taken
LOSS_TO_WARN = 0.03  # of balanced accuracy
# Nodes that stay float32, as they cost little: both ends of the graph.
EXACT = ("Cast", "Concat", "Div", "Gemm", "Log", "MatMul", "Softmax", "Sub")


def write_onnx(run: Run, bundle: Bundle, path: Path) -> float:
    """Write a run as ONNX, and return the largest difference from PyTorch that was found.

    The graph takes `image`, uint8 (batch, size, size, 3), and `metadata`, float32 (batch, width);
    it gives `probabilities` (calibrated), `model_probabilities` (on which the rule, thresholds and
    prediction sets are based) and `features`. It is compared with PyTorch on up to 200 images of
    the run's data, or random ones if the data is not found. Raises `LesionfastError`, and leaves
    no file, if a probability differs by more than 1e-4.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise LesionfastError(
            f"ONNX needs packages that are not installed ({error}). "
            "Type: pip install 'lesionfast[onnx]'"
        ) from None
    export_graph(load_model(run), bundle, path)
    try:
        add_description(path, bundle)
        return compare(run, bundle, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def export_graph(model: FusionModel, bundle: Bundle, path: Path) -> None:
    """Write the graph with a batch of any size."""
    image = torch.zeros(2, bundle.size, bundle.size, 3, dtype=torch.uint8)
    metadata = torch.zeros(2, bundle.encoder.width)
    if model.backbone is not None:
        model = folded(model, image.permute(0, 3, 1, 2).float() / 255, metadata)
    whole = leave_inference_mode(WholeModel(model, bundle).eval())
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            whole,
            (image, metadata),
            path,
            input_names=[IMAGE, METADATA],
            output_names=[CALIBRATED, PLAIN, FEATURES],
            opset_version=OPSET,
            dynamic_shapes={"image": {0: batch}, "metadata": {0: batch}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


class WholeModel(nn.Module):
    """From uint8 pixels (B, size, size, 3) to calibrated probabilities, the run's views inside."""

    def __init__(self, model: FusionModel, bundle: Bundle) -> None:
        super().__init__()
        k = len(bundle.classes)
        weight, bias = np.eye(k), np.zeros(k)
        self.calibrated = bundle.calibrator is not None and bundle.calibrator.method != "none"
        if self.calibrated:
            weight, bias = bundle.calibrator.matrix()
        self.model, self.views = model, bundle.model["tta"]
        self.register_buffer("weight", torch.tensor(weight.T, dtype=torch.float32).contiguous())
        self.register_buffer("bias", torch.tensor(bias, dtype=torch.float32))

    def forward(self, image: Tensor, metadata: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities calibrated and plain, (B, k) each, and features (B, F)."""
        pixels = image.permute(0, 3, 1, 2).float() / 255
        views = torch.cat([turn_square(pixels, view) for view in range(self.views)])
        features = self.model.features(views)
        logits = self.model.classify(features, metadata.repeat(self.views, 1))
        shares = logits.softmax(dim=-1).reshape(self.views, -1, logits.shape[-1]).mean(dim=0)
        first = features[: image.shape[0]]
        if not self.calibrated:
            return shares + 0, shares, first
        logs = shares.clamp(min=TINY).log()
        return (logs @ self.weight + self.bias).softmax(dim=-1), shares, first


def turn_square(pixels: Tensor, view: int) -> Tensor:
    """Return square images (B, C, H, W) as `data.augment.turn` does, by operations of ONNX."""
    turned = pixels.rot90(view % 4, (2, 3)) if view % 4 else pixels
    return turned.flip(3) if view > 3 else turned


def leave_inference_mode(model: nn.Module) -> nn.Module:
    """Return a model, its tensors replaced by ordinary ones, which can be exported."""
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(value.detach().clone(), requires_grad=False))
        for name, value in list(module.named_buffers(recurse=False)):
            module._buffers[name] = value.detach().clone()
    return model


def add_description(path: Path, bundle: Bundle, **more: Any) -> None:
    """Put the bundle into the file, with the SHA-256 of the OOD score beside it, if any."""
    import onnx

    ood = path.parent / OOD.file
    files = {OOD.file: sha256(ood)} if ood.is_file() else {}
    graph = onnx.load(path)
    del graph.metadata_props[:]
    described = bundle.to_dict() | {"files": files, **more}
    graph.metadata_props.add(key=KEY, value=json.dumps(described))
    onnx.save(graph, path)


def compare(run: Run, bundle: Bundle, path: Path) -> float:
    """Return the largest difference of a probability from PyTorch's; raises `LesionfastError`."""
    pixels, metadata, words = draw_or_make_up(run, bundle)
    options = {"views": bundle.model["tta"], "precision": "float32", "device": "cpu"}
    engine = TorchEngine.open(bundle.model, run.file("weights.safetensors"), **options)
    expected, _ = engine(pixels, metadata)
    found = OnnxEngine(path).run(pixels, metadata)
    calibrated = bundle.calibrator.apply(expected) if bundle.calibrator else expected
    differences = [np.abs(found[PLAIN] - expected), np.abs(found[CALIBRATED] - calibrated)]
    largest = float(max(difference.max() for difference in differences))
    if not largest <= TOLERANCE:
        raise LesionfastError(
            f"ONNX and PyTorch give different probabilities: they differ by up to {largest:.1e} on "
            f"{words}, more than {TOLERANCE:g}. Export without --onnx, and report the architecture."
        )
    logger.info("ONNX differs from PyTorch by at most %.1e on %s", largest, words)
    return largest


def draw_or_make_up(run: Run, bundle: Bundle) -> tuple[np.ndarray, np.ndarray, str]:
    """Return pixels and metadata of validation images or random ones, and what they are."""
    try:
        _, pixels, metadata = bundle.draw_images(run, "valid", COMPARED)
        return pixels, metadata, f"{len(pixels)} validation images"
    except DamageError:
        raise
    except LesionfastError:
        draw = np.random.default_rng(0)
        pixels = draw.integers(0, 256, (32, bundle.size, bundle.size, 3), dtype=np.uint8)
        metadata = draw.normal(size=(32, bundle.encoder.width)).astype(np.float32)
        return pixels, metadata, "32 random images (the run's data is not found)"


def write_int8(run: Run, bundle: Bundle, source: Path, to: Path) -> dict[str, Any]:
    """Write an ONNX file of 8-bit numbers and return their effect on the test images.

    Static quantisation by onnxruntime, its ranges from up to 200 training images; the calibration
    at the end stays float32. Returned are images, balanced_accuracy and sensitivity_mel of both
    files under the run's rule. Raises `LesionfastError` if the run's data is not found.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    _, pixels, metadata = bundle.draw_images(run, "train", IMAGES)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder, quiet_root():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        quantize_static(
            str(prepared),
            str(to),
            Batches(pixels, metadata),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in nodes if node.op_type in EXACT],
        )
    change = measure_int8(run, bundle, source, to)
    add_description(to, bundle, int8=change)
    before, after = (change[name]["balanced_accuracy"] for name in ("float32", "int8"))
    logger.log(
        logging.WARNING if before - after > LOSS_TO_WARN else logging.INFO,
        "%d test images: balanced accuracy %.3f in float32, %.3f in 8-bit numbers",
        change["images"], before, after,
    )  # fmt: skip
    return change


@contextmanager
def quiet_root() -> Iterator[None]:
    """Keep Python's root logger as it is: onnxruntime logs to it, which gives it a handler."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


class Batches:
    """Gives onnxruntime the images from which it takes the ranges of numbers, one at a time."""

    def __init__(self, pixels: np.ndarray, metadata: np.ndarray) -> None:
        self.rows = (
            {IMAGE: pixels[i : i + 1], METADATA: metadata[i : i + 1]} for i in range(len(pixels))
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next inputs, None after the last."""
        return next(self.rows, None)


def measure_int8(run: Run, bundle: Bundle, source: Path, to: Path) -> dict[str, Any]:
    """Return balanced accuracy and melanoma sensitivity of both files on the test images."""
    df, pixels, metadata = bundle.draw_images(run, "test")
    truth, rule = df["target"].map(bundle.classes.index).to_numpy(), bundle.model["rule"]
    change: dict[str, Any] = {"images": len(truth), "rule": rule}
    for name, path in {"float32": source, "int8": to}.items():
        probabilities, _ = OnnxEngine(path)(pixels, metadata)
        decision = decide(probabilities, rule, bundle.model["prior"])
        accuracy = float(balanced_accuracy(truth, decision, len(bundle.classes)))
        change[name] = {"balanced_accuracy": accuracy}
        if melanoma := bundle.classes.melanoma:
            found = sensitivity(truth, decision, bundle.classes.index(melanoma))
            change[name]["sensitivity_mel"] = float(found)
    return change
