"""Service: one image at a time from many clients, within limits, and nothing of it kept."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from lesionfast.data.decoding import FORMATS, decode, fit_square, known_formats
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.explain import most_alike
from lesionfast.evaluation.features import read_features
from lesionfast.runs import Run
from lesionfast.serving.bundle import WEIGHTS
from lesionfast.serving.predictor import Predictor, located

logger = logging.getLogger("lesionfast")

MOST_BYTES, MOST_PIXELS = 20 * 10**6, 50 * 10**6
SIMILAR = 4  # training lesions shown


class TooLarge(LesionfastError):
    """An image beyond the limits."""


class NoImage(LesionfastError):
    """Bytes that give no picture."""


@dataclass(frozen=True)
class Answer:
    """What is said of one image: the row of `Predictor`, and pictures where there are any.

    `seen` is what the model saw, uint8 (size, size, 3), `heat` in 0..1 (size, size) what speaks
    for the decision, `similar` the training lesions most like it, as of `nearest_lesions`.
    `caution` is that of `Service.caution`.
    """

    row: dict[str, Any]
    seen: np.ndarray
    heat: np.ndarray | None = None
    similar: pd.DataFrame | None = None
    left_out: list[str] = field(default_factory=list)
    caution: str = ""


class Service:
    """Answers for a model. Answers are worked out one after the other, whoever asks."""

    def __init__(self, source: str | Path | Run, device: str = "auto") -> None:
        self.path = located(source)
        self.predictor = Predictor(self.path, device=device)
        self._lock = Lock()
        self._heat: Callable | None = None
        self._dataset: pd.DataFrame | None = None

    @property
    def bundle(self) -> Any:
        """What the model needs besides its weights."""
        return self.predictor.bundle

    def row(self, data: bytes, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return what is said of the bytes of an image, as `Predictor`.

        Raises `TooLarge` above 20 MB or 50 megapixels, `NoImage` for what is no image, and
        `LesionfastError` for metadata that the model does not take.
        """
        check_limits(data)
        self.predictor.check(metadata)
        with self._lock:
            return self.predictor(data, **metadata)

    def caution(self, row: dict[str, Any]) -> str:
        """Return what to know of a row of an image whose metadata was missing, '' if nothing."""
        return self.predictor.known.caution if row["not_known"] else ""

    def answer(self, data: bytes, metadata: dict[str, Any]) -> Answer:
        """Return that with what speaks for the decision and similar lesions, as far as there are.

        What is left out is said. Raises what `row` does.
        """
        row = self.row(data, metadata)
        size, resize = self.bundle.size, self.bundle.model["resize"]
        found, left_out = {}, []
        with self._lock:  # a large picture takes much memory to decode
            pixels = np.array(fit_square(decode(data, size), size, resize))
            for name, find in (("heat", self.heat), ("similar", self.similar)):
                try:
                    found[name] = find(pixels, metadata, row["decision"])
                except LesionfastError as error:
                    left_out.append(str(error))
        return Answer(row, pixels, **found, left_out=left_out, caution=self.caution(row))

    def heat(self, seen: np.ndarray, metadata: dict[str, Any], decision: str) -> np.ndarray:
        """Return the Grad-CAM for the decision, float32 (size, size) in 0..1."""
        if self.path.suffix == ".onnx":
            raise LesionfastError("No heat map: an ONNX file has no gradients.")
        if self._heat is None:
            self._heat = heat_of(self.predictor, self.path)
        cleaned = self.predictor.known.encode([self.predictor.known.clean(metadata)])
        return self._heat(seen, cleaned, self.bundle.classes.index(decision))

    def similar(self, seen: np.ndarray, metadata: dict[str, Any], decision: str) -> pd.DataFrame:
        """Return the training lesions that the model finds most like an image."""
        run = Run(self.path)
        if not (self.path / "config.json").is_file():
            raise LesionfastError("No similar lesions: an exported model has no training images.")
        if self._dataset is None:
            from lesionfast.data.dataset import load_dataset

            self._dataset = load_dataset(run.config, split=run.file("split.csv"))
        none = np.zeros((1, self.bundle.encoder.width), np.float32)
        _, features = self.predictor.engine(seen[None], none)
        return most_alike(read_features(run), self._dataset, features, [""], SIMILAR)[0]


def heat_of(predictor: Predictor, path: Path) -> Callable[[np.ndarray, np.ndarray, int], Any]:
    """Return a function of pixels, metadata and a class number that gives the Grad-CAM."""
    import torch

    from lesionfast.evaluation.attribution import as_images, grad_cam, require_image
    from lesionfast.models.fusion import model_of

    weights = path / ("weights.safetensors" if (path / "config.json").is_file() else WEIGHTS)
    model = model_of(predictor.bundle.model, weights, "Copy the whole folder again.")
    require_image(model)

    def heat(seen: np.ndarray, metadata: np.ndarray, code: int) -> np.ndarray:
        images, numbers = as_images(seen[None]), torch.from_numpy(metadata)
        return grad_cam(model, images, numbers, torch.tensor([code]))[0].numpy()

    return heat


def check_limits(data: bytes) -> None:
    """Raise `TooLarge` or `NoImage` by the size and the header, before anything is decoded."""
    if len(data) > MOST_BYTES:
        raise TooLarge(
            f"the image has {len(data) / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} MB are taken. "
            "Save it smaller."
        )
    try:
        width, height = Image.open(BytesIO(data), formats=FORMATS).size
    except Image.DecompressionBombError:
        width = height = MOST_PIXELS
    except UnidentifiedImageError:
        raise NoImage(
            f"this is no picture in a format that is read ({known_formats()}). Choose a photograph."
        ) from None
    except Exception as error:  # decoders raise anything on broken bytes
        raise NoImage(f"this picture can't be read: {error}. Choose another file.") from None
    if width * height > MOST_PIXELS:
        raise TooLarge(
            f"the image has more than {MOST_PIXELS / 1e6:.0f} megapixels. Save it smaller."
        )
