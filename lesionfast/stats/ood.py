"""How unlike its training images an image is: distances between features. NumPy alone."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from safetensors import safe_open
from safetensors.numpy import save_file

from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.files import check_shape, damage_explained

if TYPE_CHECKING:
    import pandas as pd

OUTLIERS = "outliers.safetensors"
METHODS = ("knn", "mahalanobis", "relative")
METHOD = "knn"  # tells altered validation images of HAM10000 from others best
LEVEL = 0.95  # share of the validation images that are below the threshold
NEIGHBOURS = 0.02  # share of the training images; 1 % to 7 % of HAM10000 are as good, 0.3 % worse
FEWEST_NEIGHBOURS = 10
BLOCK = 16_000_000  # distances at a time: 64 MB


@dataclass(frozen=True, eq=False)
class OutlierScorer:
    """A distance to the training images, larger for what is less like them, and a threshold.

    `threshold` is the quantile `level` of the scores of validation images: of images like those,
    1 - `level` are flagged.
    """

    method: str
    level: float
    threshold: float
    tensors: dict[str, np.ndarray]

    @classmethod
    def fit(
        cls,
        train: ArrayLike,
        truth: ArrayLike,
        valid: ArrayLike,
        *,
        method: str = METHOD,
        level: float = LEVEL,
    ) -> "OutlierScorer":
        """Learn what training features (n, F) of classes (n,) look like; valid is (m, F).

        'mahalanobis' is the distance to the nearest class mean under the covariance within
        classes (Lee et al. 2018, arXiv:1807.03888), 'relative' that less the distance to the mean
        of all (Ren et al. 2021, arXiv:2106.09022), both covariances shrunk (Ledoit and Wolf 2004,
        doi:10.1016/S0047-259X(03)00096-4); 'knn' the distance to the k-th nearest training image,
        all features of length 1 (Sun et al. 2022, arXiv:2204.06507), k 2 % of them, at least 10.
        Raises `LesionfastError` for an unknown method, features that do not fit, and too few
        images.
        """
        train, valid = as_features(train), as_features(valid)
        codes = np.unique(np.asarray(truth), return_inverse=True)[1]
        check_fit(train, codes, valid, method, level)
        learn = learn_neighbours if method == "knn" else learn_gaussians
        scorer = cls(method, level, float("nan"), learn(train, codes))
        threshold = float(np.quantile(scorer.score(valid), level))
        return cls(method, level, threshold, scorer.tensors)

    @classmethod
    def fit_split(
        cls,
        df: "pd.DataFrame",
        features: "pd.DataFrame",
        *,
        method: str = METHOD,
        level: float = LEVEL,
    ) -> "OutlierScorer":
        """Learn from the training images of a dataset, with the threshold of its validation.

        `df` has image_id, target and split; `features` (n, F) are by image id, and images without
        are left out. Raises what `fit` does.
        """
        df = df[df["image_id"].isin(features.index)]
        train, valid = (df[df["split"] == name] for name in ("train", "valid"))
        truth = train["target"].to_numpy(str)
        parts = features.loc[train["image_id"]], truth, features.loc[valid["image_id"]]
        return cls.fit(*parts, method=method, level=level)

    def score(self, features: ArrayLike) -> np.ndarray:
        """Return how unlike the training images each of features (n, F) is, float64 (n,)."""
        features = as_features(features)
        first = self.tensors["train" if self.method == "knn" else "means"]
        width, step = first.shape[1], max(1, BLOCK // len(first))
        if features.shape[1] != width:
            raise LesionfastError(
                f"the features have {features.shape[1]} columns, those of the training images "
                f"{width}. Pass features of the same run."
            )
        measure = MEASURES[self.method]
        parts = [
            measure(features[start : start + step], self.tensors)
            for start in range(0, len(features), step)
        ]
        return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)

    @property
    def width(self) -> int:
        """How many numbers the features of an image are."""
        return self.tensors["train" if self.method == "knn" else "means"].shape[1]

    def flag(self, features: ArrayLike) -> np.ndarray:
        """Return which of features (n, F) are above the threshold, bool (n,)."""
        return self.score(features) > self.threshold

    def save(self, path: Path) -> Path:
        """Write it as safetensors, float32 (neighbours float16)."""
        told = {"method": self.method, "level": self.level, "threshold": self.threshold}
        header = {"outliers": json.dumps(told)}
        kinds = {"train": np.float16}
        tensors = {k: v.astype(kinds.get(k, np.float32)) for k, v in self.tensors.items()}
        save_file(tensors, path, header)
        return path

    @classmethod
    def load(cls, path: Path) -> "OutlierScorer":
        """Read what `save` wrote; raises `LesionfastError` if it is not there or broken."""
        if not path.is_file():
            raise LesionfastError(
                f"there is no {path}. Make it: lesionfast interpret {path.parent}"
            )
        advice = f"If it is in a run: lesionfast interpret {path.parent}; else copy it again."
        with damage_explained(path, advice), safe_open(path, framework="np") as file:
            told = json.loads(file.metadata()["outliers"])
            check_shape(told, {"method": METHODS, "level": float, "threshold": float})
            names = file.keys()
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in names}
            found = cls(told["method"], told["level"], told["threshold"], tensors)
            found.score(np.zeros((1, found.width), np.float32))  # the tensors belong together
            return found


def learn_neighbours(train: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the training features (n, F) with length 1, rounded as they are saved."""
    return {"train": np.ascontiguousarray(unit(train), np.float16).astype(np.float32)}


