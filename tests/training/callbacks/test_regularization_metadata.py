"""What is not known speaks for no class: metadata is withheld in training, alike in every class."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from lesionfast.config import TrainConfig
from lesionfast.data.augment import augmentations
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.run import Run
from lesionfast.training.callbacks.cached_features import CachedFeatures
from lesionfast.training.callbacks.regularization import MetadataDropout, withheld_patterns
from lesionfast.training.callbacks.schedule import OneCycle
from lesionfast.training.experiment import check_options
from lesionfast.training.heads import head_inputs
from lesionfast.training.learner import lesion_learner

TINY = TrainConfig(
    arch="test_resnet",
    weights="none",
    size=32,
    batch_size=32,
    precision="float32",
    augment="none",
    dropout=0.0,
)
COLUMNS = ["age", "sex"]


def only_nevi_lack_metadata(df: pd.DataFrame) -> pd.DataFrame:
    """Return the rows, of which some nevi lack age and sex and all others have them."""
    df = df[df[COLUMNS].notna().all(axis=1)].reset_index(drop=True)
    lesions = df.loc[df["target"] == "nv", "group"].unique()
    chosen = np.random.default_rng(0).choice(lesions, len(lesions) * 18 // 100, replace=False)
    gone = df["group"].isin(chosen)
    return df.assign(**{name: df[name].mask(gone) for name in COLUMNS})


@pytest.fixture(scope="module")
def df():
    return only_nevi_lack_metadata(load_dataset(TINY))


def mean_change(df: pd.DataFrame, config: TrainConfig) -> np.ndarray:
    """Return by how much each class's mean probability changes when nothing is known, (k,)."""
    learn = lesion_learner(LesionDataLoaders.from_df(df, config), config=config)
    with learn.no_bar(), learn.no_logging():
        learn.fit(8, 5e-3, cbs=OneCycle(5e-3))
    model, encoder = learn.model.eval().cpu(), learn.dls.encoder
    image = torch.from_numpy(np.array(learn.dls.pixels)).movedim(-1, 1).float() / 255
    known = torch.from_numpy(encoder.transform(df))
    with torch.inference_mode():
        features = model.features(image)
        told, untold = (
            model.classify(features, metadata).softmax(dim=1).mean(dim=0).numpy()
            for metadata in (known, torch.from_numpy(encoder.unknown).expand_as(known))
        )
    return np.abs(untold - told)


def test_withholding_metadata_at_prediction_makes_no_class_more_likely(df):
    """Though all rows without metadata are nevi; without the dropout they are taken for that."""
    assert mean_change(df, TINY).max() <= 0.03
    assert mean_change(df, replace(TINY, metadata_dropout=0.0)).max() > 0.2


