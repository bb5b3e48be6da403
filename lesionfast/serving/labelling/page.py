"""The local page that asks for labels: one image at a time, answered by keyboard."""

import asyncio
from typing import Any

from lesionfast.console import printable
from lesionfast.data.corrections.answers import clean
from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError, shell_quote
from lesionfast.files import only_writer, parse_json
from lesionfast.reporting.advice.sentences import ENGLISH
from lesionfast.reporting.images import patient, read_pixels, rounded_percent
from lesionfast.reporting.page import Picture, read_template, render
from lesionfast.serving.labelling.queue import Item, Queue, View
from lesionfast.serving.web.app import overlay, to_source
from lesionfast.serving.web.guard import LOCAL, Guard
from lesionfast.serving.web.server import serve_page
from lesionfast.serving.web.uploads import MOST_SECONDS, Busy, WaitingLine

# isort: off
from starlette.applications import Starlette  # after serving.web, which says how to install it
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp
# isort: on

MOST_BYTES = 10_000  # of a request
NOT_CALIBRATED = " (its validation is too small to calibrate this: read it as an order only)"
DIGITS, LETTERS = "1234567890", "abcd"  # keys of the classes, and of the nearest lesions
ABOUT = ("dx_type", "margin", "disagreement")  # what else is said of an image


def serve_labels(
    queue: Queue, *, host: str = LOCAL[0], port: int = 7860, token: str | None = None
) -> None:
    """Open the page of a queue at host and port, until it is stopped.

    Its file of answers is held, so that no second page writes it. Raises `LesionfastError` as
    `lesionfast.serving.web.app.serve` does, and if another page has the file.
    """
    queue.file.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(queue.file):
        try:
            serve_page(lambda: build_label_app(queue, host, token), host, port, token)
        finally:
            queue.close()


def build_label_app(queue: Queue, host: str = LOCAL[0], token: str | None = None) -> ASGIApp:
    """Return the ASGI application: the page at its root and what it asks, behind a `Guard`."""
    kinds = {"app.css": "css", "labels.css": "css", "labels.js": "javascript"}
    kinds["login.js"] = "javascript"
    files = {f"/{name}": (read_template(name), f"text/{kind}") for name, kind in kinds.items()}
    files["/"] = shell_html(queue), "text/html"

    line = WaitingLine()

    async def show(request: Request) -> Response:
        text, kind = files[request.url.path]
        return Response(text, media_type=kind)

    async def respond(request: Request) -> Response:
        try:
            asked = await read_body(request)
            return HTMLResponse(await line.run(act, queue, request.url.path, asked))
        except Busy as error:
            return JSONResponse({"error": printable(error)}, 503, Busy.HEADERS)
        except LesionfastError as error:
            return JSONResponse({"error": printable(error)}, 422)

    routes = [Route(path, show) for path in files]
    routes += [Route(path, respond, methods=["POST"]) for path in ACTIONS]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return Guard(app, host, token, ENGLISH)  # as all of this page is


async def read_body(request: Request) -> dict[str, str]:
    """Return what a request asks, texts by name; raises `LesionfastError` for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which a form of another site can't send
        raise LesionfastError("the request is not application/json. Load the page again.")
    try:
        async with asyncio.timeout(MOST_SECONDS):
            data = await read_bytes(request)
    except TimeoutError:
        raise LesionfastError(f"the request took longer than {MOST_SECONDS} s.") from None
    except ClientDisconnect:
        raise LesionfastError("the connection ended before the request did.") from None
    try:
        asked = parse_json(data)
        is_text = isinstance(asked, dict) and all(isinstance(one, str) for one in asked.values())
        "".join(asked.values() if is_text else ()).encode()  # no half of a character
    except ValueError:
        is_text = False
    if not is_text:
        raise LesionfastError("the request is not a JSON object of texts. Load the page again.")
    return asked


async def read_bytes(request: Request) -> bytes:
    """Return the body of a request; raises `LesionfastError` if it is too long."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise LesionfastError("the request is too long. Write less.")
    return data


def act(queue: Queue, path: str, asked: dict[str, str]) -> str:
    """Do what a request asks, and return the image that comes next as HTML."""
    return item_html(queue, ACTIONS[path](queue, asked))


def say(queue: Queue, asked: dict[str, str]) -> str:
    """Keep an answer; return what is said about it."""
    image, text = asked.get("image", ""), asked.get("answer", "")
    who, why = asked.get("who", ""), asked.get("why", "")
    answer = queue.answer(image, text, who, why)
    changed = [
        f"{name} was changed to “{kept}”."
        for name, typed, kept in (("Who", who, clean(answer.who)), ("Why", why, clean(answer.why)))
        if " ".join(typed.split()) != kept
    ]
    return " ".join([f"Kept: {answer.image}: {answer.text}.", *changed])


