"""The images are found in every folder, without unpacking anything."""

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lesionfast.data.formats.pictures import check_size
from lesionfast.data.sources import (
    FileReader,
    content_keys,
    drop_copies,
    free_memory,
    list_images,
    read_head,
)
from lesionfast.errors import LesionfastError


def touch(*paths: Path) -> None:
    """Make empty files, and the folders above them."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_zip(path: Path, *members: str) -> Path:
    """Make a zip file with empty members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"")
    return path


def stems(*roots: Path) -> list[str]:
    """Return the sorted stems of the images found."""
    return sorted(list_images(roots)["stem"])


def test_paths_hold_in_other_working_folders(tmp_path, monkeypatch):
    touch(tmp_path / "data" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert list_images("data")["path"].tolist() == [f"{tmp_path}/data/a.jpg"]


def test_only_pictures_that_are_not_hidden_are_listed(tmp_path):
    write_zip(
        tmp_path / "a.zip", "a.jpg", "__MACOSX/._a.jpg", "x/.b.jpg", ".x/c.jpg", "../d.jpg", "e.txt"
    )
    touch(tmp_path / "f.WEBP", tmp_path / "._f.webp", tmp_path / ".cache" / "g.jpg")
    assert stems(tmp_path) == ["a", "f"]


def test_a_root_below_a_hidden_folder_is_searched(tmp_path):
    touch(tmp_path / ".cache" / "images" / "a.jpg")
    assert stems(tmp_path / ".cache") == ["a"]


def test_a_stem_is_all_before_the_last_dot(tmp_path):
    touch(tmp_path / "v1.2" / "a.b.jpg", tmp_path / "c d.jpg")
    assert stems(tmp_path) == ["a.b", "c d"]


def test_the_same_root_twice_lists_its_images_once(tmp_path):
    touch(tmp_path / "a.jpg")
    assert stems(tmp_path, tmp_path) == ["a"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "real" / "a.jpg")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "data" / "linked")
    os.symlink(tmp_path / "real", tmp_path / "data" / "linked again")
    os.symlink(tmp_path / "data", tmp_path / "data" / "circle")
    assert stems(tmp_path / "data") == ["a"]


def test_a_broken_zip_file_is_named(tmp_path):
    whole = write_zip(tmp_path / "whole.zip", "a.jpg", "b.jpg").read_bytes()
    broken = tmp_path / "broken.zip"
    broken.write_bytes(whole[: len(whole) // 2])
    for content in (whole[: len(whole) // 2], b""):
        broken.write_bytes(content)
        with pytest.raises(LesionfastError, match=r"broken\.zip is not a complete zip file"):
            list_images(broken)


def test_images_that_are_not_there(tmp_path):
    with pytest.raises(LesionfastError, match="Name it with --images"):
        list_images(tmp_path / "none")


def test_an_empty_folder_lists_nothing(tmp_path):
    assert list(list_images(tmp_path)) == ["path", "stem"]
    assert list_images(tmp_path).empty


def test_twins_of_the_same_bytes_count_once_in_folders_and_zip_files(tmp_path):
    for name in ("one/a.jpg", "two/a.jpg", "one/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"same")
    with zipfile.ZipFile(tmp_path / "three.zip", "w") as archive:
        archive.writestr("a.JPG", b"same")
    found = drop_copies(list_images(tmp_path))
    assert found["path"].tolist() == [f"{tmp_path}/one/a.jpg", f"{tmp_path}/one/b.jpg"]
    (tmp_path / "two" / "b.png").write_bytes(b"else")
    with pytest.raises(LesionfastError, match="two different images are named 'b': .*/one/b.jpg"):
        drop_copies(list_images(tmp_path))


def test_a_file_whose_name_is_not_utf_8_is_left_out_and_counted(tmp_path, caplog):
    touch(tmp_path / "a.jpg", tmp_path / os.fsdecode(b"caf\xe9.jpg"))
    assert stems(tmp_path) == ["a"]
    assert "Left out 1 image with a name that is not UTF-8, such as" in caplog.text


@pytest.fixture
def members(tmp_path):
    """A zip file of 60 members of random length, and what each of them holds."""
    held = {f"sub/{i:02d}.bin": bytes([i]) * (1000 + 37 * i) for i in range(60)}
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return {f"{tmp_path.as_posix()}/all.zip/{name}": data for name, data in held.items()}


def test_many_threads_read_one_zip_file_right(members):
    with FileReader() as reader, ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            assert list(threads.map(reader.read, members)) == list(members.values())


def test_threads_share_the_directory_of_a_zip_file(members, monkeypatch):
    opened, directory = [], zipfile.ZipFile._RealGetContents
    monkeypatch.setattr(
        zipfile.ZipFile, "_RealGetContents", lambda own: opened.append(own) or directory(own)
    )
    with FileReader() as reader, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(reader.read, members)) == list(members.values())
    assert len(opened) == 1


def test_what_is_missing_or_broken_in_a_zip_file_is_an_error(members, tmp_path):
    data = bytearray((tmp_path / "all.zip").read_bytes())
    data[60] ^= 0xFF
    (tmp_path / "bad.zip").write_bytes(data)
    with FileReader() as reader:
        with pytest.raises(FileNotFoundError, match=r"no member sub/99\.bin"):
            reader.read(f"{tmp_path.as_posix()}/all.zip/sub/99.bin")
        with pytest.raises(ValueError, match="damaged in the zip file"):
            reader.read(f"{tmp_path.as_posix()}/bad.zip/sub/00.bin")


def test_a_picture_of_no_or_of_too_many_bytes_is_refused():
    check_size(1)
    with pytest.raises(ValueError, match="empty"):
        check_size(0)
    with pytest.raises(ValueError, match="1024 MB"):
        check_size(2**30)


def test_the_same_bytes_have_the_same_key_in_a_file_and_in_a_zip_file(members, tmp_path):
    path, data = next(iter(members.items()))
    (tmp_path / "same.bin").write_bytes(data)
    (tmp_path / "other.bin").write_bytes(data[:-1] + b"x")
    inside, same, other, gone = content_keys(
        [path, f"{tmp_path}/same.bin", f"{tmp_path}/other.bin", f"{tmp_path}/gone.bin"]
    )
    assert inside == same != other
    assert "gone" in gone


def test_free_memory_is_what_is_left_of_a_container_s_limit(tmp_path):
    whole = free_memory(tmp_path)  # there is no limit
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\nfile 1000\ninactive_file 700\n")
    assert free_memory(tmp_path) == 1700
    (tmp_path / "memory.current").write_text("6000\n")
    assert free_memory(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert (free_memory(tmp_path) is None) == (whole is None)


def test_the_disk_is_asked_once_about_each_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"whole")
    asked, ask = [], os.stat
    monkeypatch.setattr(os, "stat", lambda *given, **named: asked.append(given) or ask(*given))
    assert read_head(str(tmp_path / "a")) == b"whole"
    assert len(asked) == 1
