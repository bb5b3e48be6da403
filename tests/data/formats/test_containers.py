"""Images in zip, tar, HDF5, Parquet and .npz files are listed and read as if they were files."""

import io
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.data.formats import containers
from lesionfast.data.formats.containers import open_container
from lesionfast.data.images import open_images, read_image
from lesionfast.data.sources import FileReader, content_keys, list_images, list_members
from lesionfast.errors import LesionfastError

h5py = pytest.importorskip("h5py", reason="h5py is not installed")
pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet")

COUNT = 60


@pytest.fixture
def pictures() -> dict[str, bytes]:
    """JPEG files of different sizes in bytes, by name."""
    rng, held = np.random.default_rng(0), {}
    for i in range(COUNT):
        pixels = rng.integers(0, 255, (12 + i % 7, 16, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        held[f"ISIC_{i:07d}"] = file.getvalue()
    return held


def write_hdf5(path, pictures, kind):
    with h5py.File(path, "w") as file:
        for name, data in pictures.items():
            if kind == "opaque":
                file.create_dataset(name, data=np.void(data))
            elif kind == "bytes":
                file.create_dataset(name, data=np.frombuffer(data, np.uint8))
            elif kind == "compressed":
                file.create_dataset(
                    f"images/{name}", data=np.frombuffer(data, np.uint8), compression=1
                )
            else:
                dataset = file.create_dataset(name, (1,), h5py.vlen_dtype(np.uint8))
                dataset[0] = np.frombuffer(data, np.uint8)
    return path


def write_parquet(path, pictures, kind="struct", **options):
    values = list(pictures.values())
    if kind == "struct":
        column = pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(values)])
    else:
        column = pa.array(values, pa.large_binary() if kind == "large" else pa.binary())
    name = "image" if kind == "struct" else "picture"
    table = pa.table({"image_id": list(pictures), name: column, "dx": ["nv"] * len(values)})
    pq.write_table(table, path, **options)
    return path


def write_zip(path, pictures, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in pictures.items():
            archive.writestr(f"sub/{name}.jpg", data)
    return path


def write_tar(path, pictures):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in pictures.items():
            for suffix, held in ((".jpg", data), (".json", b"{}")):
                info = tarfile.TarInfo(f"sub/{name}{suffix}")
                info.size = len(held)
                archive.addfile(info, io.BytesIO(held))
    return path


@pytest.fixture(
    params=[
        *("zip", "bzip2", "lzma", "tar", "opaque", "bytes", "compressed", "varying"),
        *("struct", "binary", "large"),
    ]
)
def container(request, pictures, tmp_path):
    """A file of each kind that holds the pictures."""
    if request.param == "zip":
        return write_zip(tmp_path / "all.ZIP", pictures)
    if request.param in ("bzip2", "lzma"):
        method = zipfile.ZIP_BZIP2 if request.param == "bzip2" else zipfile.ZIP_LZMA
        return write_zip(tmp_path / "all.ZIP", pictures, method)
    if request.param == "tar":
        return write_tar(tmp_path / "all.tar", pictures)
    if request.param in ("opaque", "bytes", "compressed", "varying"):
        return write_hdf5(tmp_path / "all.hdf5", pictures, request.param)
    return write_parquet(tmp_path / "all.parquet", pictures, request.param, row_group_size=25)


def test_every_kind_gives_the_bytes_of_the_files_to_many_threads(container, pictures):
    members, held = list_members(container), list(pictures.values())
    assert len(set(members)) == COUNT
    assert all(path.startswith(f"{container.as_posix()}/") for path in members)
    with FileReader() as reader, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(reader.read, members)) == held
        backwards = list(threads.map(reader.read, reversed(members)))
    assert backwards == held[::-1]


def test_equal_bytes_have_one_key_wherever_they_lie(container, pictures, tmp_path):
    files = []
    for name, data in pictures.items():
        files.append(str(tmp_path / f"{name}.jpg"))
        (tmp_path / f"{name}.jpg").write_bytes(data)
    assert content_keys(list_members(container)) == content_keys(files)


def test_a_file_of_images_is_listed_only_if_it_is_named(container, pictures):
    listed = list_images(container)
    assert listed["path"].tolist() == sorted(list_members(container))
    if container.suffix != ".parquet":
        assert listed["stem"].tolist() == list(pictures)
    in_folder = list_images(container.parent)
    assert len(in_folder) == (COUNT if container.suffix in (".ZIP", ".tar") else 0)


