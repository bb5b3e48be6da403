"""The model of an image and its metadata: built from a configuration, or read from a file."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lesionfast.config import TrainConfig, check_choice
from lesionfast.data.augment import augmentations
from lesionfast.errors import DamageError, LesionfastError, shell_quote
from lesionfast.models.archs import archs
from lesionfast.models.backbones import CLS, Backbone, create_backbone
from lesionfast.models.encoders import rename_tensors
from lesionfast.models.posterior import Posterior, Undo
from lesionfast.models.weights import Fit, Tensors
from lesionfast.registry import Builder, Registry, calling_module
from lesionfast.run import Run

logger = logging.getLogger("lesionfast")

fusions = Registry("fusion", "--fusion")
REGISTRIES = {"arch": archs, "fusion": fusions, "augment": augmentations}  # and losses
DESCRIBED = ("arch", "size", "pool", "fusion", "dropout")  # options that a model is built by
WIDTH = 64  # of the metadata branch
BESIDE_FILE = 6 * 10**8  # bytes of weights that are built and not kept, such as the head of a VGG
UNDONE = ({"gamma"}, {"margins"}, {"shift", "level", "floor"})  # see `Posterior`


def register_fusion(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a class a fusion of image and metadata: `fusion=name`.

    It is a `torch.nn.Module` that is built with the widths of the image features and the metadata,
    and called with both, (B, n_image) and (B, n_metadata); it returns (B, width), and `width` is an
    attribute. A second registration replaces the first. Raises `LesionfastError` for a name that
    can't be typed as an option.

    >>> @lf.register_fusion("side_by_side")
    ... class SideBySide(torch.nn.Module):
    ...     def __init__(self, n_image, n_metadata):
    ...         super().__init__()
    ...         self.width = n_image + n_metadata
    ...     def forward(self, features, metadata):
    ...         return torch.cat([features, metadata], dim=1)
    """
    return fusions.register(name, calling_module())


def name_fusion(fusion: Any) -> str:
    """Return the name of a fusion: a text as it is; a class or function is registered by its own.

    Raises `LesionfastError` for what is no fusion.
    """
    if isinstance(fusion, str):
        return fusion
    if isinstance(fusion, nn.Module) or not callable(fusion):
        raise LesionfastError(
            f"fusion is {fusion!r}; it takes a name, or a class of torch.nn.Module that is built "
            "with the widths of the image features and the metadata."
        )
    return fusions.name_passed(fusion)


def average(features: Tensor) -> Tensor:
    """Return the mean of each channel, (B, C, h, w) -> (B, C)."""
    return features.mean((2, 3))


def maximum(features: Tensor) -> Tensor:
    """Return the maximum of each channel, (B, C, h, w) -> (B, C)."""
    return features.amax((2, 3))


def both(features: Tensor) -> Tensor:
    """Return mean and maximum of each channel, (B, C, h, w) -> (B, 2 C)."""
    return torch.cat([average(features), maximum(features)], dim=1)


POOLS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "avg": (average, 1),
    "max": (maximum, 1),
    "concat": (both, 2),
}


@fusions.register("none")
class ImageOnly(nn.Module):
    """The image alone, without metadata."""

    def __init__(self, n_image: int, n_metadata: int) -> None:
        super().__init__()
        self.width = n_image

    def forward(self, features: Tensor, metadata: Tensor) -> Tensor:
        """Return the image features (B, n_image)."""
        return features


@fusions.register("concat")
class Concat(nn.Module):
    """Image features beside those of a small network over the metadata."""

    def __init__(self, n_image: int, n_metadata: int) -> None:
        super().__init__()
        self.branch = metadata_branch(n_metadata)
        self.width = n_image + WIDTH

    def forward(self, features: Tensor, metadata: Tensor) -> Tensor:
        """Return (B, n_image + 64)."""
        return torch.cat([features, self.branch(metadata)], dim=1)


@fusions.register("film")
class FiLM(nn.Module):
    """Metadata scales and shifts each image feature (Perez et al. 2018, arXiv:1709.07871)."""

    def __init__(self, n_image: int, n_metadata: int) -> None:
        super().__init__()
        self.branch = metadata_branch(n_metadata)
        self.modulation = nn.Linear(WIDTH, 2 * n_image)
        nn.init.zeros_(self.modulation.weight)  # the identity at first
        nn.init.zeros_(self.modulation.bias)
        self.width = n_image

    def forward(self, features: Tensor, metadata: Tensor) -> Tensor:
        """Return (B, n_image)."""
        scale, shift = self.modulation(self.branch(metadata)).chunk(2, dim=1)
        return features * (1 + scale) + shift


