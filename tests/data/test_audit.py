import json
import os
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.config import DataConfig
from lesionfast.data.audit import Audit, Finding, audit, audit_table, find_exact_duplicates
from lesionfast.data.duplicates import open_pictures
from lesionfast.errors import LesionfastError

CLASSES = ("bcc", "mel", "nv")


@pytest.fixture
def folder(photograph, tmp_path):
    """A dataset with nothing wrong: 3 classes of 6 lesions, 4 of them with two images."""
    rng = np.random.default_rng(0)
    rows = []
    (tmp_path / "images").mkdir()
    for i in range(22):
        lesion = i % 18
        rows.append((f"L{lesion:02d}", f"I{i:02d}", CLASSES[lesion % 3], 40 + i, "male"))
        photograph(rng).save(tmp_path / "images" / f"I{i:02d}.jpg", quality=85)
    df = pd.DataFrame(rows, columns=["lesion_id", "image_id", "dx", "age", "sex"])
    df.loc[::2, "sex"] = "female"
    df.to_csv(tmp_path / "metadata.csv", index=False)
    return tmp_path


def change_table(folder, change):
    table = pd.read_csv(folder / "metadata.csv", dtype={"age": object})
    change(table).to_csv(folder / "metadata.csv", index=False)


def table(report):
    return pd.DataFrame(report.findings).set_index("check")


def run(folder, **options):
    """Audit a folder; return the audit and its lines by the name of the check."""
    report = audit(DataConfig(data=str(folder), **options))
    return report, table(report)


def problems(report):
    return [finding.check for finding in report.findings if finding.verdict == "problem"]


def test_a_sound_dataset_is_counted_and_ok(folder):
    report, lines = run(folder)
    assert report.ok and not problems(report) and report.near_duplicates.empty
    assert {finding.verdict for finding in report.findings} == {"ok"}
    assert lines.loc["images", ["count", "detail"]].tolist() == [22, "18 lesions"]
    assert lines.loc["images of nv", ["count", "detail"]].tolist() == [7, "6 lesions"]
    several = lines.loc["lesions with several images"]
    assert several[["count", "detail"]].tolist() == [4, "8 images, up to 2 per lesion"]


def test_missing_values_are_notes(folder):
    def forget(table):
        table.loc[[0, 1], "age"] = ""
        table.loc[2, "age"] = 0
        table.loc[[3, 4, 5], "sex"] = "Unknown"
        return table

    change_table(folder, forget)
    report, lines = run(folder)
    assert report.ok
    for check, count in {
        "images without age": 2,
        "images with age 0": 1,
        "images without sex": 3,
    }.items():
        assert lines.loc[check, ["count", "verdict"]].tolist() == [count, "note"]
    assert "--missing drop" in lines.loc["images without age", "detail"]


def test_rows_without_image_and_images_without_row_are_named_notes(folder):
    (folder / "images" / "I20.jpg").rename(folder / "images" / "extra.jpg")
    report, lines = run(folder)
    assert report.ok
    expected = {"rows without an image": "I20", "images without a row": "extra"}
    for check, name in expected.items():
        assert lines.loc[check, ["count", "verdict", "detail"]].tolist() == [1, "note", name]


def test_every_corrupt_image_is_named_and_a_problem_unless_skipped(folder):
    for name in ("I03", "I09"):
        os.truncate(folder / "images" / f"{name}.jpg", 900)
    (folder / "images" / "I12.jpg").write_bytes(b"")
    report, lines = run(folder)
    assert problems(report) == ["corrupt images"]
    line = lines.loc["corrupt images"]
    assert line["count"] == 3 and "--skip-bad" in line["detail"]
    assert all(f"{name}.jpg: " in line["detail"] for name in ("I03", "I09", "I12"))
    skipped, lines = run(folder, skip_bad=True)
    assert skipped.ok and lines.loc["corrupt images", "verdict"] == "note"


def copy_image(folder, source, copy):
    data = (folder / "images" / f"{source}.jpg").read_bytes()
    (folder / "images" / f"{copy}.jpg").write_bytes(data)


def test_identical_images_in_one_lesion_are_a_note(folder):
    copy_image(folder, "I00", "I18")
    report, lines = run(folder)
    assert report.ok
    line = lines.loc["identical images in one lesion"]
    assert line[["count", "verdict", "detail"]].tolist() == [1, "note", "I00 = I18"]


