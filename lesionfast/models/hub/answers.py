"""What a hub may answer: its client builds paths from headers, and reads as long as there is more.

A mirror, a proxy or a wrong HF_ENDPOINT may answer anything.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lesionfast.errors import DiskError, LesionfastError
from lesionfast.files import format_bytes, free_bytes

# The client's own limit for a file over HTTP: no model that is shared is larger.
MOST_BYTES = 50_000_000_000
# Of a file whose length is not given beforehand; the hub gives it.
MOST_UNKNOWN = 1_000_000_000
# Of errors, redirections and what the API says, which are read into memory. From an address of the
# API come files too, but of at most 10 MB.
MOST_IN_MEMORY = 40_000_000
# To questions for one model: one or two for each file, and more where a connection breaks.
MOST_ANSWERS = 100
# Bytes a second, on average, once so many seconds were spent waiting: a modem had four times that.
SLOWEST, PATIENCE = 1_000, 60
# Seconds from a question to the head of its answer, more than the client waits for any one byte.
LONGEST = 60

COMMIT = re.compile("[0-9a-f]{40}")
ETAG = re.compile(r"[\w+=][\w.+=-]{0,200}", re.ASCII)  # of some mirrors it is Base64
WAITS = ("Retry-After", "RateLimit", "RateLimit-Policy")  # may say: a year


class Answers:
    """Checks the answers of a hub while a model is fetched; raises `LesionfastError`."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.bytes, self.seconds = name, 0, 0, 0.0
        self.is_late, self.timer = False, threading.Timer(0, self.give_up)

    def refuse(self, problem: str) -> LesionfastError:
        """Return the error for an answer."""
        return LesionfastError(
            f"{self.name}: the hub's answer is refused: it {problem}. Check HF_ENDPOINT if you "
            "have set it, or copy an exported folder here and name that."
        )

    def ask(self, request: Any) -> None:
        """Ask for bytes as they are: what is packed may unpack to a thousand times as much.

        The client's own limit is one of each wait: an answer may begin for ever, a byte at a time.
        """
        from huggingface_hub import constants

        if self.is_late:
            raise self.refuse("does not begin, though it was waited for")
        request.headers["Accept-Encoding"] = "identity"
        sent = int(request.headers.get("Content-Length", 0)) / SLOWEST
        self.timer.cancel()
        seconds = LONGEST + constants.HF_HUB_DOWNLOAD_TIMEOUT + sent
        self.timer = threading.Timer(seconds, self.give_up)
        self.timer.daemon = True
        self.timer.start()

    def give_up(self) -> None:
        """Close the connection that is waited for; the client opens another for what follows."""
        from huggingface_hub import close_session

        self.is_late = True
        close_session()

    def check(self, response: Any) -> None:
        """Check status and headers; what follows is read by a `Body`."""
        self.timer.cancel()
        self.count += response.request.method in ("GET", "HEAD")  # an upload has many parts
        if self.count > MOST_ANSWERS:
            raise self.refuse(f"is one of more than {MOST_ANSWERS} for one model")
        headers = response.headers
        headers.pop("X-Xet-Hash", None)  # a protocol of its own, to servers that an answer names
        for wait in WAITS:
            headers.pop(wait, None)
        if headers.get("Content-Encoding", "identity") != "identity":
            raise self.refuse("is packed, though asked not to be")
        commit = headers.get("X-Repo-Commit")
        if commit is not None and not COMMIT.fullmatch(commit):
            raise self.refuse("names a commit that is none")
        if response.request.method == "HEAD":  # whose ETag names a file in the cache
            for etag in (headers.get("ETag"), headers.get("X-Linked-ETag")):
                if etag is not None and not ETAG.fullmatch(etag.removeprefix("W/").strip('"')):
                    raise self.refuse("has an ETag that is none")
        target = headers.get("Location", "")
        if ":" in target.partition("/")[0] and not target.startswith(("https:", "http:")):
            raise self.refuse("leads to what is no web address")
        if str(response.request.url).startswith("https:") and target.startswith("http:"):
            raise self.refuse("leads to an address without encryption")
        self.check_size(headers, is_file=response.request.method == "GET")
        in_memory = response.status_code >= 300 or is_of_api(response.request.url.path)
        sized = "Content-Length" in headers and "Transfer-Encoding" not in headers
        most = MOST_IN_MEMORY if in_memory else MOST_BYTES if sized else MOST_UNKNOWN
        response.stream = watch(response.stream, self, most)

    def check_size(self, headers: Any, is_file: bool) -> None:
        """Refuse a file that is larger than any model, or what comes if there is no room for it.

        Of a file that is in the cache, or half of it, only the rest comes.
        """
        from huggingface_hub import constants

        sizes = [headers.get(name, "0") for name in ("Content-Length", "X-Linked-Size")]
        size = max(int(text) if text.isdecimal() else 0 for text in sizes)
        if size > MOST_BYTES:
            raise self.refuse(f"is to have {format_bytes(size)}, and no model has as much")
        cache = Path(constants.HF_HUB_CACHE)
        if is_file and size > (free := free_bytes(cache)):
            raise DiskError(
                f"{self.name} needs {format_bytes(size)} in {cache}, and {format_bytes(free)} are "
                "free.",
                "Free some space, or set HF_HOME to a folder on another disk.",
            )

    def take(self, size: int, seconds: float) -> None:
        """Count bytes that have come after so many seconds."""
        self.bytes += size
        self.seconds += seconds
        if self.seconds > PATIENCE and self.bytes < SLOWEST * self.seconds:
            raise self.refuse(f"comes with less than {format_bytes(SLOWEST)} a second")


