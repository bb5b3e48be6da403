"""The HTTP API beside the page: POST /predict, GET /model, and their schema at /openapi.json."""

from typing import Annotated, Any

from fastapi import FastAPI, File, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from lesionfast.errors import LesionfastError
from lesionfast.serving.assessment import flag_name
from lesionfast.serving.bundle import Bundle
from lesionfast.serving.service import MOST_BYTES, NoImage, Service, TooLarge

NOTE = "Not a medical device: for research, not for diagnosis."
FORM_BYTES = 100_000  # that a form has around its image


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
    note: str = NOTE


class Problem(BaseModel):
    """Why there is no answer."""

    error: str


STATUS = {TooLarge: 413, NoImage: 415}
PROBLEMS = {
    413: {"model": Problem, "description": "above 20 MB or 50 megapixels"},
    415: {"model": Problem, "description": "no image in a format that is read"},
    422: {"model": Problem, "description": "no image, or metadata that the model does not take"},
}


def build_api(service: Service) -> FastAPI:
    """Return the API of a service."""
    bundle = service.bundle
    api = FastAPI(title="lesionfast", description=NOTE, docs_url=None, redoc_url=None)

    @api.exception_handler(LesionfastError)
    def explain(request: Request, error: LesionfastError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, STATUS.get(type(error), 422))

    @api.middleware("http")
    async def limit(request: Request, call_next: Any) -> Any:
        size = request.headers.get("content-length", "0")
        if request.url.path == "/predict" and int(size) > MOST_BYTES + FORM_BYTES:
            return JSONResponse({"error": f"at most {MOST_BYTES // 10**6} MB are taken"}, 413)
        return await call_next(request)

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
    async def predict(request: Request, image: Annotated[UploadFile, File()]) -> Prediction:
        """Say what the model makes of an image; nothing of it is kept."""
        form = await request.form()
        known = {name: value for name, value in form.items() if name != "image" and value != ""}
        data = await image.read()
        row = await run_in_threadpool(service.row, data, known)
        return prediction_of(bundle, row)

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


def prediction_of(bundle: Bundle, row: dict[str, Any]) -> Prediction:
    """Return a row of `Predictor` as the API says it."""

    def by_class(prefix: str) -> dict[str, float]:
        return {name: row[f"{prefix}_{name}"] for name in bundle.classes}

    return Prediction(
        decision=row["decision"],
        rule=row["rule"],
        probabilities=by_class("p"),
        calibrated=by_class("calibrated") if bundle.calibrator else None,
        flags={flag_name(point): row[flag_name(point)] for point in bundle.points},
        prediction_set=row["prediction_set"].split() if bundle.conformal else None,
        coverage=bundle.conformal.coverage if bundle.conformal else None,
        refer=row.get("refer"),
        outlier_score=row.get("outlier_score"),
        outlier=row.get("outlier"),
        not_known=row["not_known"].split(),
    )
