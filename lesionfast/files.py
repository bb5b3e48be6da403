"""Files: written whole or not at all, by one process at a time, and known by their SHA-256."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from lesionfast.errors import DamageError, DiskError, LesionfastError

NAMES = {list: "a list", dict: "an object"}


def check_shape(value: Any, shape: Any, name: str = "it") -> None:
    """Raise `ValueError` unless a JSON value has a shape.

    A shape is a type (`float` is any finite number, `object` anything, None is null), a text
    that it must be, `[shape]` for a list, `{key: shape}` for an object with these keys ("key?":
    it may be missing) and others, `{str: shape}` for one with any keys, and a tuple of shapes for
    one of them.
    """
    if isinstance(shape, tuple):
        if not any(has_shape(value, each) for each in shape):
            raise ValueError(f"{name} is {brief(value)}")
    elif isinstance(shape, list | dict):
        if type(value) is not type(shape):
            raise ValueError(f"{name} is {brief(value)}, not {NAMES[type(shape)]}")
        for key, part in parts_of(value, shape, name):
            check_shape(value[key], part, f"'{key}'" if name == "it" else f"{name}[{key!r}]")
    elif not has_type(value, shape):
        raise ValueError(f"{name} is {brief(value)}")


def has_shape(value: Any, shape: Any) -> bool:
    """Return whether a JSON value has a shape."""
    try:
        check_shape(value, shape)
    except ValueError:
        return False
    return True


def parts_of(value: Any, shape: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the keys of a list or an object, each with the shape that it must have."""
    if isinstance(shape, list):
        yield from ((index, shape[0]) for index in range(len(value)))
        return
    for key, part in shape.items():
        if key is str:
            yield from ((each, part) for each in value)
        elif key.rstrip("?") in value:
            yield key.rstrip("?"), part
        elif not key.endswith("?"):
            raise ValueError(f"{name} has no '{key}'")


def has_type(value: Any, kind: Any) -> bool:
    """Return whether a JSON value is of a type."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return kind is object or value == kind or type(value) is kind


def brief(value: Any) -> str:
    """Return a JSON value in a few characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


OURS = ".lesionfast-"  # begins the names of what is removed sooner or later
UNFINISHED = f"{OURS}unfinished-"  # folders of what is being written, beside its place
LOCKED = f"{OURS}lock-"  # files that are held as long as something is written
LOCK = "lock"
REASONS = {  # what a user can do something about, by the number of the system's error
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system's limit for a file",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "the operation is not permitted",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ELOOP: "its symbolic links form a loop",
    errno.EIO: "the disk reports an error",
}
ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def write_atomically(path: Path, write: Callable[[Path], Any], needed: int | None = None) -> Path:
    """Call `write` with a path aside, then rename: readers see the old file or the new.

    The bytes are on the disk before the name is, so a power cut leaves one or the other too.
    `needed` is the size of the file in bytes, where it is known. Raises `LesionfastError` for a
    full disk and the like, and for a `path` that is there and is not a regular file.
    """
    with disk_errors(path, needed):
        check_target(path)
        with workspace(path.parent) as folder:
            aside = folder / path.name
            write(aside)
            put_in_place(aside, path)
    return path


def put_in_place(aside: Path, path: Path) -> None:
    """Give a file that is whole its name, its bytes on the disk first."""
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    give_usual_rights(aside)
    os.replace(aside, path)


