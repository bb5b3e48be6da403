"""Archives and stores of a stranger: headers that lie, chains, overlaps, and groups without end.

Each is read as `predict` and `train` read it, with a bound on memory; an error is a sentence, and a
picture beside a bad one is not lost.
"""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lesionfast.config import DataConfig
from lesionfast.data.formats.hdf5 import MOST_CHUNKS, MOST_DEPTH
from lesionfast.data.formats.unzip import inflates_beyond, lzf_goes_beyond
from lesionfast.data.images import BadImage, read_picture
from lesionfast.data.layouts.recognise import recognise
from lesionfast.data.sources import FileReader
from lesionfast.errors import LesionfastError
from lesionfast.serving.inputs import find_items

MOST = 2**27  # bytes that reading one of them may add
HUGE = 2**60
FILE = io.BytesIO()
Image.new("RGB", (64, 64)).save(FILE, "JPEG")
PHOTO = FILE.getvalue()


def read_all(path: Path) -> dict[str, str]:
    """Return why each picture in a file can't be read, '' if it can, by the end of its name."""
    found = {}
    with FileReader() as reader:
        for item in find_items([str(path)]):
            try:
                read_picture(item.path, 64, reader)
                found[item.name.rpartition("/")[2]] = ""
            except BadImage as error:
                found[item.name.rpartition("/")[2]] = str(error)
    with pytest.raises(LesionfastError):  # they have no classes
        recognise(path, DataConfig())
    return found


def check(path: Path, memory: Any, words: str, whole: bool = True) -> None:
    """Assert that a file is refused as a `whole`, or its second picture, in these words."""
    with memory(MOST):
        if whole:
            with pytest.raises(LesionfastError, match=words):
                read_all(path)
            return
        found = read_all(path)
    assert found.pop("good.jpg") == ""
    assert found and all(words in error for error in found.values())


