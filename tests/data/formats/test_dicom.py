"""DICOM files of visible light give their picture, and of their tags age and sex alone."""

import io
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from lesionfast.config import DataConfig
from lesionfast.data.formats.pictures import decode, picture_size
from lesionfast.data.images import open_images, read_image
from lesionfast.data.metadata import load_metadata
from lesionfast.data.sources import FileReader, list_images, read_dicom_tags
from lesionfast.errors import LesionfastError

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
uid = pytest.importorskip("pydicom.uid")


def scene(side=24):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8))
    return np.asarray(small.resize((side + 8, side), Image.Resampling.BICUBIC))


def write(pixels, colours="RGB", bits=8, syntax=uid.ExplicitVRLittleEndian, data=None, **tags):
    """Return a DICOM file; `data` are its encoded pixels, if they are compressed."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = uid.VLPhotographicImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "SECRET-1"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = colours
    dataset.BitsAllocated = 8 if bits == 8 else 16
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = data or pixels.astype("<u2" if bits > 8 else np.uint8).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def as_jpeg(pixels, kind="JPEG"):
    file = io.BytesIO()
    options = {"quality": 95} if kind == "JPEG" else {"irreversible": False, "no_jp2": True}
    Image.fromarray(pixels).save(file, kind, **options)
    return pydicom.encaps.encapsulate([file.getvalue()])


def ybr(pixels):
    return np.asarray(Image.fromarray(pixels).convert("YCbCr"))


KINDS = {
    "RGB": lambda p: write(p),
    "RGB, deflated": lambda p: write(p, syntax=uid.DeflatedExplicitVRLittleEndian),
    "RGB by planes": lambda p: write(p, data=p.transpose(2, 0, 1).tobytes(), PlanarConfiguration=1),
    "YBR": lambda p: write(ybr(p), "YBR_FULL"),
    "JPEG": lambda p: write(p, "YBR_FULL_422", syntax=uid.JPEGBaseline8Bit, data=as_jpeg(p)),
    "JPEG 2000": lambda p: write(
        p, "RGB", syntax=uid.JPEG2000Lossless, data=as_jpeg(p, "JPEG2000")
    ),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_the_colours_are_those_of_the_picture(make):
    pixels = scene()
    data = make(pixels)
    assert picture_size(data) == (32, 24)
    read = np.asarray(decode(data), int)
    assert read.shape == pixels.shape and np.abs(read - pixels).mean() < 6


def test_grey_of_8_and_of_12_bits():
    grey = scene()[..., 0]
    assert (np.asarray(decode(write(grey, "MONOCHROME2")))[..., 1] == grey).all()
    assert (np.asarray(decode(write(grey, "MONOCHROME1")))[..., 2] == 255 - grey).all()
    deep = grey.astype(int) * 4095 // 255
    read = np.asarray(decode(write(deep, "MONOCHROME2", bits=12)), int)[..., 0]
    assert np.abs(read - grey).max() <= 1


def test_a_palette_gives_its_colours():
    table = np.arange(256, dtype=np.uint16) * 257
    tags = {}
    for name, values in {"Red": table, "Green": table[::-1], "Blue": table * 0}.items():
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = values.astype("<u2").tobytes()
    grey = scene()[..., 0]
    read = np.asarray(decode(write(grey, "PALETTE COLOR", **tags)), int)
    assert (read == np.dstack([grey, 255 - grey.astype(int), grey * 0])).all()


def test_a_dicom_file_is_listed_and_read_with_and_without_its_suffix(tmp_path):
    data = write(scene())
    for name in ("ISIC_1.dcm", "ISIC_2"):
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("1.2.840.10008", data)
    files = list_images(tmp_path)
    assert sorted(files["stem"]) == ["1.2.840.10008", "ISIC_1", "ISIC_2"]
    assert open_images(files["path"].tolist(), 16, cache=False).bad == {}


def test_a_file_without_the_preamble_is_read_too(tmp_path):
    bare = write(scene(), PatientSex="M")[132:]
    assert (np.asarray(decode(bare)) == scene()).all()
    (tmp_path / "a").write_bytes(bare)
    assert list_images(tmp_path)["stem"].tolist() == ["a"]
    assert read_dicom_tags(str(tmp_path / "a")) == {"sex": "M"}


def test_without_its_package_it_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(write(scene()))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    words = r"it is a DICOM file: pydicom is not installed. Type: pip install 'lesionfast\[dicom\]'"
    for read in (read_image, read_dicom_tags):
        with pytest.raises(LesionfastError, match=words):
            read(str(tmp_path / "a.dcm"))


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PatientAge": "045Y", "PatientSex": "F"}, {"age": "45", "sex": "F"}),
        ({"PatientAge": "018M", "PatientSex": "M"}, {"age": "1.5", "sex": "M"}),
        ({"PatientAge": "026W", "PatientSex": "O"}, {"age": "0.5", "sex": "O"}),
        ({"PatientAge": "073D"}, {"age": "0.2"}),
        ({"PatientAge": "999Y"}, {}),
        ({"PatientAge": "", "PatientSex": ""}, {}),
        ({"PatientSex": "f "}, {"sex": "F"}),
        ({"PatientAge": "old", "PatientSex": "X"}, {}),
        ({}, {}),
    ],
)
def test_age_and_sex_are_read_and_nothing_that_identifies(tags, expected, tmp_path):
    (tmp_path / "a.dcm").write_bytes(write(scene(), **tags))
    assert read_dicom_tags(str(tmp_path / "a.dcm")) == expected
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.dcm", "a.dcm")
    with FileReader() as reader:
        assert read_dicom_tags(f"{tmp_path}/a.zip/a.dcm", reader) == expected


BROKEN = {
    "no pixels": (lambda: remove(write(scene()), "PixelData"), "a DICOM file without pixels"),
    "frames": (
        lambda: write(scene(), NumberOfFrames=3, data=scene().tobytes() * 3),
        "a DICOM file of 3 frames; save one of them",
    ),
    "cut off": (lambda: write(scene())[:-500], "can't be read"),
    "too large": (lambda: write(scene(), Rows=60_000, Columns=60_000), "decompression bomb"),
    "unknown compression": (
        lambda: write(scene(), syntax=uid.JPEGLSLossless, data=as_jpeg(scene())),
        r"pydicom can't decompress its pixels \(JPEG-LS Lossless Image Compression\)",
    ),
    "not DICOM": (lambda: bytes(128) + b"DICM" + b"\xff" * 40, "can't be read"),
}


def remove(data, name):
    dataset = pydicom.dcmread(io.BytesIO(data))
    delattr(dataset, name)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize(("make", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_an_error_with_a_way_on(make, words, tmp_path):
    (tmp_path / "a.dcm").write_bytes(make())
    with pytest.raises(LesionfastError, match=f"{words}.*Replace the file"):
        read_image(str(tmp_path / "a.dcm"))


def test_a_file_that_is_no_dicom_file_has_no_tags(tmp_path):
    (tmp_path / "a.dcm").write_text("Page not found")
    with pytest.raises(LesionfastError, match=r"a\.dcm has no DICOM tags .*Replace the file, or"):
        read_dicom_tags(str(tmp_path / "a.dcm"))
    with pytest.raises(LesionfastError, match=r"b\.dcm has no DICOM tags .*No such file"):
        read_dicom_tags(str(tmp_path / "b.dcm"))


def test_age_and_sex_of_dicom_files_are_inputs_where_no_table_has_them(tmp_path):
    for number, (name, sex) in enumerate([("mel", "M"), ("nv", "F")]):
        (tmp_path / name).mkdir()
        for age in (40, 50):
            tags = {"PatientAge": f"{age + number:03}Y", "PatientSex": sex}
            (tmp_path / name / f"{name}{age}.dcm").write_bytes(write(scene() + age, **tags))
    (tmp_path / "nv" / "broken.dcm").write_bytes(b"no picture")
    df = load_metadata(DataConfig(data=str(tmp_path))).set_index("image_id")
    assert df["age"].dropna().to_dict() == {"mel40": 40, "mel50": 50, "nv40": 41, "nv50": 51}
    assert df["sex"].dropna().to_dict() == {
        "mel40": "male", "mel50": "male", "nv40": "female", "nv50": "female"
    }  # fmt: skip
    assert not {"Doe", "Jane", "SECRET-1"} & set(df.astype(str).to_numpy().ravel())


def test_what_a_text_in_a_tag_names_is_not_how_the_file_is_written():
    pixels = np.full((24, 32, 3), 255, np.uint8)
    pixels[::2, ::2, 1] = 0xDA  # as scans of a JPEG begin
    names = f"{uid.JPEGBaseline8Bit} {uid.DeflatedExplicitVRLittleEndian}"
    data = write(pixels, ImageComments=names)
    assert (np.asarray(decode(data)) == pixels).all()
