"""The local page and its HTTP API: for one person on this machine, without a network."""

import asyncio
import base64
import hmac
import logging
import math
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from io import BytesIO
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lesionfast.data.formats.pictures import FORMATS
from lesionfast.diagnoses import probability_columns
from lesionfast.errors import LesionfastError
from lesionfast.reporting.advice.sentences import (
    ENGLISH,
    check_language,
    choose_language,
    label_class,
    name_class,
    refuse,
    say,
    speaking,
    translate,
    word,
)
from lesionfast.reporting.images import read_pixels, rounded_percent
from lesionfast.reporting.page import Picture, read_template, render
from lesionfast.serving.bundle import Bundle

try:
    import python_multipart  # noqa: F401
    import uvicorn
    from fastapi import Request, Response
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.datastructures import Headers
    from starlette.requests import cookie_parser
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol, h11
except ImportError as error:
    raise LesionfastError(
        f"the page needs {error.name}. Type: pip install 'lesionfast[app]'"
    ) from None

from lesionfast.serving.api import MOST_BYTES, MOST_PIXELS, Answer, Service, Uploads, build_api
from lesionfast.serving.reasons import list_details, list_reasons, list_row_limits

logger = logging.getLogger("lesionfast")

LOCAL = ("127.0.0.1", "localhost", "::1")
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - what --host may say, which needs a token
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z._-]+)(:\d{1,5})?")
SAFE_METHODS = ("GET", "HEAD")
OPEN_PATHS = ("/app.css", "/login.js")  # that need no token
PAGE_PATHS = ("/", "/answer", "/login")  # that a person sees the answers of
UNAUTHORIZED = "the token is missing or wrong. Send it as a header: Authorization: Bearer TOKEN"
COOKIE = "lesionfast"  # and the port: a browser sends a cookie to all ports of a machine
SHORTEST_TOKEN, LONGEST_TOKEN = 12, 1000  # characters; a head of a request holds 64 kB
FEWEST = 6  # characters of a token that differ
WRONG_TOKENS = 10  # that a client may send in a row: who mistypes waits for nothing
SECONDS_A_TOKEN = 2.0  # until the next of a client that has sent so many: 43,000 a day
MOST_CLIENTS = 10_000  # whose wrong tokens are remembered
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MOST = {"megabytes": MOST_BYTES // 10**6, "megapixels": MOST_PIXELS // 10**6}
SPOKEN = ("predicting", "choose_first", "too_large", "one_at_a_time", "lost", "failed")  # by app.js
MOST_CONNECTIONS = 256  # each takes one of the files that the process may open, often 1,024
BACKLOG = 128  # connections that are accepted together, before any of them is looked at
TICK = 2.0  # seconds between two looks at a connection
SECONDS = {  # that a connection may spend in each state
    "head": 10,  # until a request has begun in full, the first or the next one
    "body": 75,  # until it has been received; uploads have a limit of their own
    "written": 60,  # until the client has taken a response
}
GRACE = 2.0  # seconds of an upload that is not closed for another client
READ = 2**14  # bytes read together: tiny chunks in more of them would keep others waiting
SHUTDOWN = 3  # seconds that clients have to end
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


def serve_page(
    build: Callable[[], ASGIApp], host: str, port: int, token: str | None = None
) -> None:
    """Answer requests at host and port with the application that `build` makes, until stopped.

    Raises `LesionfastError` for an address that can't be listened to, for a weak token, and for an
    address that other machines reach without one.
    """
    if token is not None:
        check_token(token)
    with listen(host, port) as listener:
        if not ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
            check_open(host, token)
        app = build()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{listener.getsockname()[1]}", flush=True)
        try:
            build_server(app).run(sockets=[listener])
        except KeyboardInterrupt:  # Ctrl-C is how a page is stopped
            return


def check_token(token: str) -> None:
    """Raise `LesionfastError` for a token that is easy to guess, or that a header can't hold."""
    plain = token.isascii() and token.isprintable() and " " not in token
    differ = len(set(token))
    if not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN or differ < FEWEST or not plain:
        problem = "" if plain else ", and some can't be sent"
        raise LesionfastError(
            f"--token has {len(token)} characters, {differ} different ones{problem}. Type "
            f"{SHORTEST_TOKEN} to {LONGEST_TOKEN} ASCII letters, digits or marks without spaces, "
            f"at least {FEWEST} different ones, such as {secrets.token_hex(8)}"
        )


def check_open(host: str, token: str | None) -> None:
    """Say what an address opens to other machines; raise `LesionfastError` without a token."""
    opens = f"--host {host} opens the page to every machine that reaches this one"
    if token is None:
        raise LesionfastError(
            f"{opens}, and no token keeps them out. Type --token {secrets.token_hex(8)} with it, "
            "or another token that nobody can guess, or set LESIONFAST_TOKEN."
        )
    logger.warning("%s. Who has the token can use it, and the connection is not encrypted", opens)


def listen(host: str, port: int) -> socket.socket:
    """Return an open socket at an address; port 0 is any free one. Raises `LesionfastError`."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LesionfastError(
            f"the page can't listen at {host}, port {port}: {reason}. "
            "Name another --port or --host."
        ) from None


def build_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server: HTTP by h11 with bounds; no WebSocket, no proxy is believed."""
    logging.getLogger("uvicorn.error").addFilter(is_trouble)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            loop="asyncio",
            backlog=BACKLOG,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # what a client sends wrong is no line of the terminal
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN,
        )
    )


