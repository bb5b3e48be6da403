"""Manifest: the files that a folder must hold, by their SHA-256, so that damage is noticed."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lesionfast.errors import DamageError, shell_quote
from lesionfast.files import (
    check_shape,
    damage_explained,
    load_json,
    sha256,
    sha256_once,
    write_atomically,
    write_json,
)

FILE = "manifest.json"
LOCK = ".manifest.lock"
SCHEMA = 1
SCHEMAS = {"model.json": 2}  # the last of files that say which they have; 2: with a weight
LAST = "metrics.json"  # once it is listed the folder is complete: what is not listed is foreign
MARK = '"manifest":'  # in environment.json; its value is the schema
UPGRADE = "Upgrade it: pip install --upgrade lesionfast"
Entry = dict[str, Any]
ENTRY = {"sha256": str, "bytes": int, "schema": int}
SHAPE = {"files": {str: ENTRY}, "pending": {str: (ENTRY, None)}}


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
        manifest = cls(folder)
        manifest._save({}, {})
        return manifest

    @property
    def exists(self) -> bool:
        """Whether the folder has a manifest; raises `DamageError` if it has lost it."""
        if self.path.is_file():
            return True
        if claims_manifest(self.folder):
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

        def write_and_announce(aside: Path) -> None:
            write(aside)
            self._announce(name, describe_file(aside, name))

        with self._lock():
            write_atomically(path, write_and_announce)
            self._settle(name)
        return path

    def remove(self, *names: str) -> None:
        """Remove files and take them off the list; missing files are skipped."""
        for name in names:
            path = self.folder / name
            if not self.exists:
                path.unlink(missing_ok=True)
                continue
            with self._lock():
                self._announce(name, None)
                path.unlink(missing_ok=True)
                self._settle(name)

    def record(self, *names: str) -> None:
        """List files as they are now; missing files are skipped."""
        if self.exists:
            with self._lock():
                listed, pending = self._load()
                now = self._describe(names)
                self._save(listed | now, {k: v for k, v in pending.items() if k not in now})

    def seal(self, *names: str) -> None:
        """List these files as they are now, and no others: the folder is right as it is."""
        with self._lock():
            self._save(self._describe(names), {})

    def release(self, *names: str) -> None:
        """Take files off the list, because they are about to change without being announced."""
        if self.exists:
            with self._lock():
                kept = [{k: v for k, v in part.items() if k not in names} for part in self._load()]
                self._save(*kept)

    def lists(self, name: str) -> bool:
        """Return whether a file must exist."""
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
            entries = [part[name] for part in before if name in part]
            if not entries and LAST not in listed:
                return None  # the folder is not complete: it may be anything
            right = {entry and entry["sha256"] for entry in entries}
            if name not in listed:
                right.add(None)
            if sha256_once(self.folder / name) in right:
                schema = listed[name]["schema"] if name in listed else 0
                newer = schema > SCHEMAS.get(name, 1)
                return f"it has the schema {schema} of a newer lesionfast" if newer else None
            if self._load() == before:  # else it was written in the meantime
                return explain_difference(self.folder / name, listed.get(name) or pending.get(name))
        return None

    def _lock(self) -> Any:
        from filelock import FileLock

        return FileLock(self.folder / LOCK)

    def _describe(self, names: tuple[str, ...]) -> dict[str, Entry]:
        paths = {name: self.folder / name for name in names}
        return {name: describe_file(path, name) for name, path in paths.items() if path.is_file()}

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
        write_json(self.path, content | {"sha256": hash_json(content)})

    def _load(self) -> tuple[dict[str, Entry], dict[str, Entry | None]]:
        with damage_explained(self.path, self._advice):
            content = load_json(self.path)
            digest = content.pop("sha256")
            if type(content["schema"]) is int and content["schema"] > SCHEMA:
                raise DamageError(f"{self.path} was written by a newer lesionfast. {UPGRADE}")
            if digest != hash_json(content):
                raise ValueError("its content is not what was written")
            check_shape(content, SHAPE)
            for name in (*content["files"], *content["pending"]):
                if "\0" in name or os.path.isabs(name) or ".." in name.split("/"):
                    raise ValueError(f"it lists {name[:80]!r}, which is not in the folder")
            return content["files"], content["pending"]

    @property
    def _advice(self) -> str:
        return (
            f"It holds the checksums of the files beside it. Copy it again or, if those files are "
            f"right, rewrite it with: lesionfast runs --seal {shell_quote(self.folder)}"
        )


def claims_manifest(folder: Path) -> bool:
    """Return whether a run says that it was written with a manifest."""
    try:
        return MARK.encode() in (folder / "environment.json").read_bytes()
    except OSError:
        return False


def hash_json(content: dict[str, Any]) -> str:
    """Return the SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe_file(path: Path, name: str) -> Entry:
    """Return what the manifest says of a file that is, or will be, called `name`."""
    size = path.stat().st_size
    return {"sha256": sha256(path), "bytes": size, "schema": read_schema(path, name)}


def read_schema(path: Path, name: str) -> int:
    """Return the schema that a file says it has; 1 if it says none."""
    if name not in SCHEMAS:
        return 1
    try:
        schema = load_json(path).get("schema", 1)
    except (ValueError, AttributeError):  # whoever reads it says what is wrong
        return 1
    return schema if type(schema) is int else 1


def explain_difference(path: Path, entry: Entry | None) -> str:
    """Return how a file differs from what was written."""
    if not path.exists():
        return "it is missing"
    if entry is None:
        return f"{FILE} does not list it, so it belongs to another run"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"it has {size:,} bytes, but {entry['bytes']:,} were written"
    return "its content is not what was written"
