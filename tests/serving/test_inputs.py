import os
import zipfile

import pytest

from lesionfast.errors import LesionfastError
from lesionfast.serving.inputs import find_items


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
    assert "1 other files left out: notes.txt" in caplog.text


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


def test_a_table_names_images_and_says_what_is_known(folder):
    table = folder / "cases.csv"
    table.write_text("image_id,age,sex\nb,55,\nsub/c.jpg,,male\ne,1,male\ngone,2,\n", "utf-8")
    found = list(find_items([str(table)], metadata={"sex": "female"}))
    assert [item.name for item in found] == ["b", "sub/c.jpg", "e", "gone"]
    paths = [item.path and item.path.removeprefix(f"{folder.as_posix()}/") for item in found]
    assert paths == ["b.jpg", "sub/c.jpg", "more.zip/inside/e.jpg", None]
    assert found[0].metadata == {"age": "55", "sex": "female"}
    assert found[1].metadata == {"sex": "male"}


def test_a_table_may_name_its_column_otherwise(folder, tmp_path):
    (folder / "cases.tsv").write_text("photo\tage\nb.jpg\t5\n", "utf-8")
    found = list(find_items([str(folder / "cases.tsv")], image_column="photo"))
    assert found[0].path == (folder / "b.jpg").as_posix()
    with pytest.raises(
        LesionfastError, match="column 'image_id' is not in cases.tsv; it has: photo"
    ):
        list(find_items([str(folder / "cases.tsv")]))


def test_a_table_without_a_column_of_the_model_says_so_and_names_the_nearest(folder, caplog):
    (folder / "cases.csv").write_text("image_id,Age\nb,55\n", "utf-8")
    list(find_items([str(folder / "cases.csv")], columns=["age", "sex"], metadata={"sex": "male"}))
    assert (
        "cases.csv has no column 'age', so it is missing for all images. Did you mean 'Age'?"
        in caplog.text
    )
    assert "'sex'" not in caplog.text


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
    (folder / "cases.csv").write_text("image_id\nb\nc\n", "utf-8")
    same, different = find_items([str(folder / "cases.csv")])
    assert same.path == (folder / "b.jpg").as_posix() and "of the same bytes one" in caplog.text
    assert different.path is None
    assert different.why_no_path == (
        f"two different images are named 'c': {folder}/sub/c.jpg and {folder}/twin/c.png"
        ". Remove one of them"
    )


def test_a_file_whose_name_is_not_utf_8_is_shown_with_its_bytes_written_out(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(path, "wb") as file:
        file.write(b"x")
    (item,) = find_items([str(tmp_path)])
    assert item.name == f"{tmp_path}/caf\\xe9.jpg" and os.fsencode(item.path) == path