def is_trouble(record: logging.LogRecord) -> bool:
    """Return whether a line of the log is about more than what the end of the page cut off."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class BoundedProtocol(H11Protocol):
    """HTTP by h11, which bounds the head of a request; here time and number are bounded too.

    Of too many connections the one that has waited longest for a request is closed, then the upload
    that has taken longest, or the new one if all have just begun.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        with suppress(AttributeError):  # of a loop of another kind
            transport.max_size = READ
        self._state: tuple[str, Any] = ("head", None)
        self._since = self.loop.time()
        self._timer = self.loop.call_later(TICK, self._look)
        if sum(not one.transport.is_closing() for one in self.connections) > MOST_CONNECTIONS:
            self._close_one()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; if its request was answered already, close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        """End what has not arrived in full; what is being answered has `SHUTDOWN` seconds."""
        if self.state == "body":
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    @property
    def state(self) -> str:
        """What the connection waits for: a key of `SECONDS`, or "answer" of the page itself."""
        if self.transport.get_write_buffer_size():
            return "written"
        if self.cycle is None or self.cycle.response_complete:
            return "head"
        return "body" if self.cycle.more_body else "answer"

    def _close_one(self) -> None:
        """Close one connection, this one if no other can be spared."""
        others = {*self.connections} - {self}
        others = sorted((one for one in others if not one.transport.is_closing()), key=_begun)
        idle = [one for one in others if one.state == "head"]
        old = self.loop.time() - GRACE
        slow = [one for one in others if one.state == "body" and one._since < old]
        [*idle, *slow, self][0].transport.abort()

    def _look(self) -> None:
        """End the connection if it has been in one state for too long."""
        now, state = self.loop.time(), (self.state, self.cycle)
        if state != self._state:
            self._state, self._since = state, now
        if now - self._since > SECONDS.get(state[0], float("inf")):
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(TICK, self._look)


def _begun(connection: BoundedProtocol) -> float:
    return connection._since


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


def find_language(headers: Headers) -> str:
    """Return the language that a browser likes best of those there are."""
    return choose_language(headers.get("accept-language", ""))


