"""The local page and its HTTP API: for one person on this machine, without a network."""

import base64
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.types import ASGIApp

from lesionfast.data.formats.pictures import FORMATS
from lesionfast.diagnoses import probability_columns
from lesionfast.errors import LesionfastError
from lesionfast.reporting.advice.sentences import (
    check_language,
    label_class,
    name_class,
    say,
    speaking,
    translate,
    word,
)
from lesionfast.reporting.images import read_pixels, rounded_percent
from lesionfast.reporting.page import Picture, read_template, render
from lesionfast.serving.bundle import Bundle
from lesionfast.serving.reasons import list_details, list_reasons, list_row_limits
from lesionfast.serving.web.api import Answer, Service, build_api
from lesionfast.serving.web.guard import LOCAL, Guard, find_language
from lesionfast.serving.web.server import serve_page
from lesionfast.serving.web.uploads import MOST_BYTES, MOST_PIXELS, Uploads

MOST = {"megabytes": MOST_BYTES // 10**6, "megapixels": MOST_PIXELS // 10**6}
SPOKEN = ("predicting", "choose_first", "too_large", "one_at_a_time", "lost", "failed")  # by app.js
SHARE = 0.45  # of the heat map in the picture


def serve(
    source: str | Path,
    *,
    host: str = LOCAL[0],
    port: int = 7860,
    token: str | None = None,
    device: str = "auto",
    log: Path | None = None,
    lang: str | None = None,
    cost: str | None = None,
    prior: str | None = None,
) -> None:
    """Open the page of a model at host and port, and its HTTP API, until it is stopped.

    With a `token`, page and API answer those only who have it. `cost` and `prior` are as in
    `Predictor`. Uploads stay in memory; `log` is a file that keeps each answer. The page is in the
    language `lang`, by default in what the browser likes best. Raises
    `LesionfastError` without FastAPI and what it takes, for an address that can't be listened to,
    for a weak token, and for what is not a model.
    """
    if lang is not None:
        check_language(lang)

    def build() -> ASGIApp:
        service = Service(source, device, cost=cost, prior=prior, log=log)
        service.measure_limits()
        return build_app(service, host, token, lang)

    serve_page(build, host, port, token)


def build_app(
    service: Service, host: str = LOCAL[0], token: str | None = None, lang: str | None = None
) -> ASGIApp:
    """Return the ASGI application: the API and the page at its root, behind a `Guard`.

    The API is English; the page is in `lang`, by default in what the browser likes best.
    """
    uploads = Uploads()
    api = build_api(service, uploads)
    files = {
        "/app.css": (read_template("app.css"), "text/css"),
        "/app.js": (read_template("app.js"), "text/javascript"),
        "/login.js": (read_template("login.js"), "text/javascript"),
    }

    @api.get("/app.css", include_in_schema=False)
    @api.get("/app.js", include_in_schema=False)
    @api.get("/login.js", include_in_schema=False)
    async def show(request: Request) -> Response:
        text, kind = files[request.url.path]
        return Response(text, media_type=kind)

    @api.get("/", include_in_schema=False)
    async def show_page(request: Request) -> HTMLResponse:
        with speaking(lang or find_language(request.headers)):
            return HTMLResponse(page_html(service.bundle))

    @api.post("/answer", include_in_schema=False)
    async def answer(request: Request) -> HTMLResponse:
        with speaking(lang or find_language(request.headers)):
            return HTMLResponse(await uploads.answer(request, partial(answer_html, service)))

    return Guard(api, host, token, lang)


def page_html(bundle: Bundle) -> str:
    """Return the page: a form for an image and its metadata, and no answer yet."""
    return render(
        "app.html",
        columns=bundle.encoder.learned,
        types=",".join(f"image/{name.lower()}" for name in FORMATS),
        most_bytes=MOST_BYTES,
        image_help=say(
            "page.image_help", formats=", ".join(FORMATS), most=say("page.most", **MOST)
        ),
        spoken=SPOKEN,
        about=say("page.about", name=bundle.name, split=bundle.split_sha256[:12]),
    )


def answer_html(service: Service, image: bytes, metadata: dict[str, str]) -> str:
    """Return the answer to an image as a section of HTML; raises what `Service.answer` does."""
    answer, bundle = service.answer(image, metadata), service.bundle
    row, classes = answer.row, bundle.classes
    bars = [
        {
            "name": label_class(name),
            "width": f"{100 * row[column]:.1f}",
            "text": rounded_percent(row[column]),
            "grave": name in classes.malignant,
        }
        for name, column in zip(classes, probability_columns(classes), strict=True)
        if row["likely"] is not None
    ]
    return render(
        "answer.html",
        advice=row["advice"],
        urgent=row["refer"],
        limits=list_row_limits(service.limits, bundle, row) if bars else [],
        reasons=list_reasons(bundle, row),
        bars=bars,
        statistics=list_details(bundle, row),
        caution=answer.caution,
        pictures=list_pictures(answer),
        left_out=answer.left_out,
    )


def list_pictures(answer: Answer) -> list[Picture]:
    """Return what the model saw, the heat over it, and similar training lesions."""
    pictures = [Picture(say("page.seen"), to_source(answer.seen))]
    if answer.heat is not None:
        caption = say("page.heat", focus=name_class(answer.focus))
        pictures.append(Picture(caption, to_source(overlay(answer.seen, answer.heat))))
    rows = [] if answer.similar is None else [row for _, row in answer.similar.iterrows()]
    for row in rows:
        lesion = ", ".join([label_class(row["target"]), *describe_patient(row)])
        try:
            source = to_source(read_pixels(row["path"]))
        except (LesionfastError, OSError):  # the image is gone
            continue
        pictures.append(Picture(say("page.similar", lesion=lesion), source))
    return pictures


def describe_patient(row: pd.Series) -> Iterator[str]:
    """Yield "35 years", "female" and "neck", as far as the dataset has such columns."""
    if "age" in row:
        known = pd.notna(row["age"])
        yield say("page.years", age=f"{row['age']:g}") if known else word("page.age_unknown")
    if "sex" in row:
        yield translate(str(row["sex"])) if pd.notna(row["sex"]) else word("page.sex_unknown")
    if "localization" in row and pd.notna(row["localization"]):
        yield translate(str(row["localization"]))


def overlay(seen: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return pixels uint8 (H, W, 3) with a heat map of 0..1 (H, W) laid over."""
    from matplotlib import colormaps

    colours = colormaps["inferno"](heat)[..., :3] * 255
    return ((1 - SHARE) * seen + SHARE * colours).round().astype(np.uint8)


def to_source(pixels: np.ndarray) -> str:
    """Return pixels as a data URI."""
    with BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=88)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
