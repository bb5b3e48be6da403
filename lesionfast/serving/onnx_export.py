"""Some images of a run's data as its model sees them, to compare one form of it with another."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
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
from lesionfast.stats.metrics import balanced_accuracy, decide, sensitivity

logger = logging.getLogger("lesionfast")


def draw_images(
    run: Run, bundle: Bundle, split: str, most: int | None = None
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return rows, pixels uint8 and metadata float32 of images of one split, drawn at random.

    Raises `LesionfastError` if the run's data is elsewhere.
    """
    df = load_dataset(run.config, split=run.file("split.csv"))
    df = df[df["split"] == split]
    df = df.sample(min(most or len(df), len(df)), random_state=0)
    options = {"resize": run.config.resize, "cache": False, "skip_bad": run.config.skip_bad}
    images = open_images(df["path"].tolist(), bundle.size, **options, report=False)
    good = np.setdiff1d(np.arange(len(df)), list(images.bad))
    df = df.iloc[good]
    return df, images.pixels[good], bundle.encoder.transform(df)


OPSET = 18
COMPARED = 200  # images
TOLERANCE = 1e-4
TINY = 1e-12  # as of evaluation.scaling


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
        views = torch.cat([turned(pixels, view) for view in range(self.views)])
        features = self.model.features(views)
        logits = self.model.classify(features, metadata.repeat(self.views, 1))
        shares = logits.softmax(dim=-1).reshape(self.views, -1, logits.shape[-1]).mean(dim=0)
        first = features[: image.shape[0]]
        if not self.calibrated:
            return shares + 0, shares, first
        logs = shares.clamp(min=TINY).log()
        return (logs @ self.weight + self.bias).softmax(dim=-1), shares, first


def turned(pixels: Tensor, view: int) -> Tensor:
    """Return square pictures (B, C, H, W) as `data.augment.turn` turns them."""
    found = pixels.rot90(view % 4, (2, 3)) if view % 4 else pixels
    return found.flip(3) if view > 3 else found


def write_onnx(run: Run, bundle: Bundle, path: Path) -> float:
    """Write a run as ONNX, and return the largest difference from PyTorch that was found.

    The graph takes `image`, uint8 (batch, size, size, 3), and `metadata`, float32 (batch, width);
    it gives `probabilities` (calibrated), `model_probabilities` (which the rule, thresholds and
    prediction sets are of) and `features`. It is compared with PyTorch on up to 200 images of the
    run's data, or random ones if that is elsewhere. Raises `LesionfastError`, and leaves no file,
    if a probability differs by more than 1e-4.
    """
    require_onnx()
    export_graph(load_model(run), bundle, path)
    try:
        add_bundle(path, bundle, files=ood_file_in(path.parent))
        difference = compare(run, bundle, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return difference


def require_onnx() -> None:
    """Raise `LesionfastError` unless what exports ONNX is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise LesionfastError(
            f"ONNX needs packages that are not installed ({error}). "
            "Type: pip install 'lesionfast[onnx]'"
        ) from None


def export_graph(model: FusionModel, bundle: Bundle, path: Path) -> None:
    """Write the graph with a batch of any size."""
    image = torch.zeros(2, bundle.size, bundle.size, 3, dtype=torch.uint8)
    metadata = torch.zeros(2, bundle.encoder.width)
    if model.backbone is not None:
        model = folded(model, image.permute(0, 3, 1, 2).float() / 255, metadata)
    whole = WholeModel(model, bundle).eval()
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            plain_parameters(whole),
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


def plain_parameters(model: nn.Module) -> nn.Module:
    """Return a model whose parameters were not made in inference mode, which can't be exported."""
    for module in model.modules():
        for name, each in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(each.detach().clone(), requires_grad=False))
        for name, each in list(module.named_buffers(recurse=False)):
            module._buffers[name] = each.detach().clone()
    return model


def ood_file_in(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the OOD score of an export by the name of its file, if there is one."""
    file = folder / OOD.file
    return {OOD.file: sha256(file)} if file.is_file() else {}


def add_bundle(path: Path, bundle: Bundle, **more: Any) -> None:
    """Put what the model needs besides its weights into the file, so that it is all there is."""
    import onnx

    graph = onnx.load(path)
    del graph.metadata_props[:]
    graph.metadata_props.add(key=KEY, value=json.dumps(bundle.to_dict() | more))
    onnx.save(graph, path)


def compare(run: Run, bundle: Bundle, path: Path) -> float:
    """Return the largest difference of a probability from PyTorch's; raises `LesionfastError`."""
    pixels, metadata, told = samples(run, bundle, "valid", COMPARED)
    weights = run.file("weights.safetensors")
    options = {"views": bundle.model["tta"], "precision": "float32", "device": "cpu"}
    engine = TorchEngine.open(bundle.model, weights, **options)
    expected, _ = engine(pixels, metadata)
    found = OnnxEngine(path).run(pixels, metadata)
    after = expected if bundle.calibrator is None else bundle.calibrator.apply(expected)
    differences = [np.abs(found[PLAIN] - expected), np.abs(found[CALIBRATED] - after)]
    largest = float(max(each.max() for each in differences))
    if not largest <= TOLERANCE:
        raise LesionfastError(
            f"ONNX gives other probabilities than PyTorch: they differ by up to {largest:.1e} on "
            f"{told}, more than {TOLERANCE:g}. Export without --onnx, and report the architecture."
        )
    logger.info("ONNX differs from PyTorch by at most %.1e on %s", largest, told)
    return largest


def samples(run: Run, bundle: Bundle, split: str, most: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Return pixels and metadata of images of one split, and what they are in words."""
    try:
        _, pixels, metadata = draw_images(run, bundle, split, most)
        return pixels, metadata, f"{len(pixels)} {split} images"
    except DamageError:
        raise
    except LesionfastError:
        draw = np.random.default_rng(0)
        shape = (32, bundle.size, bundle.size, 3)
        pixels = draw.integers(0, 256, shape, dtype=np.uint8)
        metadata = draw.normal(size=(32, bundle.encoder.width)).astype(np.float32)
        return pixels, metadata, "32 random pictures (the run's data is elsewhere)"


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
    add_bundle(to, bundle, files=ood_file_in(to.parent), int8=found)
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
