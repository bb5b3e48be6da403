"""Explanations: heat maps, how well they lie on lesions, and what metadata add to a decision."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor
from torch.nn.functional import interpolate

from lesionfast.data.encoder import JointEncoder, MetadataEncoder
from lesionfast.data.images import fit_square, open_images, read_image
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.models.backbones import CLS
from lesionfast.models.ensemble import EnsembleModel, load_any
from lesionfast.models.fusion import FusionModel
from lesionfast.models.inference import as_images, in_eval_mode
from lesionfast.run import Run, list_looks, list_runs_of
from lesionfast.stats.bootstrap import Found, interval, resampled, wilson

logger = logging.getLogger("lesionfast")

BATCH = 16  # images at once: their gradients are kept in memory
STEPS = 256  # points of the integral: networks of ReLUs have kinks
ENDINGS = ("_segmentation.png", ".png")  # of masks, as in the archives of ISIC, or plain
Explained = FusionModel | EnsembleModel
SPREAD = 0.2  # of the blob: its standard deviation as a share of the side


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a model gives `targets` to images.

    `rows` has one row an image, as the dataset does; `maps` float32 (n, H, W) in 0..1 over what
    the model saw of it; `metadata` (n, columns) what each column adds to the log-odds of the
    target, and `words` (n, columns) the value that it had. `cells` are the rows and columns of the
    feature map that the maps are made of; `bad` counts images that can't be read.
    """

    run: Run
    rows: pd.DataFrame
    targets: list[str]
    maps: np.ndarray
    metadata: pd.DataFrame
    words: pd.DataFrame
    cells: tuple[int, int]
    bad: int = 0

    def select(self, image_ids: Sequence[str]) -> "Explanation":
        """Return this of some of its images, in their order; `bad` counts those that it lacks."""
        places = pd.Index(self.rows["image_id"]).get_indexer(list(image_ids))
        kept = places[places >= 0]
        tables = {"rows": self.rows, "metadata": self.metadata, "words": self.words}
        parts = {name: table.iloc[kept].reset_index(drop=True) for name, table in tables.items()}
        targets, bad = [self.targets[i] for i in kept], len(places) - len(kept)
        return replace(self, targets=targets, maps=self.maps[kept], bad=bad, **parts)

    def describe(self, place: int) -> list[str]:
        """Return what each column adds for one image: "age 70: +0.8 towards mel"."""
        values, amounts = self.words.iloc[place], self.metadata.iloc[place]
        target = self.targets[place]
        return [describe_effect(values[name], amounts[name], target) for name in self.metadata]


def describe_effect(value: str, amount: float, target: str) -> str:
    """Return "age 70: +0.8 towards mel", "male: 0.3 against mel" or "male: no effect on mel"."""
    size = f"{abs(amount):.1f}"
    if size == "0.0":
        return f"{value}: no effect on {target}"
    towards = f"+{size} towards" if amount > 0 else f"{size} against"
    return f"{value}: {towards} {target}"


def explain_images(
    run: Run, image_ids: Sequence[str], targets: str | Sequence[str] | None = None
) -> Explanation:
    """Return what the model of a run looks at in images of its dataset, without `tta`.

    `targets` is the class to explain, one for all or one an image; by default the most probable
    one. Metadata are compared with the mean of the training images. Of an ensemble, maps and what
    metadata add are the weighted means over its models. Raises `LesionfastError` for an unknown
    image or class, and a model without a backbone.
    """
    model, classes = load_any(run), run.classes
    require_image(model)
    df = load_dataset(run.config, split=run.file("split.csv"))
    encoder, looks = read_encoder(run), read_looks(run)
    rows, names = find_rows(df, image_ids), None
    if targets is not None:
        names = [targets] * len(rows) if isinstance(targets, str) else list(targets)
    images, good = read_images(rows, looks)
    rows, bad = rows.iloc[good].reset_index(drop=True), len(rows) - len(good)
    metadata = torch.from_numpy(encoder.transform(rows))
    names = names and [names[i] for i in good]
    codes = choose_targets(model, images, metadata, names, classes)
    train = torch.from_numpy(encoder.transform(df[df["split"] == "train"])).mean(dim=0)
    amounts = attribute_metadata(model, images, metadata, codes, train).numpy()
    columns = encoder.split_columns(amounts)
    return Explanation(
        run,
        rows,
        [classes[code] for code in codes],
        grad_cam(model, images, metadata, codes).numpy(),
        pd.DataFrame({name: part.sum(axis=1) for name, part in columns.items()}),
        encoder.name_values(metadata.numpy()),
        count_cells(model, images),
        bad,
    )


