"""How well maps lie on lesions, against loops, and on the sample, whose masks are known."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.data import sample
from lesionfast.data.images import fit_square
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.masks import (
    centred_blob,
    compare_with_masks,
    pointing_game,
    read_mask,
    read_masks,
    score_maps,
    share_inside,
)

SIZE = 24


def disc(x: float, y: float, radius: float, size: int = SIZE) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.hypot(columns - x, rows - y) <= radius


def explain(maps: np.ndarray, names: list[str], groups: list[str], resize="crop"):
    """What `compare_with_masks` needs of an explanation."""
    rows = pd.DataFrame({"image_id": names, "group": groups})
    run = SimpleNamespace(model={"size": maps.shape[1], "resize": resize})
    return SimpleNamespace(run=run, rows=rows, maps=maps)


def test_share_and_pointing_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    maps = rng.random((5, SIZE, SIZE)).astype(np.float32)
    maps[0, 3, 4] = maps[0, 20, 20] = 2  # two hottest, one of them inside
    masks = np.stack([disc(4, 3, 2)] + [disc(*rng.uniform(6, 18, 2), 6) for _ in range(4)])
    pairs = list(zip(maps, masks, strict=True))
    inside = [sum(m[i, j] for i, j in np.argwhere(k)) / sum(m.ravel()) for m, k in pairs]
    np.testing.assert_allclose(share_inside(maps, masks), inside, rtol=1e-5)
    hits = [k[np.unravel_index(m.argmax(), m.shape)] for m, k in pairs[1:]]
    np.testing.assert_array_equal(pointing_game(maps, masks), [0.5, *hits])


def test_a_perfect_map_beats_the_blob_and_the_blob_itself_does_not():
    masks = np.stack([disc(x, 7, 5) for x in np.linspace(5, 18, 30)])
    lesions = np.arange(30)
    table = score_maps(masks.astype(float), masks, lesions).set_index(["measure", "of"])
    assert table.loc[("share inside", "map"), "value"] == 1
    assert table.loc[("share inside", "difference"), "low"] > 0.5
    assert table.loc[("pointing game", "map"), "low"] == pytest.approx(1 - 0.1135, abs=1e-3)
    blob = np.broadcast_to(centred_blob(SIZE, SIZE), masks.shape)
    same = score_maps(blob, masks, lesions).set_index(["measure", "of"])
    assert (same.xs("difference", level="of")[["value", "low", "high"]] == 0).all(axis=None)


def test_intervals_widen_when_images_share_lesions():
    rng = np.random.default_rng(1)
    values = np.repeat(rng.random(40), 4)  # the four images of a lesion are alike
    maps = np.zeros((160, SIZE, SIZE))
    maps[:, 0, 0], maps[:, 5, 5] = values, 1 - values
    masks = np.broadcast_to(disc(0, 0, 2), maps.shape)
    by_lesion = score_maps(maps, masks, np.repeat(np.arange(40), 4)).iloc[0]
    by_image = score_maps(maps, masks, np.arange(160)).iloc[0]
    assert by_lesion["value"] == pytest.approx(values.mean())
    assert by_lesion["high"] - by_lesion["low"] > 1.6 * (by_image["high"] - by_image["low"])
    error = 1.96 * values[::4].std() / 40**0.5  # the normal interval of the mean of lesions
    assert by_lesion["high"] - by_lesion["value"] == pytest.approx(error, rel=0.15)


def test_maps_of_nothing_are_left_out_and_none_is_an_error():
    masks = np.stack([disc(12, 12, 5)] * 3)
    maps = masks.astype(float)
    maps[1] = 0
    assert (score_maps(maps, masks, [1, 2, 3])["n"] == 2).all()
    with pytest.raises(LesionfastError, match="every map is 0.*Explain another"):
        score_maps(np.zeros_like(maps), masks, [1, 2, 3])


def test_the_blob_is_symmetric_about_the_centre():
    blob = centred_blob(SIZE, SIZE + 1)
    np.testing.assert_allclose(blob, blob[::-1, ::-1])
    assert np.unravel_index(blob.argmax(), blob.shape)[1] == SIZE // 2


@pytest.mark.parametrize("resize", ["crop", "squish"])
def test_masks_lie_where_the_pictures_have_the_lesion(tmp_path, resize):
    """A dark lesion on light skin: its mask after the same cut is where the picture is dark."""
    mask = np.zeros((120, 160), np.uint8)
    mask[20:60, 90:130] = 255
    Image.fromarray(mask).save(tmp_path / "a.png")
    picture = Image.fromarray(255 - mask).convert("RGB")
    dark = np.asarray(fit_square(picture, 48, resize))[..., 0] < 128
    assert (read_mask(tmp_path / "a.png", 48, resize) == dark).mean() > 0.99
    assert 0 < dark.mean() < 0.3


def test_true_masks_of_painted_lesions_beat_the_blob(tmp_path, monkeypatch):
    """The cover of a painted lesion is its true mask; darkness makes a fair map of it."""
    views, seen = {}, []
    place = sample.place
    monkeypatch.setattr(sample, "place", lambda v, *a: seen.append(v) or place(v, *a))
    for number in range(12):
        rng = np.random.default_rng(number)
        skin = np.float32((232, 190, 172))
        picture = sample.photograph(sample.draw_lesion("mel", rng), skin, rng)
        views[f"a{number}"] = np.asarray(fit_square(picture, 48, "crop").convert("L"), float)
        cover = np.asarray(seen[-1])[..., 3] > 100
        Image.fromarray(cover).save(tmp_path / f"a{number}_segmentation.png")
    grey = np.stack(list(views.values()))
    maps = np.clip(np.quantile(grey, 0.5, axis=(1, 2), keepdims=True) - grey, 0, None)
    table = compare_with_masks(explain(maps, list(views), list(views)), tmp_path)
    value = table.set_index(["measure", "of"])["value"]
    assert value["pointing game", "map"] > 0.9 and value["share inside", "map"] > 0.7
    assert (table["n"] == 12).all() and (table["low"] <= table["value"]).all()


def test_missing_broken_and_empty_masks_are_counted(tmp_path, caplog):
    Image.fromarray(disc(12, 12, 6)).save(tmp_path / "good.png")
    Image.fromarray(disc(12, 12, 6) & False).save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = ["broken", "good", "empty", "missing"]
    masks, bad = read_masks(tmp_path, names, SIZE, "crop")
    assert list(masks) == ["good"] and masks["good"].sum() == disc(12, 12, 6).sum()
    assert bad["empty"] == "it shows no lesion" and bad["missing"] == "there is no file"
    assert "can't be read" in bad["broken"]
    maps = np.stack([disc(12, 12, 3), disc(12, 12, 3), disc(2, 2, 3), disc(2, 2, 3)]).astype(float)
    table = compare_with_masks(explain(maps, names, names), tmp_path)
    assert table.iloc[0]["n"] == 1 and table.iloc[0]["value"] == 1
    assert "3 of 4 images have no usable mask" in caplog.text


def test_no_masks_at_all_say_what_to_name(tmp_path):
    with pytest.raises(LesionfastError, match="there is no folder.*--masks"):
        read_masks(tmp_path / "nowhere", ["a"], SIZE, "crop")
    with pytest.raises(LesionfastError, match="no usable mask of these 1.*no file.*a_segmentation"):
        read_masks(tmp_path, ["a"], SIZE, "crop")
