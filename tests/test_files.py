"""Files are whole or absent, whatever happens while they are written."""

import errno
import os
import pickle
import signal
import stat
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from lesionfast import files
from lesionfast.errors import DiskError, LesionfastError
from lesionfast.files import (
    UNFINISHED,
    append_texts,
    as_object,
    disk_errors,
    only_writer,
    readable_name,
    split_path,
    stamps,
    sweep,
    workspace,
    write_atomically,
    write_json,
    write_text,
)

WRITES_FOR_EVER = """
import sys, time
from pathlib import Path
from lesionfast.files import write_atomically

def write(aside):
    aside.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)

write_atomically(Path(sys.argv[1]), write)
"""


@pytest.fixture
def writer(tmp_path):
    """A process that is in the middle of writing weights.safetensors."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_FOR_EVER, str(tmp_path / "weights.safetensors")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def unfinished(folder: Path) -> list[Path]:
    return list(folder.glob(f"{UNFINISHED}*"))


def test_a_file_that_was_replaced_is_whole_and_nothing_lies_beside_it(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new ü\n")
    assert (tmp_path / "a.txt").read_bytes() == "new ü\n".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, on_disk):
    path = tmp_path / "a.txt"
    for text in ("old", "new"):
        write_text(path, text)
        place = path.stat().st_ino, text.encode()
        assert on_disk == [("sync", *place), ("replace", *place)]
        on_disk.clear()


def test_what_is_appended_is_on_the_disk_and_so_is_the_name_of_a_new_file(tmp_path, on_disk):
    path, folder = tmp_path / "log.csv", ("sync", tmp_path.stat().st_ino, b"")
    append_texts(path, ["1\n", "2\n"], "head\n")
    inode = path.stat().st_ino
    assert on_disk == [("sync", inode, b"head\n1\n2\n"), folder]
    append_texts(path, ["3\n"], "head\n")
    assert on_disk[2:] == [("sync", inode, b"head\n1\n2\n3\n")]


def test_others_may_read_a_file_that_its_library_made_private(tmp_path):
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / "weights", lambda aside: aside.touch(0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_writing_that_is_stopped_leaves_the_old_file_alone(tmp_path, stop):
    def write(aside):
        aside.write_text("half")
        raise stop

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(stop):
        write_atomically(tmp_path / "a.txt", write)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path, writer):
    assert len(unfinished(tmp_path)) == 1
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(unfinished(tmp_path)) == 1
    write_json(tmp_path / "metrics.json", {})
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_what_a_living_writer_writes_is_not_removed(tmp_path, writer):
    (half,) = unfinished(tmp_path)
    sweep(tmp_path)
    write_json(tmp_path / "metrics.json", {})
    assert (half / "files" / "weights.safetensors").read_bytes() == b"half"


def test_what_this_process_writes_is_not_removed(tmp_path):
    with workspace(tmp_path) as folder:
        (folder / "half").touch()
        sweep(tmp_path)
        assert (folder / "half").exists()
    assert not unfinished(tmp_path)


def test_a_writer_that_ends_while_another_looks_for_leftovers_is_no_error(tmp_path, monkeypatch):
    (tmp_path / f"{UNFINISHED}going").mkdir()

    @contextmanager
    def gone(lock, busy):
        raise FileNotFoundError(lock)
        yield

    monkeypatch.setattr(files, "only_process", gone)
    sweep(tmp_path)


def test_a_link_that_looks_like_a_leftover_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").touch()
    link = tmp_path / f"{UNFINISHED}link"
    link.symlink_to(tmp_path / "mine")
    sweep(tmp_path)
    assert os.listdir(tmp_path / "mine") == ["a.txt"] and link.is_symlink()


def make_pipe(path):
    os.mkfifo(path)


def make_link(path):
    path.with_name("data").write_text("mine")
    path.symlink_to(path.with_name("data"))


def make_dangling_link(path):
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    "make, kind",
    [
        (make_pipe, "a named pipe"),
        (make_link, "a symbolic link"),
        (make_dangling_link, "a symbolic link"),
        (Path.mkdir, "a folder"),
    ],
)
def test_what_is_no_ordinary_file_is_refused_and_stays(tmp_path, make, kind):
    path = tmp_path / "out.csv"
    make(path)
    before = sorted(os.listdir(tmp_path)), path.lstat()
    with pytest.raises(LesionfastError, match=f"out.csv is {kind}"):
        write_text(path, "new")
    assert before == (sorted(os.listdir(tmp_path)), path.lstat())


def test_a_device_is_refused():
    with pytest.raises(LesionfastError, match="/dev/null is a device"):
        write_text(Path("/dev/null"), "new")


def test_a_full_disk_says_what_is_needed_and_free_and_leaves_no_half_file(small_disk):
    with pytest.raises(DiskError, match=r"big.txt can't be written: the disk is full; it needs "):
        write_text(small_disk / "big.txt", "x" * 3_000_000)
    with pytest.raises(DiskError, match=r"it needs 3.0 MB, and 1.0 MB are free. Free some space"):
        write_text(small_disk / "big.txt", "x" * 3_000_000)
    assert os.listdir(small_disk) == []


def test_a_full_disk_is_understood_in_the_words_of_other_libraries(small_disk):
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {"a": np.zeros(3_000_000, np.uint8)}
    with pytest.raises(DiskError, match=r"the disk is full; it needs more than the 1.0 MB that"):
        write_atomically(small_disk / "a.safetensors", lambda aside: save_file(tensors, aside))
    assert os.listdir(small_disk) == []


def test_a_read_only_folder_is_said_to_be_one(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DiskError, match=r"a.txt can't be written: the file system is read-only"):
        write_text(small_disk / "a.txt", "new")


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.EDQUOT, "the disk quota is used up; it needs 3 bytes. Free some space"),
        (errno.EFBIG, "larger than the system's limit for a file; it needs 3 bytes"),
        (errno.EACCES, "permission denied. Name a folder where you may write."),
        (errno.EIO, "the disk reports an error"),
    ],
)
def test_a_quota_and_missing_rights_are_errors_of_the_user(tmp_path, number, words):
    with pytest.raises(DiskError, match=words), disk_errors(tmp_path / "a.txt", 3):
        raise OSError(number, os.strerror(number))


def test_a_file_that_can_not_be_read_meanwhile_is_the_one_that_is_named(tmp_path):
    refused = pytest.raises(DiskError, match=r"^/photos/1.jpg can't be opened: permission denied")
    with refused, disk_errors(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "no", "/photos/1.jpg")


def test_a_bug_stays_a_bug(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "nowhere").read_text()


def test_a_command_may_say_better_what_to_type(tmp_path):
    full = pytest.raises(DiskError, match=r"the disk is full.*free\. Type: train --resume")
    with full, disk_errors(tmp_path, advice="Type: train --resume"), disk_errors(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "full")


def test_an_error_comes_out_of_another_process_whole():
    error = pickle.loads(pickle.dumps(DiskError("It is full.", "Free some space.")))
    assert (str(error), error.advice) == ("It is full. Free some space.", "Free some space.")


def test_a_file_where_a_folder_is_needed_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="a part of the path is a file, not a folder"):
        write_text(tmp_path / "file" / "a.txt", "new")


def test_the_limit_on_the_size_of_a_file_is_understood(tmp_path):
    code = (
        "import resource, sys; from pathlib import Path; from lesionfast.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(Path(sys.argv[1]), 'x' * 2000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.txt")], capture_output=True, text=True
    )
    assert "larger than the system's limit for a file; it needs 2.0 kB" in done.stderr
    assert os.listdir(tmp_path) == []


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    out = tmp_path / "out.csv"
    busy = pytest.raises(LesionfastError, match="another process is writing .*out.csv")
    with only_writer(out), busy, only_writer(out):
        pass
    with only_writer(out):
        pass
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_no_lock_for_good(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from lesionfast.files import only_writer\n"
        "with only_writer(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out.csv")], check=False)
    assert len(os.listdir(tmp_path)) == 1
    with only_writer(tmp_path / "other.csv"):
        sweep(tmp_path)
        assert os.listdir(tmp_path) == [".lesionfast-lock-other.csv"]


def test_a_read_only_folder_is_said_of_the_output_not_of_its_lock(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = pytest.raises(DiskError, match=r"/out.csv can't be written: the file system is read")
    with refused, only_writer(small_disk / "out.csv"):
        pass


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    made, real = [], files.tempfile.mkdtemp

    def swept_at_once(**options):
        made.append(real(**options))
        if len(made) == 1:
            sweep(tmp_path)
        return made[-1]

    monkeypatch.setattr(files.tempfile, "mkdtemp", swept_at_once)
    write_text(tmp_path / "a.txt", "whole")
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "name, readable",
    [
        (b"plain.jpg", "plain.jpg"),
        ("größe 日本.jpg".encode(), "größe 日本.jpg"),
        (b"a\\xe9.jpg", r"a\xe9.jpg"),
        (b"m\xe9l\\.jpg", r"m\xe9l\\.jpg"),
        ("ö".encode() + b"\xff", r"ö\xff"),
    ],
)
def test_a_name_of_any_bytes_is_readable(name, readable):
    assert readable_name(os.fsdecode(name)) == readable


def test_a_path_is_split_at_a_zip_file_but_not_at_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("sub/00.bin", b"")
    path = f"{tmp_path.as_posix()}/all.zip/sub/00.bin"
    assert split_path(path) == (f"{tmp_path.as_posix()}/all.zip", "sub/00.bin")
    (tmp_path / "folder.zip").mkdir()
    inside = f"{tmp_path.as_posix()}/folder.zip/a.jpg"
    assert split_path(inside) == (inside, None)


def test_a_stamp_changes_with_the_file(tmp_path):
    file = tmp_path / "a.bin"
    before = stamps([str(file)])
    file.write_bytes(b"1")
    written = stamps([str(file)])
    file.write_bytes(b"12")
    assert len({*before, *written, *stamps([str(file)])}) == 3


def test_a_key_that_comes_twice_is_found_in_one_pass():
    class Name(str):
        compared = 0

        def __eq__(self, other):
            Name.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    def comparisons(count: int) -> int:
        Name.compared = 0
        pairs = [(Name(f"k{i}"), i) for i in range(count)]
        with pytest.raises(ValueError, match="has the key 'k0' twice"):
            as_object([*pairs[1:], *pairs[:1], (Name("k0"), 0)])
        return Name.compared

    assert comparisons(4000) < 8 * comparisons(1000) + 1000