def read_encoder(run: Run) -> MetadataEncoder:
    """Return the metadata encoder of a run, that of an ensemble with those of all its models."""
    encoders = [MetadataEncoder.from_run(leaf) for leaf in list_runs_of(run)]
    return JointEncoder(encoders) if run.members else encoders[0]


def read_looks(run: Run) -> list[tuple[int, str]]:
    """Return the sizes, and ways of making images square, that the model of a run sees."""
    return list_looks(run.full_model if "members" in run.model else run.model)


def count_cells(model: Explained, images: Sequence[Tensor]) -> tuple[int, int]:
    """Return rows and columns of the feature map, of an ensemble that of its first model."""
    look = 0
    if isinstance(model, EnsembleModel):
        look, model = model.looks[model.featured], model.members[model.featured]
    with torch.inference_mode():
        return tuple(model.backbone(torch.zeros(1, *images[look].shape[1:])).shape[-2:])


def require_image(model: Explained) -> None:
    """Raise `LesionfastError` for a model without a backbone."""
    first = model.members[model.featured] if isinstance(model, EnsembleModel) else model
    if first.backbone is None:
        raise LesionfastError(
            "a model of metadata alone (fusion 'metadata') has no image to draw a map of. "
            "Name a run with another --fusion."
        )


def find_rows(df: pd.DataFrame, image_ids: Sequence[str]) -> pd.DataFrame:
    """Return the rows of image ids, in their order; raises `LesionfastError` for an unknown one."""
    places = df.set_index("image_id").index.get_indexer(list(image_ids))
    if (places < 0).any():
        name = list(image_ids)[int(np.flatnonzero(places < 0)[0])]
        raise LesionfastError(
            f"there is no image '{name}' in this dataset.{did_you_mean(name, df['image_id'])} "
            f"Type an image id such as {df['image_id'].iloc[0]}."
        )
    return df.iloc[places].reset_index(drop=True)


def read_images(
    rows: pd.DataFrame, looks: Sequence[tuple[int, str]]
) -> tuple[list[Tensor], np.ndarray]:
    """Return the images (n, 3, size, size) of rows in each look, and which of them were read.

    Nothing goes to the cache. A warning counts those that can't be read.
    """
    paths, options = rows["path"].tolist(), {"cache": False, "skip_bad": True, "report": False}
    opened = [open_images(paths, size, resize=resize, **options) for size, resize in looks]
    bad = {row: reason for images in opened for row, reason in images.bad.items()}
    good = np.setdiff1d(np.arange(len(rows)), list(bad))
    if bad:
        reason = next(iter(bad.values()))
        logger.warning("%d of %d images can't be explained: %s", len(bad), len(rows), reason)
    return [as_images(images.pixels[good]) for images in opened], good


def choose_targets(
    model: Explained,
    images: Sequence[Tensor],
    metadata: Tensor,
    names: Sequence[str] | None,
    classes: Sequence[str],
) -> Tensor:
    """Return the class numbers (n,) of names, by default of the most probable classes."""
    if names is None:
        with torch.inference_mode():
            codes = [model(*part).argmax(dim=1) for part in batches(*images, metadata)]
        return torch.cat(codes) if codes else torch.zeros(0, dtype=torch.long)
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise LesionfastError(
            f"there is no class '{unknown[0]}'.{did_you_mean(unknown[0], classes)} "
            f"Name one of: {', '.join(classes)}."
        )
    return torch.tensor([list(classes).index(name) for name in names], dtype=torch.long)


