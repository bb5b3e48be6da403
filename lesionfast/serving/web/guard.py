"""Guard: who may ask a page: no other site, and with a token only those who have it."""

import hashlib
import hmac
import logging
import math
import re
import secrets
import socket
import time
from functools import partial
from ipaddress import ip_address

from fastapi import Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lesionfast.errors import LesionfastError
from lesionfast.reporting.advice.sentences import (
    ENGLISH,
    choose_language,
    refuse,
    speaking,
)
from lesionfast.reporting.page import render

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
REMEMBERED = 10  # hashes of the last wrong tokens of a client: 10 MB for all clients
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
        has_cookie = self.has_cookie(scope)
        if not has_cookie and (seconds := self.guesses.wait(scope)):
            with speaking(self.choose_language(scope)):
                problem = refuse("guesses", seconds=seconds)
            return JSONResponse({"error": problem}, 429, {"Retry-After": str(seconds)})
        if has_cookie or self.guesses.is_right(scope, self.token):
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

    Clients behind one proxy are one, so while one of them guesses, none of them can log in. A
    program that sends one old token again and again guesses nothing, and keeps none of them out.
    """

    def __init__(self) -> None:
        self._clear: dict[str, float] = {}  # by client: when all its wrong tokens are forgotten
        self._last: dict[str, list[bytes]] = {}  # by client: hashes of its last wrong tokens
        self._key = secrets.token_bytes()

    def wait(self, scope: Scope) -> int:
        """Return in how many seconds the token of a request is looked at, 0 for now."""
        if read_token(scope) is None:
            return 0
        ahead = self._clear.get(name_client(scope), 0.0) - time.monotonic()
        return max(0, math.ceil(ahead - (WRONG_TOKENS - 1) * SECONDS_A_TOKEN))

    def is_right(self, scope: Scope, token: str) -> bool:
        """Return whether a request has the token; a wrong one is counted, the same one once."""
        given = read_token(scope)
        if given is None:
            return False
        if hmac.compare_digest(given.encode(), token.encode()):
            return True
        client, now = name_client(scope), time.monotonic()
        if self._is_new(client, given):
            self._clear[client] = max(now, self._clear.get(client, now)) + SECONDS_A_TOKEN
        if len(self._clear) > MOST_CLIENTS:
            oldest = min(self._clear, key=self._clear.__getitem__)
            del self._clear[oldest], self._last[oldest]
        return False

    def _is_new(self, client: str, given: str) -> bool:
        """Return whether a wrong token is none of the last of a client, and remember its hash."""
        digest = hashlib.blake2b(given.encode(), key=self._key, digest_size=16).digest()
        last = self._last.get(client, [])
        others = [one for one in last if one != digest]
        self._last[client] = [*others, digest][-REMEMBERED:]
        return len(others) == len(last)


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


def find_language(headers: Headers) -> str:
    """Return the language that a browser likes best of those there are."""
    return choose_language(headers.get("accept-language", ""))


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