def block(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def head(name: str = "bad.jpg", size: int = len(PHOTO), kind: bytes = b"0", more: bytes = b""):
    """Return the header of a file in a tar file, whatever its size; `more` is what GNU adds."""
    made = bytearray(512)
    made[: len(name)] = name.encode()
    made[100:124] = b"0000644\0" + b"0000000\0" * 2
    plain = 0 <= size < 8**11
    sign = b"\xff" if size < 0 else b"\x80"
    made[124:136] = b"%011o\0" % size if plain else sign + (size % 2**88).to_bytes(11, "big")
    made[136:148], made[156:157], made[257:265] = b"%011o\0" % 0, kind, b"ustar\x0000"
    made[386 : 386 + len(more)] = more
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def about(data: bytes, kind: bytes = b"x") -> bytes:
    """Return a header that tells of the file after it."""
    return head("about", len(data), kind) + block(data)


def pax(**told: object) -> bytes:
    """Return a pax header."""
    lines = b""
    for key, value in told.items():
        line = b" %s=%s\n" % (key.replace("_", ".").encode(), str(value).encode())
        lines += b"%d" % (len(line) + len(str(len(line) + 2))) + line
    return about(lines)


GOOD, BAD, END = head("good.jpg") + block(PHOTO), head() + block(PHOTO), bytes(1024)
SPARSE = {"GNU_sparse_major": 1, "GNU_sparse_minor": 0, "GNU_sparse_realsize": HUGE}
MAP = b"%011o\0%011o\0" % (0, HUGE % 8**11) + bytes(72)
NOT_SPARSE = "write it into the tar file as a plain one"
TARS: dict[str, tuple[bytes, str, bool]] = {  # what is after a picture, what is told, of all of it
    "sparse": (pax(**SPARSE) + head() + block(b"1\n0\n9\n" + PHOTO), NOT_SPARSE, False),
    "sparse map": (pax(GNU_sparse_map="0,1,x") + BAD, NOT_SPARSE, False),
    "sparse blocks": (pax(GNU_sparse_size=HUGE, GNU_sparse_numblocks="x") + BAD, NOT_SPARSE, False),
    "sparse, old": (head(kind=b"S", more=MAP + b"\0") + block(PHOTO), NOT_SPARSE, False),
    "sparse, no end": (head(kind=b"S", more=MAP + b"\1") + b"\1" * 300, "end of data", True),
    "sparse, on and on": (head(kind=b"S", more=MAP + b"\1") + b"\1" * 512000, "end of data", True),
    "chain of names": (about(b"bad.jpg\0", b"L") * 2000 + BAD, "", False),
    "chain of pax": (pax(path="bad.jpg") * 2000 + BAD, "", False),
    "chain of globals": (about(b"", b"g") * 2000 + BAD, "", False),
    "long name": (head(size=2**31, kind=b"L") + GOOD, "a header in it has 2,147", True),
    "long link": (head(size=HUGE, kind=b"K") + GOOD, "a header in it has 1,152", True),
    "huge pax": (head(size=HUGE, kind=b"x") + GOOD, "a header in it has 1,152", True),
    "negative pax": (head(size=-512, kind=b"x") + GOOD, "a size in it is negative", True),
    "pax of digits": (about(b"1" * 10**6), "a header in it is damaged", True),
    "pax of a million keys": (about(b"8 aaa=b\n" * 2**17) + BAD, "", False),
    "pax of no length": (about(b"0 path=a\n" * 50), "a header in it is damaged", True),
    "pax size": (pax(size=HUGE) + BAD, "unexpected end of data", True),
    "pax size of digits": (pax(size="9" * 5000) + BAD, "a size in it is not a number", True),
    "pax size below 0": (pax(size=-1024) + BAD, "a size in it is not a number", True),
    "negative size": (head(size=-1024) + block(PHOTO), "a size in it is negative", True),
    "negative size, unknown type": (head(size=-1024, kind=b"Q"), "a size in it is negative", True),
    "size": (head(size=2**80) + block(PHOTO), "unexpected end of data", True),
    "beyond the end": (head(size=10**9) + block(PHOTO), "unexpected end of data", True),
    "damaged header": (b"x" * 512 + BAD, "its header at byte 1,536 is damaged", True),
    "cut header": (head()[:300], "its header at byte 1,536 is damaged", True),
    "name": (about(b"n" * 65531 + b".jpg\0", b"L") + BAD, "a name in it has 65,535", True),
}


CUT = ("beyond the end", "cut header", "sparse, no end")


@pytest.mark.parametrize("name", TARS)
def test_headers_of_a_tar_file_are_not_believed(name, tmp_path, memory):
    data, words, whole = TARS[name]
    path = tmp_path / "a.tar"
    path.write_bytes(GOOD + data + END * (name not in CUT))
    check(path, memory, words, whole)


def test_a_name_in_a_tar_file_may_be_any_bytes(tmp_path, memory):
    path, name = tmp_path / "a.tar", b"\xff\xfe\x1b[2J\n.jpg"
    path.write_bytes(GOOD + about(b"%d path=%s\n" % (len(name) + 9, name)) + BAD + END)
    with memory(MOST):
        assert set(read_all(path).values()) == {""}


def test_tar_files_of_each_format_are_read_as_tarfile_does(tmp_path):
    for number, form in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w", format=form) as archive:
            for name in ("a.jpg", f"{'b' * 90}/{'c' * 90}.jpg", "é.jpg", "folder"):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(PHOTO), 1.5
                if name == "folder":
                    info.type, info.size = tarfile.DIRTYPE, 0
                archive.addfile(info, io.BytesIO(PHOTO))
        assert read_all(path) == {"a.jpg": "", f"{'c' * 90}.jpg": "", "é.jpg": ""}


@pytest.mark.attack
def test_a_tar_file_of_a_hundred_thousand_long_names_takes_no_more_for_each(tmp_path, memory):
    """One name of 4,000 characters once made each of them as long."""
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(GOOD + about(b"n" * 4000 + b".jpg\0", b"L") + BAD)
        for number in range(10**5):
            file.write(head(f"{number}.txt", 0))
        file.write(END)
    with memory(MOST):
        assert len(read_all(path)) == 2


def overlapping(path: Path, number: int = 50) -> None:
    """Write a zip file in which each member holds the headers and bytes of all after it."""
    content = bytes(2**20)
    packed = zlib.compress(content, 9)[2:-4]
    names, parts, central = [b"%05d.jpg" % i for i in range(number + 1)], b"", []
    for name in reversed(names):
        if parts:
            quoted = parts[:39]
            content = quoted + content
            packed = b"\0" + struct.pack("<HH", 39, 39 ^ 0xFFFF) + parts
        sizes = zlib.crc32(content), len(packed), len(content)
        start = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, *sizes, 9, 0) + name
        parts = start + packed
        central.append((name, sizes))
    data, at = b"", 0
    for name, sizes in reversed(central):
        about = 20, 20, 0, 8, 0, 33, *sizes, 9, 0, 0, 0, 0, 0, at
        data += struct.pack("<4s6H3L5H2L", b"PK\1\2", *about) + name
        at += 39 + 5
    count = len(central)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(data), len(parts), 0)
    path.write_bytes(parts + data + end)


