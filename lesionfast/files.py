"""Files: written whole or not at all, by one process at a time, and known by their SHA-256."""

import csv
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from sys import float_info
from typing import TYPE_CHECKING, Any

from lesionfast.errors import DamageError, DiskError, LesionfastError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("lesionfast")

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
    errno.ELOOP: "it is a symbolic link, or links form a loop",
    errno.EIO: "the disk reports an error",
}
ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADVICE = dict.fromkeys(ROOM, "Free some space, or name another folder.")
ADVICE[errno.ENAMETOOLONG] = "Type a shorter name."
CONTAINER = re.compile(r"\.(?:zip|tar|hdf5|h5|parquet|npz)/", re.IGNORECASE)  # holds many images
MOST_JSON = 32 * 2**20  # bytes: the objects of such a file take up to 1 GB
DEEPEST = 100  # lists and objects in one another in a JSON file
NUMBER = (float, None)  # a shape of JSON: a number, or null where it is not defined
APPENDING = os.O_RDWR | os.O_APPEND | os.O_CREAT
APPENDING |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # no link, no pipe
LINKED = ("figures", "checkpoints")  # folders of a run that may be links to another disk
RUNS = ("config.json", "pretrain.json", "search.json")  # of what has such folders
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def write_atomically(path: Path, write: Callable[[Path], Any], needed: int | None = None) -> Path:
    """Call `write` with a path aside, then rename: readers see the old file or the new one.

    The bytes are on the disk before the name is, so a power cut leaves one or the other too.
    `needed` is the size of the file in bytes, where it is known. Raises `LesionfastError` for a
    full disk and the like, and if `path` exists and is not a regular file.
    """
    with disk_errors(path, needed):
        check_target(path)
        check_links(path)
        with workspace(path.parent) as folder:
            aside = folder / path.name
            write(aside)
            put_in_place(aside, path)
    return path


