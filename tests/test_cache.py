"""The cache on disk: whole and checked, or made again; one builder; nothing left for good."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from lesionfast import cache as module
from lesionfast.cache import (
    cache_folder,
    clear_cache,
    fits,
    is_sound,
    kept_array,
    list_entries,
    open_array,
    read_note,
    size_limit,
    write_array,
    write_note,
)
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


def test_an_array_and_its_checksum_are_on_the_disk_before_it_has_its_name(tmp_path, on_disk):
    kept_array(tmp_path / "kept.npy", len(RIGHT), build)
    written = (tmp_path / "kept.npy").read_bytes()
    place = (tmp_path / "kept.npy").stat().st_ino, written
    assert [done for done in on_disk if done[1] == place[0]][-2:] == [
        ("sync", *place),
        ("replace", *place),
    ]
    on_disk.clear()
    write_array(tmp_path / "alone.npy", len(RIGHT), build)  # as others write, which rename it
    assert on_disk == [("sync", (tmp_path / "alone.npy").stat().st_ino, written)]


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
    assert other.communicate(timeout=600)[0] == "mine\n"
    assert os.listdir(tmp_path) == []


def test_two_processes_that_want_the_same_array_build_it_once(tmp_path):
    code = (
        "import sys, time, numpy as np\nfrom pathlib import Path\n"
        "from lesionfast.cache import kept_array\n"
        "def build(append):\n"
        "    print('built', flush=True)\n"
        "    time.sleep(1)\n"
        "    append(np.arange(30).reshape(10, 3))\n"
        "print(kept_array(Path(sys.argv[1]), 10, build).sum())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.npy")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    told = sorted(process.communicate(timeout=600)[0] for process in both)
    assert told == ["435\n", "built\n435\n"]


@pytest.mark.parametrize(
    "typed, size",
    [
        *[("20G", 20 * 10**9), ("20 gb", 20 * 10**9), ("1.5T", 15 * 10**11)],
        *[("1GiB", 2**30), ("500k", 500_000), ("2Mi", 2**21), ("", None), (" ", None)],
    ],
)
def test_the_limit_is_read_as_people_write_sizes(typed, size, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", typed)
    assert size_limit() == size


@pytest.mark.parametrize("typed", ["20", "many", "-1G", "0G", "20X", "1,5G", "G"])
def test_what_is_no_size_is_refused(typed, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", typed)
    with pytest.raises(LesionfastError, match=f"is '{typed}', which is not a size.*=20G, or leave"):
        size_limit()


@pytest.fixture
def small_cache(tmp_path, monkeypatch):
    """A cache that may have 400 kB: three arrays of 100 kB, a, b and c, used in this order."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", "400K")
    for age, name in enumerate("cba"):
        keep(name)
        use(name, age + 1)
    return tmp_path / "cache" / "features"


def path_of(name):
    return cache_folder() / "features" / f"{name}.npy"


def keep(name, rows=100):
    return kept_array(path_of(name), rows, lambda append: append(np.ones((rows, 1000), np.uint8)))


def use(name, hours_ago):
    then = time.time() - 3600 * hours_ago
    os.utime(path_of(name), (then, then))


def names():
    return [entry.file.stem for entry in list_entries()]