def test_members_of_a_zip_file_that_overlap_are_not_unpacked(tmp_path, memory):
    """The better zip bomb (Fifield 2019): 10 MB that unpack to 281 TB, each member as it should."""
    path = tmp_path / "a.zip"
    overlapping(path)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 51
    check(path, memory, "its files overlap, maybe a decompression bomb")


def test_a_place_in_a_zip_file_has_one_name(tmp_path, memory):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.jpg", PHOTO)
        twin = copy(archive.infolist()[0])
        twin.filename = "twin.jpg"
        archive.filelist.append(twin)
    check(path, memory, "its files overlap, maybe a decompression bomb")


ZIPS: dict[str, tuple[list[tuple[bytes, int, str, int]], str, bool]] = {  # what is written over
    "directory elsewhere": ([(b"PK\5\6", 12, "<L", 2**31)], "not a complete zip file", True),
    "more members": ([(b"PK\5\6", 8, "<H", 65000), (b"PK\5\6", 10, "<H", 65000)], "", False),
    "another disk": ([(b"PK\5\6", 4, "<H", 7)], "", False),
    "member elsewhere": ([(b"PK\1\2", 42, "<L", 2**31)], "", False),
    "member of 2 GB": ([(b"PK\1\2", 24, "<L", 2**31)], "at most 256 MB are read", False),
    "member of nothing": ([(b"PK\1\2", 24, "<L", 0)], "it is empty (0 bytes)", False),
    "shifted": ([(b"PK\3\4", 28, "<H", 60000)], "", False),
    "a password": ([(b"PK\1\2", 8, "<H", 1), (b"PK\3\4", 6, "<H", 1)], "with a password", False),
    "method 65535": ([(b"PK\1\2", 10, "<H", 65535)], "with method 65535", False),
    "method 1": ([(b"PK\1\2", 10, "<H", 1)], "with shrink, which is not read", False),
}


@pytest.mark.parametrize("name", ZIPS)
def test_the_directory_of_a_zip_file_is_not_believed(name, tmp_path, memory):
    path, (changes, words, whole) = tmp_path / "a.zip", ZIPS[name]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.jpg", PHOTO)
        archive.writestr("bad.jpg", PHOTO)
    data = bytearray(path.read_bytes())
    for sign, place, form, value in changes:
        struct.pack_into(form, data, data.rfind(sign) + place, value)
    path.write_bytes(data)
    check(path, memory, words, whole)


def test_a_zip_file_of_which_all_is_encrypted_says_so(tmp_path, memory):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad.jpg", PHOTO)
    data = bytearray(path.read_bytes())
    data[6] = data[data.find(b"PK\1\2") + 8] = 1
    path.write_bytes(data)
    check(path, memory, "packed with a password. Unpack the file")


STRANGE = ("../x.jpg", "/y.jpg", "C:\\z.jpg", "\\\\h\\x.jpg", "A.jpg", "a.jpg", "a.jpg/b.jpg")
STRANGE += ("x\ny.jpg", "x\x1b[2J.jpg", "b.zip/c.jpg", "=cmd().jpg", "n" * 65000 + ".jpg", "-.jpg")