@fusions.register("gated")
class Gated(nn.Module):
    """A learned gate weighs image against metadata (Arevalo et al. 2017, arXiv:1702.01992)."""

    def __init__(self, n_image: int, n_metadata: int) -> None:
        super().__init__()
        self.width = 256
        self.image = nn.Sequential(nn.Linear(n_image, self.width), nn.Tanh())
        self.metadata = nn.Sequential(nn.Linear(n_metadata, self.width), nn.Tanh())
        self.gate = nn.Linear(n_image + n_metadata, self.width)

    def forward(self, features: Tensor, metadata: Tensor) -> Tensor:
        """Return (B, 256)."""
        gate = torch.sigmoid(self.gate(torch.cat([features, metadata], dim=1)))
        return gate * self.image(features) + (1 - gate) * self.metadata(metadata)


@fusions.register("metadata")
class MetadataOnly(nn.Module):
    """No image: the baseline that shows what age and sex alone know."""

    def __init__(self, n_image: int, n_metadata: int) -> None:
        super().__init__()
        self.branch = metadata_branch(n_metadata)
        self.width = WIDTH

    def forward(self, features: Tensor, metadata: Tensor) -> Tensor:
        """Return (B, 64)."""
        return self.branch(metadata)


def metadata_branch(n_metadata: int) -> nn.Sequential:
    """Return the small network over a metadata vector."""
    first, second = nn.Linear(n_metadata, WIDTH), nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


class FusionModel(nn.Module):
    """A classifier of an image and its metadata; `backbone` is None for fusion 'metadata'.

    In training mode it returns its outputs as they are. In eval mode it returns logits whose
    softmax is the posterior of the classes: what the loss did to the outputs is undone (`undo`, see
    `Posterior`) and, with subclasses, the probabilities of a class's outputs are added up;
    `parents` (S,) has the class number of each output.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        *,
        pool: str,
        n_metadata: int,
        n_classes: int,
        fusion: str,
        dropout: float,
        parents: list[int] | None = None,
        undo: Undo | None = None,
    ) -> None:
        super().__init__()
        build = fusions[fusion]
        check_choice("pool", pool, (*POOLS, CLS))
        if pool == CLS and (backbone is None or backbone.pool != CLS):
            raise LesionfastError("the pool 'cls' needs a backbone that was created with it.")
        check_metadata(fusion, n_metadata)
        if (backbone is None) != (fusion == "metadata"):
            raise LesionfastError(
                f"the fusion '{fusion}' got {'no' if backbone is None else 'a'} backbone, but only "
                f"the fusion 'metadata' has none. Pass one, or None for metadata."
            )
        self.backbone = backbone
        # the mean of a map with CLS in every cell is CLS beside the mean of the patch tokens
        self.pool_name, (self.pool, factor) = pool, POOLS["avg" if pool == CLS else pool]
        self.n_features = 0 if backbone is None else backbone.num_features * factor
        self.fusion_name, self.fusion = fusion, build(self.n_features, n_metadata)
        if not isinstance(getattr(self.fusion, "width", None), int):
            raise LesionfastError(
                f"the fusion '{fusion}' has no attribute width: how many features it returns for "
                "each image. Set self.width in it."
            )
        self.parents = parents or list(range(n_classes))
        outputs = nn.Linear(self.fusion.width, len(self.parents))
        self.head = nn.Sequential(nn.Dropout(dropout), outputs)
        self.posterior = Posterior(self.parents, undo)

    def forward(self, image: Tensor, metadata: Tensor | None = None) -> Tensor:
        """Return logits (B, n_classes) of images (B, 3, H, W) in 0..1 and metadata (B, width).

        Pooled features (B, F) may take the place of the images; no metadata has the width 0.
        """
        metadata = image.new_zeros(len(image), 0) if metadata is None else metadata
        return self.classify(image if image.ndim == 2 else self.features(image), metadata)

    def features(self, image: Tensor) -> Tensor:
        """Return the pooled image features (B, F); F is 0 without a backbone."""
        if self.backbone is None:
            return image.new_zeros(image.shape[0], 0)  # a length would be fixed by an export
        return self.pool(self.backbone(image))

    def classify(self, features: Tensor, metadata: Tensor) -> Tensor:
        """Return logits (B, n_classes) of pooled features (B, F) and metadata (B, width)."""
        outputs = self.head(self.fuse(features, metadata))
        return outputs if self.training else self.posterior(outputs)

    def scores(self, image: Tensor, metadata: Tensor) -> Tensor:
        """Return the outputs of each class (B, n_classes) as they are, for gradients of them."""
        return self.posterior.merge(self.head(self.fuse(self.features(image), metadata)))

    def fuse(self, features: Tensor, metadata: Tensor) -> Tensor:
        """Return the fusion's features; one of a user gets both inputs in one number format."""
        registered = self.fusion_name in fusions.modules
        return self.fusion(features.to(metadata.dtype) if registered else features, metadata)


