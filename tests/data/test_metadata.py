"""The metadata CSV is checked, cleaned and counted, on real files."""

import logging

import numpy as np
import pandas as pd
import pytest

from lesionfast.config import DataConfig
from lesionfast.data.metadata import load_metadata
from lesionfast.errors import LesionfastError

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
ROWS = """\
L1,ISIC_3,nv,follow_up,45.0,male,back
L1,ISIC_1,nv,follow_up,45.0,male,back
L2,ISIC_2,mel,histo,,unknown,face
L3,ISIC_4,mel,histo,0,female,Unknown
"""
NAMES = "ISIC_1 ISIC_2 ISIC_3 ISIC_4"


@pytest.fixture
def read(tmp_path):
    """Return a function that writes a CSV and empty image files, and reads the metadata."""

    def read(text: str = HEADER + ROWS, names: str = NAMES, **options: str) -> pd.DataFrame:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for name in names.split():
            (folder / name).with_suffix(".jpg").touch()
        (tmp_path / "cases.csv").write_text(text, encoding="utf-8")
        where = {"csv": str(tmp_path / "cases.csv"), "images": str(folder)}
        return load_metadata(DataConfig(**where, **options))

    return read


@pytest.fixture
def refusal(read):
    """Return a function that reads as `read` does and returns the error's message."""

    def message(*content: str, **options: str) -> str:
        with pytest.raises(LesionfastError) as error:
            read(*content, **options)
        return str(error.value)

    return message


def test_the_table_is_typed_and_sorted(read, tmp_path):
    df = read()
    keys = ["image_id", "path", "target", "group"]
    assert list(df) == [*keys, "dx_type", "age", "sex", "localization"]
    assert df.index.tolist() == [0, 1, 2, 3]
    assert df["image_id"].tolist() == ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4"]
    assert df["path"].tolist() == [f"{tmp_path}/images/ISIC_{i}.jpg" for i in (1, 2, 3, 4)]
    assert df["target"].tolist() == ["nv", "mel", "nv", "mel"]
    assert df["group"].tolist() == ["L1", "L2", "L1", "L3"]
    assert df["age"].dtype == np.float64
    np.testing.assert_array_equal(df["age"], [45, np.nan, 45, 0])
    assert df["sex"].isna().tolist() == [False, True, False, False]
    assert df["localization"].isna().tolist() == [False, False, False, True]


def test_the_order_of_the_rows_is_nothing(read):
    backwards = HEADER + "".join(reversed(ROWS.splitlines(keepends=True)))
    pd.testing.assert_frame_equal(read(backwards), read())


def test_ham10000_as_downloaded(ham10000, caplog):
    df = load_metadata(DataConfig(data=str(ham10000)))
    assert len(df) == 10015
    assert df["group"].nunique() == 7470
    assert df["target"].value_counts().to_dict() == {
        "nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115
    }  # fmt: skip
    assert df[["age", "sex", "localization"]].isna().sum().tolist() == [57, 57, 234]
    assert df["path"].str.contains(r"_part_[12]\.zip/ISIC_\d+\.jpg$").all()
    assert [each.getMessage() for each in caplog.records if each.levelno > logging.INFO] == [
        "Age is missing for 57 of 10,015 images",
        "Sex is missing for 57 of 10,015 images",
        "Age is 0 for 39 images; the value is kept",
    ]


def test_ham10000_without_the_rows_that_lack_age_or_sex(ham10000, caplog):
    df = load_metadata(DataConfig(data=str(ham10000), missing="drop", metadata="age,sex"))
    assert len(df) == 9948
    assert df[["age", "sex"]].notna().all(axis=None)
    assert "Left out 67 rows without age or sex (--missing drop)" in caplog.text


def test_missing_values_are_counted_and_kept_or_dropped(read, refusal, caplog):
    assert len(read()) == 4
    assert "Age is missing for 1 of 4 images" in caplog.text
    kept = read(missing="drop", metadata="age,sex")
    assert kept["image_id"].tolist() == ["ISIC_1", "ISIC_3", "ISIC_4"]
    assert "Left out 1 row without age or sex (--missing drop)" in caplog.text
    assert len(read(missing="drop", metadata="none")) == 4
    nothing = HEADER + "L1,ISIC_1,nv,histo,,male,back\nL2,ISIC_2,mel,histo,50,,back\n"
    assert "--missing drop leaves no row" in refusal(nothing, missing="drop")


