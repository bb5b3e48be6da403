"""What a model looks at: heat maps over the image, and how much age, sex and site say."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from torch import Tensor
from torch.nn.functional import interpolate

from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.images import fit_square, open_images, read_image
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.models.fusion import FusionModel, load_model
from lesionfast.models.inference import as_images, in_eval_mode
from lesionfast.runs import Run
from lesionfast.stats.bootstrap import RESAMPLES, drawn_rows, interval, wilson

logger = logging.getLogger("lesionfast")

BATCH = 16  # images at once: their gradients are kept in memory
STEPS = 256  # points of the integral: networks of ReLUs have kinks


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

    def of(self, image_ids: Sequence[str]) -> "Explanation":
        """Return this of some of its images, in their order; `bad` counts those that it lacks."""
        places = pd.Index(self.rows["image_id"]).get_indexer(list(image_ids))
        kept = places[places >= 0]
        tables = (self.rows, self.metadata, self.words)
        rows, metadata, words = (each.iloc[kept].reset_index(drop=True) for each in tables)
        targets, bad = [self.targets[i] for i in kept], len(places) - len(kept)
        maps = self.maps[kept]
        return Explanation(self.run, rows, targets, maps, metadata, words, self.cells, bad)

    def told(self, place: int) -> list[str]:
        """Return what each column does for one image: "age 70: +0.8 towards mel"."""
        return [
            in_words(self.words[name].iloc[place], self.metadata[name].iloc[place], target)
            for name, target in ((name, self.targets[place]) for name in self.metadata)
        ]


def in_words(word: str, amount: float, target: str) -> str:
    """Return "age 70: +0.8 towards mel", "male: 0.3 against mel" or "male: no effect on mel"."""
    size = f"{abs(amount):.1f}"
    if size == "0.0":
        return f"{word}: no effect on {target}"
    return f"{word}: +{size} towards {target}" if amount > 0 else f"{word}: {size} against {target}"


def explain_images(
    run: Run, image_ids: Sequence[str], targets: str | Sequence[str] | None = None
) -> Explanation:
    """Return what the model of a run looks at in images of its dataset, without `tta`.

    `targets` is the class to explain, one for all or one an image; the most probable one unless
    given. Age, sex and what else the run knows are compared with the mean of the training images.
    Raises `LesionfastError` for an image or a class that is unknown, an ensemble, and a model that
    looks at no image.
    """
    model, config = load_model(run), run.config
    require_image(model)
    df = load_dataset(config, split=run.file("split.csv"))
    encoder = MetadataEncoder.from_run(run)
    rows, names = find_rows(df, image_ids), None
    if targets is not None:
        names = [targets] * len(rows) if isinstance(targets, str) else list(targets)
    size, resize = run.model["size"], run.model["resize"]
    images, good = read_images(rows, size, resize)
    rows, bad = rows.iloc[good].reset_index(drop=True), len(rows) - len(good)
    metadata = torch.from_numpy(encoder.transform(rows))
    codes = choose_targets(model, images, metadata, names and [names[i] for i in good], run.classes)
    train = torch.from_numpy(encoder.transform(df[df["split"] == "train"])).mean(dim=0)
    amounts = attribute_metadata(model, images, metadata, codes, train).numpy()
    return Explanation(
        run,
        rows,
        [run.classes[code] for code in codes],
        grad_cam(model, images, metadata, codes).numpy(),
        per_column(encoder, amounts),
        describe_columns(encoder, metadata.numpy()),
        cells_of(model, size),
        bad,
    )


def require_image(model: FusionModel) -> None:
    """Raise `LesionfastError` for a model without a backbone."""
    if model.backbone is None:
        raise LesionfastError(
            "a model of age, sex and site alone (fusion 'metadata') has no image to draw a map "
            "of. Name a run with another --fusion."
        )


def cells_of(model: FusionModel, size: int) -> tuple[int, int]:
    """Return rows and columns of the last feature map of images of `size` pixels."""
    with torch.inference_mode():
        height, width = model.backbone(torch.zeros(1, 3, size, size)).shape[-2:]
    return height, width


def find_rows(df: pd.DataFrame, image_ids: Sequence[str]) -> pd.DataFrame:
    """Return the rows of image ids, in their order; raises `LesionfastError` for an unknown one."""
    places = df.set_index("image_id").index.get_indexer(list(image_ids))
    if (places < 0).any():
        name = list(image_ids)[int(np.flatnonzero(places < 0)[0])]
        raise LesionfastError(
            f"there is no image '{name}' in this dataset.{did_you_mean(name, df['image_id'])} "
            f"Name one as {df['image_id'].iloc[0]}."
        )
    return df.iloc[places].reset_index(drop=True)


def read_images(rows: pd.DataFrame, size: int, resize: str) -> tuple[Tensor, np.ndarray]:
    """Return the images (n, 3, size, size) of rows as the model takes them, and which were read.

    Nothing goes to the cache. Those that can't be read are counted in the log.
    """
    paths = rows["path"].tolist()
    opened = open_images(paths, size, resize=resize, cache=False, skip_bad=True, report=False)
    good = np.setdiff1d(np.arange(len(rows)), list(opened.bad))
    if opened.bad:
        reason = next(iter(opened.bad.values()))
        logger.warning("%d of %d images can't be explained; %s", len(opened.bad), len(rows), reason)
    return as_images(opened.pixels[good]), good


def choose_targets(
    model: FusionModel,
    images: Tensor,
    metadata: Tensor,
    names: Sequence[str] | None,
    classes: Sequence[str],
) -> Tensor:
    """Return the class numbers (n,) of names, or without names of the most probable classes."""
    if names is None:
        with torch.inference_mode():
            parts = zip(images.split(BATCH), metadata.split(BATCH), strict=True)
            found = [model(*part).argmax(dim=1) for part in parts]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise LesionfastError(
            f"there is no class '{unknown[0]}'.{did_you_mean(unknown[0], classes)} "
            f"Name one of: {', '.join(classes)}."
        )
    return torch.tensor([list(classes).index(name) for name in names], dtype=torch.long)


def grad_cam(model: FusionModel, images: Tensor, metadata: Tensor, targets: Tensor) -> Tensor:
    """Return where the image speaks for the targets: float32 (n, H, W), each map 0..1.

    Images are (n, 3, H, W) in 0..1, metadata (n, width), targets (n,) class numbers. The map is
    that of the last feature map, whatever the backbone's family and the pooling, upsampled and
    divided by its largest value (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2). Where
    nothing speaks for the target it is 0 everywhere. Raises `LesionfastError` without a backbone.
    """
    require_image(model)
    cam, maps = LayerGradCam(model.scores, model.backbone), []
    batches = zip(*(each.split(BATCH) for each in (images, metadata, targets)), strict=True)
    with in_eval_mode(model):
        for *inputs, target in batches:
            heat = cam.attribute(tuple(inputs), target=target, relu_attributions=True)
            heat = interpolate(heat.detach().float(), images.shape[-2:], mode="bilinear")[:, 0]
            maps.append(heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12))
    return torch.cat(maps) if maps else images.new_zeros(0, *images.shape[-2:])


def attribute_metadata(
    model: FusionModel, images: Tensor, metadata: Tensor, targets: Tensor, baseline: Tensor
) -> Tensor:
    """Return what each number of the metadata adds to the log-odds of the targets, (n, width).

    Integrated gradients from `baseline` (width,) to the metadata (n, width), the image being what
    it is; the sum over a row is the difference in log-odds (Sundararajan et al. 2017,
    arXiv:1703.01365, eq. 1 and proposition 1). All 0 where the model does not look at metadata.
    """
    if model.fusion.width == model.n_features and not list(model.fusion.parameters()):
        return torch.zeros_like(metadata)

    def odds(numbers: Tensor, features: Tensor, wanted: Tensor) -> Tensor:
        return log_odds(model.classify(features, numbers), wanted)

    method, found = IntegratedGradients(odds), []
    batches = zip(*(each.split(BATCH) for each in (images, metadata, targets)), strict=True)
    with in_eval_mode(model):
        for part, numbers, wanted in batches:
            with torch.no_grad():
                features = model.features(part)
            start = baseline.expand_as(numbers).contiguous()
            more = (features, wanted)
            amounts = method.attribute(numbers, start, additional_forward_args=more, n_steps=STEPS)
            found.append(amounts.detach().float())
    return torch.cat(found) if found else torch.zeros_like(metadata)


def log_odds(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of the targets (n,) from logits (n, k)."""
    mine = torch.nn.functional.one_hot(targets, logits.shape[1]).bool()
    others = logits.masked_fill(mine, -torch.inf)
    return logits[mine] - others.logsumexp(dim=1)


