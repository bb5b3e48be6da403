"""The model in ONNX: run without PyTorch; written from a run in float32 and 8-bit numbers."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.decisions import OOD
from lesionfast.evaluation.outliers import load_ood
from lesionfast.files import parse_json, sha256
from lesionfast.run import Run, list_leaves
from lesionfast.serving.bundle import FILE, Bundle, check_file, read_description
from lesionfast.serving.graph import AGAIN, first_line, open_session
from lesionfast.stats.calibration import TINY
from lesionfast.stats.metrics import balanced_accuracy, sensitivity
from lesionfast.stats.ood import Scorer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lesionfast.models.ensemble import EnsembleModel
    from lesionfast.models.fusion import FusionModel

logger = logging.getLogger("lesionfast")

KEY = "lesionfast"
IMAGE, METADATA = "image", "metadata"
CALIBRATED, PLAIN, FEATURES = "probabilities", "model_probabilities", "features"
AT_ONCE = 16  # images
OPSET = 18
COMPARED = 200  # images
TOLERANCE = 1e-4
IMAGES = 200  # of the training, from which the ranges of 8-bit numbers are taken
LOSS_TO_WARN = 0.03  # of balanced accuracy
# Nodes that stay float32, as they cost little: both ends of the graph.
EXACT = ("Cast", "Concat", "Div", "Gemm", "Log", "MatMul", "Softmax", "Sub")


Pixels = np.ndarray | Sequence[np.ndarray]


class OnnxEngine:
    """Runs an ONNX file by onnxruntime."""

    leaves_cpu_free = False

    def __init__(self, path: Path) -> None:
        self.path, self.session = path, open_session(path)
        self.inputs = {given.name for given in self.session.get_inputs()}

    @property
    def description(self) -> dict[str, Any] | None:
        """The bundle of the model as JSON, None if the file is not of lesionfast."""
        text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        try:
            described = parse_json(text or "null")
        except ValueError:
            return None
        return described if isinstance(described, dict) else None

    def __call__(self, pixels: Pixels, metadata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the plain probabilities (n, k) and the features (n, F), as `TorchEngine`."""
        outputs = self.run(pixels, metadata)
        return outputs[PLAIN], outputs[FEATURES]

    def run(self, pixels: Pixels, metadata: np.ndarray) -> dict[str, np.ndarray]:
        """Return all outputs, float32 (n, …), of uint8 (n, size, size, 3) and (n, width).

        `pixels` are of each look of the model, or of the only one.
        """
        looks = [pixels] if isinstance(pixels, np.ndarray) else list(pixels)
        given = dict(zip(name_images(len(looks)), looks, strict=True)) | {METADATA: metadata}
        names, parts = [CALIBRATED, PLAIN, FEATURES], []
        for start in range(0, len(metadata), AT_ONCE):
            batch = {
                name: np.ascontiguousarray(values[start : start + AT_ONCE])
                for name, values in given.items()
                if name in self.inputs
            }
            parts.append(self._run_batch(names, batch))
        columns = zip(*parts, strict=True)
        return {name: np.concatenate(column) for name, column in zip(names, columns, strict=True)}

    def _run_batch(self, names: list[str], batch: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of a batch, float32 (n, …) each; `LesionfastError` for others."""
        try:
            found = self.session.run(names, batch)
        except Exception as error:  # onnxruntime has an exception of its own for each cause
            raise LesionfastError(
                f"{self.path} can't be run: {first_line(error)}. {AGAIN}"
            ) from None
        count = {len(values) for values in batch.values()}
        for name, values in zip(names, found, strict=True):
            fits = isinstance(values, np.ndarray) and values.dtype == np.float32
            if not fits or values.ndim != 2 or {len(values)} != count:
                shape = getattr(values, "shape", type(values).__name__)
                raise LesionfastError(
                    f"{self.path} gives {shape} as {name} of {min(count)} images, not numbers "
                    f"of each. {AGAIN}"
                )
        return found


def name_images(looks: int) -> list[str]:
    """Return the names of the images that a graph takes: image, or image_1, image_2, …"""
    return [IMAGE] if looks == 1 else [f"{IMAGE}_{number}" for number in range(1, looks + 1)]


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
    has_ood, files = described.get("outliers"), described.get("files")
    files = files if isinstance(files, dict) else {}
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


def load_ood_beside(path: Path, files: dict[str, str]) -> Scorer | None:
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


def write_onnx(run: Run, bundle: Bundle, path: Path) -> None:
    """Write a run as ONNX, and compare it with PyTorch.

    The graph takes `image`, uint8 (batch, size, size, 3), and `metadata`, float32 (batch, width);
    an ensemble of models that see different sizes takes `image_1`, `image_2`, … in that order, and
    averages its models in the graph. It gives `probabilities` (calibrated, and for the clinic's
    class shares), `model_probabilities` and `features`. It is compared
    with PyTorch on up to 200 images of the run's data, or random ones if the data is not found.
    Raises `LesionfastError`, and leaves no file, if a probability differs by more than 1e-4.
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
    from lesionfast.models.ensemble import load_any

    export_graph(load_any(run), bundle, path)
    try:
        add_description(path, bundle)
        compare(run, bundle, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def export_graph(model: "FusionModel | EnsembleModel", bundle: Bundle, path: Path) -> None:
    """Write the graph with a batch of any size."""
    import torch

    images = [torch.zeros(2, size, size, 3, dtype=torch.uint8) for size, _ in bundle.looks]
    metadata = torch.zeros(2, bundle.encoder.width)
    whole = leave_inference_mode(build_whole(model, bundle).eval())
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            whole,
            (images, metadata),
            path,
            input_names=[*name_images(len(images)), METADATA],
            output_names=[CALIBRATED, PLAIN, FEATURES],
            opset_version=OPSET,
            dynamic_shapes={"images": [{0: batch}] * len(images), "metadata": {0: batch}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def build_whole(model: "FusionModel | EnsembleModel", bundle: Bundle) -> "nn.Module":
    """Return all from uint8 pixels (B, size, size, 3) to calibrated probabilities as one module.

    It averages the views of each model, then the models, and returns probabilities calibrated and
    plain, (B, k) each, and features (B, F).
    """
    import torch

    from lesionfast.models.ensemble import EnsembleModel

    linear = bundle.calibration_matrix()
    several = isinstance(model, EnsembleModel)
    parts = list_parts(model, bundle)
    widths = model.widths if several else [bundle.encoder.width]
    featured = model.featured if several else 0

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(part for part, _, _ in parts)
            self.calibrated = linear is not None
            if self.calibrated:
                weight, bias = (torch.tensor(part).float() for part in linear)
                self.register_buffer("weight", weight.T.contiguous())
                self.register_buffer("bias", bias)

        def forward(self, images: list["Tensor"], metadata: "Tensor") -> tuple["Tensor", ...]:
            pixels = [image.permute(0, 3, 1, 2).float() / 255 for image in images]
            tables = metadata.split(widths, dim=1)
            found = [
                average_views(part, pixels[look], table, views)
                for part, (_, look, views), table in zip(self.parts, parts, tables, strict=True)
            ]
            shares = found[0][0]
            if several:
                shares = model.pool([probabilities for probabilities, _ in found])
            if not self.calibrated:
                return shares + 0, shares, found[featured][1]
            logs = shares.clamp(min=TINY).log()
            calibrated = (logs @ self.weight + self.bias).softmax(dim=-1)
            return calibrated, shares, found[featured][1]

    return Whole()


def list_parts(
    model: "FusionModel | EnsembleModel", bundle: Bundle
) -> list[tuple["FusionModel", int, int]]:
    """Return each model, folded, with the number of its look and of its views."""
    import torch

    from lesionfast.models.ensemble import EnsembleModel
    from lesionfast.models.inference import folded

    leaves = [leaf for leaf, _ in list_leaves(bundle.model)]
    several = isinstance(model, EnsembleModel)
    members, looks = (list(model.members), model.looks) if several else ([model], [0])
    widths = model.widths if several else [bundle.encoder.width]
    parts = []
    for member, look, leaf, width in zip(members, looks, leaves, widths, strict=True):
        image = torch.zeros(2, 3, leaf["size"], leaf["size"])
        fast = member if member.backbone is None else folded(member, image, torch.zeros(2, width))
        parts.append((fast, look, leaf["tta"]))
    return parts


def average_views(
    model: "FusionModel", pixels: "Tensor", metadata: "Tensor", views: int
) -> tuple["Tensor", "Tensor"]:
    """Return probabilities (B, k), the mean over views, and features (B, F) of the first view."""
    import torch

    turned = torch.cat([turn_square(pixels, view) for view in range(views)])
    features = model.features(turned)
    logits = model.classify(features, metadata.repeat(views, 1))
    shares = logits.softmax(dim=-1).reshape(views, -1, logits.shape[-1]).mean(dim=0)
    return shares, features[: pixels.shape[0]]


def turn_square(pixels: "Tensor", view: int) -> "Tensor":
    """Return square images (B, C, H, W) as `data.augment.turn` does, by operations of ONNX."""
    turned = pixels.rot90(view % 4, (2, 3)) if view % 4 else pixels
    return turned.flip(3) if view > 3 else turned


def leave_inference_mode(model: "nn.Module") -> "nn.Module":
    """Return a model, its tensors replaced by ordinary ones, which can be exported."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            module._parameters[name] = type(value)(value.detach().clone(), requires_grad=False)
        for name, value in module.named_buffers(recurse=False):
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


def compare(run: Run, bundle: Bundle, path: Path) -> None:
    """Raise `LesionfastError` unless the probabilities are those of PyTorch."""
    from lesionfast.models.ensemble import open_engine

    pixels, metadata, images = draw_or_make_up(run, bundle)
    engine = open_engine(run, bundle.model, precision="float32", device="cpu")
    expected, _ = engine(pixels, metadata)
    found = OnnxEngine(path).run(pixels, metadata)
    calibrated = bundle.move(bundle.calibrate(expected))
    differences = [np.abs(found[PLAIN] - expected), np.abs(found[CALIBRATED] - calibrated)]
    largest = float(max(difference.max() for difference in differences))
    if not largest <= TOLERANCE:
        raise LesionfastError(
            f"ONNX and PyTorch give different probabilities: they differ by up to {largest:.1e} on "
            f"{images}, more than {TOLERANCE:g}. Export without --onnx, and report the "
            "architecture."
        )
    logger.info("ONNX differs from PyTorch by at most %.1e on %s", largest, images)


def draw_or_make_up(run: Run, bundle: Bundle) -> tuple[list[np.ndarray], np.ndarray, str]:
    """Return pixels and metadata of images of the run or random ones, and what they are."""
    try:
        split, name = ("train", "training") if run.is_out_of_fold else ("valid", "validation")
        _, pixels, metadata = bundle.draw_images(run, split, COMPARED)
        return pixels, metadata, f"{len(metadata)} {name} images"
    except DamageError:
        raise
    except LesionfastError:
        draw = np.random.default_rng(0)
        shapes = [(32, size, size, 3) for size, _ in bundle.looks]
        pixels = [draw.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
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

    _, looks, metadata = bundle.draw_images(run, "train", IMAGES)
    names = [*name_images(len(looks)), METADATA]
    inputs = (
        {name: part[None] for name, part in zip(names, row, strict=True)}
        for row in zip(*looks, metadata, strict=True)
    )
    with tempfile.TemporaryDirectory(dir=to.parent) as folder, quiet_root():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        quantize_static(
            str(prepared),
            str(to),
            SimpleNamespace(get_next=lambda: next(inputs, None)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in nodes if node.op_type in EXACT],
        )
    change = measure_int8(run, bundle, source, to)
    add_description(to, bundle.unmeasured(), int8=change)  # the counts are of the float model
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


def measure_int8(run: Run, bundle: Bundle, source: Path, to: Path) -> dict[str, Any]:
    """Return balanced accuracy and melanoma sensitivity of both files on the test images."""
    df, pixels, metadata = bundle.draw_images(run, "test")
    truth, rule = df["target"].map(bundle.classes.index).to_numpy(), bundle.decision_rule
    change: dict[str, Any] = {"images": len(truth), "rule": rule.name}
    for name, path in {"float32": source, "int8": to}.items():
        probabilities, _ = OnnxEngine(path)(pixels, metadata)
        decision = rule.decide(probabilities)
        accuracy = float(balanced_accuracy(truth, decision, len(bundle.classes)))
        change[name] = {"balanced_accuracy": accuracy}
        if melanoma := bundle.classes.melanoma:
            found = sensitivity(truth, decision, bundle.classes.index(melanoma))
            change[name]["sensitivity_mel"] = float(found)
    return change
