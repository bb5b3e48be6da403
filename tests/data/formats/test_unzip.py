"""Members of zip files."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from lesionfast.data.formats.containers import open_container
from lesionfast.data.formats.unzip import DAMAGED
from lesionfast.errors import LesionfastError

BITS = (0xFF, 0x80, 0x01)  # that are changed


@pytest.mark.parametrize("method", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
def test_one_sentence_tells_of_a_damaged_member_whatever_python_calls_it(method, tmp_path):
    file, path = io.BytesIO(), tmp_path / "a.zip"
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "BMP")
    with zipfile.ZipFile(path, "w", getattr(zipfile, f"ZIP_{method}")) as archive:
        archive.writestr("a.bmp", file.getvalue())
    whole, found = path.read_bytes(), set()
    for place in (*range(60), *range(len(whole) - 90, len(whole))):
        for bits in BITS:
            data = bytearray(whole)
            data[place] ^= bits
            path.write_bytes(data)
            try:
                with open_container(str(path)) as container:
                    for member in container.list_members():
                        container.read(member)
            except LesionfastError as error:
                assert str(path) in str(error)
            except ValueError as error:
                found.add(str(error))
    assert {words for words in found if " MB; at most " not in words} == {DAMAGED}
