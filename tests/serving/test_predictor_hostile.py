"""Files that are broken, or made to do harm: each gets its answer or its error, alone."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.serving.inputs import find_items
from lesionfast.serving.predictor import Predictor


def picture(**options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (150, 200, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, **options)
    return data.getvalue()


def animation() -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    return data.getvalue()


def huge(width: int, height: int) -> bytes:
    """A PNG of a few kB that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("evil.py", "raise SystemExit")
    return data.getvalue()


JPEG = picture(format="JPEG")
FILES = {  # what is in it, and how its error begins; None: it has an answer
    "plain photo.jpg": (JPEG, None),
    "line\nbreak.jpg": (JPEG, None),
    "кожа ünï.jpg": (JPEG, None),
    "polyglot.jpg": (JPEG + zipped(), None),
    "grey.png": (picture(format="PNG"), None),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "image file is truncated"),
    "empty.jpg": (b"", "it is empty"),
    "document.jpg": (b"%PDF-1.7\n1 0 obj", "it is not a picture in a supported format"),
    "vector.jpg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is not a picture"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not a picture"),
    "pickle.jpg": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "it is not a picture"),
    "moving.gif": (animation(), "it is an animation of 3 frames"),
    "phone.heic": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "it is a HEIC picture"),
    "dot.png": (huge(1, 1), "it has 1 x 1 pixels, too few"),
    "bomb.png": (huge(20_000, 20_000), "Image size (400000000 pixels) exceeds limit"),
}


@pytest.fixture(scope="module")
def table(exported, tmp_path_factory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("hostile")
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    tables = Predictor(exported).stream(find_items([str(folder)]))
    found = pd.concat(tables).assign(name=lambda d: d["image"].str.rsplit("/", n=1).str[-1])
    return found.set_index("name")


def test_nothing_is_lost(table):
    assert sorted(table.index) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_its_answer_or_its_error(table, name):
    row, expected = table.loc[name], FILES[name][1]
    if expected is None:
        assert row["error"] == "" and (row["decision"] or row["no_decision"])
        chances = row[[column for column in table if column.startswith("p_")]].astype(float)
        assert chances.isna().all() if row["no_decision"] else abs(chances.sum() - 1) < 1e-5
    else:
        assert row["error"].startswith(expected) and pd.isna(row["decision"])


def test_the_same_bytes_have_the_same_answer(table):
    rows = table.loc[["plain photo.jpg", "line\nbreak.jpg", "кожа ünï.jpg", "polyglot.jpg"]]
    scores = rows["outlier_score"].astype(float).to_numpy()
    assert np.isfinite(scores).all() and np.ptp(scores) < 1e-4


def test_a_zip_file_that_unpacks_to_too_much_is_refused(exported, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.png", bytes(300 * 2**20))
        archive.writestr("good.jpg", JPEG)
    tables = Predictor(exported).stream(find_items([str(tmp_path / "bomb.zip")]))
    errors = pd.concat(tables)["error"].tolist()
    assert errors == ["it has 300 MB; at most 256 MB are read", ""]