def batches(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the rows of tensors, a few at a time."""
    return zip(*(tensor.split(BATCH) for tensor in tensors), strict=True)


def grad_cam(
    model: Explained, images: Tensor | Sequence[Tensor], metadata: Tensor, targets: Tensor
) -> Tensor:
    """Return where the image speaks for the targets: float32 (n, H, W), each map 0..1.

    Images are (n, 3, H, W) in 0..1, or a list of them with one for each look of the model, metadata
    (n, width), targets (n,) class numbers. The map is that of the last feature map, whatever the
    backbone's family and the pooling, upsampled and divided by its largest value (Selvaraju et al.
    2017, arXiv:1610.02391, eq. 1 and 2). Where nothing speaks for the target it is 0 everywhere. Of
    an ensemble it is the weighted mean over its models, in the first look. Raises `LesionfastError`
    without a backbone.
    """
    require_image(model)
    looks = [images] if isinstance(images, Tensor) else list(images)
    if not isinstance(model, EnsembleModel):
        return map_of_one(model, looks[0], metadata, targets)
    total = looks[0].new_zeros(len(targets), *looks[0].shape[-2:])
    for member, look, weight, part in iterate_members(model, metadata):
        if member.backbone is not None and weight:
            heat = map_of_one(member, looks[look], part, targets)
            heat = interpolate(heat[:, None], total.shape[-2:], mode="bilinear")[:, 0]
            total += weight * heat
    return total / total.amax((1, 2), keepdim=True).clamp_min(1e-12)


def iterate_members(
    model: EnsembleModel, metadata: Tensor
) -> Iterator[tuple[FusionModel, int, float, Tensor]]:
    """Yield each model, the number of its look, its weight and its part of the metadata."""
    parts = metadata.split(model.widths, dim=-1)
    yield from zip(model.members, model.looks, model.weights, parts, strict=True)


def map_of_one(model: FusionModel, images: Tensor, metadata: Tensor, targets: Tensor) -> Tensor:
    """Return what `grad_cam` does, of one model."""
    cls = model.pool_name == CLS  # CLS itself lies nowhere, so the map is of the patches
    layer = model.backbone.body.patches if cls else model.backbone
    cam, maps = LayerGradCam(model.scores, layer), []
    with in_eval_mode(model):
        for *inputs, target in batches(images, metadata, targets):
            heat = cam.attribute(tuple(inputs), target=target, relu_attributions=True)
            heat = interpolate(heat.detach().float(), images.shape[-2:], mode="bilinear")[:, 0]
            maps.append(heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12))
    return torch.cat(maps) if maps else images.new_zeros(0, *images.shape[-2:])


def attribute_metadata(
    model: Explained,
    images: Tensor | Sequence[Tensor],
    metadata: Tensor,
    targets: Tensor,
    baseline: Tensor,
) -> Tensor:
    """Return what each number of the metadata adds to the log-odds of the targets, (n, width).

    Integrated gradients from `baseline` (width,) to the metadata (n, width), with the image fixed;
    the sum over a row is the difference in log-odds (Sundararajan et al. 2017, arXiv:1703.01365,
    eq. 1 and proposition 1). All 0 where the model does not use metadata. Of an ensemble they are
    those of each model times its weight, so that sums are weighted means.
    """
    looks = [images] if isinstance(images, Tensor) else list(images)
    if isinstance(model, EnsembleModel):
        starts = baseline.split(model.widths)
        members = zip(iterate_members(model, metadata), starts, strict=True)
        amounts = [
            weight * attribute_metadata(member, looks[look], part, targets, start)
            for (member, look, weight, part), start in members
        ]
        return torch.cat(amounts, dim=1)
    if model.fusion.width == model.n_features and not list(model.fusion.parameters()):
        return torch.zeros_like(metadata)

    def odds(numbers: Tensor, features: Tensor, target: Tensor) -> Tensor:
        return log_odds(model.classify(features, numbers), target)

    method, parts = IntegratedGradients(odds), []
    with in_eval_mode(model):
        for pixels, numbers, target in batches(looks[0], metadata, targets):
            with torch.no_grad():
                features = model.features(pixels)
            start = baseline.expand_as(numbers).contiguous()
            more = (features, target)
            amounts = method.attribute(numbers, start, additional_forward_args=more, n_steps=STEPS)
            parts.append(amounts.detach().float())
    return torch.cat(parts) if parts else torch.zeros_like(metadata)


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the targets (n,) from logits (n, k)."""
    is_target = torch.nn.functional.one_hot(targets, logits.shape[1]).bool()
    others = logits.masked_fill(is_target, -torch.inf)
    return logits[is_target] - others.logsumexp(dim=1)


