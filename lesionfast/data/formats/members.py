"""What all files that hold many images have in common: how they are listed, read and refused."""

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from typing import ClassVar

import numpy as np
from PIL import Image

from lesionfast.data.formats.pictures import IMAGE_SUFFIXES, check_size, find_kind
from lesionfast.errors import LesionfastError

HIDDEN_PART = re.compile(r"(?:^|/)(?:\.(?!/)|__MACOSX(?:/|$))")  # of a path; "./" is none
HERE = re.compile(r"(?:(?<=/)|^)(?:\./)+")
BZIP2 = [b"BZh%d1AY&SY" % level for level in range(1, 10)]  # a table may begin with BZh
COMPRESSED = (b"\x1f\x8b", *BZIP2, b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, xz and zstd


def plain_name(name: str) -> str:
    """Return the name of a member as a path would have it: without "./", "//" and a first "/".

    `tar cf FILE .` writes "./" before each name, and other programs the rest.
    """
    if "./" not in name and "//" not in name and not name.startswith("/"):
        return name
    return re.sub("/+", "/", HERE.sub("", name)).lstrip("/")


def content_key(data: bytes) -> str:
    """Return size and CRC-32 of an encoded image: the same wherever the same bytes lie."""
    return f"{len(data)}-{zlib.crc32(data):08x}"


def encode_pixels(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W), (H, W, 1) or (H, W, 3) as BMP, in a tenth of the time of PNG."""
    if pixels.dtype != np.uint8 or not is_picture(pixels.shape):
        raise ValueError(
            f"it is {pixels.dtype} of shape {pixels.shape}; uint8 of shape (height, width) or "
            "(height, width, 3) is read"
        )
    check_size(pixels.size)
    file = BytesIO()
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "BMP")
    return file.getvalue()


def is_picture(shape: tuple[int, ...]) -> bool:
    """Return whether an array of this shape can be one grey or RGB picture."""
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))


def is_image(path: str, read_head: Callable[[str], bytes]) -> bool:
    """Return whether a path names an image: by its suffix, or if it has none by its first bytes."""
    if path.lower().endswith(IMAGE_SUFFIXES):
        return True
    name = path[path.rfind("/") + 1 :]
    if not name or name == "DICOMDIR" or ("." in name and not name.replace(".", "").isdecimal()):
        return False  # numbers with dots are names of DICOM files, not suffixes
    try:
        return bool(find_kind(read_head(path)))
    except Exception:  # a name without a suffix promises nothing
        return False


class Container(AbstractContextManager):
    """A file that holds images, each by the name of its member; `LesionfastError` if it is broken.

    `read` may be called by several threads.
    """

    kind: ClassVar[str]

    def __init__(self, file: str) -> None:
        self.file = file

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""

    def list_members(self) -> list[str]:
        """Return the members that are images, in the order of the file."""
        raise NotImplementedError

    def read(self, member: str) -> bytes:
        """Return an encoded image; raises `OSError`, `ValueError` and others."""
        raise NotImplementedError

    def read_start(self, member: str, most: int) -> bytes:
        """Return the first bytes of an encoded image, `most` of them or more."""
        return self.read(member)

    def content_key(self, member: str) -> str:
        """Return the `content_key` of an image."""
        return content_key(self.read(member))

    def missing(self, member: str) -> FileNotFoundError:
        """Return the error about a member that is not there."""
        return FileNotFoundError(f"{self.file} has no member {member}")

    @contextmanager
    def explained(self, *errors: type[Exception]) -> Iterator[None]:
        """Turn errors of opening and listing into a `LesionfastError` that names the file."""
        try:
            yield
        except LesionfastError:
            raise
        except (OSError, *errors) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LesionfastError(
                f"{self.file} is not a complete {self.kind} file ({why[:200].rstrip('.')}). "
                "Download it again, or name the folder of images with --images."
            ) from None
