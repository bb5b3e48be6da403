"""OOD score: how unlike the training images an image is, by its features and its texture."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lesionfast.errors import LesionfastError

LEVEL = 0.95  # share of the validation images that are below the threshold
RIDGE = 0.001  # of the mean variance, added to each: fewer images than features are enough
LEAST_SPREAD = 1e-3
FEWEST_VALID = 20  # validation images: of 20, one is above the threshold
GRID = 56  # pixels a side, about, at which texture is looked at: of any size of image the same
DARK = 8.0  # added before the logarithm: the noise of black does not count
FLAT = 1e-3
# At 1, 2, 4 and 8 pixels of the grid: lightness (0), and two differences of colour (1, 2), which
# JPEG keeps at coarse scales alone.
CHANNELS = (slice(0, 1), slice(0, 1), slice(0, 3), slice(1, 3))
NEIGHBOURS = 0.02  # share of the training images
FEWEST_NEIGHBOURS = 10
BLOCK = 16_000_000  # distances at a time: 64 MB
PICTURES = 256  # at a time


@dataclass(frozen=True, eq=False)
class Distance:
    """The Mahalanobis distance to the training images (Lee et al. 2018, arXiv:1807.03888).

    `mean` (F,) and `whitening` (F, F) are of training images, float32. The logarithm of a distance
    is given in `spread`s from `centre`, both of validation images.
    """

    mean: np.ndarray
    whitening: np.ndarray
    centre: float
    spread: float

    @classmethod
    def fit(cls, train: np.ndarray, valid: np.ndarray) -> "Distance":
        """Learn from vectors of training (n, F) and of validation images (m, F)."""
        mean = train.mean(axis=0, dtype=np.float64)
        centred = train - mean.astype(np.float32)
        covariance = (centred.T @ centred).astype(np.float64) / max(len(train) - 1, 1)
        ridge = max(RIDGE * float(np.trace(covariance)) / len(mean), 1e-12)
        root = np.linalg.cholesky(covariance + ridge * np.eye(len(mean)))
        whitening = np.linalg.inv(root).T.astype(np.float32)
        plain = cls(mean.astype(np.float32), np.ascontiguousarray(whitening), 0.0, 1.0)
        logs = plain.measure(valid)
        return cls(plain.mean, plain.whitening, float(logs.mean()), float(logs.std()))

    def measure(self, vectors: np.ndarray) -> np.ndarray:
        """Return how far vectors (n, F) are, float64 (n,); `LesionfastError` for another F."""
        if vectors.shape[1] != len(self.mean):
            raise LesionfastError(
                f"the OOD score is of {len(self.mean)} numbers an image, and images of this size "
                f"have {vectors.shape[1]}. It belongs to another model: copy the model again."
            )
        far = np.linalg.norm((vectors - self.mean) @ self.whitening, axis=1).astype(np.float64)
        return (np.log(np.maximum(far, 1e-12)) - self.centre) / max(self.spread, LEAST_SPREAD)


@dataclass(frozen=True, eq=False)
class OODScorer:
    """How far features and texture are from those of the training images, and a threshold.

    The score is the sum of both distances. `threshold` is the quantile `level` of the scores of
    validation images: of images like those, 1 - `level` score higher.
    """

    features: Distance
    texture: Distance
    threshold: float
    level: float = LEVEL

    @classmethod
    def fit(
        cls,
        train: ArrayLike,
        valid: ArrayLike,
        train_pixels: np.ndarray,
        valid_pixels: np.ndarray,
    ) -> "OODScorer":
        """Learn from features of training (n, F) and validation images (m, F), and from pixels.

        The pixels, uint8 (…, size, size, 3), are those of some training images, which may be fewer,
        and of the validation images. Raises `LesionfastError` for features that are not finite, and
        for too few images.
        """
        train, valid = as_features(train), as_features(valid)
        if min(len(train), len(train_pixels)) < 2 or len(valid) < FEWEST_VALID:
            raise LesionfastError(
                "an OOD score needs the features of at least 2 training images and "
                f"{FEWEST_VALID} validation images; found {len(train)} and {len(valid)}. Use a run "
                "on more images."
            )
        textures = describe_texture(train_pixels), describe_texture(valid_pixels)
        plain = cls(Distance.fit(train, valid), Distance.fit(*textures), float("nan"))
        scores = plain.score(valid, valid_pixels)
        return cls(plain.features, plain.texture, float(np.quantile(scores, LEVEL)))

    @property
    def width(self) -> int:
        """The number of features."""
        return len(self.features.mean)

    @property
    def parts(self) -> dict[str, Distance]:
        """Both distances, by name."""
        return {"features": self.features, "texture": self.texture}

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """All arrays, by name."""
        return {
            f"{name}_{key}": getattr(distance, key)
            for name, distance in self.parts.items()
            for key in ("mean", "whitening")
        }

    def score(self, features: ArrayLike, pixels: np.ndarray) -> np.ndarray:
        """Return how unlike the training images each image is, float64 (n,).

        `features` are (n, F), `pixels` uint8 (n, size, size, 3), as the model sees them.
        """
        features = as_features(features, self.width)
        return self.features.measure(features) + self.texture.measure(describe_texture(pixels))


@dataclass(frozen=True, eq=False)
class NeighbourScorer:
    """The OOD score that earlier versions fitted: the distance to the k-th nearest training image.

    `train` are the features of the training images, float32 (n, F) of length 1; k is 2 % of them
    and at least 10 (Sun et al. 2022, arXiv:2204.06507).
    """

    train: np.ndarray
    threshold: float
    level: float = LEVEL

    @property
    def width(self) -> int:
        """The number of features."""
        return self.train.shape[1]

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """All arrays, by name."""
        return {"train": self.train}

    def score(self, features: ArrayLike, pixels: np.ndarray | None = None) -> np.ndarray:
        """Return how unlike the training images each of features (n, F) is, float64 (n,)."""
        features = as_features(features, self.width)
        n, scores = len(self.train), np.zeros(len(features))
        k = min(max(FEWEST_NEIGHBOURS, round(NEIGHBOURS * n)), n)
        step = max(1, BLOCK // n)
        for start in range(0, len(features), step):
            cosine = unit(features[start : start + step]) @ self.train.T
            nearest = np.partition(cosine, n - k, axis=1)[:, n - k]
            scores[start : start + step] = np.sqrt(np.maximum(2 - 2 * nearest, 0))
        return scores


Scorer = OODScorer | NeighbourScorer


def describe_texture(pixels: np.ndarray) -> np.ndarray:
    """Return how much neighbours differ in images uint8 (n, H, W, 3), fine to coarse, (n, T).

    They are logarithms of mean and root mean square of differences of logarithms, down and across:
    exposure and white balance hardly change them. Dermoscopic images are smooth at the finest
    scales, and differ from photographs of skin in all.
    """
    starts = range(0, max(len(pixels), 1), PICTURES)
    return np.concatenate([describe_pictures(pixels[at : at + PICTURES]) for at in starts])


def describe_pictures(pixels: np.ndarray) -> np.ndarray:
    """Return the texture (n, T) of few images; see `describe_texture`."""
    logs = np.log(shrink(pixels) + DARK)
    red, green, blue = np.moveaxis(logs, -1, 0)
    maps = np.stack([(red + green + blue) / 3, red - green, green - blue], axis=1)
    found = []
    for channels in CHANNELS:
        if min(maps.shape[2:]) < 2:
            break
        for axis in (2, 3):
            step = np.abs(np.diff(maps[:, channels], axis=axis))
            found += [step.mean(axis=(2, 3)), np.sqrt(np.square(step).mean(axis=(2, 3)))]
        maps = halve(maps)
    return np.log(np.concatenate(found, axis=1) + FLAT)


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Return images uint8 (n, H, W, 3) at about `GRID` pixels a side, means, float32."""
    by = max(1, round(min(pixels.shape[1:3]) / GRID))
    height, width = (side // by * by for side in pixels.shape[1:3])
    total = np.zeros((len(pixels), height // by, width // by, 3), np.float32)
    for down in range(by):
        for across in range(by):
            total += pixels[:, down:height:by, across:width:by]
    return total / by**2


def halve(maps: np.ndarray) -> np.ndarray:
    """Return maps (n, c, h, w) at half their size, means of four."""
    height, width = (side // 2 * 2 for side in maps.shape[2:])
    even, odd = maps[:, :, 0:height:2, :width], maps[:, :, 1:height:2, :width]
    rows = even + odd
    return (rows[..., 0::2] + rows[..., 1::2]) / 4


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (…, F) with length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def as_features(features: ArrayLike, width: int | None = None) -> np.ndarray:
    """Return features as float32 (n, F).

    Raises `LesionfastError` if they are not finite, or others than `width`.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise LesionfastError(
            f"features must be finite numbers of shape (images, features); found {features.shape} "
            f"with {int((~np.isfinite(features)).sum())} that are not finite. "
            "Pass what the backbone returned."
        )
    if width not in (None, features.shape[1]):
        raise LesionfastError(
            f"the features have {features.shape[1]} columns, those of the training images "
            f"{width}. Pass features of the same run."
        )
    return features