def is_of_api(path: str) -> bool:
    """Return whether a path is one of the hub's API, which a mirror may have below others."""
    from huggingface_hub import constants

    return path.removeprefix(urlsplit(constants.ENDPOINT).path.rstrip("/")).startswith("/api/")


def watch(stream: Any, answers: Answers, most: int) -> Any:
    """Return the body of an answer that ends with an error if it is too long or too slow."""
    # httpx, or what its successor is called: the client takes streams of its own kind only.
    kind = next(base for base in type(stream).__mro__ if base.__name__ == "SyncByteStream")

    class Body(kind):  # type: ignore[misc, valid-type]
        def __iter__(self) -> Iterator[bytes]:
            size, before = 0, time.monotonic()
            for block in stream:
                size += len(block)
                if size > most:
                    raise answers.refuse(f"goes on after {format_bytes(most)}")
                answers.take(len(block), time.monotonic() - before)
                yield block
                before = time.monotonic()

        def close(self) -> None:
            stream.close()

    return Body()


ASKED: ContextVar[Answers | None] = ContextVar("answers of the hub", default=None)
INSTALLING = threading.Lock()


@contextmanager
def checked_answers(name: str) -> Iterator[None]:
    """Check all answers that this thread receives from the hub meanwhile to a question for `name`.

    Other threads, and what else uses the hub's client, are let alone.
    """
    install_checks()
    answers = Answers(name)
    token = ASKED.set(answers)
    try:
        yield
    except Exception:
        if answers.is_late:  # whatever the client makes of a connection that was closed
            raise answers.refuse("does not begin, though it was waited for") from None
        raise
    finally:
        ASKED.reset(token)
        answers.timer.cancel()


def install_checks() -> None:
    """Give the hub's client hooks that look for `ASKED`, once: each time breaks off downloads."""
    from huggingface_hub.utils import _http as client

    with INSTALLING:
        factory = client._GLOBAL_CLIENT_FACTORY
        if getattr(factory, "is_checked", False):
            return

        def make() -> Any:
            session = factory()
            hooks = session.event_hooks
            session.event_hooks = {
                "request": [*hooks["request"], check_request],
                "response": [*hooks["response"], check_response],
            }
            return session

        make.is_checked = True  # type: ignore[attr-defined]
        client.set_client_factory(make)  # also for the sessions that follow one that broke off


def check_request(request: Any) -> None:
    """Prepare a question that `checked_answers` is about."""
    if (answers := ASKED.get()) is not None:
        answers.ask(request)


def check_response(response: Any) -> None:
    """Check an answer that `checked_answers` is about."""
    if (answers := ASKED.get()) is not None:
        answers.check(response)
