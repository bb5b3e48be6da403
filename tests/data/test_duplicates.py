import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.config import DataConfig
from lesionfast.data.duplicates import THRESHOLD, find_near_duplicates
from lesionfast.data.metadata import load_metadata

UNRELATED = 40


def zoom(image, share):
    """Cut off `share` of width and height, and enlarge to the old size."""
    x, y = (round(each * share / 2) for each in image.size)
    return image.crop((x, y, image.width - x, image.height - y)).resize(image.size)


PLANTED = {
    "copy": lambda image: image,
    "turned": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "half": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "shifted": lambda image: image.crop((10, 8, 200, 150)),
    "cropped": lambda image: zoom(image, 0.1),
    "zoomed": lambda image: zoom(image, 0.4),
    "turned-cropped": lambda image: zoom(image.transpose(Image.Transpose.ROTATE_270), 0.15),
}


@pytest.fixture(scope="module")
def planted(photograph, tmp_path_factory):
    """Unrelated photographs, and one changed copy of some of them under another lesion id."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    images = {f"{i:02d}": photograph(rng) for i in range(UNRELATED)}
    copies = zip(PLANTED.items(), images.values(), strict=False)
    images |= {f"copy-{name}": change(image) for (name, change), image in list(copies)}
    rows = []
    for name, image in images.items():
        image.save(folder / f"{name}.jpg", quality=80)
        path = (folder / f"{name}.jpg").as_posix()
        rows.append({"image_id": name, "path": path, "group": f"L{name}", "target": "nv"})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def found(planted):
    return find_near_duplicates(planted)


def ends(pairs):
    return {tuple(sorted(each)) for each in zip(pairs["image_a"], pairs["image_b"], strict=True)}


def test_what_was_planted_is_found_and_nothing_else(found):
    assert ends(found) == {(f"{i:02d}", f"copy-{name}") for i, name in enumerate(PLANTED)}


def test_each_pair_has_ids_classes_score_and_transform(found, planted):
    rows = planted.set_index("image_id")
    for pair in found.itertuples():
        assert pair.group_a == rows.at[pair.image_a, "group"] != pair.group_b
        assert (pair.target_a, pair.target_b) == ("nv", "nv")
        assert THRESHOLD <= pair.score <= 1
    words = {tuple(sorted(each[:2])): each[-1] for each in found.itertuples(index=False, name=None)}
    assert words["00", "copy-copy"] == "not turned"
    assert words["01", "copy-turned"] == "turned left by 90°"
    assert words["02", "copy-half"] in ("turned left by 180°", "turned right by 180°")
    assert words["03", "copy-mirrored"].startswith("mirrored")
    assert "enlarged 1.7 times" in words["06", "copy-zoomed"]
    assert found["score"].is_monotonic_decreasing


def test_images_of_one_lesion_are_no_pair(planted):
    lesions = planted["group"].replace({"Lcopy-turned": "L01", "Lcopy-copy": "L00"})
    assert ends(find_near_duplicates(planted.assign(group=lesions))) == {
        (f"{i:02d}", f"copy-{name}") for i, name in enumerate(PLANTED) if i > 1
    }


def test_the_result_is_kept_until_an_image_changes(photograph, planted, found, tmp_path):
    calls = []
    again = find_near_duplicates(planted, lambda *state: calls.append(state))
    pd.testing.assert_frame_equal(again, found, check_dtype=False)
    assert not calls
    data = io.BytesIO()
    photograph(np.random.default_rng(99)).save(data, "JPEG")
    (tmp_path / "new.jpg").write_bytes(data.getvalue())
    changed = planted.copy()
    changed.loc[changed["image_id"] == "copy-copy", "path"] = str(tmp_path / "new.jpg")
    fewer = find_near_duplicates(changed, lambda *state: calls.append(state), cache=False)
    assert ends(fewer) == ends(found) - {("00", "copy-copy")}
    assert calls[-1] == (100, 100)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.fixture
def few(planted, tmp_path, monkeypatch):
    """A pair and two others, with an empty cache of this test's own."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    return planted[planted["image_id"].isin(["00", "copy-copy", "20", "21"])]


def kept_pairs(tmp_path):
    return list((tmp_path / "cache" / "duplicates").iterdir())


@pytest.mark.parametrize(
    "damage", [lambda text: text[:40], lambda text: text.replace('"b": [', '"b": [2, ')]
)
def test_damaged_pairs_are_noticed_said_and_searched_again(damage, few, tmp_path, caplog):
    right = find_near_duplicates(few)
    assert ends(right) == {("00", "copy-copy")}
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    (file,) = kept_pairs(tmp_path)
    text = file.read_text()
    file.write_text(damage(text))
    pd.testing.assert_frame_equal(find_near_duplicates(few), right)
    assert f"{file} is damaged" in caplog.text and file.read_text() == text


def test_no_pairs_are_kept_too(few, tmp_path):
    alone = few[few["image_id"] != "00"]
    calls = []
    for _ in range(2):
        calls.clear()
        assert find_near_duplicates(alone, lambda *state: calls.append(state)).empty
    assert not calls and len(kept_pairs(tmp_path)) == 1


@pytest.mark.parametrize("changed", ["cv2.__version__", "lesionfast.data.duplicates.VERSION"])
def test_pairs_of_another_version_are_searched_again(changed, few, tmp_path, monkeypatch):
    find_near_duplicates(few)
    monkeypatch.setattr(changed, "0")
    find_near_duplicates(few)
    assert len(kept_pairs(tmp_path)) == 2


def test_other_groups_are_compared_with_the_features_that_were_kept(few, tmp_path):
    find_near_duplicates(few)
    (features,) = (tmp_path / "cache" / "features").iterdir()
    made = features.stat().st_mtime_ns
    assert find_near_duplicates(few.assign(group=["x", "y", "z", "x"])).empty
    assert len(kept_pairs(tmp_path)) == 2 and features.stat().st_mtime_ns == made


def test_nothing_is_kept_without_the_cache(few, tmp_path):
    assert ends(find_near_duplicates(few, cache=False)) == {("00", "copy-copy")}
    assert not (tmp_path / "cache").exists()


def test_a_bad_image_is_left_out_and_the_positions_stay(planted, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    some = planted[planted["image_id"].isin(["00", "01", "copy-copy", "copy-turned"])]
    bad = pd.DataFrame([{"image_id": "0", "path": f"{tmp_path}/bad.jpg", "group": "x"}])
    df = pd.concat([bad.assign(target="nv"), some], ignore_index=True)
    assert ends(find_near_duplicates(df)) == {("00", "copy-copy"), ("01", "copy-turned")}


@pytest.mark.parametrize("rows", [1, 2])
def test_very_few_images_are_no_problem(rows, planted):
    assert find_near_duplicates(planted[:rows], cache=False).empty


def test_pairs_that_people_confirmed_are_found_among_others(ham10000):
    confirmed = ham10000.parent / "near_duplicates.csv"
    if not confirmed.is_file():
        pytest.skip("there are no confirmed pairs beside HAM10000")
    pairs = pd.read_csv(confirmed)
    df = load_metadata(DataConfig(data=str(ham10000)))
    others = df.drop_duplicates("group").sample(300, random_state=0)["image_id"]
    df = df[df["image_id"].isin([*pairs["image_id"], *pairs["near_duplicate"], *others])]
    wanted = {tuple(sorted(pair)) for pair in pairs.itertuples(index=False, name=None)}
    found = ends(find_near_duplicates(df))
    assert len(found & wanted) >= 8
    assert len(found - wanted) <= 3
