"""A folder as downloaded is recognised, and what is missing is said."""

import os
import zipfile
from pathlib import Path

import pytest

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import Folder, layouts
from lesionfast.data.layouts.recognise import find_dataset
from lesionfast.data.metadata import load_metadata
from lesionfast.errors import LesionfastError

TABLE = "image_id,lesion_id,dx,age,sex\na,L1,nv,40,male\nb,L2,mel,50,female\n"


def touch(*paths: Path) -> None:
    """Make empty files, and the folders above them."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_table(*paths: Path) -> None:
    """Write a table of the images a and b."""
    touch(*paths)
    for path in paths:
        path.write_text(TABLE)


def write_zip(path: Path, *members: str) -> None:
    """Make a zip file with empty members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"")


def refusal(**options) -> str:
    """Return the message with which a configuration is refused."""
    with pytest.raises(LesionfastError) as error:
        find_dataset(DataConfig(**options))
    return str(error.value)


def test_the_download_is_found_as_it_is(ham10000):
    found = find_dataset(DataConfig(data=str(ham10000)))
    assert (found.name, found.table.name) == ("HAM10000", "HAM10000_metadata.csv")
    assert len(found.files) == len(found.rows) == 10015
    assert found.files["stem"].is_unique


def test_a_table_and_images_are_found_wherever_they_lie(tmp_path):
    zipped, foldered, flat, below = (tmp_path / name for name in ("zip", "dirs", "flat", "up"))
    write_table(*(folder / "meta.csv" for folder in (zipped, foldered, flat, below / "in")))
    write_zip(zipped / "part_1.zip", "a.jpg")
    write_zip(zipped / "part_2.zip", "deep/er/b.JPG")
    touch(foldered / "part_1" / "a.jpg", foldered / "part_2" / "deep" / "b.png")
    touch(flat / "a.jpg", flat / "b.jpeg", below / "in" / "a.jpg", below / "in" / "x" / "b.tiff")
    for folder in (zipped, foldered, flat, below):
        df = load_metadata(DataConfig(data=str(folder)))
        assert df["image_id"].tolist() == ["a", "b"]


def test_a_copy_with_a_longer_name_is_ignored_aloud(tmp_path, caplog):
    write_table(tmp_path / "metadata.csv", tmp_path / "metadata_clean.csv")
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert find_dataset(DataConfig(data=str(tmp_path))).table.name == "metadata.csv"
    assert "Ignored metadata_clean.csv" in caplog.text


def test_two_tables_that_may_be_the_metadata_are_an_error_that_names_them(tmp_path):
    write_table(tmp_path / "mine.csv", tmp_path / "yours.csv")
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg")
    message = refusal(data=str(tmp_path))
    assert "mine.csv (2 images), yours.csv (2 images)" in message
    assert message.endswith("Type --csv FILE --images DIR instead of --data.")


def test_options_that_do_not_go_together():
    assert "--csv needs --images" in refusal(csv="a.csv")
    assert "--images needs --csv" in refusal(images="x")
    assert "Type either --data DIR" in refusal(data="x", csv="a.csv")


def test_a_table_is_data_too(tmp_path):
    write_table(tmp_path / "cases.csv")
    touch(tmp_path / "images" / "a.jpg", tmp_path / "images" / "b.jpg")
    assert len(load_metadata(DataConfig(data=str(tmp_path / "cases.csv")))) == 2


def test_without_data_the_sample_is_used_and_called_synthetic(caplog):
    assert find_dataset(DataConfig()).table.is_file()
    assert "SYNTHETIC" in caplog.text


def test_hidden_files_are_no_metadata(tmp_path):
    touch(tmp_path / "._meta.csv", tmp_path / ".~lock.csv", tmp_path / "__MACOSX" / "meta.csv")
    assert "there are no images in" in refusal(data=str(tmp_path))


def test_the_only_table_that_can_not_be_read_is_named_with_what_is_wrong_with_it(tmp_path):
    touch(tmp_path / "a.jpg")
    (tmp_path / "cases.csv").write_text("image_id,dx,dx\na,mel,nv\n")
    assert "has two columns 'dx'. Rename one" in refusal(data=str(tmp_path))
    (tmp_path / "cases.csv").write_text("")
    assert "is empty" in refusal(data=str(tmp_path))


def test_a_folder_that_is_not_there_and_one_that_is_a_file(tmp_path):
    assert "does not exist" in refusal(data=str(tmp_path / "none"))
    write_zip(tmp_path / "all.zip", "a.jpg")
    assert "is a file" in refusal(data=str(tmp_path / "all.zip"))


@pytest.mark.parametrize("name", ["data", "csv", "images"])
def test_an_empty_path_is_not_the_sample(name):
    assert f"--{name} is empty" in refusal(**{name: ""})


def test_layouts_are_listed_with_what_they_are():
    assert all(text.endswith(".") and len(text) > 20 for text in layouts.describe().values())


def test_the_table_of_a_public_dataset_is_read_as_its_folder_is(written):
    folder = written("pad_ufes_20")
    found = find_dataset(DataConfig(data=str(folder / "metadata.csv")))
    assert (found.name, found.leaks) == ("PAD-UFES-20", ("biopsed",))


def test_a_table_in_a_zip_file_is_to_be_unpacked(tmp_path):
    write_zip(tmp_path / "all.zip", "mel/a.jpg", "nv/b.jpg", "metadata.csv")
    assert "all.zip/metadata.csv is a table" in refusal(data=str(tmp_path))


def test_a_table_behind_a_link_to_nowhere_is_missed_aloud(tmp_path):
    """As git-annex, DVC and an unmounted disk leave it."""
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg")
    (tmp_path / "metadata.csv").symlink_to(tmp_path / "annex" / "objects" / "metadata.csv")
    assert Folder(tmp_path).find(".csv") == [tmp_path / "metadata.csv"]
    with pytest.raises(LesionfastError, match=r"there is no file .*metadata\.csv"):
        load_metadata(DataConfig(data=str(tmp_path)))


def test_a_pipe_is_no_table(tmp_path):
    os.mkfifo(tmp_path / "metadata.csv")
    assert Folder(tmp_path).find(".csv") == []
