"""The cache on disk: whole and checked, or made again; one builder; nothing left for good."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from lesionfast import cache as module
from lesionfast.cache import cache_folder, is_sound, kept_array, open_array, read_note, write_note
from lesionfast.errors import LesionfastError
from lesionfast.files import LOCKED

RIGHT = np.arange(3000, dtype=np.float32).reshape(1000, 3)


def build(append):
    for start in range(0, len(RIGHT), 300):
        append(RIGHT[start : start + 300])


@pytest.fixture
def file(tmp_path):
    """A file of the cache with an array in it, which this process has not checked."""
    kept_array(tmp_path / "kept.npy", len(RIGHT), build)
    is_sound.cache_clear()
    return tmp_path / "kept.npy"


DAMAGES = {
    "a flipped bit": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "a flipped bit of the header": lambda data: data[:70] + bytes([data[70] ^ 1]) + data[71:],
    "a flipped bit of the checksum": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "zeroed": lambda data: data[:1000] + bytes(4096) + data[5096:],
    "all zeroed": lambda data: bytes(len(data)),
    "truncated": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-32],
    "longer": lambda data: data + b"more",
    "empty": lambda data: b"",
    "foreign": lambda data: b"something else",
}


def test_the_cache_folder_is_the_environments_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LESIONFAST_CACHE")
    assert cache_folder().name == "lesionfast"


def test_an_array_comes_back_as_it_was_written_and_is_made_once(file, caplog):
    again = kept_array(file, len(RIGHT), lambda append: pytest.fail("it is there"))
    assert isinstance(again, np.memmap) and again.dtype == np.float32
    np.testing.assert_array_equal(again, RIGHT)
    assert not caplog.text and os.listdir(file.parent) == ["kept.npy"]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_array_is_noticed_said_and_made_again(damage, file, caplog):
    file.write_bytes(damage(file.read_bytes()))
    assert open_array(file) is None
    assert caplog.text.count(f"{file} is damaged") == 1 and "rebuilt" in caplog.text
    np.testing.assert_array_equal(kept_array(file, len(RIGHT), build), RIGHT)
    is_sound.cache_clear()
    np.testing.assert_array_equal(open_array(file), RIGHT)


def test_the_last_of_many_blocks_is_checked_too(file, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1000)
    file.unlink()
    kept_array(file, len(RIGHT), build)
    data = bytearray(file.read_bytes())
    data[-33] ^= 1
    file.write_bytes(data)
    is_sound.cache_clear()
    assert open_array(file) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("17", "16"),
        lambda text: "[1, 2]",
        lambda text: '{"digest": "abc"}',
        lambda text: "",
    ],
    ids=["truncated", "another digit", "a list", "of another version", "empty"],
)
def test_a_damaged_note_is_noticed_and_said(damage, tmp_path, caplog):
    note, value = tmp_path / "note.json", {"bad": [3, 17], "digest": "abc"}
    write_note(note, value)
    assert read_note(note) == value and not caplog.text
    note.write_text(damage(note.read_text()))
    assert read_note(note) is None
    assert "note.json is damaged" in caplog.text
    assert read_note(tmp_path / "none.json") is None


def test_a_full_disk_is_said_before_anything_is_computed_and_nothing_is_left(small_disk):
    calls = []

    def write_much(append):
        calls.append("begun")
        append(np.zeros((10, 1000), np.uint8))
        calls.append("written")

    with pytest.raises(LesionfastError, match=r"it needs 3\.0 MB, and .* free.*LESIONFAST_CACHE"):
        kept_array(small_disk / "much.npy", 3000, write_much)
    assert calls == ["begun"] and os.listdir(small_disk) == []


def test_a_file_system_that_cannot_reserve_space_is_asked_for_it(small_disk, monkeypatch):
    def refuse(*args):
        raise OSError(module.UNSUPPORTED[1], "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(LesionfastError, match="the disk is full"):
        kept_array(small_disk / "much.npy", 3000, lambda append: append(np.zeros((10, 1000))))
    np.testing.assert_array_equal(kept_array(small_disk / "a.npy", len(RIGHT), build), RIGHT)


def test_a_cache_that_cannot_be_written_says_what_to_type(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LesionfastError, match=r"a file, not a folder.*LESIONFAST_CACHE"):
        kept_array(tmp_path / "file" / "kept.npy", len(RIGHT), build)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path):
    code = (
        "import os, signal, sys, numpy as np\nfrom pathlib import Path\n"
        "from lesionfast.cache import kept_array\n"
        "def build(append):\n"
        "    append(np.zeros((5, 9)))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "kept_array(Path(sys.argv[1]), 10, build)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed.npy")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert f"{LOCKED}killed.npy" in os.listdir(tmp_path) and len(os.listdir(tmp_path)) == 2
    kept_array(tmp_path / "other.npy", len(RIGHT), build)
    assert os.listdir(tmp_path) == ["other.npy"]


def test_a_second_process_waits_for_the_one_that_builds(tmp_path):
    with module.only_builder(tmp_path / "a.npy"):
        code = (
            "import sys, logging\nfrom pathlib import Path\n"
            "from lesionfast.cache import only_builder\n"
            "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
            "sys.stdout.reconfigure(line_buffering=True)\n"
            "with only_builder(Path(sys.argv[1])): print('mine')"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "a.npy")]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert "waiting for another process" in other.stdout.readline()
        assert other.poll() is None
    assert other.communicate(timeout=60)[0] == "mine\n"
    assert os.listdir(tmp_path) == []
