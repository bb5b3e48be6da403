import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from lesionfast.data.sources import FileReader, check_size, content_keys
from lesionfast.files import split_path, stamps


@pytest.fixture
def members(tmp_path):
    """A zip file of 60 members of random length, and what each of them holds."""
    held = {f"sub/{i:02d}.bin": bytes([i]) * (1000 + 37 * i) for i in range(60)}
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return {f"{tmp_path.as_posix()}/all.zip/{name}": data for name, data in held.items()}


def test_a_path_is_split_at_a_zip_file_but_not_at_a_folder(members, tmp_path):
    path = next(iter(members))
    assert split_path(path) == (f"{tmp_path.as_posix()}/all.zip", "sub/00.bin")
    (tmp_path / "folder.zip").mkdir()
    inside = f"{tmp_path.as_posix()}/folder.zip/a.jpg"
    assert split_path(inside) == (inside, None)


def test_many_threads_read_one_zip_file_right(members):
    with FileReader() as reader, ThreadPoolExecutor(8) as threads:
        for _ in range(5):
            assert list(threads.map(reader.read, members)) == list(members.values())


def test_what_is_missing_or_broken_in_a_zip_file_is_an_error(members, tmp_path):
    data = bytearray((tmp_path / "all.zip").read_bytes())
    data[60] ^= 0xFF
    (tmp_path / "bad.zip").write_bytes(data)
    with FileReader() as reader:
        with pytest.raises(FileNotFoundError, match=r"no member sub/99\.bin"):
            reader.read(f"{tmp_path.as_posix()}/all.zip/sub/99.bin")
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
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


def test_a_stamp_changes_with_the_file(tmp_path):
    file = tmp_path / "a.bin"
    before = stamps([str(file)])
    file.write_bytes(b"1")
    written = stamps([str(file)])
    file.write_bytes(b"12")
    assert len({*before, *written, *stamps([str(file)])}) == 3
