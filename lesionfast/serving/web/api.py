"""Service: one model that answers the page and the HTTP API (POST /predict, GET /model)."""

import logging
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from lesionfast.console import printable
from lesionfast.data.columns.values import is_age
from lesionfast.data.encoder import BadMetadata
from lesionfast.data.formats.pictures import decode
from lesionfast.data.images import fit_square
from lesionfast.data.sources import return_memory
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.features import rank_by_features, read_features
from lesionfast.reporting.advice.limits import Limits, find_limits
from lesionfast.reporting.advice.sentences import malignant_first, refuse, say, translate
from lesionfast.run import Run
from lesionfast.serving.bundle import Bundle, flag_column
from lesionfast.serving.monitoring.log import PredictionLog
from lesionfast.serving.predictor import Predictor, locate
from lesionfast.serving.reasons import list_reasons, list_row_limits
from lesionfast.serving.web.uploads import (
    Busy,
    NoImage,
    Refusal,
    TooLarge,
    TooSlow,
    Uploads,
    check_limits,
)

logger = logging.getLogger("lesionfast")

NOTE = "Not a medical device: for research, not for diagnosis."
SIMILAR = 4  # training lesions shown


class Unlogged(Refusal):
    """An answer that is not given, as it can't be kept."""


class ServedLog(PredictionLog):
    """A log whose path, and why it can't be written, only the terminal of the page is told."""

    def append(self, *lines: Any) -> None:
        """Append lines as `PredictionLog`; raises `Unlogged` for a full disk and the like."""
        try:
            super().append(*lines)
        except LesionfastError as error:
            logger.error("Nothing is predicted until the log can be written: %s", error)
            raise Unlogged(refuse("log")) from None


@dataclass(frozen=True)
class Answer:
    """The prediction of one image, and pictures as far as there are any.

    `row` is that of `Predictor`, `seen` what the model saw, uint8 (size, size, 3), `focus` the
    class that the advice is about, `heat` its Grad-CAM in 0..1 (size, size), `similar` the most
    similar training lesions, as of `nearest_lesions`; `left_out` says why a picture is missing.
    """

    row: dict[str, Any]
    seen: np.ndarray
    left_out: list[str]
    caution: str
    focus: str | None = None
    heat: np.ndarray | None = None
    similar: pd.DataFrame | None = None