def check_metadata(fusion: str, n_metadata: int) -> None:
    """Raise `LesionfastError` for a fusion of metadata without any."""
    if n_metadata == 0 and fusion != "none":
        raise LesionfastError(
            f"--fusion {fusion} needs metadata, but --metadata is none. "
            f"Type --fusion none, or --metadata age,sex."
        )


def stage_groups(model: FusionModel) -> list[list[nn.Parameter]]:
    """Return the parameters by stage: stem, …, last stage, and the head with the fusion."""
    head = [*model.fusion.parameters(), *model.head.parameters()]
    return [*(model.backbone.stages if model.backbone is not None else []), head]


def build_model(
    config: TrainConfig,
    n_metadata: int,
    n_classes: int,
    parents: list[int] | None = None,
    undo: Undo | None = None,
    saved: Mapping[str, Any] | None = None,
) -> FusionModel:
    """Return the model that a configuration describes, with its pretrained weights.

    `saved` is the model.json of a saved model, if it is one.
    """
    backbone, pool = None, "avg" if config.pool in ("auto", CLS) else config.pool
    if config.fusion != "metadata":
        how = {"size": config.size, "weights": config.weights, "pool": config.pool}
        backbone = create_backbone(config.arch, **how, saved=saved)
        pool = backbone.pool
    return FusionModel(
        backbone,
        pool=pool,
        n_metadata=n_metadata,
        n_classes=n_classes,
        fusion=config.fusion,
        dropout=config.dropout,
        parents=parents,
        undo=undo,
    )


def load_model(run: Run) -> FusionModel:
    """Return the trained model of a run in eval mode, from JSON and safetensors alone.

    Raises `LesionfastError` if its weights are missing or broken, and for an ensemble, which has
    none of its own.
    """
    if "members" in run.model:
        members = ", ".join(os.path.normpath(run.path / path) for path in run.model["members"])
        raise LesionfastError(
            f"{run.path} is an ensemble and has no weights of its own. Load its members: {members}"
        )
    advice = f"Train it again: lesionfast train --config {shell_quote(run.path / 'config.json')}"
    model = read_model(run.model, run.file("weights.safetensors"), advice)
    if model.backbone is not None:
        model.backbone.pretrained, model.backbone.origin = True, f"weights of the run {run.path}"
    return model


def read_model(about: dict[str, Any], path: Path, advice: str) -> FusionModel:
    """Return the model that a model.json describes, with the weights in a safetensors file.

    Raises `LesionfastError` with an advice if they are missing or broken.
    """
    missing = [name for name in (*DESCRIBED, "n_metadata", "classes") if name not in about]
    if missing:
        raise DamageError(
            f"the description of the model in {path.parent} has no {', '.join(missing)}. {advice}"
        )
    with within_size(path):
        model = build_described(about)
    load_tensors(model, path, about["arch"], advice)
    return model.eval()


def build_described(about: dict[str, Any]) -> FusionModel:
    """Return the model that a model.json describes, with new weights."""
    check_registered(about, {name: about[name] for name in ("arch", "fusion")})
    check_outputs(about)
    config = TrainConfig(weights="none", **{name: about[name] for name in DESCRIBED})
    more = {name: about.get(name) for name in ("parents", "undo")}  # not in the oldest runs
    return build_model(config, about["n_metadata"], len(about["classes"]), **more, saved=about)