def test_names_of_members_are_names_alone(tmp_path, memory):
    path, inner = tmp_path / "a.zip", io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("inner.jpg", PHOTO)
    with zipfile.ZipFile(path, "w") as archive:
        for name in STRANGE:
            archive.writestr(name, PHOTO)
        archive.writestr("nested.zip", inner.getvalue())
    with memory(MOST):
        found = read_all(path)
    assert not any(found.values()) and len(found) == len(STRANGE) - 1  # "../x.jpg" is hidden
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


def add_deep(file: Any, h5py: Any) -> None:
    group = file.id
    for _ in range(10 * MOST_DEPTH):
        group = h5py.h5g.create(group, b"g")


def add_links(file: Any, h5py: Any) -> None:
    file["one"], file["two"] = h5py.SoftLink("/two"), h5py.SoftLink("/one")


def add_chunks(file: Any, h5py: Any) -> None:
    side = int(MOST_CHUNKS**0.5) * 4 + 4
    file.create_dataset("bad", (side, side, 3), np.uint8, chunks=(4, 4, 3), compression="gzip")


def add_filters(file: Any, h5py: Any, *kinds: int, data: bytes = b"abc", skipped: int = 0) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((64, 64, 3))
    for kind in kinds:
        given = (4, 261, 12288) if kind == h5py.h5z.FILTER_LZF else (9,)
        given = () if kind == h5py.h5z.FILTER_SHUFFLE else given
        plist.set_filter(kind, h5py.h5z.FLAG_OPTIONAL, given)
    space, kind = h5py.h5s.create_simple((64, 64, 3)), h5py.h5t.NATIVE_UINT8
    made = h5py.h5d.create(file.id, b"bad", kind, space, plist)
    made.write_direct_chunk((0, 0, 0), data, skipped)


def add_variable(file: Any, h5py: Any) -> None:
    file.create_dataset("bad", (), h5py.vlen_dtype(np.uint8))[()] = np.zeros(1000, np.uint8)
    place = file["bad"].id.get_offset()
    file.close()
    with open(file.path, "r+b") as raw:  # its length
        raw.seek(place)
        raw.write(struct.pack("<L", 2**30))


def add_fields(file: Any, h5py: Any) -> None:
    """One value of many fields, each of which is the same long list."""
    fields = np.dtype([("number", "i4"), *((f"f{i}", h5py.vlen_dtype(np.uint8)) for i in range(9))])
    value = np.empty((), fields)
    value[()] = (5, *[np.zeros(1000, np.uint8)] * 9)
    file.create_dataset("bad", (), fields)[()] = value


def add_lists(file: Any, h5py: Any) -> None:
    file.create_dataset("bad", (), h5py.vlen_dtype(np.float64))[()] = np.zeros(1000)


BOMB = zlib.compress(zlib.compress(bytes(2**26), 9), 9)
MORE, UNREAD = "unpacks to more than it should", "write it again with gzip"
STORES: dict[str, tuple[Callable, str, bool]] = {  # what is added, what is told, of all of it
    "deep": (add_deep, f"its groups are more than {MOST_DEPTH} deep", True),
    "links": (add_links, "maybe in a circle", False),
    "chunks": (add_chunks, "chunks; write it again in larger ones", False),
    "variable": (add_variable, "it has 1024 MB", False),
    "fields of variable length": (add_fields, "not the bytes of an image", False),
    "numbers of variable length": (add_lists, "not the bytes of an image", False),
    "filter": (lambda f, h: add_filters(f, h, 32001), UNREAD, False),
    "packed twice": (lambda f, h: add_filters(f, h, 1, 1, data=BOMB), UNREAD, False),
    "packed as LZF, then deflated": (
        lambda f, h: add_filters(f, h, 32000, 1, data=BOMB),
        UNREAD,
        False,
    ),
    "one filter skipped": (
        lambda f, h: add_filters(f, h, 2, 1, data=zlib.compress(bytes(2**28)), skipped=1),
        MORE,
        False,
    ),
    "LZF": (
        lambda f, h: add_filters(f, h, 32000, data=b"\0\0" + b"\xe0\xff\0" * 10**5),
        MORE,
        False,
    ),
    "nothing stored": (
        lambda f, h: f.create_dataset("bad", (HUGE,), np.uint8, chunks=(2**20,)),
        "at most 256 MB are read",
        False,
    ),
}


