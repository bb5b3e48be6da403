"""Files: written whole or not at all, and known by their SHA-256."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
    """Call `write` with a path beside `path`, then rename: readers see the old file or the new.

    The bytes are on the disk before the name is, so a power cut leaves one or the other too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(aside)
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` atomically, as UTF-8."""
    return write_atomically(
        path, lambda aside: aside.write_text(text, encoding="utf-8", newline="\n")
    )


def write_json(path: Path, value: Any) -> Path:
    """Write `value` to `path` atomically, as indented JSON."""
    return write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
