"""Every public layout, as it lies on disk, is checked, trained on, interpreted and predicted."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from lesionfast.cli import app
from lesionfast.run import Run

TINY = ("--epochs", "1", "--size", "32", "--arch", "test_resnet", "--weights", "none", "--tta", "1")
LAYOUTS = {  # what make.py writes -> its name, images, classes, and groups
    "kaggle_ham": ("HAM10000", 88, 7, "56 lesions"),
    "dataverse": ("HAM10000", 88, 7, "56 lesions"),
    "isic2018": ("ISIC 2018", 88, 7, "56 lesions"),
    "isic2019": ("ISIC 2019", 88, 7, "74 lesions"),
    "isic2020": ("ISIC 2020", 88, 2, "28 patients"),
    "isic2024": ("ISIC 2024", 88, 2, "28 patients"),
    "isic_download": ("the ISIC Archive", 88, 7, "74 lesions"),
    "pad_ufes_20": ("PAD-UFES-20", 88, 6, "28 patients"),
    "milk10k": ("MILK10k", 56, 7, "56 lesions"),
    "folders_by_class": ("folders by class", 88, 7, "88 lesions"),
    "parquet": ("a Hugging Face dataset", 88, 7, "56 lesions"),
}


def invoke(*arguments):
    """Run the command in this process; errors that the user can fix are raised."""
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@pytest.mark.usefixtures("blank_figures")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_goes_all_the_way_as_it_lies_on_disk(written, tmp_path, layout):
    folder, (name, images, classes, groups) = written(layout), LAYOUTS[layout]
    checked = invoke("data", "check", folder)
    assert checked.exit_code == 0, checked.stdout
    first, *rows = checked.stdout.splitlines()
    assert first.startswith(f"This looks like {name}: {images} images, {classes} classes")
    assert [row.split("ok")[-1].strip() for row in rows if row.startswith("images  ")] == [groups]

    trained = invoke("train", "--data", folder, *TINY, "--out", tmp_path / "runs")
    assert trained.exit_code == 0
    run = Run.open(trained.stdout.strip())
    split = run.split
    assert len(split) == images and split["target"].nunique() == classes
    assert (split.groupby("group")["split"].nunique() == 1).all()
    assert invoke("interpret", run.path).exit_code == 0

    predicted = invoke("predict", run.path, folder, "--out", tmp_path / "p.csv")
    assert predicted.exit_code == 0
    table = pd.read_csv(tmp_path / "p.csv")
    assert len(table) >= images and table["error"].isna().all()