def learn_gaussians(train: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Return class means (k, F), the mean of all (1, F), and what whitens each, (F, F)."""
    means = np.stack([train[codes == code].mean(axis=0) for code in range(codes.max() + 1)])
    mean = train.mean(axis=0, keepdims=True)
    found = {
        "means": means,
        "whiten": whitening(train - means[codes]),
        "mean": mean,
        "whiten_all": whitening(train - mean),
    }
    return {name: np.ascontiguousarray(each, np.float32) for name, each in found.items()}


def whitening(centred: np.ndarray) -> np.ndarray:
    """Return W (F, F) with W W' the inverse of the shrunk covariance of centred features."""
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(centred.astype(np.float64), assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(np.maximum(values, 1e-10 * values.max()))


def to_neighbour(features: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Return the distance (n,) to the k-th nearest training image on the unit sphere."""
    train = tensors["train"]
    cosine = unit(features) @ train.T
    k = min(max(FEWEST_NEIGHBOURS, round(NEIGHBOURS * len(train))), len(train))
    nearest = np.partition(cosine, len(train) - k, axis=1)[:, len(train) - k]
    return np.sqrt(np.maximum(2 - 2 * nearest, 0))


def to_class(features: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Return the squared Mahalanobis distance (n,) to the nearest class mean."""
    return squared_distances(features, tensors["means"], tensors["whiten"]).min(axis=1)


def relative_to_all(features: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Return the squared distance (n,) to the nearest class mean less that to the mean of all."""
    background = squared_distances(features, tensors["mean"], tensors["whiten_all"])[:, 0]
    return to_class(features, tensors) - background


MEASURES = {"knn": to_neighbour, "mahalanobis": to_class, "relative": relative_to_all}


def squared_distances(features: np.ndarray, means: np.ndarray, whiten: np.ndarray) -> np.ndarray:
    """Return squared distances (n, k) of features (n, F) to means (k, F) once whitened."""
    differences = features @ whiten
    centres = means @ whiten
    return np.stack([((differences - each) ** 2).sum(axis=1) for each in centres], axis=1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (n, F) with length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def as_features(features: ArrayLike) -> np.ndarray:
    """Return features as float32 (n, F); raises `LesionfastError` if they are not finite."""
    found = np.asarray(features, dtype=np.float32)
    if found.ndim != 2 or not np.isfinite(found).all():
        raise LesionfastError(
            f"features must be finite numbers of shape (images, features); found {found.shape} "
            f"with {int((~np.isfinite(found)).sum())} that are not finite. "
            "Pass what the backbone gave."
        )
    return found


def check_fit(
    train: np.ndarray, codes: np.ndarray, valid: np.ndarray, method: str, level: float
) -> None:
    """Raise `LesionfastError` unless all of it fits together."""
    if method not in METHODS:
        raise LesionfastError(
            f"there is no outlier score '{method}'.{did_you_mean(method, METHODS)} "
            f"Choose one of: {', '.join(METHODS)}."
        )
    if not 0 < level < 1:
        raise LesionfastError(f"level is {level}; type a share between 0 and 1, such as 0.95.")
    if len(train) != len(codes) or train.shape[1] != valid.shape[1]:
        raise LesionfastError(
            f"{len(train)} training features do not fit {len(codes)} classes and validation "
            f"features of {valid.shape[1]} columns instead of {train.shape[1]}. "
            "Pass those of one run."
        )
    if len(train) < 2 or not len(valid):
        raise LesionfastError(
            f"{len(train)} training and {len(valid)} validation images are too few. "
            "Pass 2 and 1 or more."
        )