def test_rows_without_an_image_and_images_without_a_row_are_named(read, caplog):
    df = read(names="ISIC_1 ISIC_2 other")
    assert df["image_id"].tolist() == ["ISIC_1", "ISIC_2"]
    assert "Left out 2 rows without an image: ISIC_3, ISIC_4" in caplog.text
    assert "Left out 1 image without a row: other" in caplog.text


def test_no_image_at_all_says_what_was_looked_for_and_what_is_there(refusal):
    message = refusal(HEADER + ROWS, "one two")
    assert "none of the 4 images of cases.csv was found" in message
    assert "'ISIC_3'" in message
    assert "one, two" in message
    assert "--image" in message


def test_ids_keep_their_zeros_and_lose_a_suffix(read, caplog):
    text = "lesion_id,image_id,dx\n007,0012.jpg,nv\n08,0013.JPG,mel\n"
    df = read(text, "0012 0013", metadata="none")
    assert df["image_id"].tolist() == ["0012", "0013"]
    assert df["group"].tolist() == ["007", "08"]
    assert "Removed .jpg or the like from 2 image ids" in caplog.text


def test_an_id_that_is_there_with_and_without_suffix_is_there_twice(refusal):
    message = refusal("lesion_id,image_id,dx\nL1,a.jpg,nv\nL2,a,mel\n", "a", metadata="none")
    assert "'a' in rows 2, 3" in message


def test_two_files_of_one_stem_are_both_named(read, refusal, tmp_path):
    read()
    (tmp_path / "images" / "ISIC_2.png").write_bytes(b"x")
    message = refusal()
    assert "ISIC_2.jpg" in message
    assert "ISIC_2.png" in message
    assert "--csv FILE --images DIR" in message


def test_twin_folders_with_the_same_images_are_read_once_and_said(read, tmp_path, caplog):
    read()
    (tmp_path / "images" / "twin").mkdir()
    for name in ("images", "images/twin"):
        for number in (1, 2):
            (tmp_path / name / f"ISIC_{number}.jpg").write_bytes(b"x" * number)
    assert len(read()) == 4
    assert "Ignored 2 image files with the name and the content of another" in caplog.text


def test_two_files_of_one_stem_without_a_row_do_not_matter(read, tmp_path):
    read()
    for name in ("x.png", "x.jpg"):
        (tmp_path / "images" / name).touch()
    assert len(read()) == 4


@pytest.mark.parametrize("name", ["..", "a..b"])
def test_an_id_that_climbs_out_is_refused_with_its_row(refusal, name):
    message = refusal(HEADER + ROWS + f"L9,{name},nv,histo,50,male,back\n")
    assert f"image id '{name}' in row 6 of cases.csv is not a file name" in message


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\\b", "/etc/passwd"])
def test_a_path_without_an_image_is_left_out_aloud(read, caplog, name):
    df = read(HEADER + ROWS + f"L9,{name},nv,histo,50,male,back\n")
    assert len(df) == 4 and not df["image_id"].str.contains(r"[/\\]", regex=True).any()
    assert "Left out 1 row without an image" in caplog.text


def test_duplicate_image_ids_are_named_with_their_rows(refusal):
    message = refusal(HEADER + ROWS + "L1,ISIC_1,nv,histo,45,male,back\n")
    assert "'ISIC_1' in rows 3, 6" in message
    assert "--image" in message


def test_a_lesion_with_two_labels_is_named_with_both(refusal):
    message = refusal(HEADER + ROWS + "L2,ISIC_5,nv,histo,50,male,back\n")
    assert "'L2' with mel and nv (rows 4, 6)" in message


@pytest.mark.parametrize("field", ["image_id", "dx"])
@pytest.mark.parametrize("empty", ["", "NaN", "NA", "null", "  "])
def test_missing_ids_and_labels_are_refused_with_their_rows(refusal, field, empty):
    row = {"lesion_id": "L9", "image_id": "ISIC_9", "dx": "nv", field: empty}
    message = refusal(HEADER + ROWS + ",".join(row.values()) + ",histo,50,male,back\n")
    assert f"column '{field}' of cases.csv is empty in row 6" in message


