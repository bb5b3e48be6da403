"""The content of images in files that hold several is kept, unless one could not be read."""

import tarfile

from lesionfast.data.layouts.copies import read_keys


def test_an_image_that_could_not_be_read_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jpg").write_bytes(b"bytes of an image")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "a.jpg", "a.jpg")
    image, gone = (f"{tmp_path}/shard.tar/{name}.jpg" for name in ("a", "gone"))
    keys = read_keys([image, gone])
    assert keys[0] != image and keys[1] == gone
    index = {*tmp_path.glob("cache/images/*.json")}  # what is in the tar
    assert read_keys([image, gone]) == keys and {*tmp_path.glob("cache/images/*.json")} == index
    assert read_keys([image]) == read_keys([image]) == keys[:1]
    assert len({*tmp_path.glob("cache/images/*.json")} - index) == 1