def columns_of(encoder: MetadataEncoder) -> dict[str, MetadataEncoder]:
    """Return an encoder for each column alone, in the order of the vector."""
    fitted = json.loads(encoder.to_json())
    return {each["name"]: MetadataEncoder.from_learned([each]) for each in fitted}


def per_column(encoder: MetadataEncoder, amounts: np.ndarray) -> pd.DataFrame:
    """Return amounts (n, width) of the numbers as sums over each metadata column."""
    found, start = {}, 0
    for name, alone in columns_of(encoder).items():
        found[name] = amounts[:, start : start + alone.width].sum(axis=1)
        start += alone.width
    return pd.DataFrame(found, index=range(len(amounts)))


def describe_columns(encoder: MetadataEncoder, metadata: np.ndarray) -> pd.DataFrame:
    """Return what each metadata column of encoded rows (n, width) says, as "age 70" or "male"."""
    found, start = {}, 0
    for name, alone in columns_of(encoder).items():
        block = metadata[:, start : start + alone.width]
        found[name] = [alone.in_words(row) for row in block]
        start += alone.width
    return pd.DataFrame(found, index=range(len(metadata)))


ENDINGS = ("_segmentation.png", ".png")  # as in the archives of ISIC, or plain
SPREAD = 0.2  # of the blob: its standard deviation as a share of the side