@pytest.mark.parametrize("empty", ["", "NaN", "NA", "null", "  "])
def test_an_image_without_a_lesion_id_is_a_lesion_of_its_own(read, caplog, empty):
    with caplog.at_level(logging.INFO):
        df = read(HEADER + ROWS.replace("L1,", f"{empty},"))
    assert df["group"].tolist() == ["ISIC_1", "L2", "ISIC_3", "L3"]
    assert "2 without a lesion id (each counts as a lesion of its own)" in caplog.text


def test_a_table_without_ids_of_lesions_is_warned_of(read, caplog):
    df = read(HEADER.replace("lesion_id", "who") + ROWS)
    assert df["group"].tolist() == df["image_id"].tolist()
    assert "name it with --group" in caplog.text


def test_rows_that_share_a_lesion_or_a_patient_stay_together(read):
    """L1 is of P1 and P2 (once without), so both patients are one group; an empty id joins none."""
    text = "image_id,lesion_id,patient_id,dx\n"
    rows = [
        "a,L1,P1,nv",
        "b,L1,P2,nv",
        "c,L2,P2,mel",
        "d,L3,,nv",
        "e,L3,,nv",
        "f,,,mel",
        "g,,P9,nv",
    ]
    df = read(text + "\n".join(rows), "a b c d e f g", metadata="none")
    assert df["group"].tolist() == ["P1", "P1", "P1", "L3", "L3", "f", "P9"]
    alone = read(text + "\n".join(rows), "a b c d e f g", metadata="none", group="patient_id")
    assert alone["group"].tolist() == ["P1", "P2", "P2", "d", "e", "f", "P9"]


def test_patients_that_are_not_used_are_warned_of_with_what_to_type(read, caplog):
    text = "image_id,lesion_id,patient_id,dx\na,L1,P1,nv\nb,L2,P1,mel\nc,L3,P2,mel\n"
    read(text, "a b c", metadata="none", group="lesion_id")
    assert caplog.text.count("ids that are not used") == 1
    assert "cases.csv has ids that are not used: patient_id (1 id). Images that" in caplog.text
    assert "type --group lesion_id,patient_id" in caplog.text
    caplog.clear()
    read(text, "a b c", metadata="none", group="patient_id")  # no lesion has several patients
    read(text, "a b c", metadata="none")
    assert "not used" not in caplog.text


def test_patients_of_another_name_are_warned_of(read, caplog):
    text = "image_id,Patient No,dx\na,1,nv\nb,1,mel\nc,2,mel\n"
    read(text, "a b c", metadata="none", group="none")
    assert "not used: Patient No (1 id)" in caplog.text and "--group 'Patient No'" in caplog.text


def test_a_column_that_is_not_there_says_how_to_name_it(refusal):
    message = refusal(HEADER.replace("dx,", "what,") + ROWS)
    assert (
        "no column of cases.csv is known to hold the diagnosis; it has: what (2 values)," in message
    )
    assert message.endswith("Name yours with --target.")
    assert "column 'dy' is not in cases.csv; it has: lesion_id" in refusal(target="dy")
    assert "--group none" in refusal(group="case")
    assert "Did you mean 'age'? Name yours with --metadata" in refusal(metadata="ages,sex")


def test_columns_of_other_names(read):
    text = "file,class,case,years\nISIC_1,nv,A,50\nISIC_2,mel,B,60\n"
    df = read(text, image="file", target="class", group="case", metadata="years")
    assert list(df) == ["image_id", "path", "target", "group", "years"]
    assert df["group"].tolist() == ["A", "B"]


def test_without_a_lesion_column_every_image_is_its_own_group(read):
    df = read(HEADER.replace("lesion_id", "case") + ROWS, group="none")
    assert df["group"].tolist() == df["image_id"].tolist()
    assert df["case"].tolist() == ["L1", "L2", "L1", "L3"]


def test_columns_whose_names_are_taken_are_left_out_aloud(read, caplog):
    text = (
        "lesion_id,image_id,dx,target,split,row,p_mel,p_53,age\n"
        "L1,ISIC_1,nv,0,a,7,0.1,x,5\nL2,ISIC_2,mel,1,b,8,0.2,y,6\n"
    )
    df = read(text, metadata="age")
    assert df["target"].tolist() == ["nv", "mel"]
    assert "split" not in df
    assert "Left out 4 columns with a reserved name: target, split, row, p_mel\n" in caplog.text
    assert df["p_53"].tolist() == ["x", "y"]


