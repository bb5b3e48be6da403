"""The content of images in files that hold several is kept, unless one could not be read."""

import tarfile

import pytest

from lesionfast.data.layouts.copies import read_keys
from lesionfast.data.sources import content_keys


@pytest.fixture
def images(tmp_path, monkeypatch) -> list[str]:
    """Two images of a tar, of which it has the first alone."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jpg").write_bytes(b"bytes of an image")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "a.jpg", "a.jpg")
    return [f"{tmp_path}/shard.tar/{name}.jpg" for name in ("a", "gone")]


def test_an_image_that_could_not_be_read_is_not_kept_as_such(images, tmp_path):
    keys = content_keys(images[:1])
    index = {*tmp_path.glob("cache/images/*.json")}  # what is in the tar
    assert read_keys(images) == [*keys, images[1]]
    assert {*tmp_path.glob("cache/images/*.json")} == index
    assert read_keys(images[:1]) == keys
    (note,) = {*tmp_path.glob("cache/images/*.json")} - index
    note.write_text('["unreadable 1"]')  # as earlier versions kept it
    assert read_keys(images[:1]) == keys
