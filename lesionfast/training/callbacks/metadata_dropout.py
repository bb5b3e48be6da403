"""Metadata dropout: withhold some in training, so that what is missing does not tell the class."""

import numpy as np
import torch
from fastai.callback.core import Callback
from torch import Tensor

from lesionfast.data.encoder import MetadataEncoder
from lesionfast.training.callbacks.schedule import mix_seeds

MOST = 0.9  # of the complete rows: some stay so, however often columns are missing


class MetadataDropout(Callback):
    """Withhold metadata at random in training, so that every class lacks it equally often.

    A share of the rows loses all columns, and the same share one column, each equally often. Where
    one class lacks columns more often than another, more is withheld from the other: otherwise the
    model could learn the class from what is missing, as in HAM10000, where 45 of 57 images without
    age are nevi. Incomplete rows and validation stay as they are. What is withheld depends only on
    the seed, the epoch and the batch.

    `metadata` (n, width) are the encoded training rows, `codes` (n,) their classes; `parents` (s,)
    has the class of each output that is a target.
    """

    order, run_valid = 51, False  # before two rows are mixed

    def __init__(
        self,
        encoder: MetadataEncoder,
        metadata: np.ndarray,
        codes: np.ndarray,
        parents: list[int],
        share: float,
        seed: int = 0,
    ) -> None:
        missing = metadata[:, encoder.indicators] > 0
        patterns, chances = withheld_patterns(missing, codes, max(parents) + 1, share)
        nothing = np.zeros((1, missing.shape[1]), bool)
        widths = np.diff(encoder.indicators, prepend=-1)
        self.patterns = torch.from_numpy(np.vstack([patterns, nothing]).repeat(widths, axis=1))
        self.limits = torch.from_numpy(chances[parents].cumsum(axis=1)).float()
        self.indicators = torch.from_numpy(encoder.indicators)
        self.missing = torch.from_numpy(encoder.unknown)
        self.seed = seed

    def before_fit(self) -> None:
        self.move_to(self.dls.device)

    def before_epoch(self) -> None:
        self.generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch, 1))

    def before_batch(self) -> None:
        image, metadata = self.xb
        self.learn.xb = (image, self.withhold(metadata, self.yb[0], self.generator))

    def withhold(self, metadata: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return metadata (B, width) of rows with the outputs (B,) as targets, some withheld."""
        draw = torch.rand(len(metadata), 1, generator=generator).to(metadata.device)
        pattern = self.patterns[(draw >= self.limits[targets]).sum(dim=1)]
        complete = (metadata[:, self.indicators] == 0).all(dim=1, keepdim=True)
        return torch.where(pattern & complete, self.missing, metadata)

    def withhold_once(self, metadata: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return encoded training rows (n, width) of classes (n,), some withheld."""
        self.move_to(torch.device("cpu"))
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.from_numpy(metadata), torch.from_numpy(codes)
        return self.withhold(*rows, generator).numpy()

    def move_to(self, device: torch.device) -> None:
        for name in ("patterns", "limits", "indicators", "missing"):
            setattr(self, name, getattr(self, name).to(device))


def withheld_patterns(
    missing: np.ndarray, codes: np.ndarray, n_classes: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return patterns of columns, bool (p, columns), and each class's chance of them, (k, p).

    `missing` (n, columns) says what the rows lack, `codes` (n,) are their classes. The chance is
    that of a complete row. Afterwards each pattern is as frequent in every class: as in the class
    that has it most often, and more by `share`.
    """
    n_columns = missing.shape[1]
    alone = np.eye(n_columns, dtype=bool) if n_columns > 1 else np.zeros((0, 1), bool)
    added = np.vstack([np.ones((1, n_columns), bool), alone])
    patterns, index = np.unique(np.vstack([missing, added]), axis=0, return_inverse=True)
    index, lacking = index.reshape(-1), patterns.any(axis=1)
    more = np.zeros(len(patterns))
    more[index[len(missing)]], more[index[len(missing) + 1 :]] = share, share / n_columns
    counts = np.zeros((n_classes, len(patterns)))
    np.add.at(counts, (codes, index[: len(missing)]), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wanted = (shares.max(axis=0) + more - shares)[:, lacking]
    complete = np.maximum(shares[:, ~lacking].sum(axis=1, keepdims=True), 1e-9)
    chances = wanted / complete
    return patterns[lacking], chances * np.minimum(1, MOST / chances.sum(axis=1, keepdims=True))