@contextmanager
def opened_elsewhere(name):
    """Another process that has an array mapped, and closed its file."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom lesionfast.cache import open_array\n"
        "array = open_array(Path(sys.argv[1]))\n"
        "print('open', flush=True)\nsys.stdin.read()\nprint(array.sum())"
    )
    command = [sys.executable, "-c", code, str(path_of(name))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "open\n"
        yield process
        assert process.communicate(timeout=600)[0] == "100000\n"


def test_what_was_not_used_for_longest_goes_when_the_cache_is_full(small_cache, caplog):
    caplog.set_level("INFO", "lesionfast")
    assert names() == ["a", "b", "c"]
    assert open_array(path_of("a")) is not None
    assert names() == ["b", "c", "a"]
    keep("d")
    assert names() == ["c", "a", "d"]
    assert "Removed 1 array (100.2 kB) from the cache, least recently used first" in caplog.text
    keep("e", rows=250)
    assert names() == ["d", "e"]
    assert os.listdir(small_cache.parent) == ["features"]
    assert sorted(os.listdir(small_cache)) == ["d.npy", "e.npy"]


def test_to_look_at_the_cache_is_not_to_use_it(small_cache):
    before = [(entry.file, entry.used) for entry in list_entries()]
    assert [entry.describe() for entry in list_entries()] == [
        "features of 100 images, 1000 numbers each"
    ] * 3
    assert [entry.in_use for entry in list_entries()] == [False] * 3
    assert [(entry.file, entry.used) for entry in list_entries()] == before


@pytest.mark.skipif(module.fcntl is None, reason="Windows does not remove what is open")
def test_what_another_process_uses_stays(small_cache):
    with opened_elsewhere("a"):
        use("a", 5)
        assert [entry.in_use for entry in list_entries()] == [True, False, False]
        keep("d")
        assert names() == ["a", "c", "d"]
        gone, kept = clear_cache()
        assert [entry.file.stem for entry in kept] == ["a"] and len(gone) == 2
    assert not list_entries()[0].in_use


def test_an_array_of_this_process_stays_as_long_as_it_is_there(small_cache):
    array = open_array(path_of("a"))
    view = array[3:]
    del array
    use("a", 5)
    keep("d")
    assert names() == ["a", "c", "d"] and view.all()
    del view
    use("d", 0)
    keep("e")
    assert names() == ["c", "d", "e"]


def test_an_array_that_does_not_fit_is_refused_and_nothing_is_removed(small_cache):
    calls = []

    def build(append):
        calls.append("begun")
        append(np.zeros((10, 1000), np.uint8))
        calls.append("written")

    told = r"limited to 400.0 kB \(LESIONFAST_CACHE_SIZE\); the new .* 500.2 kB. Set .*SIZE=1M, or"
    with pytest.raises(LesionfastError, match=told):
        kept_array(path_of("much"), 500, build)
    assert calls == ["begun"] and names() == ["a", "b", "c"] and not fits(500_000)
    held = [open_array(path_of(name)) for name in "ab"]
    assert fits(190_000) and not fits(250_000)
    with pytest.raises(LesionfastError, match=r"SIZE\), of which 200.3 kB are in use; the new"):
        kept_array(path_of("much"), 250, build)
    assert names() == ["c", "a", "b"] and len(held) == 2


def test_a_limit_below_what_is_there_lets_the_next_array_in(small_cache, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", "150K")
    keep("d")
    assert names() == ["d"]


def test_files_elsewhere_and_a_cache_without_limit_lose_nothing(small_cache, monkeypatch, tmp_path):
    kept_array(tmp_path / "big.npy", 900, lambda append: append(np.zeros((900, 1000), np.uint8)))
    monkeypatch.delenv("LESIONFAST_CACHE_SIZE")
    keep("big", rows=900)
    assert names() == ["a", "b", "c", "big"] and fits(10**15)


def test_clearing_takes_what_is_old_or_of_a_kind_or_all(small_cache):
    write_note(cache_folder() / "images" / "note.json", 1)
    gone, kept = clear_cache(older=1.5 * 3600)
    assert ([entry.file.stem for entry in gone], kept) == (["a", "b"], [])
    assert clear_cache(kind="images") == ([], []) and names() == ["c"]
    assert read_note(cache_folder() / "images" / "note.json") == 1
    clear_cache()
    assert names() == [] and not list((cache_folder() / "images").iterdir())
    assert clear_cache() == ([], [])


def test_a_limit_above_the_disk_makes_room_on_the_disk_if_that_helps(small_disk, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE", str(small_disk))
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", "20M")
    keep("a", rows=300)
    keep("b", rows=300)
    keep("c", rows=600)
    assert names() == ["b", "c"]
    with pytest.raises(LesionfastError, match="the disk is full; it needs 2.0 MB"):
        keep("d", rows=2000)
    assert names() == ["b", "c"]
