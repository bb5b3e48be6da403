"""The HTTP API beside the page: POST /predict, GET /model, and their schema at /openapi.json."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, Field
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from lesionfast.data.images import FORMATS, NOT_A_PICTURE, decode, fit_square
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.explain import most_alike
from lesionfast.evaluation.interpretation import read_features
from lesionfast.runs import Run
from lesionfast.serving.bundle import WEIGHTS, Bundle, flag_name
from lesionfast.serving.predictor import Predictor, located

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
            from lesionfast.data.split import load_dataset

            self._dataset = load_dataset(run.config, split=run.file("split.csv"))
        none = np.zeros((1, self.bundle.encoder.width), np.float32)
        _, features = self.predictor.engine(seen[None], none)
        return most_alike(read_features(run), self._dataset, features, [""], SIMILAR)[0]


def heat_of(predictor: Predictor, path: Path) -> Callable[[np.ndarray, np.ndarray, int], Any]:
    """Return a function of pixels, metadata and a class number that gives the Grad-CAM."""
    import torch

    from lesionfast.evaluation.attribution import as_images, grad_cam, require_image
    from lesionfast.models.fusion import read_model

    weights = path / ("weights.safetensors" if (path / "config.json").is_file() else WEIGHTS)
    model = read_model(predictor.bundle.model, weights, "Copy the whole folder again.")
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
        raise NoImage(f"this is {NOT_A_PICTURE}. Choose a photograph.") from None
    except Exception as error:  # decoders raise anything on broken bytes
        raise NoImage(f"this picture can't be read: {error}. Choose another file.") from None
    if width * height > MOST_PIXELS:
        raise TooLarge(
            f"the image has more than {MOST_PIXELS / 1e6:.0f} megapixels. Save it smaller."
        )


NOTE = "Not a medical device: for research, not for diagnosis."
FORM_BYTES = 100_000  # that a form has around its image
MOST_FORM = MOST_BYTES + FORM_BYTES
MOST_HELD = 10 * MOST_FORM  # bytes of all uploads that are in memory at once
MOST_FIELDS, MOST_FIELD_BYTES = 200, 1000
MOST_WAITING = 16  # images that are answered or wait for it: the model takes one after the other
MOST_SECONDS = 60  # that an upload may take

T = TypeVar("T")


class Model(BaseModel):
    """What answers."""

    name: str
    classes: list[str]
    metadata: list[str] = Field(description="form fields that say what is known of the person")
    split_sha256: str
    note: str = NOTE


class Prediction(BaseModel):
    """What is said of one image; what the model has no choice of is null."""

    decision: str
    rule: str
    probabilities: dict[str, float] = Field(
        description="of the model, by class; rule, flags, set and referral are of these"
    )
    calibrated: dict[str, float] | None = Field(description="to be read as chances, by class")
    flags: dict[str, bool] = Field(description="at the thresholds of validation")
    prediction_set: list[str] | None = Field(description="classes, the most probable first")
    coverage: float | None
    refer: bool | None
    outlier_score: float | None
    outlier: bool | None
    not_known: list[str]
    caution: str = Field(description="what missing metadata may do to this model; '' if nothing")
    note: str = NOTE


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


class TooSlow(LesionfastError):
    """An upload that does not end."""


class Busy(LesionfastError):
    """More uploads than are taken at once."""


class MemoryParser(MultiPartParser):
    """Keeps a form in memory, where the parser of Starlette writes large files to the disk."""

    spool_max_size = MOST_FORM + 1


class Uploads:
    """Takes the images of many clients, within limits; nothing is written to the disk.

    `held` are the bytes of all uploads in memory, `waiting` the images that wait for an answer.
    """

    def __init__(self) -> None:
        self.held = self.waiting = 0

    async def answer(self, request: Request, work: Callable[[bytes, dict[str, str]], T]) -> T:
        """Return what `work` makes of the image and the metadata of a form.

        Raises `TooLarge`, `TooSlow` and `Busy` beyond the limits, as soon as one is passed, and
        `LesionfastError` for what is no form with one image.
        """
        held = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal held
            async for chunk in request.stream():
                held += len(chunk)
                self.held += len(chunk)
                self.check(held)
                yield chunk

        try:
            image, metadata = await read_form(request, counted())
            return await self.work(work, image, metadata)
        finally:
            self.held -= held

    def check(self, held: int) -> None:
        """Raise `TooLarge` or `Busy` if an upload, or all of them, hold too many bytes."""
        if held > MOST_FORM:
            raise too_large()
        if self.held > MOST_HELD:
            raise busy()

    async def work(self, work: Callable[..., T], *given: Any) -> T:
        """Return what `work` makes of an image, in a thread; raises `Busy` if too many wait."""
        if self.waiting >= MOST_WAITING:
            raise busy()
        self.waiting += 1
        try:
            return await run_in_threadpool(work, *given)
        finally:
            self.waiting -= 1


async def read_form(request: Request, stream: AsyncIterator[bytes]) -> tuple[bytes, dict[str, str]]:
    """Return the image and the metadata of a form, what is empty left out.

    The name of the file is never used. Raises `LesionfastError` for what is no such form.
    """
    size = request.headers.get("content-length", "")
    if len(size) > len(str(MOST_FORM)) or (size.isdecimal() and int(size) > MOST_FORM):
        raise too_large()
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise LesionfastError("this is no form. Send the image as multipart/form-data.")
    limits = {"max_files": 1, "max_fields": MOST_FIELDS, "max_part_size": MOST_FIELD_BYTES}
    try:
        async with asyncio.timeout(MOST_SECONDS):
            form = await MemoryParser(request.headers, stream, **limits).parse()
    except TimeoutError:
        raise TooSlow(f"the upload took longer than {MOST_SECONDS} s. Send it again.") from None
    except ClientDisconnect:
        raise LesionfastError("the connection ended before the upload did.") from None
    except (MultiPartException, ValueError) as error:
        reason = getattr(error, "message", "") or str(error)
        raise LesionfastError(
            f"the form can't be read: {reason.rstrip('.')}. Send one image, and short fields."
        ) from None
    return await parts_of(form)


async def parts_of(form: FormData) -> tuple[bytes, dict[str, str]]:
    """Return the bytes of the image, and the fields that are not empty; each at most once."""
    names = Counter(name for name, _ in form.multi_items())
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise LesionfastError(f"the form has {twice[0]} more than once. Send it once.")
    image = form.get("image")
    if not isinstance(image, UploadFile):
        raise LesionfastError("the form has no image. Send a file as the field 'image'.")
    metadata = {name: value for name, value in form.items() if name != "image" and value != ""}
    return await image.read(), metadata


def too_large() -> TooLarge:
    """Return the error of a form that is too large."""
    return TooLarge(f"at most {MOST_BYTES // 10**6} MB are taken. Save the image smaller.")


def busy() -> Busy:
    """Return the error of a service that has enough to do."""
    return Busy("too many images are asked about at once. Try again in a few seconds.")


STATUS = {TooSlow: 408, TooLarge: 413, NoImage: 415, Busy: 503}
PROBLEMS = {
    403: {"model": Problem, "description": "asked by another site, or under another name"},
    408: {"model": Problem, "description": "the upload took longer than a minute"},
    413: {"model": Problem, "description": "above 20 MB or 50 megapixels"},
    415: {"model": Problem, "description": "no image in a format that is read"},
    422: {"model": Problem, "description": "no image, or metadata that the model does not take"},
    503: {"model": Problem, "description": "too many images at once; see Retry-After"},
}


def build_api(service: Service, uploads: Uploads) -> FastAPI:
    """Return the API of a service."""
    bundle, no_pages = service.bundle, {"docs_url": None, "redoc_url": None}
    api = FastAPI(title="lesionfast", description=NOTE, redirect_slashes=False, **no_pages)

    @api.exception_handler(LesionfastError)
    async def explain(request: Request, error: LesionfastError) -> JSONResponse:
        headers = {"Retry-After": "2"} if isinstance(error, Busy) else None
        return JSONResponse({"error": str(error)}, STATUS.get(type(error), 422), headers)

    @api.get("/model")
    def model() -> Model:
        """Say which model answers."""
        return Model(
            name=bundle.name,
            classes=bundle.classes,
            metadata=bundle.encoder.columns,
            split_sha256=bundle.split_sha256,
        )

    @api.post("/predict", responses=PROBLEMS, openapi_extra=fields_of(bundle))
    async def predict(request: Request) -> Prediction:
        """Say what the model makes of an image; nothing of it is kept."""
        row = await uploads.answer(request, service.row)
        return prediction_of(bundle, row, service.caution(row))

    return api


def fields_of(bundle: Bundle) -> dict[str, Any]:
    """Return the schema of the form: the image, and a field a metadata column."""
    columns = {
        each["name"]: {"type": "string", **({"enum": each["values"]} if "values" in each else {})}
        for each in bundle.encoder.learned
    }
    image = {"image": {"type": "string", "format": "binary"}}
    schema = {"type": "object", "required": ["image"], "properties": image | columns}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def prediction_of(bundle: Bundle, row: dict[str, Any], caution: str) -> Prediction:
    """Return a row of `Predictor` as the API says it."""

    def by_class(prefix: str) -> dict[str, float]:
        return {name: row[f"{prefix}_{name}"] for name in bundle.classes}

    return Prediction(
        decision=row["decision"],
        rule=row["rule"],
        probabilities=by_class("p"),
        calibrated=by_class("calibrated") if bundle.calibrator else None,
        flags={flag_name(point): row[flag_name(point)] for point in bundle.points},
        prediction_set=row["prediction_set"] if bundle.conformal else None,
        coverage=bundle.conformal.coverage if bundle.conformal else None,
        refer=row.get("refer"),
        outlier_score=row.get("outlier_score"),
        outlier=row.get("outlier"),
        not_known=row["not_known"],
        caution=caution,
    )