class Guard:
    """Refuses requests of other sites and, if there is a token, of those who do not have it.

    A foreign page reaches this machine by a name of its own that leads here (DNS rebinding), or by
    a form that it posts: so the `Host` must be ours, and `Origin` and `Sec-Fetch-Site` the page's.
    A page at every address of a machine takes any address of digits, and the machine's name.

    The API asks for `Authorization: Bearer TOKEN`. The page sends it to /login once, for a cookie
    that no script can read and no other site can send. Wrong tokens are limited by `Guesses`;
    who has the cookie is never kept out by them.
    """

    def __init__(
        self, app: ASGIApp, host: str, token: str | None = None, lang: str | None = None
    ) -> None:
        self.app, self.every_address = app, host in EVERY_ADDRESS
        self.names = {*LOCAL, host.lower()}
        if self.every_address:
            self.names.add(socket.gethostname().lower())
        self.lang = lang
        self.token, self.session = token, secrets.token_urlsafe()  # the latter is in the cookie
        self.guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with 401, 403 or 429."""
        respond = self.choose_response(scope)
        await respond(scope, receive, partial(send_guarded, send))

    def choose_response(self, scope: Scope) -> ASGIApp:
        """Return what answers a request."""
        path = scope["path"]
        with speaking(self.choose_language(scope)):
            if problem := self.find_problem(scope):
                return JSONResponse({"error": problem}, 403)
        if {"content-length", "transfer-encoding"} <= set(Headers(scope=scope)):
            problem = "the request has two lengths. Send Content-Length or Transfer-Encoding."
            return JSONResponse({"error": problem}, 400, {"Connection": "close"})
        if self.token is None or path in OPEN_PATHS:
            return self.app
        known = self.has_cookie(scope)
        if not known and (seconds := self.guesses.wait(scope)):
            with speaking(self.choose_language(scope)):
                problem = refuse("guesses", seconds=seconds)
            return JSONResponse({"error": problem}, 429, {"Retry-After": str(seconds)})
        if known or self.guesses.is_right(scope, self.token):
            if path != "/login" or scope["method"] != "POST":
                return self.app
            cookie = f"{name_cookie(scope)}={self.session}; Path=/; HttpOnly; SameSite=Strict"
            return Response(status_code=204, headers={"Set-Cookie": cookie})
        with speaking(self.choose_language(scope)):
            if path == "/":
                return HTMLResponse(render("login.html"), 401)
            problem = refuse("token") if path in PAGE_PATHS else UNAUTHORIZED
        return JSONResponse({"error": problem}, 401, {"WWW-Authenticate": "Bearer"})

    def choose_language(self, scope: Scope) -> str:
        """Return the language of who asks: that of the page, or English for the API."""
        if scope["path"] not in PAGE_PATHS:
            return ENGLISH
        return self.lang or find_language(Headers(scope=scope))

    def has_cookie(self, scope: Scope) -> bool:
        """Return whether a request has the cookie, which nobody can guess."""
        cookies = cookie_parser(Headers(scope=scope).get("cookie", ""))
        given = cookies.get(name_cookie(scope), "")
        return hmac.compare_digest(given.encode(), self.session.encode())

    def find_problem(self, scope: Scope) -> str:
        """Return why a request is refused as one of another site, "" if it is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if not self.is_own_host(host):
            return refuse("host")
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}")
        sent = scope["method"] not in SAFE_METHODS and site not in ("same-origin", "none")
        return refuse("site") if foreign or sent else ""

    def is_own_host(self, host: str) -> bool:
        """Return whether a `Host`, such as "127.0.0.1:7860", is one of this page."""
        found = HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].strip("[]")
        return name in self.names or (self.every_address and is_address(name))


class Guesses:
    """Bounds how many wrong tokens each client may send, without keeping another client waiting.

    Clients behind one proxy are one, so while one of them guesses, none of them can log in.
    """

    def __init__(self) -> None:
        self._clear: dict[str, float] = {}  # by client: when all its wrong tokens are forgotten

    def wait(self, scope: Scope) -> int:
        """Return in how many seconds the token of a request is looked at, 0 for now."""
        if read_token(scope) is None:
            return 0
        ahead = self._clear.get(name_client(scope), 0.0) - time.monotonic()
        return max(0, math.ceil(ahead - (WRONG_TOKENS - 1) * SECONDS_A_TOKEN))

    def is_right(self, scope: Scope, token: str) -> bool:
        """Return whether a request has the token; a wrong one is counted."""
        given = read_token(scope)
        if given is None:
            return False
        if hmac.compare_digest(given.encode(), token.encode()):
            return True
        client, now = name_client(scope), time.monotonic()
        self._clear[client] = max(now, self._clear.get(client, now)) + SECONDS_A_TOKEN
        if len(self._clear) > MOST_CLIENTS:
            del self._clear[min(self._clear, key=self._clear.__getitem__)]
        return False


def read_token(scope: Scope) -> str | None:
    """Return the token of a request, None if it has none."""
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token if token and scheme.lower() == "bearer" else None


def name_client(scope: Scope) -> str:
    """Return whose wrong tokens are counted together: an address, of IPv6 a network of 64 bits."""
    name = (scope.get("client") or ("",))[0]
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return name
    if address.version == 4:
        return name
    return str(address.ipv4_mapped or address.packed[:8].hex())


def name_cookie(scope: Scope) -> str:
    """Return the name of the cookie of a page, which no page at another port overwrites."""
    return f"{COOKIE}-{scope['server'][1]}"


def is_address(name: str) -> bool:
    """Return whether a name is an address of digits, which no other site can have."""
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


async def send_guarded(send: Send, message: Message) -> None:
    """Send a part of a response, with the security headers in its head."""
    if message["type"] == "http.response.start":
        headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
        message["headers"] = [*message.get("headers", []), *headers]
    await send(message)


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
