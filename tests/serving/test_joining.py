"""The files of all shards, joined, are the file of one process; what doesn't belong is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lesionfast.errors import DamageError, LesionfastError
from lesionfast.files import sha256
from lesionfast.serving import predictor as predictor_module
from lesionfast.serving.inputs import Item, Shard, find_items
from lesionfast.serving.joining import join_parts
from lesionfast.serving.outputs import Count, note_path, predict_inputs, predict_to
from lesionfast.serving.predictor import Predictor


@pytest.fixture
def predictor(exported, monkeypatch):
    monkeypatch.setattr(predictor_module, "CHUNK", 4)
    return Predictor(exported)


@pytest.fixture
def items(photos):
    """Nineteen images, one of which is not there, under names that CSV has to quote."""
    names = [f'photo "{i}",\nline' if i % 2 else f"{i}" for i in range(19)]
    found = [Item(name, photos[i % len(photos)]) for i, name in enumerate(names)]
    found[5] = Item("gone, too", None)
    return found


def predict_shard(predictor, items, out, text, kind="csv", **choices):
    shard = Shard.parse(text)
    chosen = shard.choose(iter(items), predictor.chunk)
    return predict_to(predictor, chosen, out, kind, shard=shard, **choices)


def predict_shards(predictor, items, folder, count, kind="csv", suffix=""):
    parts = [folder / f"part{number}.{suffix or kind}" for number in range(1, count + 1)]
    for number, part in enumerate(parts, 1):
        predict_shard(predictor, items, part, f"{number}/{count}", kind)
    return parts


@pytest.fixture
def parts(predictor, items, tmp_path):
    """Three parts of CSV."""
    return predict_shards(predictor, items, tmp_path, 3)


def change_note(part, **values):
    note = json.loads(note_path(part).read_text("utf-8"))
    kept = {name: value for name, value in (note | values).items() if value is not None}
    note_path(part).write_text(json.dumps(kept), "utf-8")


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_joined_shards_are_the_file_of_one_process(predictor, items, tmp_path, kind, count):
    pytest.importorskip("pyarrow")
    whole, joined = tmp_path / f"whole.{kind}", tmp_path / f"joined.{kind}"
    expected = predict_to(predictor, items, whole, kind)
    parts = predict_shards(predictor, items, tmp_path, count, kind)
    found = join_parts([str(part) for part in reversed(parts)], joined, kind)
    assert (found.images, found.failed) == (expected.images, expected.failed) == (19, 1)
    assert joined.read_bytes() == whole.read_bytes()
    assert [part.read_bytes() == whole.read_bytes() for part in parts] == [count == 1] * count


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_features_are_extracted_in_shards_too(exported, photos, tmp_path, kind):
    pytest.importorskip("pyarrow")
    predictor = Predictor(exported, features=True)
    predictor.chunk = 4
    items = [Item(str(i), path) for i, path in enumerate([*photos[:9], "gone.jpg"])]
    predict_to(predictor, items, tmp_path / f"whole.{kind}", kind)
    parts = predict_shards(predictor, items, tmp_path, 2, kind)
    joined = tmp_path / f"joined.{kind}"
    join_parts(list(map(str, parts)), joined, kind)
    assert joined.read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()
    table = pd.read_csv(joined) if kind == "csv" else pd.read_parquet(joined)
    features = table.filter(like="feature_").to_numpy()
    assert features.shape == (10, len(predictor.features)) and np.isnan(features[9]).all()
    assert np.isfinite(features[:9]).all() and features[:9].std() > 0


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_submission_is_joined_from_parts_of_any_format(predictor, items, tmp_path, kind):
    pytest.importorskip("pyarrow")
    predict_to(predictor, items, tmp_path / "whole.csv", "isic")
    parts = predict_shards(predictor, items, tmp_path, 2, kind)
    join_parts(list(map(str, parts)), tmp_path / "joined.csv", "isic")
    assert (tmp_path / "joined.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_shard_that_was_cut_off_goes_on_and_is_joined_only_then(predictor, items, tmp_path):
    predict_to(predictor, items, tmp_path / "whole.csv")
    second = tmp_path / "part2.csv"

    def stop(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_shard(predictor, items, second, "2/2", progress=stop)
    predict_shard(predictor, items, tmp_path / "part1.csv", "1/2")
    pattern, joined = str(tmp_path / "part*.csv"), tmp_path / "joined.csv"
    with pytest.raises(LesionfastError, match=r"part2.csv \(shard 2/2\) is not fin.*--resume"):
        join_parts([pattern], joined, "csv")
    with pytest.raises(LesionfastError, match="--shard 2/2, now 1/2"):
        predict_shard(predictor, items, second, "1/2", resume=True)
    count = predict_shard(predictor, items, second, "2/2", resume=True)
    assert (count.images, count.before) == (8, 4)
    predict_shard(predictor, items, second, "2/2", resume=True)  # which has nothing to do
    join_parts([pattern], joined, "csv")
    assert joined.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_joined_file_can_be_continued_with_more_images(predictor, items, parts, tmp_path):
    predict_to(predictor, [*items, *items], tmp_path / "whole.csv")
    joined = tmp_path / "joined.csv"
    join_parts(list(map(str, parts)), joined, "csv")
    count = predict_to(predictor, [*items, *items], joined, resume=True)
    assert (count.images, count.before) == (38, 16)
    assert joined.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_shard_without_images_is_said_and_joined(predictor, items, tmp_path, caplog):
    predict_to(predictor, items[:3], tmp_path / "whole.csv")
    parts = predict_shards(predictor, items[:3], tmp_path, 2)
    assert "Shard 2/2 has no image: the inputs hold 3 images" in caplog.text
    assert len(pd.read_csv(parts[1])) == 0
    join_parts(list(map(str, parts)), tmp_path / "joined.csv", "csv")
    assert (tmp_path / "joined.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    with pytest.raises(LesionfastError, match="the inputs hold no image"):
        predict_shard(predictor, [], tmp_path / "none.csv", "1/2")


def test_every_image_of_any_input_is_in_one_shard(photos, tmp_path):
    table = tmp_path / "cases.csv"
    pd.DataFrame({"image_id": photos, "age": 50}).to_csv(table, index=False)
    inputs = [str(table), *photos[:3]]
    whole = list(find_items(inputs))
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    cut = [list(find_items(inputs, choose=lambda i, s=s: s.choose(i, 2))) for s in shards]
    dealt = [cut[i // 2 % 3].pop(0) for i in range(len(whole))]
    assert dealt == whole and cut == [[], [], []]
    assert {(shard.images, shard.names.hexdigest()) for shard in shards} == {
        (len(whole), shards[0].names.hexdigest())
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_what_is_wrong_with_a_part_and_what_with_the_program_are_told_apart(
    predictor, items, tmp_path, kind, monkeypatch
):
    pytest.importorskip("pyarrow")
    parts = [*map(str, predict_shards(predictor, items, tmp_path, 2, kind))]

    def fail(*_: object) -> None:
        raise KeyError("a fault of the program")

    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr("lesionfast.serving.outputs.to_isic", fail)
        join_parts(parts, tmp_path / "joined.csv", "isic")
    with pytest.raises(DamageError, match=r"(damaged.*part2|part2.*damaged).*that shard again\.$"):
        if kind == "parquet":
            pd.DataFrame({"image": ["a"] * len(pd.read_parquet(parts[1]))}).to_parquet(
                parts[1], row_group_size=1
            )
        else:
            head = Path(parts[1]).read_text("utf-8").partition("\n")[0] + "\n"
            Path(parts[1]).write_text((head if kind == "csv" else '{"image": [\n') + "[1]\n" * 19)
        note = json.loads(note_path(Path(parts[1])).read_text("utf-8"))
        note["finished"]["sha256"] = sha256(Path(parts[1]))
        note_path(Path(parts[1])).write_text(json.dumps(note), "utf-8")
        join_parts(parts, tmp_path / "joined.csv", "isic")


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "3/", "/8", "a/b", "1/2/3", "-1/8", "²/8", ""])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(LesionfastError, match=r"is not a shard. Type for example --shard 3/8"):
        Shard.parse(text)


def test_a_shard_needs_a_file_and_no_submission(tmp_path):
    options = {"metadata": {}, "shard": "1/2"}
    with pytest.raises(LesionfastError, match="Name it with --out, such as --out part1.csv"):
        predict_inputs("run", ["x"], None, "csv", **options)
    with pytest.raises(LesionfastError, match="Leave out --isic, and type it with --join"):
        predict_inputs("run", ["x"], tmp_path / "a.csv", "isic", **options)


def drop_last(parts):
    return parts[:-1]


def keep_first(parts):
    return parts[:1]


def repeat(parts):
    return [*parts, parts[1]]


def without_note(parts):
    note_path(parts[1]).unlink()


def with_damaged_note(parts):
    note_path(parts[1]).write_text('{"--shard": "2/3", ', "utf-8")


def with_note_of_another_shape(parts):
    change_note(parts[1], **{"images at a time": "four"})


def of_one_process(parts):
    change_note(parts[1], **{"--shard": None})


def of_other_weights(parts):
    change_note(parts[1], weights="0123456789abcdef")


def of_another_age(parts):
    change_note(parts[1], **{"--set": {"age": "55"}})


def of_more_shards(parts):
    change_note(parts[1], **{"--shard": "2/4"})


def of_other_inputs(parts):
    note = json.loads(note_path(parts[1]).read_text("utf-8"))["finished"]
    note["inputs"]["images"] += 1
    change_note(parts[1], finished=note)


def in_another_order(parts):
    note = json.loads(note_path(parts[1]).read_text("utf-8"))["finished"]
    note["inputs"]["names"] = "0"
    change_note(parts[1], finished=note)


def edited(parts):
    parts[1].write_text(parts[1].read_text("utf-8").replace("nv", "mel", 1), "utf-8")


def torn(parts):
    parts[1].write_bytes(parts[1].read_bytes()[:-20])


REFUSED = {
    drop_last: "shard 3 of 3 is missing. Predict it, such as with --shard 3/3, and name all",
    keep_first: "shards 2, 3 of 3 are missing. Predict each, such as with --shard 2/3, and",
    repeat: "shard 2 is there 2 times: .*part2.csv, .*part2.csv. Name it once",
    without_note: "part2.csv can't be joined: .part2.csv.resume.json, .* is not beside it",
    with_damaged_note: ".part2.csv.resume.json is damaged: .* Predict that shard again",
    with_note_of_another_shape: ".part2.csv.resume.json is damaged: 'images at a time' is 'four'",
    of_one_process: "^[^:]*part2.csv can't be joined: it was predicted without --shard. Leave",
    of_other_weights: r"don't belong together: other weights \(SHA-256 \w+ and 0123456789ab\)",
    of_another_age: "part1.csv and .*part2.csv don't belong.*--set not given and age=55. Name",
    of_more_shards: "don't belong together: --shard K/3 and K/4. Name the parts of one model",
    of_other_inputs: "shards of different inputs: 19 images and 20 images. Predict all shards",
    in_another_order: "different inputs: 19 images each, but with other names or in another",
    edited: "part2.csv changed after it was finished: its SHA-256 is another. Predict that",
    torn: "part2.csv changed after it was finished",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_parts_that_do_not_belong_together_are_not_joined(change, parts, tmp_path):
    given = change(parts) or parts
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LesionfastError, match=REFUSED[change]):
        join_parts(list(map(str, given)), tmp_path / "joined.csv", "csv")
    assert sorted(tmp_path.iterdir()) == before


def test_parts_are_joined_to_their_format_and_over_no_file(parts, tmp_path):
    names = list(map(str, parts))
    with pytest.raises(LesionfastError, match="the parts are csv.* jsonl. Type --format csv"):
        join_parts(names, tmp_path / "joined.jsonl", "jsonl")
    with pytest.raises(LesionfastError, match="part1.csv exists already. Name another --out"):
        join_parts(names, parts[0], "csv")
    with pytest.raises(LesionfastError, match="no file or pattern '.*none.csv'. Name the parts"):
        join_parts([str(tmp_path / "none.csv")], tmp_path / "joined.csv", "csv")


def test_parts_are_joined_elsewhere_with_their_notes(parts, tmp_path):
    for part in parts:
        for file in (part, note_path(part)):
            (tmp_path / "copy").mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / "copy")
    found = join_parts([str(tmp_path / "copy" / "part*.csv")], tmp_path / "joined.csv", "csv")
    assert found == Count(images=19, failed=1)


def test_a_full_disk_is_said_before_anything_is_joined(parts, small_disk):
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(free - 4096))
    told = r"joined.csv can't be written: the disk is full; it needs .* kB, and .* are free"
    with pytest.raises(LesionfastError, match=told):
        join_parts(list(map(str, parts)), small_disk / "joined.csv", "csv")
    assert "joined.csv" not in {file.name for file in small_disk.iterdir()}
