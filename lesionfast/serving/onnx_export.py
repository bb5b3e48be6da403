"""A run as one ONNX file: preprocessing, views, model and calibration in one graph."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.outliers import NAME as OUTLIERS
from lesionfast.files import sha256
from lesionfast.models.folding import folded
from lesionfast.models.fusion import FusionModel, load_model
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
from lesionfast.serving.sampling import draw_images
from lesionfast.serving.torch_engine import TorchEngine

logger = logging.getLogger("lesionfast")

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
        add_bundle(path, bundle, files=outliers_in(path.parent))
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


def outliers_in(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the outliers' file of an export by its name, if there is one."""
    file = folder / OUTLIERS
    return {OUTLIERS: sha256(file)} if file.is_file() else {}


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
    views = bundle.model["tta"]
    engine = TorchEngine(bundle.model, weights, views=views, precision="float32", device="cpu")
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
