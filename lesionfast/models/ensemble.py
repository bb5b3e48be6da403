"""Several models as one: each sees its own size of an image, and their probabilities are pooled."""

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lesionfast.data.loaders import pick_device
from lesionfast.diagnoses import SMALLEST, move_prior
from lesionfast.errors import DamageError, shell_quote
from lesionfast.files import sha256_once
from lesionfast.models.fusion import (
    FusionModel,
    build_described,
    load_model,
    load_tensors,
    within_size,
)
from lesionfast.models.inference import TorchEngine
from lesionfast.models.lineage import Lineage, read_lineage
from lesionfast.run import Run, list_leaves, list_looks, list_runs_of

Pixels = np.ndarray | Sequence[np.ndarray]  # of each look, where there are several


class EnsembleModel(nn.Module):
    """The models of an ensemble, and how their probabilities become those of one.

    `about` is its model.json with a description of each member in place of a path; `members` are
    the models at the leaves of that, in order, `weights` (members,) what each counts for. Model i
    takes the images of `looks[i]` (the different sizes and ways of cutting), and `widths[i]`
    numbers of the metadata, which are those of all models side by side.
    """

    def __init__(self, about: dict[str, Any], members: Sequence[FusionModel]) -> None:
        super().__init__()
        self.about, self.members = about, nn.ModuleList(members)
        leaves, looks = list_leaves(about), list_looks(about)
        self.looks = [looks.index((leaf["size"], leaf["resize"])) for leaf, _ in leaves]
        self.weights = [weight for _, weight in leaves]
        self.widths = [leaf["n_metadata"] for leaf, _ in leaves]

    @property
    def featured(self) -> int:
        """The number of the model whose image features are those of the ensemble: the first."""
        return next((i for i, one in enumerate(self.members) if one.backbone is not None), 0)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return log-probabilities (B, K) of the images of each look, then the metadata."""
        *images, metadata = inputs
        parts = metadata.split(self.widths, dim=1)
        logits = [
            member(images[look], part)
            for member, look, part in zip(self.members, self.looks, parts, strict=True)
        ]
        pooled = self.pool([each.softmax(dim=-1) for each in logits])
        return pooled.clamp_min(SMALLEST).log()

    def pool(self, probabilities: Sequence[Tensor]) -> Tensor:
        """Return the probabilities (B, K) of the ensemble from those of its models."""
        return pool_tensors(self.about, iter(probabilities))


def pool_tensors(about: dict[str, Any], probabilities: Iterator[Tensor]) -> Tensor:
    """Return the probabilities (B, K) of an ensemble from those of its models, in order.

    `about` is described as in `EnsembleModel`. They are those of `stats.pooling`: each member's are
    moved to the ensemble's prior, then averaged.
    """
    if "members" not in about:
        return next(probabilities)
    parts = [
        move_prior(pool_tensors(member, probabilities), member["prior"], about["prior"])
        for member in about["members"]
    ]
    geometric = about["mean"] == "geometric"
    parts = [part.clamp_min(SMALLEST).log() for part in parts] if geometric else parts
    mean = sum(weight * part for weight, part in zip(about["weights"], parts, strict=True))
    return mean.softmax(dim=-1) if geometric else mean


class EnsembleEngine:
    """Runs the models of an ensemble over images, each with the views and the precision it has.

    Probabilities are those of the ensemble, features those of its first model with a backbone.
    """

    def __init__(self, model: EnsembleModel, *, views: int | None = None) -> None:
        self.model = model
        leaves = [leaf for leaf, _ in list_leaves(model.about)]
        self.engines = [
            TorchEngine(member, views=views or leaf["tta"], precision=leaf["precision"])
            for member, leaf in zip(model.members, leaves, strict=True)
        ]
        self.device = self.engines[0].device
        self.leaves_cpu_free = self.engines[0].leaves_cpu_free

    def __call__(self, pixels: Pixels, metadata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, k) and features (n, F), float32.

        `pixels` are uint8 (n, size, size, 3), one array for each look if there are several;
        `metadata` float32 (n, width) is what each model takes, side by side.
        """
        return self.pool_votes(self.vote(pixels, metadata))

    def vote(self, pixels: Pixels, metadata: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return what each model finds, probabilities (n, k) and features (n, F)."""
        looks = [pixels] if isinstance(pixels, np.ndarray) else list(pixels)
        ends = np.cumsum(self.model.widths)[:-1]
        parts = np.split(np.ascontiguousarray(metadata), ends, axis=1)
        return [
            engine(looks[look], part)
            for engine, look, part in zip(self.engines, self.model.looks, parts, strict=True)
        ]

    def pool_votes(
        self, votes: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities and features of the ensemble from those of its models."""
        pooled = self.model.pool([torch.from_numpy(one).double() for one, _ in votes])
        return pooled.float().numpy(), votes[self.model.featured][1]


def load_any(run: Run) -> FusionModel | EnsembleModel:
    """Return the trained model of a run in eval mode, that of an ensemble with all its models.

    Raises `LesionfastError` if weights or members are missing or broken, or others than averaged.
    """
    if not run.members:
        return load_model(run)
    check_averaged(run)
    return EnsembleModel(run.full_model, [load_model(leaf) for leaf in list_runs_of(run)]).eval()


def check_averaged(run: Run) -> None:
    """Raise `DamageError` if members of an ensemble have other weights than when it was made.

    What it decides by was fitted on what they predicted then.
    """
    digests = run.model.get("member_weights") or [None] * len(run.members)
    for member, digest in zip(run.members, digests, strict=True):
        check_averaged(member)
        if digest in (None, sha256_once(member.path / "weights.safetensors")):
            continue
        inside = run.model.get("of") in ("folds", "towers")
        runs = (one.path for one in run.members)
        again = f"lesionfast ensemble {shell_quote(*runs)}"
        if inside:
            again = f"lesionfast train --resume {shell_quote(run.path)}"
        raise DamageError(
            f"{run.path} averages {member.path}, whose weights have changed since: what it "
            f"decides by is not of them. Make it again: {again}"
        )


def open_engine(
    source: Run | Path,
    about: dict[str, Any],
    *,
    views: int | None = None,
    precision: str,
    device: str = "auto",
) -> TorchEngine | EnsembleEngine:
    """Return what runs the model of a run, or of the weights file of an export.

    `about` is its model.json, `views` the number of views to average, its own unless given.
    """
    if isinstance(source, Run):
        model = load_any(source)
    else:
        advice = "Copy the whole folder again."
        model = build_any(about, source)
        load_tensors(model, source, about["arch"], advice)
    model = model.to(pick_device(device)).eval()
    if isinstance(model, EnsembleModel):
        return EnsembleEngine(model, views=views)
    return TorchEngine(model, views=views or about["tta"], precision=precision)


def build_any(about: dict[str, Any], path: Path) -> FusionModel | EnsembleModel:
    """Return the model that a description means, with new weights.

    Raises `DamageError` for one of far more weights than the file at `path` has.
    """
    built: list[FusionModel] = []
    for leaf, _ in list_leaves(about):
        with within_size(path, built):
            built.append(build_described(leaf))
    return EnsembleModel(about, built) if "members" in about else built[0]


def read_lineages(run: Run) -> Lineage | None:
    """Return which images the weights of a run, or of all models of an ensemble, come from."""
    found = [read_lineage(leaf.path) for leaf in list_runs_of(run)]
    known = [lineage for lineage in found if lineage is not None]
    if len(known) < len(found):
        return None
    whole = reduce(or_, known)
    return Lineage(whole.arch if len(found) == 1 else None, whole.train, whole.valid)