class Service:
    """Predicts images for many clients, one after the other."""

    def __init__(self, source: str | Path | Run, device: str = "auto", **stated: Any) -> None:
        """Open a model; `stated` are `cost`, `prior` and `log`, as in `Predictor`."""
        self.path = locate(source)
        self.predictor = Predictor(self.path, device=device, **stated)
        if self.predictor.log:
            self.predictor.log = ServedLog(**vars(self.predictor.log))
        self.bundle = self.predictor.bundle
        self.is_run = (self.path / "config.json").is_file()
        self.is_as_tested = stated.get("cost") is None and stated.get("prior") is None
        self._lock, self._look = Lock(), Lock()

    def row(self, data: bytes, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return the prediction of the bytes of an image, as `Predictor.predict_one`.

        Raises `TooLarge` above 20 MB or 50 megapixels, `NoImage` for bytes that are not an image,
        and `LesionfastError` for metadata that the model does not take.
        """
        try:
            with self._look:  # the head of a picture may unpack to much
                check_limits(data)
            self.predictor.check(metadata)
            with self._lock:
                return self.predictor.predict_one(data, **metadata)
        finally:
            return_memory()  # each thread that answers would keep what a picture took

    @cached_property
    def limits(self) -> Limits | None:
        """When not to rely on the model, if that is known; of a run it is measured on first use."""
        if not self.is_run:
            return self.bundle.limits
        limits = find_limits(Run(self.path))
        return limits if self.is_as_tested else limits.unmeasured()

    def measure_limits(self) -> None:
        """Measure `limits`, which may take seconds, before the first request needs it."""
        _ = self.limits

    def caution(self, row: dict[str, Any]) -> str:
        """Return the caution about a row whose metadata was missing, '' if there is none."""
        return self.predictor.metadata.caution if row["not_known"] else ""

    def answer(self, data: bytes, metadata: dict[str, Any]) -> Answer:
        """Return the prediction with its Grad-CAM and similar lesions, in the language spoken.

        Of a picture unlike the training images there is neither. Raises `Refusal`.
        """
        try:
            row = self.row(data, metadata)
        except Refusal:
            raise
        except BadMetadata as error:
            raise Refusal(refuse_metadata(error)) from None
        except LesionfastError as error:
            raise Refusal(refuse("other", reason=error)) from None
        focus, pictures, left_out = choose_focus(row, self.bundle), {}, []
        with self._lock:  # a large image takes much memory to decode
            seen = [
                np.array(fit_square(decode(data, size), size, resize))
                for size, resize in self.bundle.looks
            ]
            finders = {
                "heat": lambda: self.heat(seen, metadata, focus),
                "similar": lambda: self.similar(seen),
            }
            for name, find in finders.items() if focus else ():
                try:
                    pictures[name] = find()
                except Refusal as error:
                    left_out.append(str(error))
                except LesionfastError as error:
                    left_out.append(say("page.left_out", reason=error))
        return Answer(row, seen[0], left_out, self.describe_caution(row), focus, **pictures)

    def describe_caution(self, row: dict[str, Any]) -> str:
        """Return `caution` as a person needs it who fills in the page."""
        columns = ", ".join(map(translate, row["not_known"]))
        return say("page.favours", columns=columns) if self.caution(row) else ""

    def heat(self, seen: list[np.ndarray], metadata: dict[str, Any], name: str) -> np.ndarray:
        """Return the Grad-CAM of a class, float32 (size, size) in 0..1.

        `seen` is the image in each look of the model.
        """
        if self.path.suffix == ".onnx":
            raise Refusal(say("page.no_heat"))
        import torch

        from lesionfast.evaluation.explain import grad_cam
        from lesionfast.models.inference import as_images

        engine, reader = self.predictor.engine, self.predictor.metadata
        numbers = torch.from_numpy(reader.encode([reader.read(metadata)]))
        target = torch.tensor([self.bundle.classes.index(name)])
        images = [as_images(look[None], engine.device) for look in seen]
        given = (part.to(engine.device) for part in (numbers, target))
        return grad_cam(engine.model, images, *given)[0].cpu().numpy()

    def similar(self, seen: list[np.ndarray]) -> pd.DataFrame:
        """Return the training lesions that the model finds most similar to an image."""
        if not self.is_run:
            raise Refusal(say("page.no_similar"))
        features, dataset = self._training_images
        none = np.zeros((1, self.bundle.encoder.width), np.float32)
        _, own = self.predictor.engine([look[None] for look in seen], none)
        return rank_by_features(features, dataset, own, [""], SIMILAR)[0]

    @cached_property
    def _training_images(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        from lesionfast.data.split import load_dataset

        run = Run(self.path)
        return read_features(run), load_dataset(run.config, split=run.file("split.csv"))


def choose_focus(row: dict[str, Any], bundle: Bundle) -> str | None:
    """Return the class that the advice of a row is about: the gravest cancer, or the likely one.

    None without a decision.
    """
    judged_grave = row["refer"] and row["likely"]
    cancers = malignant_first(row["prediction_set"], bundle.classes) if judged_grave else []
    return (*cancers, row["likely"])[0]


def refuse_metadata(error: BadMetadata) -> str:
    """Return why metadata is refused, and what to type, in the language that is spoken."""
    learned, value = error.learned, error.value
    if learned is None:
        return refuse("column", columns=", ".join(error.columns))
    if learned["kind"] == "text":
        choices = ", ".join(map(translate, learned["values"]))
        return refuse("choice", column=translate(learned["name"]), value=value, choices=choices)
    example = f"{learned['mean']:.{0 if learned['scale'] > 1 else 2}f}"
    given = {"column": translate(learned["name"]), "value": value, "example": example}
    return refuse("age" if is_age(learned["name"]) else "number", **given)


class Model(BaseModel):
    """The model that answers."""

    name: str
    classes: list[str]
    metadata: list[str] = Field(description="form fields for the metadata of the person")
    split_sha256: str
    note: str = NOTE


class Details(BaseModel):
    """The statistics behind a prediction; what the model does not provide is null."""

    decision: str | None = Field(description="by the rule of the metrics")
    rule: str
    uncalibrated: dict[str, float] | None = Field(
        description="the model's own probabilities, by class; null without a decision"
    )
    flags: dict[str, bool | None] = Field(description="at the thresholds chosen on validation")
    coverage: float | None = Field(description="of the prediction set, within each class")
    costs: dict[str, float] = Field(description="of errors, which the advice weighs")
    prior: dict[str, float] | None = Field(
        description="class shares of the clinic that the probabilities are moved to"
    )
    outlier_score: float | None
    outlier: bool | None


class Prediction(BaseModel):
    """The prediction of one image."""

    advice: str = Field(description="what to do, in one sentence")
    refer: bool = Field(description="whether to have the lesion examined")
    because: list[str] = Field(description="what the advice is derived from")
    limits: list[str] = Field(
        description="when not to rely on it; first how often cancers of the test got this answer"
    )
    likely: str | None = Field(description="the most probable class; null without a decision")
    no_decision: str = Field(description="why there is no decision; '' if there is one")
    probabilities: dict[str, float] | None = Field(
        description="calibrated, by class; null without a decision"
    )
    prediction_set: list[str] = Field(
        description="classes that can't be ruled out, the most probable first"
    )
    not_known: list[str] = Field(description="the metadata that was missing")
    caution: str = Field(description="how missing metadata may affect this model; '' if it doesn't")
    details: Details
    note: str = NOTE


class Problem(BaseModel):
    """Why there is no prediction."""

    error: str


STATUS = {TooSlow: 408, TooLarge: 413, NoImage: 415, Unlogged: 500, Busy: 503}
PROBLEMS = {
    401: {"model": Problem, "description": "no token, or a wrong one, if the page asks for one"},
    403: {"model": Problem, "description": "asked by another site, or under another name"},
    408: {"model": Problem, "description": "the upload took longer than a minute"},
    413: {"model": Problem, "description": "above 20 MB or 50 megapixels"},
    415: {"model": Problem, "description": "not a picture in a supported format"},
    422: {"model": Problem, "description": "no image, or metadata that the model does not take"},
    429: {"model": Problem, "description": "too many wrong tokens; see Retry-After"},
    500: {"model": Problem, "description": "the log of predictions can't be written"},
    503: {"model": Problem, "description": "too many requests at once; see Retry-After"},
}


def build_api(service: Service, uploads: "Uploads") -> FastAPI:
    """Return the API of a service."""
    bundle, no_pages = service.bundle, {"docs_url": None, "redoc_url": None}
    api = FastAPI(title="lesionfast", description=NOTE, redirect_slashes=False, **no_pages)

    @api.exception_handler(LesionfastError)
    async def explain(request: Request, error: LesionfastError) -> JSONResponse:
        headers = Busy.HEADERS if isinstance(error, Busy) else None
        return JSONResponse({"error": printable(error)}, STATUS.get(type(error), 422), headers)

    @api.get("/model")
    def model() -> Model:
        """Return the name, the classes and the metadata of the model."""
        return Model(
            name=bundle.name,
            classes=bundle.classes,
            metadata=bundle.encoder.columns,
            split_sha256=bundle.split_sha256,
        )

    @api.post("/predict", responses=PROBLEMS, openapi_extra=describe_form(bundle))
    async def predict(request: Request) -> Prediction:
        """Predict an image; nothing of it is kept."""
        row = await uploads.answer(request, service.row)
        return await run_in_threadpool(to_prediction, service, row)

    return api


def describe_form(bundle: Bundle) -> dict[str, Any]:
    """Return the schema of the form: the image, and one field a metadata column."""
    fields = {"image": {"type": "string", "format": "binary"}}
    for learned in bundle.encoder.learned:
        values = {"enum": learned["values"]} if "values" in learned else {}
        fields[learned["name"]] = {"type": "string", **values}
    schema = {"type": "object", "required": ["image"], "properties": fields}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def to_prediction(service: Service, row: dict[str, Any]) -> Prediction:
    """Return a row of `Predictor` in the form of the API."""
    bundle = service.bundle

    def by_class(prefix: str) -> dict[str, float] | None:
        if row["likely"] is None:
            return None
        return {name: row[f"{prefix}_{name}"] for name in bundle.classes}

    told = ("advice", "refer", "likely", "no_decision", "prediction_set", "not_known")
    details = Details(
        decision=row["decision"],
        rule=row["rule"],
        uncalibrated=by_class("uncalibrated"),
        flags={flag_column(point): row[flag_column(point)] for point in bundle.points},
        coverage=bundle.conformal.coverage if bundle.conformal else None,
        costs=asdict(bundle.costs),
        prior=dict(zip(bundle.classes, bundle.clinic, strict=True)) if bundle.clinic else None,
        outlier_score=row.get("outlier_score"),
        outlier=row.get("outlier"),
    )
    return Prediction(
        **{name: row[name] for name in told},
        because=list_reasons(bundle, row),
        limits=list_row_limits(service.limits, bundle, row),
        probabilities=by_class("p"),
        caution=service.caution(row),
        details=details,
    )
