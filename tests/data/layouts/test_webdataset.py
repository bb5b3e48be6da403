"""WebDataset shards are a dataset, read where they lie; what is broken in them is named."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from lesionfast.cli import app
from lesionfast.config import SplitConfig
from lesionfast.data.images import open_images
from lesionfast.data.layouts.base import NO_LESIONS
from lesionfast.data.layouts.recognise import describe, find_dataset
from lesionfast.data.metadata import read_dataset
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.run import Run

TINY = ("--epochs", "1", "--size", "32", "--arch", "test_resnet", "--weights", "none", "--tta", "1")
CLASSES = ("mel", "nv", "bkl")


def draw(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def save(path: Path, files: dict[str, bytes]) -> Path:
    """Write a shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample(i: int, key: str = "{:06d}", **fields) -> dict[str, bytes]:
    """Return the files of a sample; a field of None is left out."""
    row = {"class": CLASSES[i // 2 % 3], "lesion_id": f"L{i // 2}", "age": 40.0 + i % 40}
    row |= {
        "sex": ["male", "female"][i % 2],
        "clinical": {"site": "back"},
        "boxes": [1, 2],
        **fields,
    }
    row = {name: value for name, value in row.items() if value is not None}
    return {f"{key.format(i)}.png": draw(i), f"{key.format(i)}.json": json.dumps(row).encode()}


def write(
    root: Path, name: str = "skin-{:03d}.tar", shards: int = 3, each: int = 20, **more
) -> Path:
    """Write some shards of samples that are all different."""
    for shard in range(shards):
        rows = range(shard * each, (shard + 1) * each)
        save(
            root / f"skin-{shard:03d}.tar",
            {k: v for i in rows for k, v in sample(i, **more).items()},
        )
    return root


def load(root: Path, **options) -> pd.DataFrame:
    return load_dataset(SplitConfig(data=str(root), **options))


def read(root: Path, **options) -> tuple[pd.DataFrame, str]:
    """Return the checked table and the sentence about it."""
    config = SplitConfig(data=str(root), **options)
    found = find_dataset(config)
    df = read_dataset(found, config)
    return df, describe(found, df)


def refusal(root: Path, **options) -> str:
    with pytest.raises(LesionfastError) as error:
        load(root, **options)
    return str(error.value)


def test_shards_are_checked_trained_on_and_predicted_as_they_lie(tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)

    root = write(tmp_path / "skin")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    checked = invoke("data", "check", root)
    assert checked.exit_code == 0, checked.stdout
    first = "This looks like a WebDataset (3 shards): 60 images, 3 classes, 30 lesions."
    assert checked.stdout.startswith(first)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before  # nothing is unpacked
    trained = invoke("train", "--data", root, *TINY, "--out", tmp_path / "runs")
    assert trained.exit_code == 0
    split = Run.open(trained.stdout.strip()).split
    assert len(split) == 60 and (split.groupby("group")["split"].nunique() == 1).all()
    out = tmp_path / "p.csv"
    assert invoke("predict", trained.stdout.strip(), root, "--all", "--out", out).exit_code == 0
    table = pd.read_csv(out)
    assert len(table) == 60 and table["error"].isna().all() and table["not_known"].isna().all()
    alone = tmp_path / "one.csv"
    shard = root / "skin-001.tar"
    assert invoke("predict", trained.stdout.strip(), shard, "--all", "--out", alone).exit_code == 0
    one, part = pd.read_csv(alone), table.iloc[20:40].reset_index(drop=True)
    assert one["image"].tolist() == part["image"].tolist()
    np.testing.assert_allclose(one["p_mel"], part["p_mel"], rtol=1e-3)


def test_the_table_has_the_fields_of_the_json_and_the_pixels_are_those_of_the_shards(
    tmp_path, caplog
):
    df, summary = read(write(tmp_path / "skin"))
    assert NO_LESIONS not in summary and "Left out 1 column of lists: boxes" in caplog.text
    row = df[df["image_id"] == "000023"].iloc[0]
    assert (row["target"], row["group"], row["sex"], row["age"]) == ("bkl", "L11", "female", 63)
    assert row["path"].endswith("skin-001.tar/000023.png")
    expected = np.asarray(Image.open(io.BytesIO(draw(23))).resize((8, 8), Image.Resampling.BICUBIC))
    pixels = open_images([row["path"]], 8, cache=False).pixels[0]
    assert np.abs(pixels.astype(int) - expected).mean() < 3


def test_the_index_of_a_shard_is_made_once_and_again_when_the_shard_changes(tmp_path, monkeypatch):
    from lesionfast.data.formats.untar import Tar

    made, whole = [], Tar._read_headers
    monkeypatch.setattr(Tar, "_read_headers", lambda self: made.append(self.file) or whole(self))
    root = write(tmp_path / "skin")
    load(root)
    load(root)
    assert len(made) == 3
    save(root / "skin-001.tar", sample(99))
    assert len(load(root)) == 41 and len(made) == 4


def test_names_that_are_not_utf_8_are_counted_once_for_all_shards(tmp_path, caplog):
    root = write(tmp_path / "skin")
    for number in range(2):
        files = sample(70 + number) | {f"{a}\udcff.png": draw(1) for a in "ab"}
        save(root / f"skin-00{number + 1}.tar", files)
    load(root)
    (told,) = [one for one in caplog.messages if "not UTF-8" in one]
    assert told.startswith("Left out 4 images with a name that is not UTF-8, such as")


def test_keys_that_recur_in_other_shards_are_other_images(tmp_path):
    for number in range(2):
        rows = {}
        for i in range(30):
            here = sample(30 * number + i, lesion_id=f"L{number}-{i}")
            rows |= {f"{i:04d}{Path(name).suffix}": data for name, data in here.items()}
        save(tmp_path / "skin" / f"{number}.tar", rows)
    df = load(tmp_path / "skin")
    assert len(df) == 60 and df["image_id"].is_unique and df["path"].is_unique


def test_an_image_id_in_two_shards_is_one_image(tmp_path, caplog):
    root = write(tmp_path / "skin", image_id=None)
    files = {}
    for i in range(20):
        files |= sample(i, key="again/{:06d}", image_id=f"ISIC_{i}")
    save(root / "skin-003.tar", files)
    save(root / "skin-004.tar", files)
    assert len(load(root)) == 80
    assert "Ignored 20 images with the image id of another" in caplog.text


def test_the_parts_that_names_of_shards_say_are_the_split(tmp_path):
    start = 0
    for part, count in {"train": 30, "val": 18, "test": 12}.items():
        rows = range(start, start + count)
        files = {name: data for i in rows for name, data in sample(i).items()}
        save(tmp_path / "skin" / f"skin-{part}-000.tar", files)
        start += count
    counts = load(tmp_path / "skin")["split"].value_counts().to_dict()
    assert counts == {"train": 30, "valid": 18, "test": 12}


def test_numbers_in_cls_files_have_the_names_beside_the_shards(tmp_path):
    root = tmp_path / "skin"
    files = {f"{i}.{kind}": data for i in range(30) for kind, data in
             {"png": draw(i), "cls": str(i % 3).encode()}.items()}  # fmt: skip
    save(root / "a.tar", files)
    assert set(load(root)["target"]) == {"0", "1", "2"}
    (root / "classes.txt").write_text("nv\nmel\nbkl\n")
    df, summary = read(root)
    assert df["target"].value_counts().to_dict() == dict.fromkeys(CLASSES, 10)
    assert NO_LESIONS in summary
    (root / "classes.txt").write_text("nv\nmel\n")
    assert "the shards have the class 2, but" in refusal(root)


def test_what_has_no_label_is_left_out_and_predicted(tmp_path):
    root = write(tmp_path / "skin")
    save(root / "skin-003.tar", {"x/1.png": draw(1000), "x/2.png": draw(1001)})
    files = sample(70, **{"class": ""}) | sample(71)
    save(root / "skin-004.tar", files)
    df, summary = read(root)
    assert len(df) == 61 and "Left out 1 image without a label." in summary
    found = find_dataset(SplitConfig(data=str(root)))
    assert [Path(path).name for path in found.unlabelled] == ["000070.png"]


def test_a_shard_that_may_be_missing_is_said(tmp_path):
    root = write(tmp_path / "skin")
    (root / "skin-001.tar").unlink()
    assert "1 shard may be missing: skin-001.tar." in read(root)[1]


def test_shards_beside_a_table_are_the_images_of_the_table(tmp_path):
    root = tmp_path / "skin"
    rows = [{"image_id": f"{i:03d}", "diagnosis": CLASSES[i % 3]} for i in range(30)]
    save(root / "images.tar", {f"all/{i:03d}.png": draw(i) for i in range(30)})
    pd.DataFrame(rows).to_csv(root / "cases.csv", index=False)
    df = load(root)
    assert len(df) == 30 and df["path"].str.contains("images.tar/all/").all()


def test_folders_by_class_may_lie_in_a_tar_file(tmp_path):
    files = {f"{CLASSES[i % 3]}/{i}.png": draw(i) for i in range(30)}
    save(tmp_path / "skin" / "skin.tar", files)
    assert load(tmp_path / "skin")["target"].value_counts().to_dict() == dict.fromkeys(CLASSES, 10)


def test_damage_and_compression_are_named_with_what_to_do(tmp_path):
    root = write(tmp_path / "skin")
    shard = root / "skin-001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert "skin-001.tar is not a complete tar file" in refusal(root)
    with tarfile.open(shard, "w:gz") as archive:
        archive.add(root / "skin-000.tar", "inner.png")
    assert "skin-001.tar is compressed" in refusal(root)
    save(shard, {"1.png": draw(1), "1.json": b"{"})
    assert "skin-001.tar/1.json is not JSON" in refusal(root)
    save(shard, {"1.png": draw(1), "1.json": b"[]"})
    assert "skin-001.tar/1.json holds list, not an object of columns" in refusal(root)


def test_a_column_of_the_class_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    root = write(tmp_path / "skin", **{"class": None})
    message = refusal(root)
    assert "no column is known to be the class in the JSON files of skin-000.tar" in message
    assert "lesion_id" in message and message.endswith("Name yours with --target.")
    assert set(load(root, target="sex", group="none")["target"]) == {"male", "female"}