def put_in_place(aside: Path, path: Path) -> None:
    """Rename a finished file, its bytes on the disk first, with the rights of any new file."""
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    probe = aside.with_name(f"{OURS}rights")  # safetensors makes files for their owner alone
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    if stat.S_IMODE(aside.stat().st_mode) != usual:  # some file systems take no chmod
        aside.chmod(usual)
    os.replace(aside, path)


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` atomically, as UTF-8."""
    data = text.encode()
    return write_atomically(path, lambda aside: aside.write_bytes(data), len(data))


def write_json(path: Path, value: Any) -> Path:
    """Write `value` to `path` atomically, as indented JSON."""
    return write_text(path, json.dumps(value, indent=2) + "\n")


COMPUTED = "=+@\uff1d\uff0b\uff0d\uff20-"  # a cell that begins so is computed by a spreadsheet
FORMULA = re.compile(rf"'*[\t\r{COMPUTED}]")
NUMERAL = re.compile(r"[+-]?[0-9.]*")


def csv_text(table: "pd.DataFrame", header: bool = True) -> str:
    """Return a table as CSV, in which a carriage return within a name ends no row."""

    def convert(quoting: int) -> str:
        return table.to_csv(index=False, header=header, lineterminator="\n", quoting=quoting)

    text = convert(csv.QUOTE_MINIMAL)
    return convert(csv.QUOTE_NONNUMERIC) if "\r" in text else text


def write_csv(table: "pd.DataFrame", path: Path) -> None:
    """Write a table to a file as `csv_text`; not atomically."""
    path.write_bytes(csv_text(table).encode())


def write_sheet(path: Path, table: "pd.DataFrame") -> Path:
    """Write a table atomically as CSV for people, whose spreadsheet runs no text as a formula."""
    report_disarmed(count_disarmed(table), path)
    return write_text(path, csv_text(disarm_texts(table)))


def disarm_texts(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table whose texts and names of columns a spreadsheet does not run as formulas."""
    table = table.copy(deep=False)
    for name in table:
        if table[name].dtype.kind not in "biuf":
            table[name] = table[name].map(disarm)
    return table.rename(columns=disarm)


def count_disarmed(table: "pd.DataFrame") -> int:
    """Return how many texts of a table, names of columns among them, `disarm_texts` changes."""
    texts = [name for name in table if table[name].dtype.kind not in "biuf"]
    return sum(
        isinstance(value, str) and disarm(value) != value
        for values in (table.columns, *(table[name] for name in texts))
        for value in values
    )


def report_disarmed(count: int, place: object) -> None:
    """Say once how many texts of a file were disarmed, if any."""
    if count:
        logger.warning(
            "%s: an apostrophe was put before %d texts that a spreadsheet would run as a formula. "
            "Remove it where a program reads them", place, count,
        )  # fmt: skip


def disarm(value: Any) -> Any:
    """Return a value of a cell: a text that a spreadsheet would compute after an apostrophe."""
    if not isinstance(value, str) or not FORMULA.match(value) or NUMERAL.fullmatch(value):
        return value
    return f"'{value}"


def rearm(text: str) -> str:
    """Return the text that `disarm` was given."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def append_texts(path: Path, texts: Sequence[str], head: str = "") -> None:
    """Append texts to a file, each in one write; all are on the disk when this returns.

    A new file begins with `head`; an existing one whose last line has no end gets it. Nothing of a
    text is left in the file if it can't be written whole. Raises `LesionfastError` for a full disk
    and the like.
    """
    with disk_errors(path):
        check_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_to_append(path)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            start = "\n" if torn else "" if size else head
            for number, text in enumerate(texts):
                write_whole(descriptor, (text if number else start + text).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not size:
            sync_folder(path.parent)


def open_to_append(path: Path) -> int:
    """Return a descriptor of a regular file to append to, a new one if need be.

    Raises `LesionfastError` for a pipe or the like, and `OSError` for a
    link, even for one that was put there after `check_target` had looked.
    """
    descriptor = os.open(path, APPENDING, 0o666)
    try:
        require_regular(path, os.fstat(descriptor).st_mode)
    except LesionfastError:
        os.close(descriptor)
        raise
    return descriptor


def write_whole(descriptor: int, data: bytes) -> None:
    """Write all bytes, or cut the file to what it was and raise `OSError`."""
    before = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, data)
        while written < len(data):  # the disk has become full: the next call says so
            written += os.write(descriptor, data[written:])
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def sync_folder(folder: Path) -> None:
    """Put the name of a new file on the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_target(path: Path) -> None:
    """Raise `LesionfastError` if `path` is a link, a device, a folder or the like."""
    with suppress(FileNotFoundError):
        require_regular(path, path.lstat().st_mode)


def check_links(path: Path) -> None:
    """Raise `LesionfastError` if a run would write behind a link into what is not the user's own.

    Figures or checkpoints may lie on another disk; a run from a stranger may not choose where.
    """
    for folder in path.parents[:2]:  # figures/, or figures/<split>/
        ours = folder.name in LINKED and any((folder.parent / name).is_file() for name in RUNS)
        if not (ours and folder.is_symlink()):
            continue
        target = os.readlink(folder)
        if not folder.is_dir():
            raise LesionfastError(
                f"{folder} is a symbolic link to {target}, which is not a directory. Make that "
                f"directory, or remove the link: rm {folder}"
            )
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise LesionfastError(
                f"{folder} is a symbolic link to {target}, which belongs to another user, so "
                f"nothing is written there. Remove the link: rm {folder}"
            )


def require_regular(path: Path, mode: int) -> None:
    """Raise `LesionfastError` unless a mode, as of `os.stat`, is that of a regular file."""
    kind = stat.S_IFMT(mode)
    if kind != stat.S_IFREG:
        raise LesionfastError(
            f"{path} is {KINDS.get(kind, 'not a regular file')}, so nothing is written there. "
            "Name a new file, or a regular one."
        )


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Give an empty folder below `parent` for unfinished files; it is removed at the end.

    Rename what is whole from there. A process that is killed leaves its folder behind: the next
    one that writes into `parent` removes it, as nobody holds its lock.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), parent) from None
    sweep_once(parent.absolute())
    folder, lock = make_locked_folder(parent)
    empty = folder / "files"  # beside the lock
    try:
        empty.mkdir()
        yield empty
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def make_locked_folder(parent: Path) -> tuple[Path, Any]:
    """Return a new folder and its lock; try again if another process swept it in between."""
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
    """Give a `workspace` where the system keeps temporary files."""
    return workspace(Path(tempfile.gettempdir()))


def sweep(parent: Path) -> None:
    """Remove what dead processes left in a folder, never what a living one holds."""
    for folder in parent.glob(f"{UNFINISHED}*"):
        if folder.is_dir() and not folder.is_symlink():
            gone = FileNotFoundError  # its writer has just ended
            with suppress(LesionfastError, gone), only_process(folder / LOCK, "its writer lives"):
                shutil.rmtree(folder, ignore_errors=True)
    for lock in parent.glob(f"{LOCKED}*"):
        with suppress(LesionfastError, FileNotFoundError), only_process(lock, "its owner lives"):
            pass  # letting go of it removes it


sweep_once = cache(sweep)


@contextmanager
def only_process(
    lock: Path, busy: str, *, about: Path | None = None, patience: float = 0, wait: bool = False
) -> Iterator[None]:
    """Hold a lock file, which is removed at the end and let go however the process ends.

    If another process holds it for longer than `patience` (seconds), raise `LesionfastError(busy)`,
    or with `wait` log `busy` and wait. Disk errors name `about` instead of the lock.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        with disk_errors(about or lock):
            held.acquire(timeout=patience)
    except Timeout:
        if not wait:
            raise LesionfastError(busy) from None
        logger.info(busy)
        held.acquire()
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


@contextmanager
def disk_errors(path: Path, needed: int | None = None, advice: str | None = None) -> Iterator[None]:
    """Turn a full disk, a read-only file system and the like into a `DiskError` about `path`.

    `needed` is how many bytes are to be written; `advice` is what to type. It replaces the advice
    of a `DiskError` from within.
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
        reason = f"{REASONS[number]}{describe_room(path, number, needed)}"
        advice = advice or ADVICE.get(number, "Name a folder where you may write.")
        raise DiskError(f"{describe_failure(error, path)}: {reason}.", advice) from error


def error_number(error: BaseException) -> int | None:
    """Return the system's number of an error, also where a library kept only its words."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    words = re.search(r"(?:os error |\[errno )(\d+)", str(error), re.IGNORECASE)
    return int(words[1]) if words else None


def describe_failure(error: BaseException, path: Path) -> str:
    """Return what failed: writing `path`, or opening another file that the system names."""
    named = getattr(error, "filename", None)
    there = path.absolute()
    if named is None or OURS in str(named) or Path(named).absolute() in (there, *there.parents):
        return f"{path} can't be written"
    return f"{named} can't be opened"


def describe_room(path: Path, number: int, needed: int | None) -> str:
    """Return how much is needed and free, to end a sentence; empty where it is irrelevant."""
    if number != errno.ENOSPC:
        return f"; it needs {format_bytes(needed)}" if needed and number in ROOM else ""
    free = format_bytes(free_bytes(path))
    if needed:
        return f"; it needs {format_bytes(needed)}, and {free} are free"
    return f"; it needs more than the {free} that are free"


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that a path is on, whether or not it exists."""
    parents = (path, *path.absolute().parents)
    return shutil.disk_usage(next(parent for parent in parents if parent.exists())).free


def format_bytes(size: int) -> str:
    """Return a size as a person reads it: "13.1 MB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def read_json(path: Path, shape: Any, advice: str) -> Any:
    """Return what a JSON file holds; `shape` is what it must look like, as for `check_shape`.

    Raises `DamageError`, which ends in `advice`, if the file is damaged.
    """
    with damage_explained(path, advice):
        value = load_json(path)
        check_shape(value, shape)
    return value


def load_json(path: Path, most: int = MOST_JSON) -> Any:
    """Return what a JSON file holds, whoever wrote it.

    Raises `ValueError` for what is no JSON, no regular file or larger than 32 MB (or `most` bytes),
    and `OSError`.
    """
    return parse_json(read_small_text(path, most))


def read_small_text(path: Path, most: int = MOST_JSON) -> str:
    """Return the text of a file that a person or a program wrote, such as JSON or TOML.

    Raises `ValueError` for what is no regular file, larger than 32 MB (or `most` bytes) or not
    UTF-8, and `OSError`.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ValueError(f"it is {KINDS.get(stat.S_IFMT(state.st_mode), 'not a regular file')}")
    if state.st_size > most:
        raise ValueError(
            f"it has {format_bytes(state.st_size)}, and at most {format_bytes(most)} are read"
        )
    return path.read_text(encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text holds.

    Raises `ValueError` for a key that an object has twice, which readers take differently, and for
    lists and objects that are more than 100 deep in one another.
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=as_object)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level = [value] if text.count("[") + text.count("{") > DEEPEST else []
    for _ in range(DEEPEST):
        boxes = [one for one in level if type(one) in (dict, list)]
        level = [part for box in boxes for part in (box.values() if type(box) is dict else box)]
    if level:
        raise ValueError("it is nested too deep")
    return value


def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raises `ValueError` for a key that it has twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name in counts if counts[name] > 1)
        raise ValueError(f"it has the key {twice[:40]!r} twice")
    return value


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
    except Exception as error:  # a broken file raises anything
        why = str(error).strip().rstrip(".").splitlines() or [type(error).__name__]
        raise DamageError(f"{path} is damaged: {why[0][:200]}. {advice}") from None


def check_shape(value: Any, shape: Any, name: str = "it") -> None:
    """Raise `ValueError` unless a JSON value has a shape.

    A shape is a type (`float` is any finite number, `object` anything, None is null), a range for
    a whole number in it, a text that it must be, `[shape]` for a list, `{key: shape}` for an object
    with these keys ("key?": it may be missing) and others, `{str: shape}` for one with any keys,
    and a tuple of shapes for one of them.
    """
    if isinstance(shape, tuple):
        fits = any(has_shape(value, option) for option in shape)
    elif isinstance(shape, list | dict):
        fits = type(value) is type(shape)
    elif isinstance(shape, range):
        fits = type(value) is int and value in shape
    elif shape is float:
        fits = type(value) in (int, float) and abs(value) <= float_info.max
    else:
        fits = shape is object or value == shape or type(value) is shape
    if not fits:
        text = repr(value)
        wanted = {list: ", not a list", dict: ", not an object"}.get(type(shape), "")
        raise ValueError(f"{name} is {text if len(text) <= 40 else f'{text[:40]}…'}{wanted}")
    for key, part in list_parts(value, shape, name):
        one = value[key]
        kind = type(one)  # no call for plain values: a list of runs has a hundred thousand
        if (part in (float, NUMBER) and math.isfinite(one)) if kind is float else kind is part:
            continue
        check_shape(one, part, f"'{key}'" if name == "it" else f"{name}[{key!r}]")


def has_shape(value: Any, shape: Any) -> bool:
    """Return whether a JSON value has a shape."""
    try:
        check_shape(value, shape)
    except ValueError:
        return False
    return True


def list_parts(value: Any, shape: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the keys of a list or an object, each with the shape of its value."""
    if isinstance(shape, list):
        yield from ((index, shape[0]) for index in range(len(value)))
    elif isinstance(shape, dict):
        for key, part in shape.items():
            if key is str:
                yield from ((name, part) for name in value)
            elif key.rstrip("?") in value:
                yield key.rstrip("?"), part
            elif not key.endswith("?"):
                raise ValueError(f"{name} has no '{key}'")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str | None:
    """Return the SHA-256 of a file, read once while it stays the same; None if it is missing."""
    try:
        state = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return hash_version(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=4096)
def hash_version(path: Path, *version: int) -> str:
    """Return the SHA-256 of a version of a file."""
    return sha256(path)


def readable_name(name: str) -> str:
    """Return a file's name as text that every format takes: a byte that is not UTF-8 is \\xHH.

    A name with such bytes has its own backslashes doubled, so that it can be turned back.
    """
    if name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name):
        return name
    data = name.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return data.decode("utf-8", "backslashreplace")


def split_path(path: str) -> tuple[str, str | None]:
    """Return a file that holds images and the member for "<file>/<member>", else path and None."""
    for match in CONTAINER.finditer(path):
        container = path[: match.end() - 1]
        if os.path.isfile(container):
            return container, path[match.end() :]
    return path, None


def stamps(paths: Sequence[str]) -> list[str]:
    """Return size and times of every file or container, which show a change without reading it."""
    return [stamp(file) for file in sorted({split_path(path)[0] for path in paths})]


def stamp(file: str) -> str:
    """Return path, size and times of a file as text; a missing file has none."""
    try:
        state = os.stat(file)
    except OSError:
        return f"{file} missing"
    return f"{os.path.abspath(file)} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
