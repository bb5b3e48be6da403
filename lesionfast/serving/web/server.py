"""The server of a page: an address, and HTTP whose time and number of connections are bounded."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, h11

from lesionfast.errors import LesionfastError
from lesionfast.serving.web.guard import check_open, check_token

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
    logging.getLogger("uvicorn.error").addFilter(is_worth_logging)
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


def is_worth_logging(record: logging.LogRecord) -> bool:
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
