"""Pretraining: learn the weights of a backbone from the training images, without their labels."""

import logging
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from fastai.callback.core import Callback
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss

from lesionfast.config import TrainConfig
from lesionfast.console import counting_bar
from lesionfast.data.augment import augmentations
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import format_split
from lesionfast.errors import shell_quote
from lesionfast.models.archs import conv, find_arch
from lesionfast.models.backbones import Backbone, count_parameters, create_backbone
from lesionfast.models.inference import in_eval_mode
from lesionfast.models.lineage import check_weights
from lesionfast.reporting.page import new_figure, save
from lesionfast.run import Run, create_directory
from lesionfast.training.callbacks.progress import logging_to
from lesionfast.training.callbacks.schedule import OneCycle, ProgressiveUnfreezing
from lesionfast.training.callbacks.tracking import save_tensors
from lesionfast.training.fitting import run_epochs
from lesionfast.training.learner import ADAMW, ResumableLearner, find_lr, learner_callbacks
from lesionfast.training.record import count_images, describe_environment

logger = logging.getLogger("lesionfast")

WIDEST, NARROWEST = 256, 16  # channels of the decoder, halved with each doubling of the map
SHOWN = 8  # validation images in the figure


def pretrain(
    df: pd.DataFrame, config: TrainConfig | None = None, root: str | Path = "runs"
) -> Path:
    """Train an autoencoder on the training images and return its directory, new under `root`.

    `df` is a split table, as for `train`; its labels are ignored. `--weights` takes the directory
    as it takes a run. Raises `LesionfastError` for whatever the user can fix, and
    `TrainingInterrupted` if it is stopped before its first epoch ended.
    """
    config = replace(config or TrainConfig(), monitor="valid_loss", unfreeze="none")
    learn = autoencoder_learner(df, config)
    first = {"file": "pretrain.json", "text": config.to_json()}
    folder = create_directory(root, f"pretrain-{config.arch}", **first)
    run, parts = Run(folder), (learn.model.backbone, learn.model.decoder)
    run.write_text("split.csv", format_split(learn.dls.split))
    run.write_json("environment.json", describe_environment(learn, config))
    with logging_to(folder / "log.txt"):
        logger.info("pretraining %s", folder)
        logger.info("images: %s; only the training images are learned from", count_images(learn))
        logger.info(
            "autoencoder: %s, %d pixels; %s; %s parameters, and %s in the decoder",
            *(config.arch, config.size, learn.model.backbone.origin),
            *(f"{count_parameters(part):,}" for part in parts),
        )
        fit(learn, config, run)
        draw_reconstructions(learn, config, folder / "figures" / "reconstructions.png")
    return folder


def autoencoder_learner(df: pd.DataFrame, config: TrainConfig) -> ResumableLearner:
    """Return the Learner of a pretraining; wrong names are reported before images are decoded."""
    find_arch(config.arch)
    augmentations[config.augment]
    check_weights(df, config.weights, config.arch)
    with counting_bar("decoding images") as progress:
        dls = LesionDataLoaders.from_df(df, config, progress=progress)
    torch.manual_seed(config.seed)  # the first weights
    backbone = create_backbone(config.arch, size=config.size, weights=config.weights)
    return ResumableLearner(
        dls,
        Autoencoder(backbone, config.size),
        loss_func=mse_loss,
        opt_func=ADAMW,
        lr=config.lr if isinstance(config.lr, float) else 1e-3,
        cbs=[*learner_callbacks(dls.device, config), ImageIsTarget()],
        wd=config.weight_decay,
        wd_bn_bias=True,
    )


class Autoencoder(nn.Module):
    """Encode images with a backbone and decode them from its last feature map alone.

    (Masci et al. 2011, doi:10.1007/978-3-642-21735-7_7.) Upsampling replaces their unpooling, so
    the encoder may be of any kind.
    """

    def __init__(self, backbone: Backbone, size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = build_decoder(backbone.num_features, count_doublings(backbone, size))

    def forward(self, image: Tensor) -> Tensor:
        """Return the reconstructions (B, 3, H, W) of images (B, 3, H, W), both in 0..1."""
        drawn = self.decoder(self.backbone(image))
        return interpolate(drawn, image.shape[-2:], mode="bilinear").sigmoid()


def count_doublings(backbone: Backbone, size: int) -> int:
    """Return how often the last feature map must double its rows to reach `size` or more."""
    device = next(backbone.parameters()).device
    with torch.no_grad(), in_eval_mode(backbone):
        rows = backbone(torch.zeros(1, 3, size, size, device=device)).shape[2]
    return max(0, math.ceil(math.log2(size / rows)))


def build_decoder(n_in: int, doublings: int) -> nn.Sequential:
    """Return the decoder (B, n_in, h, w) -> (B, 3, h · 2^doublings, w · 2^doublings)."""
    widths = [max(WIDEST >> i, NARROWEST) for i in range(doublings + 1)]
    layers: list[nn.Module] = [nn.Conv2d(n_in, widths[0], 1), nn.ReLU(inplace=True)]
    for before, after in pairwise(widths):
        layers += [nn.Upsample(scale_factor=2), conv(before, after)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1))


class ImageIsTarget(Callback):
    """Give the model the image alone, and the loss the same image as its target."""

    order = 51  # just after the tensors have become plain ones

    def before_batch(self) -> None:
        """Replace the batch by its images."""
        self.learn.xb = self.learn.yb = self.xb[:1]


def fit(learn: ResumableLearner, config: TrainConfig, run: Run) -> None:
    """Train with one cycle; write history.csv, and weights.safetensors of the best encoder alone.

    Raises `TrainingInterrupted` if it is stopped before its first epoch ended.
    """
    lr = find_lr(learn, freeze=False) if config.lr == "auto" else config.lr
    cbs = [ProgressiveUnfreezing(config.unfreeze), OneCycle([lr])]
    again = f"lesionfast pretrain --config {shell_quote(run.path / 'pretrain.json')}"
    best, _ = run_epochs(learn, run, config, config.epochs, [lr], cbs, again)
    logger.info("best epoch: %d, mean squared error %.5f", best.best_epoch + 1, -best.best)
    encoder = {f"backbone.{k}": v for k, v in learn.model.backbone.state_dict().items()}
    run.write("weights.safetensors", lambda aside: save_tensors(encoder, aside, best.header))
    run.manifest.record("history.csv")


def draw_reconstructions(learn: ResumableLearner, config: TrainConfig, path: Path) -> Path:
    """Draw some validation images above their reconstructions, as PNG."""
    images = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)[:SHOWN]
    with torch.no_grad(), in_eval_mode(learn.model):
        drawn = learn.model(images)
    error = mse_loss(drawn, images).item()
    figure = new_figure(
        max(6.0, 1.4 * len(images) + 0.6),
        3.6,
        "Validation images and their reconstructions",
        f"{config.arch}, {config.size} pixels; mean squared error {error:.4f}, of pixels in 0 to 1",
    )
    axes = figure.subplots(2, len(images), squeeze=False)
    for row, name, pictures in zip(axes, ("image", "reconstruction"), (images, drawn), strict=True):
        for axis, picture in zip(row, pictures.movedim(1, -1).cpu(), strict=True):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    return save(figure, path)