class Store:
    """An HDF5 file that knows its path."""

    def __init__(self, file: Any, path: Path) -> None:
        self.__dict__.update(file=file, path=path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __getitem__(self, name: str) -> Any:
        return self.file[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.file[name] = value


@pytest.mark.parametrize("block", [0, 512])
@pytest.mark.parametrize("name", STORES)
def test_a_store_costs_no_more_than_its_pictures(name, block, tmp_path, memory):
    h5py = pytest.importorskip("h5py")
    path, (add, words, whole) = tmp_path / "a.h5", STORES[name]
    with h5py.File(path, "w", userblock_size=block) as file:
        file["good.jpg"] = np.frombuffer(PHOTO, np.uint8)
        add(Store(file, path), h5py)
    check(path, memory, words, whole)


def test_usual_ways_to_pack_a_picture_in_a_store_are_read(tmp_path, memory):
    h5py = pytest.importorskip("h5py")
    pixels = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for packed in (None, "gzip", "lzf"):
            for number, options in enumerate(({}, {"shuffle": True}, {"fletcher32": True})):
                file.create_dataset(
                    f"{packed}{number}", data=pixels, chunks=True, compression=packed, **options
                )
        photo, variable = np.frombuffer(PHOTO, np.uint8), h5py.vlen_dtype(np.uint8)
        file.create_dataset("bytes", (), variable)[()] = photo
        file.create_dataset("grows", (1,), variable, maxshape=(None,))[0] = photo
    with memory(MOST):
        found = read_all(tmp_path / "a.h5")
    assert len(found) == 11 and not any(found.values())


def test_how_far_bytes_unpack_is_counted_exactly():
    for data in (b"", bytes(10**6), np.random.default_rng(0).bytes(3 * 10**6)):
        packed = zlib.compress(data)
        assert not inflates_beyond(packed, len(data))
        assert inflates_beyond(packed, len(data) - 1)
    assert not lzf_goes_beyond(b"\2abc\x20\0\xe0\1\0", 3 + 3 + 10)
    assert lzf_goes_beyond(b"\2abc\x20\0\xe0\1\0", 3 + 3 + 9)


def numpy_file(header: bytes, version: int = 1, body: bytes = bytes(1000)) -> bytes:
    """Return an .npy file with any header."""
    size = struct.pack("<H" if version == 1 else "<L", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + body


def shape(text: str, kind: str = "|u1", order: bool = False) -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {text}}}\n".encode()


ARRAYS = {
    "brackets": (b"[" * 9000, ".npz file .*EOF in multi-line"),
    "signs": (b"{'descr':" + b"-" * 9000 + b"1}", "is not a complete .npz file"),
    "power": (b"{'descr': '|u1', 'fortran_order': False, 'shape': (9**9**9,)}", "malformed"),
    "digits": (shape("(" + "9" * 9000 + ",)"), "Cannot parse header"),
    "long header": (b"[" * 60000, "is large and may not be safe"),
    "shape": (shape(f"({2**40}, 28, 28)"), "and is not that large"),
    "negative": (shape("(5, -28, -28)"), "and is not that large"),
    "objects": (shape("(5, 28, 28)", "|O"), "is no array of images"),
    "no bytes": (shape(f"({2**62},)", "|V0"), "is no array of images"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_the_header_of_an_array_is_not_believed(name, tmp_path, memory):
    path, (header, words) = tmp_path / "a.npz", ARRAYS[name]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", numpy_file(header))
        archive.writestr("train_labels.npy", numpy_file(shape("(5, 1)"), body=bytes(5)))
    check(path, memory, words)


def test_an_array_has_no_more_images_than_its_file_bytes(tmp_path, memory):
    path, number = tmp_path / "a.npz", 2 * 10**7
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        data = numpy_file(shape(f"({number}, 1, 1)"), body=bytes(number))
        archive.writestr("train_images.npy", data)
    del data
    check(path, memory, "20,000,000 images, more than it has bytes")
