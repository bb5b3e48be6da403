"""OOD score: how unlike the training images an image is, by the features of the backbone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lesionfast.errors import LesionfastError

LEVEL = 0.95  # share of the validation images that are below the threshold
NEIGHBOURS = 0.02  # share of the training images; 1 % to 7 % of HAM10000 are as good, 0.3 % worse
FEWEST_NEIGHBOURS = 10
MOST = 20_000  # training images compared: of more, a share of 2 % is known to 0.1 points anyway
BLOCK = 16_000_000  # distances at a time: 64 MB


@dataclass(frozen=True, eq=False)
class OODScorer:
    """The features of the training images, float32 (n, F) of length 1, and a threshold.

    The score is the distance to the k-th nearest training image, k being 2 % of them and at least
    10 (Sun et al. 2022, arXiv:2204.06507). Of more than 20,000 training images that many are drawn.
    `threshold` is the quantile `level` of the scores of validation images: of images like those,
    1 - `level` score higher.
    """

    train: np.ndarray
    threshold: float
    level: float = LEVEL

    @classmethod
    def fit(cls, train: ArrayLike, valid: ArrayLike) -> "OODScorer":
        """Learn from the features of training (n, F) and validation images (m, F).

        Raises `LesionfastError` for features that are not finite, and for too few images.
        """
        train, valid = as_features(train), as_features(valid)
        if len(train) < 2 or not len(valid):
            raise LesionfastError(
                "an OOD score needs the features of at least 2 training images and 1 validation "
                f"image; found {len(train)} and {len(valid)}. Use a run on more images."
            )
        if len(train) > MOST:
            train = train[np.sort(np.random.default_rng(0).permutation(len(train))[:MOST])]
        rounded = np.ascontiguousarray(unit(train), np.float16).astype(np.float32)  # as it is kept
        scores = cls(rounded, float("nan")).score(valid)
        return cls(rounded, float(np.quantile(scores, LEVEL)))

    def score(self, features: ArrayLike) -> np.ndarray:
        """Return how unlike the training images each of features (n, F) is, float64 (n,)."""
        features = as_features(features)
        if features.shape[1] != self.train.shape[1]:
            raise LesionfastError(
                f"the features have {features.shape[1]} columns, those of the training images "
                f"{self.train.shape[1]}. Pass features of the same run."
            )
        n, scores = len(self.train), np.zeros(len(features))
        k = min(max(FEWEST_NEIGHBOURS, round(NEIGHBOURS * n)), n)
        step = max(1, BLOCK // n)
        for start in range(0, len(features), step):
            cosine = unit(features[start : start + step]) @ self.train.T
            nearest = np.partition(cosine, n - k, axis=1)[:, n - k]
            scores[start : start + step] = np.sqrt(np.maximum(2 - 2 * nearest, 0))
        return scores


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (…, F) with length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def as_features(features: ArrayLike) -> np.ndarray:
    """Return features as float32 (n, F); raises `LesionfastError` if they are not finite."""
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise LesionfastError(
            f"features must be finite numbers of shape (images, features); found {features.shape} "
            f"with {int((~np.isfinite(features)).sum())} that are not finite. "
            "Pass what the backbone returned."
        )
    return features
