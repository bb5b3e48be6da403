"""Head epochs on cached features: the same as on images, without running the backbone again."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback

from lesionfast.config import TrainConfig
from lesionfast.data.augment import augmentations
from lesionfast.data.loaders import LesionDataLoaders, images_at_once
from lesionfast.data.split import load_dataset
from lesionfast.models.features import Features
from lesionfast.training.callbacks import cached_features as module
from lesionfast.training.callbacks.cached_features import CachedFeatures, FeatureLoader
from lesionfast.training.learner import lesion_learner

TINY = TrainConfig(arch="test_resnet", weights="none", size=32, batch_size=32, precision="float32")
STANDARD = augmentations["standard"]()


@pytest.fixture(scope="module")
def df():
    return load_dataset(TINY)


@pytest.fixture
def learn(df):
    """A Learner with a frozen backbone, as the head's phase has it."""
    learn = lesion_learner(LesionDataLoaders.from_df(df, TINY), config=TINY)
    learn.freeze()
    with learn.no_bar(), learn.no_logging():
        yield learn


@pytest.fixture
def fresh_cache(monkeypatch, tmp_path):
    """Keep features in a folder that is empty."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path))


@pytest.fixture
def runs_of(monkeypatch):
    """Count the images that a backbone sees."""

    def count(learn):
        seen = []
        learn.model.backbone.register_forward_hook(lambda *given: seen.append(len(given[1][0])))
        return seen

    return count


def test_validation_on_features_is_that_on_images(learn):
    learn.fit(2, 1e-2, cbs=CachedFeatures(STANDARD, 2, 0))
    on_features = learn.recorder.values[-1][1:]
    assert list(learn.validate()) == pytest.approx(list(on_features), rel=1e-5)


def test_the_backbone_sees_each_view_once_however_many_epochs(learn, runs_of):
    seen = runs_of(learn)
    learn.fit(5, 1e-2, cbs=CachedFeatures(STANDARD, 3, seed=77))
    size = images_at_once(learn.dls.device)  # the last batch is filled up
    n_train, n_valid = (
        -(-len(ds) // size) * size for ds in (learn.dls.train_ds, learn.dls.valid_ds)
    )
    whole = sum(n for n in seen if n > 1)  # one picture shows what can be folded
    assert whole in (3 * n_train + n_valid, 2 * n_train)  # the pictures may be kept already


def test_another_run_of_the_same_backbone_finds_its_features(df, runs_of):
    seen = []
    for _ in range(2):
        learn = lesion_learner(LesionDataLoaders.from_df(df, TINY), config=TINY)
        learn.freeze()
        seen.append(runs_of(learn))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2, cbs=CachedFeatures(STANDARD, 2, seed=78))
    assert seen[0] and not seen[1]


@pytest.mark.usefixtures("fresh_cache")
def test_a_solved_head_and_a_trained_one_take_the_same_kept_features(df, runs_of):
    def kept(learn):
        rows = learn.dls.rows.loc[learn.dls.rows["split"] == "train", "row"].to_numpy()
        return Features(learn.model, learn.dls.pixels).kept(rows)

    learn = lesion_learner(LesionDataLoaders.from_df(df, TINY), config=TINY)
    learn.freeze()
    seen, cached = runs_of(learn), CachedFeatures(STANDARD, 1, seed=79)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2, cbs=cached)
    ran = len(seen)
    assert ran and kept(learn).shape[1] == learn.model.backbone.num_features
    assert len(seen) == ran
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2, cbs=CachedFeatures(STANDARD, 1, seed=79))
    assert len(seen) == ran


def test_features_of_other_weights_are_not_taken(learn):
    cached = CachedFeatures(STANDARD, 1, 0)
    cached.learn, rows = learn, np.arange(6)
    first = cached.features(rows)
    with torch.no_grad():
        next(learn.model.backbone.parameters()).mul_(1.5)
    assert not np.allclose(first, cached.features(rows))


def test_the_first_view_is_the_picture_and_the_others_are_not(learn):
    cached = CachedFeatures(STANDARD, 3, 0)
    cached.learn, rows = learn, np.arange(6)
    plain, one, two = (cached.features(rows, view) for view in range(3))
    image = torch.from_numpy(learn.dls.pixels[rows]).movedim(-1, 1) / 255
    with torch.inference_mode():
        expected = learn.model.eval().features(image)
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    assert not np.allclose(plain, one) and not np.allclose(one, two)


def test_images_come_back_for_the_epochs_that_train_the_backbone(learn):
    images, cached = learn.dls, CachedFeatures(STANDARD, 1, 0)

    class Thaw(Callback):
        order = -30

        def before_epoch(self):
            if self.epoch == 1:
                learn.unfreeze()

        def after_batch(self):
            kinds.append((self.epoch, self.xb[0].ndim))

    kinds = []
    learn.fit(2, 1e-3, cbs=[Thaw(), cached])
    assert set(kinds) == {(0, 2), (1, 4)} and learn.dls is images


def test_images_come_back_after_an_error(learn):
    class Fail(Callback):
        def after_batch(self):
            raise RuntimeError("full")

    images, cached = learn.dls, CachedFeatures(STANDARD, 1, 0)
    with pytest.raises(RuntimeError, match="full"):
        learn.fit(1, 1e-3, cbs=[cached, Fail()])
    cached.clean_up()
    assert learn.dls is images


@pytest.fixture
def loader():
    """Two views of 600 rows, where a feature says its view and row."""
    rows = np.arange(600, dtype=np.float32)
    views = [np.stack([np.full(600, view, np.float32), rows], axis=1) for view in range(2)]
    order = lambda rng: rng.sample(range(600), 600)  # noqa: E731
    return FeatureLoader(views, rows[:, None], np.arange(600), torch.device("cpu"), order)


def test_an_epoch_has_every_row_once_with_its_own_features(loader):
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    features, metadata, targets = (torch.cat(each) for each in zip(*batches, strict=True))
    assert sorted(targets.tolist()) == list(range(600))
    assert torch.equal(features[:, 1].long(), targets) and torch.equal(features[:, 1:], metadata)
    assert 200 < features[:, 0].sum() < 400  # each view about as often


def test_the_seed_decides_order_and_views(loader):
    epochs = []
    for seed in (1, 2, 1):
        loader.reseed(seed)
        epochs.append(torch.cat([batch[0] for batch in loader]))
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])


def test_no_views_are_made_where_nothing_is_augmented():
    assert CachedFeatures(augmentations["none"](), 4, 0).views == 1


def test_class_balancing_holds_for_features_too(df):
    config = replace(TINY, balance="downsample")
    learn = lesion_learner(LesionDataLoaders.from_df(df, config), config=config)
    cached = CachedFeatures(STANDARD, 1, 0)
    cached.learn, n_stages = learn, len(learn.model.backbone.stages)
    targets = torch.cat([batch[2] for batch in cached.feature_loaders(n_stages).train])
    counts = np.sort(np.bincount(targets))
    assert counts[-1] == counts[-2] and len(targets) == learn.dls.train.n


class NoteSides(Callback):
    """Note the sides of what the model is given."""

    order = 90

    def before_batch(self):
        self.sides = [*getattr(self, "sides", []), self.xb[0].shape[-1]]


def test_epochs_of_the_last_stage_read_the_maps_below_it(df):
    """The same losses as from images but for float16, with no augmentation and rows in order."""
    histories = []
    for cached in (True, False):
        config = replace(TINY, augment="none", arch="vanilla_cnn", dropout=0.0)
        learn = lesion_learner(LesionDataLoaders.from_df(df, config), config=config)
        stages = len(learn.model.backbone.stages) - 1
        learn.freeze_to(stages)
        first = learn.model.backbone.blocks[0][0]
        before = [p.clone() for p in first.parameters()]
        in_order = lambda rng: list(range(256))  # noqa: E731
        learn.dls.train.set_sampler(in_order)
        cbs = [NoteSides()]
        if cached:
            cbs.append(CachedFeatures(augmentations["none"](), 1, 0))
        with learn.no_bar(), learn.no_logging():
            learn.fit(3, 1e-3, cbs=cbs)
            histories.append([list(each) for each in learn.recorder.values])
            after = list(learn.validate())
        assert after == pytest.approx(histories[-1][-1][1:], abs=1e-3)
        assert all(torch.equal(*pair) for pair in zip(before, first.parameters(), strict=True))
        assert learn.model.backbone.resume is None
        assert {side == 32 for side in cbs[0].sides} == {not cached}
    losses = [np.array(each)[:, :2] for each in histories]
    np.testing.assert_allclose(*losses, atol=0.02)


@pytest.mark.parametrize(
    ("views", "recipe", "epochs", "maps", "replaced"),
    [
        (2, "standard", 3, True, True),
        (1, "none", 2, True, True),
        (1, "standard", 3, True, False),  # one view would mean no augmentation
        (2, "standard", 2, True, False),  # nothing would be saved
        (2, "standard", 3, False, False),
    ],
)
def test_the_options_decide_whether_the_last_stages_learn_from_maps(
    learn, views, recipe, epochs, maps, replaced
):
    cached = CachedFeatures(augmentations[recipe](), views, 0, maps=maps)
    cached.learn, learn.n_epoch = learn, epochs
    assert cached.replaces_images(1) == replaced
    assert cached.replaces_images(len(learn.model.backbone.stages))


@pytest.fixture
def history_of(df):
    """Train the last stage and the head on two views, as some options say; return the losses."""

    def train(**options):
        config = replace(TINY, views=2, **options)
        learn = lesion_learner(LesionDataLoaders.from_df(df, config), config=config)
        learn.freeze_to(len(learn.model.backbone.stages) - 1)
        sides = NoteSides()
        with learn.no_bar(), learn.no_logging():
            learn.fit(3, 1e-3, cbs=[CachedFeatures(STANDARD, 2, 0), sides])
        assert 32 not in sides.sides
        return [list(each) for each in learn.recorder.values]

    return train


def test_a_full_disk_does_not_change_what_the_last_stages_learn(history_of, monkeypatch, tmp_path):
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path))
    without = history_of(cache=False)
    monkeypatch.setattr(module, "free_bytes", lambda file: 0)
    full = history_of()
    assert not (tmp_path / "features").exists()
    monkeypatch.undo()
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path))
    assert history_of() == full == without
    assert len(list((tmp_path / "features").iterdir())) == 3


def test_a_limit_of_the_cache_does_not_change_what_is_learned(history_of, monkeypatch, tmp_path):
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path))
    monkeypatch.setenv("LESIONFAST_CACHE_SIZE", "1350K")  # the images have 1.3 MB of it
    limited = history_of()
    assert not (tmp_path / "features").exists()
    assert limited == history_of(cache=False)


def test_a_view_of_a_picture_does_not_depend_on_the_pictures_beside_it(learn):
    cached = CachedFeatures(augmentations["strong"](), 3, 0)
    image, rows = torch.rand(6, 3, 32, 32), np.arange(6)
    shown = cached.augment(image, rows, 1)
    torch.testing.assert_close(cached.augment(image[[4]], rows[[4]], 1), shown[[4]])
    assert not torch.allclose(cached.augment(image, rows, 2), shown)