def compare_with_masks(explanation: "Explanation", folder: Path) -> pd.DataFrame:
    """Return how well maps lie on the lesions of a folder of masks; see `score_maps`.

    Masks are named IMAGE_ID_segmentation.png or IMAGE_ID.png, white where the lesion is. Missing
    and unreadable ones are counted in the log. Raises `LesionfastError` if none is left.
    """
    about = explanation.run.model
    masks, bad = read_masks(folder, explanation.rows["image_id"], about["size"], about["resize"])
    found = [i for i, name in enumerate(explanation.rows["image_id"]) if name in masks]
    if bad:
        name, why = next(iter(bad.items()))
        text = "%d of %d images have no mask in %s that can be used; %s: %s"
        logger.warning(text, len(bad), len(explanation.rows), folder, name, why)
    rows = explanation.rows.iloc[found]
    lesions = rows["group"] if "group" in rows else rows["image_id"]
    stacked = np.stack([masks[name] for name in rows["image_id"]])
    return score_maps(explanation.maps[found], stacked, lesions)


def read_masks(
    folder: Path, image_ids: Sequence[str], size: int, resize: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return image id -> mask, bool (size, size), and image id -> why there is none.

    A mask is cut and resized as the picture is. Raises `LesionfastError` if there is none at all.
    """
    if not Path(folder).is_dir():
        raise LesionfastError(f"there is no folder {folder}. Name one of masks with --masks.")
    masks, bad = {}, {}
    for name in image_ids:
        files = [Path(folder) / f"{name}{ending}" for ending in ENDINGS]
        file = next((each for each in files if each.is_file()), None)
        try:
            masks[name] = read_mask(file, size, resize) if file else None
            reason = "there is no file" if file is None else "no lesion is in it"
        except LesionfastError as error:
            masks[name], reason = None, str(error)
        if masks[name] is None or not masks[name].any():
            bad[name] = reason
            del masks[name]
    if not masks:
        first = next(iter(bad.values()), "there are no images")
        raise LesionfastError(
            f"{folder} has no usable mask of these {len(bad)} images ({first}). Name a folder "
            f"with files as {next(iter(image_ids), 'ISIC_0024306')}{ENDINGS[0]}."
        )
    return masks, bad


def read_mask(file: Path, size: int, resize: str) -> np.ndarray:
    """Return a mask as bool (size, size), cut and resized as a picture is."""
    grey = fit_square(read_image(str(file)).convert("L"), size, resize)
    return np.asarray(grey) > 127


def score_maps(
    maps: np.ndarray, masks: np.ndarray, lesions: Sequence, *, resamples: int = RESAMPLES, seed=0
) -> pd.DataFrame:
    """Return the share of heat inside the lesion and the pointing game, of maps and of a blob.

    Maps are (n, H, W) from 0, masks bool (n, H, W). Columns: measure ('share inside' or 'pointing
    game', Zhang et al. 2018, doi:10.1007/s11263-017-1059-x), of ('map', 'centred blob' or
    'difference', in pairs), n, value, low, high: 95 % intervals from a bootstrap over lesions. A
    map that is 0 everywhere has no share and is left out of `n`.
    """
    used = maps.reshape(len(maps), -1).any(axis=1)
    if not used.any():
        raise LesionfastError("every map is 0: nothing speaks for its class. Explain another one.")
    maps, masks = maps[used], masks[used]
    codes = np.unique(np.asarray(lesions)[used], return_inverse=True)[1]
    blob = np.broadcast_to(centred_blob(*masks.shape[1:]), masks.shape)
    rows = []
    for measure, find in (("share inside", share_inside), ("pointing game", pointing_game)):
        own, other = find(maps, masks), find(blob, masks)
        for of, values in (("map", own), ("centred blob", other), ("difference", own - other)):
            low, high = interval_of_mean(values, codes, resamples, seed)
            if low == high and of != "difference":
                low, high = wilson(values.mean(), len(np.unique(codes)))
            rows.append((measure, of, len(values), float(values.mean()), low, high))
    return pd.DataFrame(rows, columns=["measure", "of", "n", "value", "low", "high"])


def share_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of each map's heat that lies inside its mask, (n,)."""
    return (maps * masks).sum(axis=(1, 2)) / maps.sum(axis=(1, 2))


def pointing_game(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return 1 where the hottest pixel is inside the mask, (n,); of equals the share inside."""
    hottest = maps == maps.max(axis=(1, 2), keepdims=True)
    return share_inside(hottest.astype(np.float64), masks)


def centred_blob(height: int, width: int) -> np.ndarray:
    """Return a Gaussian (height, width) in the centre: where a lesion is in most photographs."""
    y, x = (np.arange(n) / n - (n - 1) / (2 * n) for n in (height, width))
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * SPREAD**2))


def interval_of_mean(
    values: np.ndarray, lesions: np.ndarray, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values (n,), lesions (n,) being drawn."""
    same = np.zeros(len(values), np.int64)
    drawn = drawn_rows(same, lesions, resamples, seed)
    means = [weights @ values / weights.sum(axis=1) for weights in drawn]
    return interval(np.concatenate(means))
