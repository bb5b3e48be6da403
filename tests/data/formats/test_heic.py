"""Only HEVC reaches the decoder of HEIC pictures."""

import io

import pytest
from PIL import Image

from lesionfast.data.formats.heic import DECODED, boxes, item_types, open_heic

heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")


@pytest.fixture(scope="module")
def written() -> bytes:
    """A picture with a thumbnail, an alpha channel, EXIF and XMP."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[271] = "a camera"
    picture = heif.from_pillow(Image.new("RGBA", (128, 96), (180, 120, 90, 200)))
    picture.save(file, quality=50, exif=exif.tobytes(), xmp=b"<x/>", thumbnails=[64])
    return file.getvalue()


def test_items_of_a_picture_are_listed_and_decoded(written):
    kinds = list(item_types(written))
    assert kinds.count(b"hvc1") >= 2 and {b"Exif", b"mime"} <= set(kinds) <= DECODED
    assert open_heic(written).size == (128, 96)
    assert open_heic(written, decode=False).size == (128, 96)


@pytest.mark.parametrize("codec", [b"av01", b"avc1", b"vvc1", b"unci", b"j2k1", b"\0\xff\n1"])
@pytest.mark.parametrize("which", [0, -1])
def test_an_item_of_another_codec_is_refused(written, codec, which):
    places = [at for at in range(len(written)) if written[at - 12 : at - 8] == b"infe"]
    at = [at for at in places if written[at : at + 4] == b"hvc1"][which]
    hostile = written[:at] + codec + written[at + 4 :]
    with pytest.raises(ValueError, match="and only HEVC is decoded; save it as JPEG or PNG"):
        open_heic(hostile)


def test_a_picture_without_a_list_of_items_is_refused(written):
    with pytest.raises(ValueError, match="it holds mini, and only HEVC is decoded"):
        open_heic(written + b"\0\0\0\x0cmini1234")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", []),
        (b"\0\0\0", []),
        (b"\0\0\0\x0cabcd1234\0\0\0\x08efgh", [(b"abcd", b"1234"), (b"efgh", b"")]),
        (b"\0\0\0\x01abcd\0\0\0\0\0\0\0\x1212", [(b"abcd", b"12")]),
        (b"\0\0\0\0abcd12345", [(b"abcd", b"12345")]),
        (b"\0\0\xff\xffabcd12345", [(b"abcd", b"12345")]),
    ],
)
def test_boxes_go_as_far_as_the_file(data, found):
    assert [(kind, bytes(content)) for kind, content in boxes(data)] == found


def test_a_box_smaller_than_its_header_ends_the_walk(written):
    at = written.index(b"meta") - 4
    with pytest.raises(ValueError, match="a box in it is smaller than its header"):
        open_heic(written[:at] + b"\0\0\0\x07" + written[at + 4 :])
