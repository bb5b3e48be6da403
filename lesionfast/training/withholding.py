"""Metadata withheld in training, so that what is not known speaks for no class."""

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch import Tensor

from lesionfast.data.encoder import MetadataEncoder

MOST = 0.9  # of the rows that lack nothing: some stay whole, however the columns are missing


class Withholding:
    """Makes the metadata of training rows unknown at random, so often that every class is alike.

    From a share of the rows all columns are withheld, and from another one column, each as often.
    Where a class lacks columns more often than another does, the others have as much more withheld:
    else the model would learn from what is missing which class it is, as it can in HAM10000, where
    45 of 57 images without age are nevi. Rows that lack something stay as they are.

    `metadata` (n, width) are the encoded training rows, `codes` (n,) their classes; `parents` (s,)
    has the class of each output that is taught.
    """

    def __init__(
        self,
        encoder: MetadataEncoder,
        metadata: np.ndarray,
        codes: np.ndarray,
        parents: list[int],
        share: float,
    ) -> None:
        missing = metadata[:, encoder.indicators] > 0
        patterns, chances = withheld_patterns(missing, codes, max(parents) + 1, share)
        nothing = np.zeros((1, missing.shape[1]), bool)
        widths = np.diff(encoder.indicators, prepend=-1)
        self.patterns = torch.from_numpy(np.vstack([patterns, nothing]).repeat(widths, axis=1))
        self.limits = torch.from_numpy(chances[parents].cumsum(axis=1)).float()
        self.indicators = torch.from_numpy(encoder.indicators)
        self.unknown = torch.from_numpy(encoder.unknown)

    @classmethod
    def of(cls, dls: DataLoaders, parents: list[int], share: float) -> "Withholding":
        """Return that of the training rows in `dls` (from `build_dls`)."""
        rows = dls.rows[dls.rows["split"] == "train"]
        codes = rows["target"].map(list(dls.vocab).index).to_numpy(np.int64)
        return cls(dls.encoder, dls.encoder.transform(rows), codes, parents, share)

    def to(self, device: torch.device) -> "Withholding":
        """Move it to a device and return it."""
        for name in ("patterns", "limits", "indicators", "unknown"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def __call__(self, metadata: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Return metadata (B, width) of rows with the outputs (B,) as targets, some withheld."""
        draw = torch.rand(len(metadata), 1, generator=generator).to(metadata.device)
        pattern = self.patterns[(draw >= self.limits[targets]).sum(dim=1)]
        whole = (metadata[:, self.indicators] == 0).all(dim=1, keepdim=True)
        return torch.where(pattern & whole, self.unknown, metadata)


def withheld_patterns(
    missing: np.ndarray, codes: np.ndarray, n_classes: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return patterns of columns, bool (p, columns), and each class's chance of them, (k, p).

    `missing` (n, columns) says what the rows lack, `codes` (n,) are their classes. The chance is
    that of a row that lacks nothing. Afterwards each pattern is as frequent in every class: as in
    the class that has it most often, and more by `share`.
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
    whole = np.maximum(shares[:, ~lacking].sum(axis=1, keepdims=True), 1e-9)
    chances = wanted / whole
    return patterns[lacking], chances * np.minimum(1, MOST / chances.sum(axis=1, keepdims=True))


class WithholdMetadata(Callback):
    """Withhold metadata in each training batch, of images or of features, never in validation.

    What is withheld depends on the seed, the epoch and the batch only.
    """

    order, run_valid = 51, False  # before two rows are mixed

    def __init__(self, withholding: Withholding, seed: int) -> None:
        self.withholding, self.seed = withholding, seed

    def before_fit(self) -> None:
        """Move the chances to where the batches are."""
        self.withholding.to(self.dls.device)

    def before_epoch(self) -> None:
        """Start the draws that belong to this epoch."""
        seed = np.random.SeedSequence([self.seed, self.epoch, 1]).generate_state(1)[0]
        self.generator = torch.Generator().manual_seed(int(seed))

    def before_batch(self) -> None:
        """Withhold the metadata of some rows."""
        image, metadata = self.xb
        self.learn.xb = (image, self.withholding(metadata, self.yb[0], self.generator))

    def withheld_once(self, metadata: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return encoded training rows (n, width) of classes (n,) with some of it withheld."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.from_numpy(metadata), torch.from_numpy(codes)
        return self.withholding.to(torch.device("cpu"))(*rows, generator).numpy()