def test_a_bad_number_among_numbers_is_named_with_its_row(refusal):
    for bad in ("fifty", "'52", "inf", "1e999"):
        message = refusal(HEADER + ROWS + f"L9,ISIC_9,nv,histo,{bad},male,b\n", NAMES + " ISIC_9")
        assert f"column 'age' of cases.csv mixes numbers and text: '{bad}' in row 6" in message


def test_a_bad_number_in_a_column_that_is_no_input_makes_it_text(read):
    text = HEADER + ROWS.replace(",0,", ",newborn,")
    assert read(text, metadata="sex")["age"].iloc[3] == "newborn"


@pytest.mark.parametrize("age", ["999", "5500", "-40", "1e308"])
def test_an_impossible_age_is_refused_with_its_row_and_the_way_out(read, refusal, caplog, age):
    text = HEADER + ROWS.replace(",0,", f",{age},")
    assert (
        f"column 'age' of cases.csv has {float(age):g} in row 5, which is not an age in years"
        in (refusal(text))
    )
    assert "leave it empty if it is missing, or remove the column from --metadata" in refusal(text)
    df = read(text, metadata="sex")
    assert df["age"].isna().tolist() == [False, True, False, True]
    assert (
        f"{float(age):g} in row 5, which is not an age in years (0 to 120): treated as missing"
        in caplog.text
    )


def test_a_number_far_from_all_others_is_said(read, caplog):
    rows = "".join(f"L{i},ISIC_{i},nv,{i / 10:g}\n" for i in range(1, 40))
    text = f"lesion_id,image_id,dx,thickness\n{rows}L40,ISIC_40,mel,9999\n"
    names = " ".join(f"ISIC_{i}" for i in range(1, 41))
    assert len(read(text, names, metadata="thickness")) == 40
    assert "column 'thickness' of cases.csv has 9999 in row 41; 90 % of the values" in caplog.text


def test_age_bands_are_their_middle_and_said(read, caplog):
    with caplog.at_level(logging.INFO):
        df = read(HEADER + ROWS.replace("45.0", "40-50").replace(",0,", ",0-10,"))
    assert df["age"].dropna().tolist() == [45, 45, 5]
    assert "age: read 3 ranges as the middle, such as '40-50' as 45" in caplog.text


def test_a_zip_file_is_looked_up_without_reading_its_members(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("sub/ISIC_1.JPEG", b"not an image at all")
    (tmp_path / "m.csv").write_text("lesion_id,image_id,dx\nL1,ISIC_1,nv\n")
    where = {"csv": str(tmp_path / "m.csv"), "images": str(tmp_path / "images.zip")}
    df = load_metadata(DataConfig(**where, metadata="none"))
    assert df["path"].tolist() == [f"{tmp_path}/images.zip/sub/ISIC_1.JPEG"]


def test_the_sample_can_be_read(caplog):
    df = load_metadata(DataConfig(metadata="age,sex,localization"))
    assert df["target"].nunique() == 7
    assert df["image_id"].str.startswith("SYNTH_").all()


PATIENTS = """\
lesion_id,patient_id,image_id,dx
L1,P1,ISIC_1,nv
L2,P1,ISIC_2,mel
,P2,ISIC_3,nv
,P2,ISIC_4,mel
"""


@pytest.mark.parametrize("group", [None, "patient_id", "lesion_id,patient_id"])
def test_a_patient_may_have_several_diagnoses(read, group):
    df = read(PATIENTS, metadata="none", group=group)
    assert df["group"].tolist() == ["P1", "P1", "P2", "P2"]
    assert df["target"].tolist() == ["nv", "mel", "nv", "mel"]


def test_a_lesion_has_one_diagnosis_whatever_the_group_is(refusal):
    text = PATIENTS.replace("L2,", "L1,")
    for group in (None, "lesion_id", "lesion_id,patient_id"):
        message = refusal(text, metadata="none", group=group)
        assert "gives 1 lesion more than one label; the first is 'L1' with mel and nv" in message
        assert "(rows 2, 3)" in message
