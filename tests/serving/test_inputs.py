import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lesionfast.cli import labelling, serving
from lesionfast.config import DataConfig
from lesionfast.data.encoder import BadValue, MetadataEncoder
from lesionfast.data.formats.containers import CONTAINERS
from lesionfast.errors import LesionfastError
from lesionfast.serving.inputs import NAME_SOME, MetadataReader, find_items


@pytest.fixture
def folder(tmp_path):
    """Images under odd names, a zip file, and what is no image."""
    names = ["b.jpg", "a one.png", "ünï.jpeg", "sub/c.jpg", "d.heic", ".hidden.jpg", "notes.txt"]
    for name in [*names, "line\nbreak.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("inside/e.jpg", b"x")
        archive.writestr("inside/readme.txt", b"x")
    return tmp_path


def names(items, folder):
    return [item.name.removeprefix(f"{folder.as_posix()}/") for item in items]


def test_a_folder_gives_every_image_in_order_and_counts_the_rest(folder, caplog):
    found = names(find_items([str(folder)]), folder)
    assert found == [
        *("a one.png", "b.jpg", "d.heic", "line\nbreak.jpg", "more.zip/inside/e.jpg"),
        *("ünï.jpeg", "sub/c.jpg"),
    ]
    assert "skipped 1 other files: notes.txt" in caplog.text


def test_globs_files_and_zip_files(folder):
    given = [f"{folder}/*.jpg", f"{folder}/notes.txt", f"{folder}/more.zip"]
    assert names(find_items(given), folder) == [
        *("b.jpg", "line\nbreak.jpg", "notes.txt", "more.zip/inside/e.jpg")
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_itself(folder):
    (folder / "a[1].jpg").write_bytes(b"x")
    assert names(find_items([f"{folder}/a[1].jpg"]), folder) == ["a[1].jpg"]


@pytest.mark.parametrize("given", ["gone.jpg", "gone/*.jpg"])
def test_what_is_not_there_is_an_error_before_the_first_image(folder, given):
    with pytest.raises(LesionfastError, match="there is no file, folder or pattern"):
        find_items([str(folder / "b.jpg"), str(folder / given)])


def test_dicom_files_bring_age_and_sex_unless_they_are_given(tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.PatientName, dataset.PatientAge, dataset.PatientSex = "Doe^Jane", "045Y", "F"
    dataset.save_as(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_text("no DICOM file")
    (tmp_path / "cases.csv").write_text("image_id,age\na.dcm,50\n", "utf-8")
    items = list(find_items([f"{tmp_path}/a.dcm", f"{tmp_path}/b.dcm", f"{tmp_path}/cases.csv"]))
    tags = {"age": "45", "sex": "female"}
    assert [item.metadata for item in items] == [tags, {}, {**tags, "age": "50"}]
    (given,) = find_items([f"{tmp_path}/a.dcm"], metadata={"sex": "male"})
    assert given.metadata == {"age": "45", "sex": "male"}


def test_a_table_names_images_and_says_what_is_known(folder):
    table = folder / "cases.csv"
    table.write_text("image_id,age,sex\nb,55,\nsub/c.jpg,,male\ne,1,male\ngone,2,\n", "utf-8")
    found = list(find_items([str(table)], metadata={"sex": "female"}))
    assert [item.name for item in found] == ["b", "sub/c.jpg", "e", "gone"]
    paths = [item.path and item.path.removeprefix(f"{folder.as_posix()}/") for item in found]
    assert paths == ["b.jpg", "sub/c.jpg", "more.zip/inside/e.jpg", None]
    assert found[0].metadata == {"age": "55", "sex": "female"}
    assert found[1].metadata == {"sex": "male"}


def test_a_table_may_name_its_column_otherwise(folder):
    (folder / "cases.tsv").write_text("photo\tage\nb.jpg\t5\n", "utf-8")
    for given in ({"image_column": "photo"}, {}):  # as typed, or by what the column holds
        (item,) = find_items([str(folder / "cases.tsv")], **given)
        assert item.path == (folder / "b.jpg").as_posix() and item.metadata == {"age": "5"}
    (folder / "cases.tsv").write_text("photo\tage\ngone.jpg\t5\n", "utf-8")
    with pytest.raises(
        LesionfastError, match="column 'image_id' is not in cases.tsv; it has: photo, age"
    ):
        list(find_items([str(folder / "cases.tsv")]))


def test_a_folder_of_a_table_without_labels_is_read_by_its_table(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"a")
    (tmp_path / "new.csv").write_text("image_id,age,gender\na,40,female\n")
    (item,) = find_items([str(tmp_path)], columns=["age", "sex"])
    assert item.path == f"{tmp_path}/images/a.jpg"
    assert item.metadata == {"age": "40", "sex": "female"}


def test_a_table_without_a_column_of_the_model_says_so_and_names_the_nearest(folder, caplog):
    (folder / "cases.csv").write_text("image_id,ages\nb,55\n", "utf-8")
    list(find_items([str(folder / "cases.csv")], columns=["age", "sex"], metadata={"sex": "male"}))
    assert (
        "cases.csv has no column 'age', so it is missing for all images. Did you mean 'ages'? "
        "If it has another name there, type --map OTHER=age" in caplog.text
    )
    assert "'sex'" not in caplog.text


def test_columns_are_found_by_their_usual_names_or_by_map(folder, caplog):
    table = folder / "cases.csv"
    table.write_text("IMAGE,Age_approx,gender,where\nb,55,male,back\n", "utf-8")
    columns = ["age", "sex", "localization"]
    with caplog.at_level("INFO"):
        (item,) = find_items([str(table)], columns=columns, renamed={"where": "localization"})
    assert item.metadata == {"age": "55", "sex": "male", "localization": "back"}
    assert "cases.csv: reading Age_approx as age, gender as sex" in caplog.text
    with pytest.raises(LesionfastError, match="--map names the column 'were', .* mean 'where'"):
        list(find_items([str(table)], columns=columns, renamed={"were": "localization"}))


def test_a_dataset_gives_its_images_with_what_its_table_says(tmp_path, caplog):
    (tmp_path / "part").mkdir()
    for name in ("a", "b", "extra"):
        (tmp_path / "part" / f"{name}.jpg").write_bytes(name.encode())
    rows = "lesion_id,image_id,dx,dx_type,age,sex\nL1,a,nv,histo,40,male\nL2,b,mel,histo,,\n"
    (tmp_path / "metadata.csv").write_text(rows + "L3,gone,nv,histo,1,male\n")
    found = list(find_items([str(tmp_path)], columns=["age", "sex"], metadata={"sex": "female"}))
    assert [Path(item.path).stem for item in found] == ["a", "b", "extra"]
    assert [item.metadata.get("age") for item in found] == ["40", None, None]
    assert [item.metadata["sex"] for item in found] == ["male", "female", "female"]
    assert "Left out 1 row without an image" in caplog.text


def test_a_folder_of_images_with_a_table_that_nobody_knows_says_that_it_is_not_read(folder, caplog):
    (folder / "prices.csv").write_text("what,price\nx,1\n")
    assert len(list(find_items([str(folder)]))) == 7
    assert "the images are read without metadata, because" in caplog.text


def test_the_separator_is_found_and_said_or_typed(folder, caplog):
    (folder / "cases.csv").write_text("image_id;age\nb;55\n", "utf-8")
    (folder / "one.tsv").write_text("image_id,age\nb,55\n", "utf-8")
    for table, separator in (("cases.csv", ";"), ("one.tsv", ",")):
        found = list(find_items([str(folder / table)]))
        assert found[0].metadata == {"age": "55"}
        assert f"{table}: the fields are separated by '{separator}'" in caplog.text
    assert len(list(find_items([str(folder / "cases.csv")], separator=";"))) == 1
    with pytest.raises(LesionfastError, match="separated by ';', not by ','. Add --separator ';'"):
        list(find_items([str(folder / "cases.csv")], separator=","))
    with pytest.raises(LesionfastError, match="--separator is ';;', which is not one character"):
        list(find_items([str(folder / "cases.csv")], separator=";;"))


def test_a_broken_row_at_the_end_is_told_before_the_first_image(folder):
    (folder / "cases.csv").write_text("image_id,age\n" + "b,55\n" * 3000 + "b,5,5\n", "utf-8")
    with pytest.raises(LesionfastError, match="row 3002 has 3 fields, the header has 2"):
        next(find_items([str(folder / "cases.csv")]))


def test_of_two_files_of_one_stem_one_is_taken_only_if_their_bytes_are_the_same(folder, caplog):
    (folder / "twin").mkdir()
    (folder / "twin" / "b.jpg").write_bytes(b"x")
    (folder / "twin" / "c.png").write_bytes(b"another")
    (folder / "cases.csv").write_text("image_id\nb\n", "utf-8")
    (same,) = find_items([str(folder / "cases.csv")])
    assert same.path == (folder / "b.jpg").as_posix() and "Ignored 1 image file with" in caplog.text
    (folder / "cases.csv").write_text("image_id\nb\nc\n", "utf-8")
    with pytest.raises(LesionfastError) as error:
        next(find_items([str(folder / "cases.csv")]))
    assert str(error.value) == (
        f"two different images fit 'c' in cases.csv: {folder}/sub/c.jpg and {folder}/twin/c.png. "
        "Remove one of them, or write the folder before the name in the table."
    )


def test_a_row_whose_folder_is_not_there_is_not_the_image_of_another_row(tmp_path):
    for name in ("a/0.jpg", "a/1.jpg", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    for start in ("", "/home/someone/", "D:\\data\\"):
        names = [f"{start}{name}.jpg" for name in ("a/0", "a/1", "b/0", "b/1")]
        (tmp_path / "cases.csv").write_text("file\n" + "\n".join(names) + "\n")
        paths = [item.path for item in find_items([str(tmp_path / "cases.csv")])]
        ends = [path and path.removeprefix(f"{tmp_path}/") for path in paths]
        assert ends == ["a/0.jpg", "a/1.jpg", None, "b/1.jpg"]


def test_the_column_of_images_is_the_one_that_names_them(folder):
    (folder / "cases.csv").write_text("image,place\n1,b.jpg\n2,c.jpg\n", "utf-8")
    found = list(find_items([str(folder / "cases.csv")]))
    assert [Path(item.path).name for item in found] == ["b.jpg", "c.jpg"]


def test_a_file_whose_name_is_not_utf_8_is_shown_with_its_bytes_written_out(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(path, "wb") as file:
        file.write(b"x")
    (item,) = find_items([str(tmp_path)])
    assert item.name == f"{tmp_path}/caf\\xe9.jpg" and os.fsencode(item.path) == path


TRAIN = pd.DataFrame(
    {"age": [40.0, 60, 50], "sex": ["male", "female", "male"], "thickness": [0.5, 4, 1]}
)


@pytest.fixture
def reader():
    """Of a model that takes age, sex and a thickness in millimetres."""
    return MetadataReader(MetadataEncoder(TRAIN.columns).fit(TRAIN))


def test_in_a_table_what_training_never_saw_counts_as_not_known_and_is_said(reader, caplog):
    rows = [{"age": "50", "sex": "divers", "thickness": value} for value in ("1e20", "-500", "2")]
    cleaned = [reader.read(row) for row in rows]
    assert [np.isnan(row["thickness"]) for row in cleaned] == [True, True, False]
    encoded = reader.encode(cleaned)
    assert encoded.dtype == np.float32 and np.isfinite(encoded).all() and np.abs(encoded).max() < 9
    reader.report()
    for words in ("sex divers (3)", "thickness 1e20 (1)", "Thickness is missing for 2 of 3 images"):
        assert words in caplog.text


@pytest.mark.parametrize(
    "told", [{"age": "999"}, {"age": "1e308"}, {"thickness": "1e308"}, {"thickness": "thick"}]
)
def test_what_a_column_can_not_have_is_an_error_in_a_table_too(reader, told):
    with pytest.raises(BadValue, match="which is not"):
        reader.read(told)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"sex": "divers"},
            "which the model never saw in training. Type one of: female, male, unknown.",
        ),
        (
            {"thickness": "1e20"},
            "far from all training values.*. Type for example thickness=",
        ),
        ({"age": 5500}, "age is '5500', which is not an age in years .* Type for example age=50."),
    ],
)
def test_what_a_person_types_is_refused(reader, told, message):
    with pytest.raises(LesionfastError, match=message):
        reader.encoder.check(told)
    reader.encoder.check({"sex": "unknown", "age": None, "thickness": " 2.5 "})


def test_errors_and_help_name_every_kind_of_file_that_is_read():
    texts = [
        parameter.__metadata__[0].help
        for parameter in (serving.Inputs, serving.Images, labelling.Inputs)
    ]
    texts += [NAME_SOME, DataConfig.__dataclass_fields__["images"].metadata["help"]]
    for text in texts:
        assert not [kind.kind for kind in CONTAINERS.values() if kind.kind not in text], text
    with pytest.raises(LesionfastError, match="zip, tar, HDF5"):
        find_items(["gone"])


def test_images_that_mostly_lack_metadata_are_unlike_those_of_the_test(reader):
    whole = TRAIN.iloc[0].to_dict()
    for _ in range(3):
        reader.read(whole)
    reader.read({})
    assert reader.missing and not reader.is_mostly_missing
    for _ in range(3):
        reader.read({})
    assert reader.is_mostly_missing
