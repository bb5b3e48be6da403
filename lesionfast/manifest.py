"""Manifest: the files that a folder must hold, by their SHA-256, so that damage is noticed."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from lesionfast.errors import DamageError
from lesionfast.files import damage_explained, sha256, write_atomically, write_json

FILE = "manifest.json"
LOCK = ".manifest.lock"
SCHEMA = 1
SCHEMAS: dict[str, int] = {}  # of files whose format is not the first one
LAST = "metrics.json"  # once it is listed the folder is complete: what is not listed is foreign
MARK = '"manifest":'  # in environment.json; its value is the schema
UPGRADE = "Upgrade it: pip install --upgrade lesionfast"
Entry = dict[str, Any]


class Manifest:
    """What `manifest.json` says of a folder.

    A file is announced before it gets its name and listed after that, so whoever is killed in
    between leaves a folder in which the old file and the new one both count as right. A folder
    without a manifest, of an earlier version, gets none and is never checked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE

    @classmethod
    def start(cls, folder: Path) -> "Manifest":
        """Give a new folder a manifest that lists nothing yet."""
        found = cls(folder)
        found._save({}, {})
        return found

    @property
    def exists(self) -> bool:
        """Whether the folder has a manifest; raises `DamageError` if it has lost it."""
        if self.path.is_file():
            return True
        if says_of_itself(self.folder):
            raise DamageError(f"{self.path} is missing. {self._advice}")
        return False

    @property
    def names(self) -> list[str]:
        """The files that are listed, or about to be."""
        listed, pending = self._load() if self.exists else ({}, {})
        return sorted({*listed, *pending})

    def write(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Call `write` with a path aside, rename it to the file `name`, and list that."""
        path = self.folder / name
        if not self.exists:
            return write_atomically(path, write)

        def announced(aside: Path) -> None:
            write(aside)
            self._announce(name, entry_of(name, aside))

        with self._alone():
            write_atomically(path, announced)
            self._settle(name)
        return path

    def remove(self, *names: str) -> None:
        """Remove files, and take them off the list; what is not there is passed over."""
        for name in names:
            path = self.folder / name
            if not self.exists:
                path.unlink(missing_ok=True)
                continue
            with self._alone():
                self._announce(name, None)
                path.unlink(missing_ok=True)
                self._settle(name)

    def record(self, *names: str) -> None:
        """List files as they are now; those that are not there are passed over."""
        if self.exists:
            with self._alone():
                listed, pending = self._load()
                there = [name for name in names if (self.folder / name).is_file()]
                listed |= {name: entry_of(name, self.folder / name) for name in there}
                self._save(listed, {k: v for k, v in pending.items() if k not in there})

    def seal(self, *names: str) -> None:
        """List these files as they are now, and no others: the folder is right as it is."""
        there = [name for name in names if (self.folder / name).is_file()]
        with self._alone():
            self._save({name: entry_of(name, self.folder / name) for name in there}, {})

    def release(self, *names: str) -> None:
        """Take files off the list, because they are about to change without being announced."""
        if self.exists:
            with self._alone():
                kept = [{k: v for k, v in part.items() if k not in names} for part in self._load()]
                self._save(*kept)

    def lists(self, name: str) -> bool:
        """Return whether a file must be there."""
        listed, pending = self._load() if self.exists else ({}, {})
        return name in listed and pending.get(name, listed[name]) is not None

    def require(self, name: str, advice: str) -> Path:
        """Return the path of a file; raises `DamageError` if it is not what was written."""
        why = self.problem(name)
        if why is not None:
            raise DamageError(f"{self.folder / name} is damaged: {why}. {advice}")
        return self.folder / name

    def problem(self, name: str) -> str | None:
        """Return what is wrong with a file, in words; None if it is what was written."""
        while self.exists:
            listed, pending = before = self._load()
            accepted = accepted_states(name, listed, pending)
            found = state_of(self.folder / name)
            if accepted is None or found in accepted:
                return newer(name, listed.get(name))
            if self._load() == before:  # else it was written in the meantime
                return difference(self.folder / name, listed.get(name) or pending.get(name))
        return None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        from filelock import FileLock

        with FileLock(self.folder / LOCK):
            yield

    def _announce(self, name: str, coming: Entry | None) -> None:
        listed, pending = self._load()
        self._save(listed, pending | {name: coming})

    def _settle(self, name: str) -> None:
        listed, pending = self._load()
        listed.pop(name, None)
        coming = pending.pop(name)
        self._save(listed | ({} if coming is None else {name: coming}), pending)

    def _save(self, listed: dict[str, Entry], pending: dict[str, Entry | None]) -> None:
        content = {"schema": SCHEMA, "files": listed, "pending": pending}
        write_json(self.path, content | {"sha256": digest_of(content)})

    def _load(self) -> tuple[dict[str, Entry], dict[str, Entry | None]]:
        with damage_explained(self.path, self._advice):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            digest = content.pop("sha256")
            if type(content["schema"]) is int and content["schema"] > SCHEMA:
                raise DamageError(f"{self.path} was written by a newer lesionfast. {UPGRADE}")
            if digest != digest_of(content):
                raise ValueError("its content is not what was written")
            return content["files"], content["pending"]

    @property
    def _advice(self) -> str:
        return (
            f"It holds the checksums of the files beside it. Copy it again or, if those files are "
            f"right, rewrite it with: lesionfast runs --seal {self.folder}"
        )


def says_of_itself(folder: Path) -> bool:
    """Return whether a run says that it was written with a manifest."""
    try:
        return MARK.encode() in (folder / "environment.json").read_bytes()
    except OSError:
        return False


def digest_of(content: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def entry_of(name: str, path: Path) -> Entry:
    """Return what the manifest says of a file."""
    size = path.stat().st_size
    return {"sha256": sha256(path), "bytes": size, "schema": SCHEMAS.get(name, 1)}


def accepted_states(
    name: str, listed: dict[str, Entry], pending: dict[str, Entry | None]
) -> set[str | None] | None:
    """Return the SHA-256s that a file may have, None among them if it may be missing.

    None instead of a set: it may be anything, as the folder is not complete yet.
    """
    entries = [part[name] for part in (listed, pending) if name in part]
    if not entries and LAST not in listed:
        return None
    first = [] if name in listed else [None]
    return {*first, *(entry and entry["sha256"] for entry in entries)}


def state_of(path: Path) -> str | None:
    """Return the SHA-256 of a file, read once while it stays the same; None if there is none."""
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return kept_sha256(path, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@lru_cache(maxsize=4096)
def kept_sha256(path: Path, *version: int) -> str:
    """Return the SHA-256 of a version of a file."""
    return sha256(path)


def newer(name: str, entry: Entry | None) -> str | None:
    """Return that a file is of a newer schema, if it is."""
    if entry is None or entry["schema"] <= SCHEMAS.get(name, 1):
        return None
    return f"it has the schema {entry['schema']} of a newer lesionfast"


def difference(path: Path, entry: Entry | None) -> str:
    """Return how a file differs from what was written."""
    if not path.exists():
        return "it is missing"
    if entry is None:
        return f"{FILE} does not list it, so it belongs to another run"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"it has {size:,} bytes, and {entry['bytes']:,} were written"
    return "its content is not what was written"
