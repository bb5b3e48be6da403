"""Uploads: the images that many clients send, bounded while they arrive, and never on the disk."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from lesionfast.data.formats.pictures import SUPPORTED, picture_size
from lesionfast.errors import LesionfastError
from lesionfast.reporting.advice.sentences import refuse

MOST_BYTES, MOST_PIXELS = 20 * 10**6, 50 * 10**6
MOST_FORM = MOST_BYTES + 100_000  # bytes of a form with its image
MOST_HELD = 10 * MOST_FORM  # bytes of all uploads that are in memory at once
MOST_FIELDS, MOST_FIELD_BYTES = 200, 1000
MOST_WAITING = 16  # requests at work or waiting: a model takes one picture after the other
MOST_SECONDS = 60  # that an upload may take

T = TypeVar("T")


class Refusal(LesionfastError):
    """A request that is refused, in the language of who asks."""


class TooLarge(Refusal):
    """An image beyond the limits."""


class NoImage(Refusal):
    """Bytes that are not an image."""


class TooSlow(Refusal):
    """An upload that does not end."""


class Busy(Refusal):
    """More requests than are taken at once."""

    HEADERS = {"Retry-After": "2"}  # seconds

    def __init__(self) -> None:
        super().__init__(refuse("busy"))


def check_limits(data: bytes) -> None:
    """Raise `TooLarge` or `NoImage` by the size and the header, before anything is decoded."""
    if len(data) > MOST_BYTES:
        most = MOST_BYTES // 10**6
        raise TooLarge(refuse("megabytes", found=f"{len(data) / 1e6:.0f}", most=most))
    width, height, problem = 0, 0, ""
    try:
        width, height = picture_size(data)
    except Image.DecompressionBombError:
        width = height = MOST_PIXELS
    except UnidentifiedImageError:
        problem = refuse("no_picture", formats=", ".join(SUPPORTED))
    except Exception as error:  # decoders raise anything on broken bytes
        problem = refuse("unreadable", reason=error)
    if problem:  # raised here, as `error` holds all that the decoder has unpacked
        raise NoImage(problem)
    if width * height > MOST_PIXELS:
        raise TooLarge(refuse("megapixels", most=MOST_PIXELS // 10**6))


class WaitingLine:
    """Bounds the requests that wait for an answer, those too whose clients have gone."""

    def __init__(self) -> None:
        self.waiting = 0

    async def run(self, work: Callable[..., T], *given: Any) -> T:
        """Return what `work` makes in a thread; raises `Busy` if too many wait already."""
        if self.waiting >= MOST_WAITING:
            raise Busy
        self.waiting += 1
        try:
            return await run_in_threadpool(work, *given)
        finally:
            self.waiting -= 1


class Uploads:
    """Takes the images of many clients, within limits; nothing is written to the disk.

    `held` are the bytes of all uploads in memory, `line` the images that wait for an answer.
    """

    def __init__(self) -> None:
        self.held, self.line = 0, WaitingLine()

    async def answer(self, request: Request, work: Callable[[bytes, dict[str, str]], T]) -> T:
        """Return what `work` makes, in a thread, of the image and the metadata of a form.

        Raises `TooLarge`, `TooSlow` and `Busy` beyond the limits, as soon as one is passed, and
        `LesionfastError` for what is not a form with one image.
        """
        held = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal held
            async for chunk in request.stream():
                held += len(chunk)
                self.held += len(chunk)
                if held > MOST_FORM:
                    raise too_large()
                if self.held > MOST_HELD:
                    raise Busy
                yield chunk

        try:
            return await self.line.run(work, *await read_form(request, counted()))
        finally:
            self.held -= held


def too_large() -> TooLarge:
    """Return the error of a form that is too large."""
    return TooLarge(refuse("too_large", most=MOST_BYTES // 10**6))


class MemoryParser(MultiPartParser):
    """Keeps a form in memory, where the parser of Starlette writes large files to the disk."""

    spool_max_size = MOST_FORM + 1


async def read_form(request: Request, stream: AsyncIterator[bytes]) -> tuple[bytes, dict[str, str]]:
    """Return the image and the metadata of a form; empty fields are left out.

    The name of the file is never used. Raises `LesionfastError` for what is not such a form.
    """
    size = request.headers.get("content-length", "")
    if len(size) > len(str(MOST_FORM)) or (size.isdecimal() and int(size) > MOST_FORM):
        raise too_large()
    if names := ", ".join(request.query_params):
        raise Refusal(refuse("address", names=names))
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refusal(refuse("no_form"))
    limits = {"max_files": 1, "max_fields": MOST_FIELDS, "max_part_size": MOST_FIELD_BYTES}
    try:
        async with asyncio.timeout(MOST_SECONDS):
            form = await MemoryParser(request.headers, stream, **limits).parse()
    except TimeoutError:
        raise TooSlow(refuse("too_slow", seconds=MOST_SECONDS)) from None
    except ClientDisconnect:
        raise Refusal(refuse("cut_off")) from None
    except (MultiPartException, ValueError) as error:
        reason = getattr(error, "message", "") or str(error)
        raise Refusal(refuse("form", reason=reason.rstrip("."))) from None
    return await read_parts(form)


async def read_parts(form: FormData) -> tuple[bytes, dict[str, str]]:
    """Return the bytes of the image, and the fields that are not empty; each at most once."""
    names = Counter(name for name, _ in form.multi_items())
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise Refusal(refuse("twice", name=twice[0]))
    image = form.get("image")
    if not isinstance(image, UploadFile):
        raise Refusal(refuse("no_image"))
    metadata = {name: value for name, value in form.items() if name != "image" and value != ""}
    return await image.read(), metadata