def give_usual_rights(path: Path) -> None:
    """Give a file the rights of any new file; safetensors makes files for their owner alone."""
    probe = path.with_name(f"{OURS}rights")
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    if stat.S_IMODE(path.stat().st_mode) != usual:  # some file systems take no chmod
        path.chmod(usual)


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` atomically, as UTF-8."""
    data = text.encode()
    return write_atomically(path, lambda aside: aside.write_bytes(data), len(data))


def write_json(path: Path, value: Any) -> Path:
    """Write `value` to `path` atomically, as indented JSON."""
    return write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, and not bytes that only this system's names can hold."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def readable_name(name: str) -> str:
    """Return a file's name as text that every format takes: a byte that is not UTF-8 is \\xHH.

    A name with such bytes has its own backslashes doubled, so that it can be turned back.
    """
    if is_text(name):
        return name
    data = name.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return data.decode("utf-8", "backslashreplace")


def read_json(path: Path, shape: Any, advice: str) -> Any:
    """Return what a JSON file holds; `shape` is what it must look like, as `check_shape` takes it.

    Raises `DamageError`, which ends in `advice`, if the file is damaged.
    """
    with damage_explained(path, advice):
        found = json.loads(path.read_text(encoding="utf-8"))
        check_shape(found, shape)
    return found


@contextmanager
def damage_explained(path: Path, advice: str) -> Iterator[None]:
    """Turn whatever reading a broken file raises into a `DamageError` that names the file."""
    try:
        yield
    except DamageError:
        raise
    except FileNotFoundError:
        raise DamageError(f"{path} is missing. {advice}") from None
    except PermissionError:
        raise LesionfastError(
            f"{path} can't be read: permission denied. Type: chmod u+r {path}"
        ) from None
    except Exception as error:  # what a broken file raises is anything
        why = str(error).strip().rstrip(".").splitlines() or [type(error).__name__]
        raise DamageError(f"{path} is damaged: {why[0][:200]}. {advice}") from None


def check_target(path: Path) -> None:
    """Raise `LesionfastError` if `path` is a link, a device, a folder or the like."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if kind != stat.S_IFREG:
        raise LesionfastError(
            f"{path} is {KINDS.get(kind, 'not a regular file')}, so nothing is written there. "
            "Name a new file, or a regular one."
        )


@contextmanager
def disk_errors(path: Path, needed: int | None = None, advice: str | None = None) -> Iterator[None]:
    """Turn a full disk, a read-only file system and the like into a `DiskError` about `path`.

    `needed` is how many bytes are to be written; `advice` is what to type. It replaces the advice
    of an error that was turned already.
    """
    try:
        yield
    except DiskError as error:
        raise DiskError(error.problem, advice or error.advice) from error
    except LesionfastError:
        raise
    except Exception as error:
        number = error_number(error)
        if number not in REASONS:
            raise
        words = f"{REASONS[number]}{room(path, number, needed)}."
        problem = f"{blamed(error, path)}: {words}"
        raise DiskError(problem, advice or usual_advice(number)) from error


def blamed(error: BaseException, path: Path) -> str:
    """Return what an error is about: `path`, unless the system names a file that is another."""
    named = getattr(error, "filename", None)
    there = path.absolute()
    if named is None or OURS in str(named) or Path(named).absolute() in (there, *there.parents):
        return f"{path} can't be written"
    return f"{named} can't be opened"


def error_number(error: BaseException) -> int | None:
    """Return the system's number of an error, also where a library kept its words alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    words = re.search(r"(?:os error |\[errno )(\d+)", str(error), re.IGNORECASE)
    return int(words[1]) if words else None


def room(path: Path, number: int, needed: int | None) -> str:
    """Return how much is needed and free, as the end of a sentence; empty if it is no matter."""
    if number not in ROOM:
        return ""
    if number != errno.ENOSPC:
        return f"; it needs {in_bytes(needed)}" if needed else ""
    free = in_bytes(free_bytes(path))
    if needed:
        return f"; it needs {in_bytes(needed)}, and {free} are free"
    return f"; it needs more than the {free} that are free"


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that a path is on, whether or not it exists."""
    parents = (path, *path.absolute().parents)
    return shutil.disk_usage(next(parent for parent in parents if parent.exists())).free


def usual_advice(number: int) -> str:
    """Return what to do about an error of the disk."""
    if number in ROOM:
        return "Free some space, or name another folder."
    if number == errno.ENAMETOOLONG:
        return "Type a shorter name."
    return "Name a folder where you may write."


def in_bytes(size: int) -> str:
    """Return a size as a person reads it: "13.1 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Give an empty folder below `parent` for what is not finished; it is removed at the end.

    Rename what is whole from there. A process that is killed leaves its folder behind: the next
    one that writes into `parent` removes it, as its lock shows that nobody lives who made it.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), parent) from None
    sweep_once(parent.absolute())
    folder, lock = locked_folder(parent)
    empty = folder / "files"  # beside the lock
    try:
        empty.mkdir()
        yield empty
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def locked_folder(parent: Path) -> tuple[Path, Any]:
    """Return a new folder and the lock in it; again, if another process swept it in between."""
    from filelock import FileLock, Timeout

    while True:
        folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
        lock = FileLock(folder / LOCK)
        try:
            with suppress(Timeout, FileNotFoundError):
                lock.acquire(timeout=0)
                if (folder / LOCK).exists():
                    return folder, lock
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def temporary_folder() -> Any:
    """Give a folder as `workspace` does where the system keeps temporary files."""
    return workspace(Path(tempfile.gettempdir()))


def sweep(parent: Path) -> None:
    """Remove what processes that are dead left in a folder, never what a living one holds."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        if folder.is_dir() and not folder.is_symlink():
            gone = FileNotFoundError  # its writer has just ended
            with suppress(LesionfastError, gone), only_process(folder / LOCK, "its writer lives"):
                shutil.rmtree(folder, ignore_errors=True)
    for lock in parent.glob(f"{LOCKED}*"):
        with suppress(LesionfastError, FileNotFoundError), only_process(lock, "its owner lives"):
            pass  # it is removed as it is let go


sweep_once = cache(sweep)


@contextmanager
def only_process(
    lock: Path, busy: str, *, about: Path | None = None, patience: float = 0
) -> Iterator[None]:
    """Hold a lock file, which is removed at the end; raises `LesionfastError(busy)` if it is held.

    The system lets go of it when the process ends in whatever way. An error of the disk is said
    to be `about` another file; `patience` is in seconds, for those who hold it for a moment.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        with disk_errors(about or lock):
            held.acquire(timeout=patience)
    except Timeout:
        raise LesionfastError(busy) from None
    try:
        yield
    finally:
        with suppress(OSError):  # where an open file can't be removed it stays, and does no harm
            lock.unlink(missing_ok=True)
        held.release()


def only_writer(path: Path) -> Any:
    """Hold an output file, so that no second process writes it at the same time."""
    busy = f"another process is writing {path}. Wait for it, or stop it first."
    return only_process(path.with_name(f"{LOCKED}{path.name}"), busy, about=path, patience=0.2)


def split_path(path: str) -> tuple[str, str | None]:
    """Return a zip file and its member for "<zip>/<member>", else the file and None."""
    for match in re.finditer(r"\.zip/", path, re.IGNORECASE):
        archive = path[: match.end() - 1]
        if os.path.isfile(archive):
            return archive, path[match.end() :]
    return path, None


def stamps(paths: Sequence[str]) -> list[str]:
    """Return size and times of every file or zip file, by which a change is seen unread."""
    return [stamp(file) for file in sorted({split_path(path)[0] for path in paths})]


def stamp(file: str) -> str:
    """Return path, size and times of a file as text; a missing file has none."""
    try:
        state = os.stat(file)
    except OSError:
        return f"{file} missing"
    return f"{os.path.abspath(file)} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
