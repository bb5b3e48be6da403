"""Service: one model that answers the page and the API, one image after the other."""

from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from lesionfast.data.images import FORMATS, NOT_A_PICTURE, decode, fit_square
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.features import rank_by_features, read_features
from lesionfast.runs import Run
from lesionfast.serving.bundle import Bundle
from lesionfast.serving.predictor import Predictor, locate

NOTE = "Not a medical device: for research, not for diagnosis."
MOST_BYTES, MOST_PIXELS = 20 * 10**6, 50 * 10**6
SIMILAR = 4  # training lesions shown


class TooLarge(LesionfastError):
    """An image beyond the limits."""


class NoImage(LesionfastError):
    """Bytes that are not an image."""


@dataclass(frozen=True)
class Answer:
    """The prediction of one image, and pictures as far as there are any.

    `row` is that of `Predictor`, `seen` what the model saw, uint8 (size, size, 3), `heat` the
    Grad-CAM of the decision in 0..1 (size, size), `similar` the most similar training lesions, as
    of `nearest_lesions`; `left_out` says why a picture is missing.
    """

    row: dict[str, Any]
    seen: np.ndarray
    heat: np.ndarray | None = None
    similar: pd.DataFrame | None = None
    left_out: list[str] = field(default_factory=list)
    caution: str = ""


class Service:
    """Predicts images for many clients, one after the other."""

    def __init__(self, source: str | Path | Run, device: str = "auto") -> None:
        self.path = locate(source)
        self.predictor = Predictor(self.path, device=device)
        self.is_run = (self.path / "config.json").is_file()
        self._lock = Lock()

    @property
    def bundle(self) -> Bundle:
        """All that the model needs besides its weights."""
        return self.predictor.bundle

    def row(self, data: bytes, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return the prediction of the bytes of an image, as `Predictor`.

        Raises `TooLarge` above 20 MB or 50 megapixels, `NoImage` for bytes that are not an image,
        and `LesionfastError` for metadata that the model does not take.
        """
        check_limits(data)
        self.predictor.check(metadata)
        with self._lock:
            return self.predictor(data, **metadata)

    def caution(self, row: dict[str, Any]) -> str:
        """Return the caution about a row whose metadata was missing, '' if there is none."""
        return self.predictor.metadata.caution if row["not_known"] else ""

    def answer(self, data: bytes, metadata: dict[str, Any]) -> Answer:
        """Return the prediction with its Grad-CAM and similar lesions; raises what `row` does."""
        row = self.row(data, metadata)
        size, resize = self.bundle.size, self.bundle.model["resize"]
        pictures, left_out = {}, []
        with self._lock:  # a large image takes much memory to decode
            seen = np.array(fit_square(decode(data, size), size, resize))
            for name, find in {
                "heat": lambda: self.heat(seen, metadata, row["decision"]),
                "similar": lambda: self.similar(seen),
            }.items():
                try:
                    pictures[name] = find()
                except LesionfastError as error:
                    left_out.append(str(error))
        return Answer(row, seen, **pictures, left_out=left_out, caution=self.caution(row))

    def heat(self, seen: np.ndarray, metadata: dict[str, Any], decision: str) -> np.ndarray:
        """Return the Grad-CAM of the decision, float32 (size, size) in 0..1."""
        if self.path.suffix == ".onnx":
            raise LesionfastError("No heat map: an ONNX file has no gradients.")
        import torch

        from lesionfast.evaluation.explain import grad_cam
        from lesionfast.models.inference import as_images

        engine, reader = self.predictor.engine, self.predictor.metadata
        numbers = torch.from_numpy(reader.encode([reader.read(metadata)]))
        target = torch.tensor([self.bundle.classes.index(decision)])
        given = (each.to(engine.device) for each in (as_images(seen[None]), numbers, target))
        return grad_cam(engine.model, *given)[0].cpu().numpy()

    def similar(self, seen: np.ndarray) -> pd.DataFrame:
        """Return the training lesions that the model finds most similar to an image."""
        if not self.is_run:
            raise LesionfastError("No similar lesions: an exported model has no training images.")
        features, dataset = self._training_images
        none = np.zeros((1, self.bundle.encoder.width), np.float32)
        _, own = self.predictor.engine(seen[None], none)
        return rank_by_features(features, dataset, own, [""], SIMILAR)[0]

    @cached_property
    def _training_images(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        from lesionfast.data.split import load_dataset

        run = Run(self.path)
        return read_features(run), load_dataset(run.config, split=run.file("split.csv"))


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
        raise NoImage(f"this is {NOT_A_PICTURE}. Choose a photograph.") from None
    except Exception as error:  # decoders raise anything on broken bytes
        raise NoImage(f"this picture can't be read: {error}. Choose another file.") from None
    if width * height > MOST_PIXELS:
        raise TooLarge(
            f"the image has more than {MOST_PIXELS / 1e6:.0f} megapixels. Save it smaller."
        )