def test_a_file_of_images_is_closed_at_the_end(container, tmp_path):
    with FileReader() as reader:
        reader.read(list_members(container)[0])
    moved = container.rename(tmp_path / f"moved{container.suffix}")
    assert len(list_members(moved)) == COUNT


def test_a_member_that_is_not_there_is_an_error_of_that_image(container):
    with FileReader() as reader:
        for member in ("none", "-1", "9999"):
            with pytest.raises(FileNotFoundError, match=f"has no member {member}"):
                reader.read(f"{container.as_posix()}/{member}")
    with pytest.raises(LesionfastError, match="there is no such file"):
        read_image(f"{container.as_posix()}/none")


def test_images_decode_and_are_cached_as_from_files(container, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    files = []
    for name, data in pictures.items():
        files.append(str(tmp_path / f"{name}.jpg"))
        (tmp_path / f"{name}.jpg").write_bytes(data)
    assert (open_images(list_members(container), 8).pixels == open_images(files, 8).pixels).all()
    assert len(list((tmp_path / "cache" / "images").glob("*.npy"))) == 1


def test_a_tar_file_of_a_whole_folder_is_as_one_of_its_files(tmp_path, pictures):
    (tmp_path / "sub").mkdir()
    for name, data in pictures.items():
        (tmp_path / "sub" / f"{name}.jpg").write_bytes(data)
        (tmp_path / "sub" / f"._{name}.jpg").write_bytes(data)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "sub", "./sub")  # as `tar cf all.tar ./sub`
    with open_container(str(tmp_path / "all.tar")) as container:
        members = sorted(container.list_members())
        assert members == sorted(f"sub/{name}.jpg" for name in pictures)
        assert [container.read(f"sub/{name}.jpg") for name in pictures] == [*pictures.values()]


def write_npz(path, arrays, save=np.savez_compressed):
    save(path, **arrays)
    return path