def take_back(queue: Queue, asked: dict[str, str]) -> str:
    """Undo the latest answer; return what is said about it."""
    latest = queue.undo(asked.get("who", ""))
    return f"Taken back: {latest.image}: {latest.text}."


def postpone(queue: Queue, asked: dict[str, str]) -> str:
    """Ask for an image later; return what is said about it."""
    queue.postpone(asked.get("image", ""))
    return f"Later: {asked['image']}."


ACTIONS = {
    "/item": lambda queue, asked: "",
    "/answer": say,
    "/undo": take_back,
    "/later": postpone,
}


def shell_html(queue: Queue) -> str:
    """Return the page without an image: the fields for who and why, and the keys."""
    return render("labels.html", who=queue.who, file=str(queue.file), run=queue.run.path.name)


def item_html(queue: Queue, note: str = "") -> str:
    """Return the next image of a queue with its question and answers, as a section of HTML."""
    progress = f"{queue.done} of {len(queue.items)} answered"
    about = {"note": note, "progress": progress, "file": str(queue.file)}
    pending = queue.pending
    if not pending:
        return render("label.html", item=None, command=train_command(queue), **about)
    item = pending[0]
    view = queue.view(item)
    return render(
        "label.html",
        item=item,
        question=ask(item),
        facts=describe(item),
        pictures=list_pictures(item, view),
        neighbours=list_neighbours(view),
        buttons=list_buttons(queue, item),
        said=[f"same lesion as {other}" for other in queue.answers.same_as(item.image)],
        left_out=view.left_out,
        **about,
    )


def train_command(queue: Queue) -> str:
    """Return what to type when all is answered."""
    config = queue.run.path / "config.json"
    return shell_quote("lesionfast", "train", "--config", config, "--corrections", queue.file)


def ask(item: Item) -> str:
    """Return the question about an image, a sentence."""
    share = item.row.get("self_confidence")
    if not item.label:
        return "What is it?"
    doubt = "" if share is None else f", which the model gives {rounded_percent(share)}"
    return f"Is it {full_name(item.label)}{doubt}?"


def describe(item: Item) -> list[str]:
    """Return what is known of an image and its lesion, a line each."""
    row, lines = item.row, []
    if item.suggested:
        share = row.get("probability")
        words = f", {rounded_percent(share)}" if isinstance(share, float) else ""
        doubt = "" if row.get("calibrated", True) else NOT_CALIBRATED
        lines.append(f"The model suggests {full_name(item.suggested)}{words}{doubt}.")
    if person := patient(row):
        lines.append(person[:1].upper() + person[1:])
    names = {"dx_type": "diagnosed by"}
    for name in ABOUT:
        value = row.get(name)
        if isinstance(value, str) and value:
            lines.append(f"{names.get(name, name).capitalize()}: {value}")
    return lines


def list_pictures(item: Item, view: View) -> list[Picture]:
    """Return the photograph and the Grad-CAM over what the model saw."""
    pictures = []
    if view.photo is not None:
        pictures.append(Picture(f"Image {item.image}", to_source(view.photo)))
    if view.seen is not None and view.heat is not None:
        words = f"Grad-CAM for {full_name(item.suggested or item.label)}: what the model reacts to"
        pictures.append(Picture(words, to_source(overlay(view.seen, view.heat))))
    return pictures


def list_neighbours(view: View) -> list[dict[str, Any]]:
    """Return the nearest training lesions, each with the key that says it is the same lesion."""
    rows = [] if view.similar is None else [row for _, row in view.similar.iterrows()]
    found = []
    for key, row in zip(LETTERS, rows, strict=False):
        try:
            source = to_source(read_pixels(row["path"]))
        except (LesionfastError, OSError):  # the image is gone
            continue
        words = ", ".join(filter(None, [full_name(row["target"]), patient(row)]))
        found.append({"key": key, "image": row["image_id"], "source": source, "words": words})
    return found


def list_buttons(queue: Queue, item: Item) -> list[dict[str, str]]:
    """Return the answers about a label with their keys; classes beyond the tenth have no key."""
    buttons = []
    if item.label:
        buttons.append({"key": "r", "answer": "right", "words": f"right: {full_name(item.label)}"})
    for number, name in enumerate(queue.run.classes):
        key = DIGITS[number] if number < len(DIGITS) else ""
        if name != item.label:
            buttons.append({"key": key, "answer": f"is {name}", "words": full_name(name)})
    return [*buttons, {"key": "u", "answer": "unclear", "words": "unclear: leave it out"}]