def rows_of(n: int, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return which of two columns rows lack, and their classes: class 0 lacks more."""
    rng, codes = np.random.default_rng(0), np.arange(n) % n_classes
    rates = np.where(codes[:, None] == 0, [0.15, 0.05], 0.01)
    return rng.random((n, 2)) < rates, codes


def test_each_pattern_of_missing_columns_is_as_frequent_in_every_class():
    missing, codes = rows_of(3000)
    patterns, chances = withheld_patterns(missing, codes, 3, 0.25)
    assert patterns.any(axis=1).all() and len(patterns) == 3
    whole = ~missing.any(axis=1)
    shares = np.array(
        [
            [
                (missing[codes == k] == pattern).all(axis=1).mean()
                + whole[codes == k].mean() * chances[k, i]
                for i, pattern in enumerate(patterns)
            ]
            for k in range(3)
        ]
    )
    np.testing.assert_allclose(shares, shares[:1].repeat(3, axis=0))
    natural = (missing[codes == 0] == patterns[:, None]).all(axis=2).mean(axis=1)
    more = dict(zip(map(tuple, patterns.tolist()), shares[0] - natural, strict=True))
    assert more[True, True] == pytest.approx(0.25)
    assert more[True, False] == pytest.approx(0.125)


def test_a_class_without_any_metadata_leaves_some_of_the_others(df):
    """Its rows can't be told from others where nothing is known; the rest still learn from age."""
    missing, codes = rows_of(300)
    missing[codes == 1] = True
    _, chances = withheld_patterns(missing, codes, 3, 0.25)
    assert chances.min() >= 0 and chances.sum(axis=1).max() <= 0.9 + 1e-9


@pytest.fixture(scope="module")
def encoded():
    """An encoder, a thousand rows without a gap, encoded, and their classes."""
    rng = np.random.default_rng(0)
    ages, sexes = rng.integers(1, 18, 1000) * 5.0, rng.choice(["female", "male"], 1000)
    df = pd.DataFrame({"age": ages, "sex": sexes})
    encoder = MetadataEncoder(COLUMNS).fit(df)
    return encoder, encoder.transform(df), np.arange(1000) % 4, df


def test_a_quarter_is_withheld_whole_and_a_quarter_in_one_column_as_the_encoder_writes_it(encoded):
    encoder, metadata, codes, df = encoded
    dropout = MetadataDropout(encoder, metadata, codes, [0, 1, 2, 3], 0.25)
    generator = torch.Generator().manual_seed(0)
    found = dropout.withhold(torch.from_numpy(metadata), torch.from_numpy(codes), generator).numpy()
    without = {
        "all": encoder.transform(df.assign(age=np.nan, sex=None)),
        "age": encoder.transform(df.assign(age=np.nan)),
        "sex": encoder.transform(df.assign(sex=None)),
        "nothing": metadata,
    }
    shares = {name: (found == rows).all(axis=1).mean() for name, rows in without.items()}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["all"] == pytest.approx(0.25, abs=0.04)
    assert shares["age"] == pytest.approx(0.125, abs=0.03)
    assert shares["sex"] == pytest.approx(0.125, abs=0.03)


def test_rows_that_lack_something_stay_as_they_are(encoded):
    encoder, metadata, codes, df = encoded
    lacking = encoder.transform(df.assign(age=np.nan))
    dropout = MetadataDropout(encoder, metadata, codes, [0, 1, 2, 3], 0.25)
    rows = torch.from_numpy(lacking)
    found = dropout.withhold(rows, torch.from_numpy(codes), torch.Generator().manual_seed(0))
    assert torch.equal(found, rows)


class NoteMetadata(Callback):
    """Note what the model is given of the metadata, and for which pass."""

    order = 90

    def before_fit(self):
        self.seen = {True: [], False: []}

    def before_batch(self):
        self.seen[self.training].append(self.xb[1].clone())


@pytest.mark.parametrize("frozen", [False, True], ids=["images", "cached features"])
def test_batches_of_images_and_of_features_lack_it_and_validation_never_does(df, frozen):
    learn = lesion_learner(LesionDataLoaders.from_df(df, TINY), config=TINY)
    cbs = [NoteMetadata()]
    if frozen:
        learn.freeze()
        cbs.append(CachedFeatures(augmentations["none"](), 1, 0))
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3, cbs=cbs)
    encoder, rows = learn.dls.encoder, learn.dls.rows
    train, valid = (torch.cat(cbs[0].seen[which]).numpy() for which in (True, False))
    lacks = encoder.indicators
    own = encoder.transform(rows[rows["split"] == "train"])[:, lacks].all(axis=1).mean()
    assert train[:, lacks].all(axis=1).mean() > own + 0.15
    expected = encoder.transform(rows[rows["split"] == "valid"])
    np.testing.assert_array_equal(valid, np.vstack([expected, expected]))


def test_the_seed_and_the_epoch_decide_what_is_withheld(df):
    learn = lesion_learner(LesionDataLoaders.from_df(df, TINY), config=TINY)
    cb, drawn = learn.metadata_dropout, []
    for epoch in (0, 1, 0):
        learn.epoch = epoch
        cb.before_epoch()
        drawn.append(torch.rand(8, generator=cb.generator))
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(
    "options",
    [{"metadata_dropout": 0.0}, {"fusion": "none"}, {"fusion": "none", "metadata": "none"}],
)
def test_nothing_is_withheld_where_that_is_asked_or_there_is_nothing(df, options):
    config = replace(TINY, **options)
    assert not hasattr(
        lesion_learner(LesionDataLoaders.from_df(df, config), config=config), "metadata_dropout"
    )


def test_a_solved_head_learns_from_withheld_metadata_too(df):
    learn = lesion_learner(LesionDataLoaders.from_df(df, TINY), config=TINY)
    encoder, fusion = learn.dls.encoder, learn.model.fusion
    with torch.inference_mode():
        unknown = fusion.branch(torch.from_numpy(encoder.unknown)[None]).numpy()
    for split, more in (("train", 0.15), ("valid", 0.0)):
        seen = head_inputs(learn, split).fused(learn)
        lacks = np.isclose(seen[:, -unknown.size :], unknown, atol=1e-5).all(axis=1)
        rows = encoder.transform(learn.dls.rows[learn.dls.rows["split"] == split])
        own = (rows == encoder.unknown).all(axis=1)
        assert lacks.mean() > own.mean() + more if more else (lacks == own).all()


def test_the_option_is_refused_where_there_is_no_metadata_to_withhold():
    with pytest.raises(LesionfastError, match="--metadata-dropout needs --metadata"):
        check_options(replace(TINY, metadata_dropout=0.1, fusion="none"))
    check_options(replace(TINY, metadata_dropout=0.0, fusion="none"))


def test_a_run_from_before_the_option_withheld_nothing(tmp_path):
    run = Run.create(tmp_path, TINY, "old")
    text = (run.path / "config.json").read_text()
    run.write_text("config.json", text.replace('  "metadata_dropout": 0.25,\n', ""))
    assert Run(run.path).config.metadata_dropout == 0.0
    assert TrainConfig.from_json("{}").metadata_dropout == TrainConfig().metadata_dropout > 0