def test_images_of_one_colour_and_tiny_ones_are_named(folder):
    Image.new("RGB", (40, 60), "black").save(folder / "images" / "I03.jpg")
    Image.new("RGB", (300, 200), (240, 200, 190)).save(folder / "images" / "I10.jpg")
    striped = Image.new("RGB", (300, 100), "white")  # the centre square is of one colour
    striped.paste("brown", (0, 0, 90, 100))
    striped.save(folder / "images" / "I12.jpg")
    Image.open(folder / "images" / "I06.jpg").resize((40, 31)).save(folder / "images" / "I06.jpg")
    report, lines = run(folder)
    assert report.ok
    flat = lines.loc["images of one colour"]
    assert flat[["count", "verdict"]].tolist() == [2, "note"]
    assert flat["detail"].startswith("I03 (black), I10. They show no lesion")
    tiny = lines.loc["images with a side below 32 pixels"]
    assert tiny[["count", "verdict"]].tolist() == [1, "note"]
    assert tiny["detail"].startswith("I06 (40 x 31)")


def test_identical_images_under_two_lesion_ids_are_a_problem(folder):
    copy_image(folder, "I05", "I08")
    report, lines = run(folder)
    same = "identical images under different lesion ids"
    assert problems(report) == [same, "near-duplicates under different lesion ids"]
    assert lines.loc[same, "detail"].startswith("I05 = I08")
    assert "--join-duplicates" in lines.loc[same, "detail"]


def test_identical_images_with_two_labels_are_a_problem(folder):
    copy_image(folder, "I05", "I07")
    report, lines = run(folder)
    assert problems(report)[0] == "identical images with different labels"
    near = lines.loc["near-duplicates under different lesion ids", "detail"]
    assert "1 of them have different labels" in near


def test_a_near_duplicate_under_another_lesion_id_is_a_problem_with_the_way_out(folder):
    image = Image.open(folder / "images" / "I05.jpg").transpose(Image.Transpose.ROTATE_90)
    image.save(folder / "images" / "I08.jpg", quality=70)
    report, lines = run(folder)
    check = "near-duplicates under different lesion ids"
    assert problems(report) == [check]
    assert lines.loc[check, "count"] == 1 == len(report.near_duplicates)
    assert set(report.near_duplicates.loc[0, ["image_a", "image_b"]]) == {"I05", "I08"}
    assert "--join-duplicates" in lines.loc[check, "detail"]
    data = json.loads(report.to_json())
    assert data["ok"] is False and len(data["near_duplicates"]) == 1
    assert {"check", "count", "verdict", "detail"} == set(data["findings"][0])


def test_a_class_with_too_few_lesions_is_a_problem(folder):
    change_table(
        folder, lambda table: table[(table["dx"] != "mel") | (table["lesion_id"] == "L01")]
    )
    report, _ = run(folder)
    assert problems(report) == ["classes that can't be split"]
    assert "mel" in table(report).loc["classes that can't be split", "detail"]


def test_a_zip_file_is_audited_unopened(folder, tmp_path_factory):
    zipped = tmp_path_factory.mktemp("zipped")
    (zipped / "metadata.csv").write_bytes((folder / "metadata.csv").read_bytes())
    with zipfile.ZipFile(zipped / "images.zip", "w") as archive:
        for file in (folder / "images").iterdir():
            archive.write(file, file.name)
    assert run(zipped)[0].findings == run(folder)[0].findings


def test_a_missing_column_is_the_error_itself(folder):
    change_table(folder, lambda table: table.rename(columns={"dx": "what"}))
    with pytest.raises(LesionfastError, match="--target"):
        run(folder)


def test_the_tables_show_verdicts_and_near_duplicates():
    checks = [
        Finding("corrupt images", 2, "problem", "a.jpg, [b].jpg"),
        Finding("images without age", 57, "note", "kept with an indicator"),
    ]
    pairs = pd.DataFrame(
        {"image_a": ["i1"], "image_b": ["i2"], "score": [0.98], "transform": ["turned by 90"]}
    )
    first, second = audit_table(Audit("", checks, pairs))
    assert first.columns == ["check", "count", "verdict", "detail"]
    assert [str(c) for c in first.rows[0]] == ["corrupt images", "2", "problem", "a.jpg, [b].jpg"]
    assert second.columns == ["image a", "image b", "score", "transform"]
    assert [str(c) for row in second.rows for c in row] == ["i1", "i2", "0.980", "turned by 90"]
    assert len(audit_table(Audit("", checks, pairs.head(0)))) == 1


def test_identical_pixels_are_found_in_other_formats_but_not_alike_ones(photograph, tmp_path):
    rng = np.random.default_rng(5)
    others = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path in others:
        photograph(rng).save(path, quality=80)
    image = photograph(rng)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    image.putpixel((0, 0), (0, 0, 0))
    image.save(tmp_path / "c.png")  # differs only outside the centre square that is compared
    paths = [str(path) for path in (*others, *(tmp_path / n for n in ("a.png", "b.bmp", "c.png")))]
    df = pd.DataFrame({"path": paths})
    assert find_exact_duplicates(df, open_pictures(paths)) == [[3, 4]]