def check_outputs(about: dict[str, Any]) -> None:
    """Raise `DamageError` unless the outputs of a model.json are of its classes."""
    classes, undo = about["classes"], about.get("undo") or {}
    parents = about.get("parents") or list(range(len(classes)))
    problem = ""
    if not classes or {*parents} != {*range(len(classes))}:
        problem = f"its {len(parents)} outputs are not of its {len(classes)} classes"
    elif undo and set(undo) not in UNDONE:
        problem = f"it has no way to undo {', '.join(sorted(undo)[:5])}"
    elif any(len(values) not in (1, len(parents)) for values in undo.values()):
        problem = f"what it undoes is not of its {len(parents)} outputs"
    if problem:
        raise DamageError(f"the description of the model is damaged: {problem}. Copy it again.")


@contextmanager
def within_size(path: Path, built: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Raise `DamageError` as soon as a model that is built has far more weights than a file.

    So a description of a model of any size costs no more memory than its file justifies. `built`
    are the models of an ensemble that were built before, whose weights are in the same file; what
    each of them built and did not keep is free again.
    """
    left = BESIDE_FILE + (path.stat().st_size if path.is_file() else 0)
    left -= sum(4 * parameter.numel() for model in built for parameter in model.parameters())

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= 4 * parameter.numel() if parameter is not None else 0
        if left < 0:
            raise DamageError(
                f"{path.parent} describes a model of far more weights than {path.name} has. "
                "Copy the whole folder again."
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def load_tensors(model: nn.Module, path: Path, arch: str, advice: str) -> None:
    """Load the weights in a safetensors file, which must be those of the whole model.

    Raises `LesionfastError` with an advice if they are missing or broken.
    """
    try:
        tensors = load_file(path)
        for name, part in model.named_modules():  # an ensemble has several
            if isinstance(part, Backbone):
                tensors = rename_tensors(part.body, tensors, f"{name}.body.net.")
        check_tensors(model.state_dict(), tensors, arch)
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise LesionfastError(
            f"{path} is not the whole model: {str(error).splitlines()[0].rstrip('.')}. {advice}"
        ) from None


def check_registered(about: dict[str, Any], names: Mapping[str, Any]) -> None:
    """Raise `LesionfastError` if what a model.json says a module registered is not there.

    `names` are the options whose names are needed, such as {"arch": "mine"}. What "__main__"
    registered, a notebook or a script, may come from any module. Warns if its source has changed.
    """
    for option, name in names.items():
        module = about.get("registered", {}).get(option)
        present = REGISTRIES[option].modules.get(name)
        if module is None or present == module or (present and module == "__main__"):
            warn_of_other_source(about, option, name)
            continue
        how = f"Import it first: import {module}, or lesionfast --import {shell_quote(module)} …"
        if module == "__main__":
            how = (
                "First run the cell or the script that registers it; to use it elsewhere, register "
                "it under this name in a module, and import that."
            )
        elif not all(part.isidentifier() for part in module.split(".")):
            module = "a module whose name is not a Python identifier"
            how = "First import the module that registers it."
        what = REGISTRIES[option].kind
        raise LesionfastError(f"the {what} {name!r} was registered by {module}. {how}")


def warn_of_other_source(about: dict[str, Any], option: str, name: str) -> None:
    """Warn if what is registered now is not what a model was trained with: it may compute other."""
    before = about.get("registered_digest", {}).get(option)
    if before is not None and REGISTRIES[option].digests.get(name) != before:
        logger.warning(
            "the %s '%s' has another source now than when the model was trained, so it may predict "
            "otherwise. Register the earlier one again, or train again",
            *(REGISTRIES[option].kind, name),
        )


def check_tensors(own: Tensors, tensors: Tensors, arch: str) -> None:
    """Raise `ValueError` unless tensors are like a model's own: names, shapes, types, and finite.

    PyTorch alone would convert other types, and accept NaN.
    """
    fit, gone = Fit(own, tensors), sorted(own.keys() - tensors.keys())
    if fit.missing or tensors.keys() - own.keys():
        raise ValueError(fit.describe(arch))
    if gone:  # a counter of batch norm, which `Fit` does not need
        raise ValueError(f"{gone[0]} is missing")
    for name, tensor in tensors.items():
        if tensor.dtype != own[name].dtype:
            raise ValueError(f"{name} is of {tensor.dtype}, not of {own[name].dtype}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} contains NaN or infinite values")