def compare_with_masks(explanation: Explanation, folder: Path) -> pd.DataFrame:
    """Return how well maps lie on the lesions of a folder of masks; see `score_maps`.

    Masks are named IMAGE_ID_segmentation.png or IMAGE_ID.png, white where the lesion is. A warning
    counts missing and unreadable ones. Raises `LesionfastError` if none is left.
    """
    rows, (look, *_) = explanation.rows, read_looks(explanation.run)
    masks, bad = read_masks(folder, rows["image_id"], *look)
    if bad:
        name, why = next(iter(bad.items()))
        text = "%d of %d images have no usable mask in %s, such as %s: %s"
        logger.warning(text, len(bad), len(rows), folder, name, why)
    is_masked = rows["image_id"].isin(masks).to_numpy()
    rows = rows[is_masked]
    lesions = rows["group" if "group" in rows else "image_id"]
    stacked = np.stack([masks[name] for name in rows["image_id"]])
    return score_maps(explanation.maps[is_masked], stacked, lesions)


def read_masks(
    folder: Path, image_ids: Sequence[str], size: int, resize: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return image id -> mask, bool (size, size), and image id -> why there is none.

    Raises `LesionfastError` if there is no mask at all.
    """
    if not Path(folder).is_dir():
        raise LesionfastError(f"there is no folder {folder}. Name a folder of masks with --masks.")
    masks, bad = {}, {}
    for name in image_ids:
        files = [Path(folder) / f"{name}{ending}" for ending in ENDINGS]
        file = next(filter(Path.is_file, files), None)
        try:
            masks[name] = read_mask(file, size, resize)
        except LesionfastError as error:
            bad[name] = str(error)
    if not masks:
        first = next(iter(bad.values()), "there are no images")
        raise LesionfastError(
            f"{folder} has no usable mask of these {len(bad)} images ({first}). Name a folder "
            f"with files such as {next(iter(image_ids), 'ISIC_0024306')}{ENDINGS[0]}."
        )
    return masks, bad


def read_mask(file: Path | None, size: int, resize: str) -> np.ndarray:
    """Return a mask as bool (size, size), cut and resized as the picture is.

    Raises `LesionfastError` where there is no file, and no lesion in it.
    """
    if file is None:
        raise LesionfastError("there is no file")
    grey = fit_square(read_image(str(file)).convert("L"), size, resize)
    mask = np.asarray(grey) > 127
    if not mask.any():
        raise LesionfastError("it shows no lesion")
    return mask


def score_maps(maps: np.ndarray, masks: np.ndarray, lesions: Sequence) -> pd.DataFrame:
    """Return the share of heat inside the lesion and the pointing game, of maps and of a blob.

    Maps are (n, H, W) from 0, masks bool (n, H, W). Columns: measure ('share inside' or 'pointing
    game', Zhang et al. 2018, doi:10.1007/s11263-017-1059-x), of ('map', 'centred blob' or
    'difference', in pairs), n, value, low, high: 95 % intervals from a bootstrap over lesions. A
    map that is 0 everywhere has no share and is left out of `n`.
    """
    used = maps.reshape(len(maps), -1).any(axis=1)
    if not used.any():
        raise LesionfastError("every map is 0: no image supports its class. Explain another class.")
    maps, masks, lesions = maps[used], masks[used], np.asarray(lesions)[used]
    blob = np.broadcast_to(centred_blob(*masks.shape[1:]), masks.shape)
    scores = {}
    for measure, score in (("share inside", share_inside), ("pointing game", pointing_game)):
        own, other = score(maps, masks), score(blob, masks)
        scores |= {(measure, "map"): own, (measure, "centred blob"): other}
        scores[measure, "difference"] = own - other

    def find(weights: np.ndarray) -> Found:
        return {key: weights @ values / weights.sum(axis=1) for key, values in scores.items()}

    drawn, rows = resampled(find, np.zeros(len(maps), np.int64), lesions)[1], []
    for (measure, of), values in scores.items():
        low, high = interval(drawn[measure, of])
        if low == high and of != "difference":
            low, high = wilson(values.mean(), len(np.unique(lesions)))
        rows.append((measure, of, len(values), float(values.mean()), low, high))
    return pd.DataFrame(rows, columns=["measure", "of", "n", "value", "low", "high"])


def share_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of each map's heat that lies inside its mask, (n,)."""
    return (maps * masks).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return 1 where the hottest pixel is inside the mask, (n,); of ties the share inside."""
    hottest = maps == maps.max(axis=(1, 2), keepdims=True)
    return share_inside(hottest.astype(np.float64), masks)


def centred_blob(height: int, width: int) -> np.ndarray:
    """Return a Gaussian (height, width) in the centre, where most photographs have the lesion."""
    y, x = (np.arange(n) / n - (n - 1) / (2 * n) for n in (height, width))
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * SPREAD**2))