@pytest.fixture
def arrays():
    """Arrays as MedMNIST has them: RGB and grey images, and labels (n, 1)."""
    rng = np.random.default_rng(1)
    return {
        "train_images": rng.integers(0, 255, (20, 28, 28, 3), dtype=np.uint8),
        "test_images": rng.integers(0, 255, (5, 28, 30), dtype=np.uint8),
        "train_labels": rng.integers(0, 7, (20, 1), dtype=np.uint8),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("in_memory", [0, 2**27])
def test_the_arrays_of_an_npz_file_are_read_without_loss(
    save, in_memory, arrays, tmp_path, monkeypatch
):
    monkeypatch.setattr(containers, "IN_MEMORY_BYTES", in_memory)
    path = write_npz(tmp_path / "dermamnist.npz", arrays, save)
    members = list_members(path)
    assert members[20:22] == [f"{path}/test_images/0", f"{path}/test_images/1"]
    with FileReader() as reader, ThreadPoolExecutor(4) as threads:
        pictures = list(threads.map(lambda p: np.asarray(read_image(p, reader)), members))
    assert all((a == b).all() for a, b in zip(pictures[:20], arrays["train_images"], strict=True))
    assert all((a[..., 0] == b).all() and (a[..., 2] == b).all()
               for a, b in zip(pictures[20:], arrays["test_images"], strict=True))  # fmt: skip
    with open_container(str(path)) as container:
        assert (container.read_array("train_labels") == arrays["train_labels"]).all()
        with pytest.raises(FileNotFoundError, match="has no member train_labels/0"):
            container.read("train_labels/0")


@pytest.mark.parametrize("parts", [{"row_group_size": 40}, {"write_batch_size": 10}])
def test_a_parquet_file_is_read_a_part_at_a_time(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "KEPT_BYTES", 2**24)
    rng = np.random.default_rng(2)
    pictures = {str(i): rng.bytes(200_000) for i in range(400)}
    path = str(write_parquet(tmp_path / "large.parquet", pictures, **parts))
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    most = 0
    with open_container(path) as container:
        for i, data in enumerate(pictures.values()):
            assert container.read(str(i)) == data
            most = max(most, pa.total_allocated_bytes() - before)
    assert most < 60e6  # of 80 MB


def test_rows_of_parquet_files_are_read_in_their_order_whatever_the_table_has(
    pictures, tmp_path, monkeypatch
):
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(containers, "KEPT_BYTES", 0)
    read, read_group = [], containers.Parquet._read_group
    monkeypatch.setattr(
        containers.Parquet,
        "_read_group",
        lambda self, group: read.append((self.file, group)) or read_group(self, group),
    )
    paths = []
    for name in ("b.parquet", "a.parquet"):
        paths += list_members(write_parquet(tmp_path / name, pictures, row_group_size=30))
    (tmp_path / "c.jpg").write_bytes(pictures["ISIC_0000003"])
    paths.append(f"{tmp_path}/c.jpg")
    shuffled = np.random.default_rng(0).permutation(len(paths))
    images = open_images([paths[i] for i in shuffled], 8)
    read_of_keys_and_pixels = len(read)
    assert read_of_keys_and_pixels <= 4 * 2 * 3  # of 240 images; threads overtake one another
    assert (images.pixels == open_images(paths, 8, cache=False).pixels[shuffled]).all()
    keys = content_keys(paths)
    assert content_keys([paths[i] for i in shuffled]) == [keys[i] for i in shuffled]


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def no_datasets(folder):
    h5py.File(folder / "bad.hdf5", "w").close()
    return folder / "bad.hdf5"


def save_parquet(folder, **columns):
    pq.write_table(pa.table(columns), folder / "bad.parquet")
    return folder / "bad.parquet"


def save_npz(folder, **arrays):
    return write_npz(folder / "bad.npz", arrays)


def no_npy(folder):
    with zipfile.ZipFile(folder / "bad.npz", "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\x01\x00\x05\x00abcde")
    return folder / "bad.npz"


def text_file(folder, name):
    (folder / name).write_text("Page not found")
    return folder / name


def repack(path, method):
    """Say in a zip file that its members are packed by another method."""
    data = bytearray(path.read_bytes())
    for sign, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        start = -1
        while (start := data.find(sign, start + 1)) >= 0:
            data[start + place] = method
    path.write_bytes(data)
    return path


RAW, GREY = [b"1", b"2"], np.zeros((4, 8, 8), np.uint8)
BROKEN = {
    "zip cut off": (
        lambda f, p: cut(write_zip(f / "bad.zip", p)),
        "not a complete zip file .*Download it again",
    ),
    "zip of Deflate64": (
        lambda f, p: repack(write_zip(f / "bad.zip", p), 9),
        "packed with Deflate64. Unpack the file and name the folder",
    ),
    "HDF5 cut off": (
        lambda f, p: cut(write_hdf5(f / "bad.hdf5", p, "opaque")),
        "not a complete HDF5 file .*truncated file.*Download it again",
    ),
    "HDF5 that is text": (
        lambda f, p: text_file(f, "bad.hdf5"),
        "not a complete HDF5 file .*file signature not found",
    ),
    "HDF5 without datasets": (
        lambda f, p: no_datasets(f),
        "holds no images: it has no datasets.*--images",
    ),
    "Parquet cut off": (
        lambda f, p: cut(write_parquet(f / "bad.parquet", p)),
        "not a complete Parquet file .*Download it again",
    ),
    "Parquet that is text": (
        lambda f, p: text_file(f, "bad.parquet"),
        "not a complete Parquet file .*Download it again",
    ),
    "Parquet without a column of bytes": (
        lambda f, p: save_parquet(f, image=["a.jpg", "b.jpg"], age=[1, 2]),
        r"one column with the bytes of images; it has none.*image string, age int64\. Rename",
    ),
    "Parquet with paths alone": (
        lambda f, p: save_parquet(f, image=pa.array([{"path": "a.jpg"}, {"path": "b.jpg"}])),
        "it has none.*image struct<path: string>",
    ),
    "Parquet with two columns of bytes": (
        lambda f, p: save_parquet(f, left=RAW, right=RAW),
        "it has 2 columns of bytes: left, right.*Rename the column of images to 'image'",
    ),
    "Parquet without bytes": (
        lambda f, p: save_parquet(
            f,
            image=pa.array(
                [{"bytes": None, "path": "a.jpg"}] * 3,
                pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            ),
        ),
        "none of its 3 rows has bytes in column 'image.bytes'.*--images",
    ),
    "npz cut off": (
        lambda f, p: cut(save_npz(f, train_images=GREY)),
        "not a complete .npz file .*Download it again",
    ),
    "npz with a broken header": (lambda f, p: no_npy(f), "not a complete .npz file"),
    "npz of 5 dimensions": (
        lambda f, p: save_npz(f, train_images=np.zeros((4, 8, 8, 8, 3), np.uint8)),
        r"'train_images' is no array of images; it has: train_images uint8 \(4, 8, 8, 8, 3\)",
    ),
    "npz of decimals": (
        lambda f, p: save_npz(f, train_images=GREY, test_images=GREY / 255),
        "'test_images' is no array of images.*test_images float64.*numpy.savez_compressed",
    ),
    "npz with labels alone": (
        lambda f, p: save_npz(f, train_labels=np.zeros((4, 1), np.uint8)),
        r"it has no such array; it has: train_labels uint8 \(4, 1\)",
    ),
    "npz of pickled objects": (
        lambda f, p: save_npz(f, train_images=np.array([{"a": 1}, None], object)),
        r"'train_images' is no array of images; it has: train_images object \(2,\)",
    ),
}


@pytest.mark.parametrize(("write", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_what_was_found_and_what_to_do(
    write, words, pictures, tmp_path
):
    path = write(tmp_path, pictures)
    with pytest.raises(LesionfastError, match=words) as caught:
        list_members(path)
    assert str(path) in str(caught.value)


def test_pickled_labels_are_never_loaded(tmp_path):
    path = save_npz(tmp_path, train_images=GREY, train_labels=np.array([{"a": 1}] * 4, object))
    with (
        open_container(str(path)) as container,
        pytest.raises(LesionfastError, match="'train_labels' .* pickled Python objects, .* never"),
    ):
        container.read_array("train_labels")


def test_a_row_without_bytes_is_an_error_of_that_image(tmp_path):
    path = save_parquet(tmp_path, image=pa.array([b"1", None], pa.binary()))
    assert len(list_members(path)) == 2
    with pytest.raises(LesionfastError, match="the row has no bytes in column 'image'"):
        read_image(f"{path}/1")


@pytest.mark.parametrize(
    ("package", "extra", "kind"), [("h5py", "hdf5", "hdf5"), ("pyarrow", "parquet", "parquet")]
)
def test_without_the_package_it_says_what_to_install(package, extra, kind, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    path = text_file(tmp_path, f"a.{kind}")
    words = rf"a\.{kind} can't be read: {package} is not installed. Type: .*lesionfast\[{extra}\]'"
    with pytest.raises(LesionfastError, match=words):
        list_members(path)


def test_a_file_of_another_kind_says_which_are_read(tmp_path):
    path = text_file(tmp_path, "a.rar")
    with pytest.raises(
        LesionfastError, match=r"a\.rar is no file of images; these are read: \.zip"
    ):
        list_images(path)


def test_a_byte_changed_anywhere_is_no_crash(pictures, tmp_path):
    few = dict(list(pictures.items())[:5])
    for path in (
        write_hdf5(tmp_path / "a.hdf5", few, "opaque"),
        write_parquet(tmp_path / "a.parquet", few),
        save_npz(tmp_path, train_images=GREY),
    ):
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        for position in rng.integers(0, len(whole), 60):
            data = bytearray(whole)
            data[position] ^= 0xFF
            path.write_bytes(data)
            with suppress(LesionfastError):
                for member in list_members(path):
                    with suppress(LesionfastError):
                        read_image(member)


def test_a_table_of_parquet_is_no_file_of_images(tmp_path):
    pd.DataFrame({"image_id": ["a"], "dx": ["nv"]}).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(LesionfastError, match="one column with the bytes of images; it has none"):
        list_members(tmp_path / "m.parquet")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_whose_names_begin_with_a_dot_and_a_slash_are_ordinary(pictures, tmp_path, kind):
    names = [
        "./a.jpg",
        "./sub/./b.jpg",
        "c.jpg",
        "./.hidden.jpg",
        "./__MACOSX/._a.jpg",
        "d/../e.jpg",
    ]
    held = dict(zip(names, pictures.values(), strict=False))
    path = tmp_path / f"all.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in held.items():
                archive.writestr(name, data)
    else:
        with tarfile.open(path, "w") as archive:
            for name, data in held.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    with open_container(str(path)) as opened:
        assert opened.list_members() == ["a.jpg", "sub/b.jpg", "c.jpg"]
        assert opened.read("sub/b.jpg") == held["./sub/./b.jpg"]
    listed = list_images(tmp_path)["path"]
    with FileReader() as reader:
        assert [reader.read(path) for path in listed] == [
            held[name] for name in (names[0], "c.jpg", names[1])
        ]


def test_labels_that_are_python_objects_do_not_keep_the_images_of_an_npz_from_being_read(tmp_path):
    names = np.array(["nevus", "melanoma", "nevus", None] * 100, dtype=object)
    path = tmp_path / "skin.npz"
    np.savez_compressed(path, train_images=GREY, names=names)
    with FileReader() as reader:
        assert len([reader.read(member) for member in list_members(path)]) == 4
