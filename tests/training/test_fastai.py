"""What a fastai user types works: each test makes fastai's own call."""

from copy import deepcopy
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.hook import ActivationStats
from fastai.callback.mixup import CutMix, MixUp
from fastai.data.block import CategoryBlock, DataBlock, TransformBlock
from fastai.data.transforms import ColReader, Normalize, RandomSplitter
from fastai.interpret import ClassificationInterpretation
from fastai.learner import load_learner
from fastai.losses import FocalLossFlat
from fastai.metrics import accuracy, error_rate
from fastai.optimizer import ranger
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImage, imagenet_stats
from fastai.vision.data import ImageBlock, ImageDataLoaders
from torch import nn
from torchvision.models import resnet18

import lesionfast as lf
from lesionfast.errors import LesionfastError


class Small(nn.Module):
    """Two convolutions and their mean."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 16, 3, 2)

    def forward(self, image):
        return self.second(self.first(image).relu()).relu().mean((2, 3))


@pytest.fixture(scope="module")
def df():
    return lf.load_data()


@pytest.fixture(scope="module")
def dls(df):
    few = df.groupby(["split", "target"]).head(6).reset_index(drop=True)
    return lf.LesionDataLoaders.from_df(few, size=32, bs=16)


@pytest.fixture
def learn(dls, tmp_path):
    learn = lf.lesion_learner(dls, "test_resnet", weights="none", fusion="film", path=tmp_path)
    with quiet(learn):
        yield learn


@pytest.fixture(scope="module")
def others(df):
    """DataLoaders of fastai's own of (image, vector) -> class."""

    def vector(row):
        return torch.tensor([0.0 if np.isnan(row["age"]) else row["age"] / 100, 1.0])

    block = DataBlock(
        (ImageBlock, TransformBlock, CategoryBlock),
        n_inp=2,
        getters=[ColReader("path"), vector, ColReader("target")],
        splitter=RandomSplitter(seed=1),
        item_tfms=Resize(32),
    )
    few = df.groupby("target").head(8).reset_index(drop=True)
    return block, few


class quiet:
    """A context in which a learner prints nothing."""

    def __init__(self, learn):
        self.contexts = [learn.no_bar(), learn.no_logging()]

    def __enter__(self):
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *error):
        for context in self.contexts:
            context.__exit__(*error)


def fits(learn, **kwargs):
    """Whether a learner learns for an epoch."""
    with quiet(learn):
        learn.fit(1, 1e-3, **kwargs)
    return bool(np.isfinite(learn.recorder.values[-1]).all())


@pytest.mark.parametrize(
    "arch",
    [
        Small,
        Small(),
        nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), nn.Identity()),
        resnet18,
    ],
    ids=["class", "module", "sequential", "function", "torchvision"],
)
def test_an_architecture_is_a_name_or_any_module_or_callable(dls, arch):
    assert fits(lf.lesion_learner(dls, arch, weights="none"))


def test_a_module_keeps_the_weights_that_it_came_with(dls):
    own = Small()
    model = lf.lesion_learner(dls, own, weights="none").model
    torch.testing.assert_close(model.backbone.body.net.first.weight, own.first.weight)
    assert model.backbone.body.net is not own  # a learner trains a copy


@pytest.mark.parametrize("arch", [3, lambda: "text", nn.Identity()], ids=["3", "text", "nothing"])
def test_what_is_no_architecture_is_refused(dls, arch):
    with pytest.raises(LesionfastError, match=r"torch.nn.Module|no parameters"):
        lf.lesion_learner(dls, arch)


@pytest.mark.parametrize(
    "loss_func",
    [
        "focal",
        nn.CrossEntropyLoss(label_smoothing=0.1),
        FocalLossFlat(),
        nn.MultiMarginLoss,
        lambda logits, target: nn.functional.cross_entropy(logits, target),
    ],
    ids=["name", "module", "of fastai", "class", "function"],
)
def test_a_loss_is_a_name_or_any_module_or_function(dls, loss_func):
    learn = lf.lesion_learner(dls, Small, loss_func=loss_func)
    assert fits(learn)
    with quiet(learn):
        *_, losses = learn.get_preds(with_loss=True)
        assert losses.shape == (len(dls.valid_ds),) and fits(learn, cbs=MixUp())


def test_metrics_optimizer_splitter_learning_rate_and_callbacks_are_those_of_fastai(dls):
    def whole(model):
        return [list(model.parameters())]

    cb = MixUp()
    about = {"metrics": [accuracy, error_rate], "opt_func": ranger, "splitter": whole, "lr": 0.01}
    learn = lf.lesion_learner(dls, Small, cbs=cb, **about)
    assert fits(learn) and learn.lr == 0.01 and cb in learn.cbs
    assert learn.recorder.metric_names[3:5] == ["accuracy", "error_rate"]
    assert len(learn.opt.param_groups) == 1


@pytest.mark.parametrize("mix", [MixUp, CutMix])
def test_mixup_and_cutmix_of_fastai_mix_images_metadata_and_losses(learn, mix):
    cb = mix()
    assert fits(learn, cbs=cb)
    batch = learn.dls.one_batch()
    learn._split(batch)
    learn.training, first = True, [x.clone() for x in learn.xb]
    cb.learn = learn
    cb.before_train()
    cb.before_batch()
    assert not torch.equal(learn.xb[0], first[0])
    assert [x.shape for x in learn.xb] == [x.shape for x in first]
    if mix is MixUp:
        assert not torch.equal(learn.xb[1], first[1])
    cb.after_train()


def test_it_works_on_any_dataloaders_of_image_and_vector(others):
    block, few = others
    learn = lf.lesion_learner(block.dataloaders(few, bs=16), "test_resnet", weights="none")
    assert fits(learn, cbs=MixUp()) and learn.model.fusion.branch[0].in_features == 2
    with quiet(learn):
        assert learn.get_preds()[0].shape[1] == few["target"].nunique()
        assert len(lf.Interpretation.from_learner(learn).rows) == len(learn.dls.valid_ds)


def test_it_works_on_dataloaders_of_images_alone(df):
    few = df.groupby("target").head(8)
    about = {"fn_col": "path", "label_col": "target", "path": "/", "item_tfms": Resize(32)}
    learn = lf.lesion_learner(ImageDataLoaders.from_df(few, bs=16, **about), Small)
    assert fits(learn) and learn.config.fusion == "none"


def test_images_that_are_normalised_twice_are_refused(df, others):
    block, few = others
    normalize = Normalize.from_stats(*imagenet_stats)
    twice = deepcopy(block).new(batch_tfms=[normalize]).dataloaders(few, bs=8)
    with pytest.raises(LesionfastError, match="Leave Normalize out"):
        lf.lesion_learner(twice, Small)
    with pytest.raises(LesionfastError, match="Leave Normalize out"):
        lf.LesionDataLoaders.from_df(df, size=32, batch_tfms=[normalize])


def test_dataloaders_take_fastais_own_transforms(df):
    few = df.groupby(["split", "target"]).head(2)
    dls = lf.LesionDataLoaders.from_df(few, size=32, bs=8, batch_tfms=aug_transforms(size=24))
    assert dls.one_batch()[0].shape[1:] == (3, 24, 24)  # in place of the recipe
    dls = lf.LesionDataLoaders.from_df(few, size=32, bs=8, item_tfms=Resize(20), metadata="age")
    image, metadata, _ = dls.one_batch()
    assert image.shape[1:] == (3, 20, 20) and metadata.shape[1] == 2


def test_dataloaders_come_from_a_csv_file_or_a_folder(df):
    folder = df.attrs["lesionfast"]["data"] or str(next(iter(find_sample(df))))
    csv = next(p for p in find_sample(df)[0].glob("*.csv"))
    for dls in (
        lf.LesionDataLoaders.from_csv(csv, csv.parent / "images", size=32, val=0.2),
        lf.LesionDataLoaders.from_folder(folder, size=32, val=0.2),
    ):
        assert len(dls.split) == len(df) and dls.config.val == 0.2 and dls.config.size == 32


def find_sample(df):
    """The folder of the sample."""
    from pathlib import Path

    return [Path(df["path"].iloc[0]).parents[1]]


def test_options_that_come_too_late_are_refused(dls):
    with pytest.raises(LesionfastError, match=r"size=64 comes too late.*from_df\(df, size=64\)"):
        lf.lesion_learner(dls, Small, size=64)
    with pytest.raises(
        LesionfastError, match="there is no option 'fuson' here. Did you mean 'fusion'"
    ):
        lf.lesion_learner(dls, Small, fuson="film")


def test_predict_takes_a_row_a_path_or_a_picture_with_age_and_sex(learn):
    fits(learn)
    row = learn.dls.rows.iloc[0]
    picture = PILImage.create(row["path"])
    name, number, probabilities = learn.predict(row)
    assert learn.dls.vocab[int(number)] == name and probabilities.sum() == pytest.approx(1)
    about = {key: row[key] for key in ("age", "sex")}
    for item in (row["path"], picture, np.asarray(picture)):
        again = learn.predict(item, **about)
        torch.testing.assert_close(again[2], probabilities, atol=0.02, rtol=0)
    assert learn.predict(row["path"], with_input=True)[0][0].shape == (3, 32, 32)
    unknown = learn.predict(row["path"])[2]
    assert not torch.equal(unknown, learn.predict(row["path"], age=90, sex="male")[2])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"sex": "femal"}, "Did you mean 'female'"),
        ({"age": 999}, "not an age in years"),
        ({"aeg": 5}, "the model does not take aeg; it takes age, sex"),
    ],
)
def test_predict_refuses_metadata_that_the_model_does_not_take(learn, metadata, message):
    with pytest.raises(LesionfastError, match=message):
        learn.predict(learn.dls.rows["path"].iloc[0], **metadata)


def test_test_dl_takes_new_rows_and_paths(learn, tmp_path):
    rows = learn.dls.rows.head(5).drop(columns="row")
    own, targets = learn.get_preds(dl=learn.dls.test_dl(learn.dls.rows.head(5), with_labels=True))
    new = learn.get_preds(dl=learn.dls.test_dl(rows))[0]
    torch.testing.assert_close(new, own, atol=0.02, rtol=0)
    assert [learn.dls.vocab[code] for code in targets] == rows["target"].tolist()
    paths = learn.get_preds(dl=learn.dls.test_dl(rows["path"].tolist()))[0]
    unknown = rows.assign(age=np.nan, sex=np.nan)
    torch.testing.assert_close(paths, learn.get_preds(dl=learn.dls.test_dl(unknown))[0])
    with pytest.raises(LesionfastError, match=r"gone.jpg: there is no such file"):
        learn.dls.test_dl([tmp_path / "gone.jpg"])
    with pytest.raises(LesionfastError, match="have no 'path'"):
        learn.dls.test_dl(pd.DataFrame({"age": [5]}))
    with pytest.raises(LesionfastError, match="labels need a column 'target'"):
        learn.dls.test_dl(rows.drop(columns="target"), with_labels=True)


def test_tta_averages_augmented_predictions(learn):
    fits(learn)
    (plain, targets), (averaged, again) = learn.get_preds(), learn.tta(n=2)
    assert torch.equal(targets, again) and plain.shape == averaged.shape
    assert not torch.equal(plain, averaged)
    torch.testing.assert_close(averaged.sum(1), torch.ones(len(targets)))


def test_an_exported_learner_predicts_the_same_elsewhere(learn):
    fits(learn)
    row = learn.dls.rows.iloc[0]
    learn.export()
    loaded = load_learner(learn.path / "export.pkl")
    torch.testing.assert_close(loaded.predict(row)[2], learn.predict(row)[2])
    assert loaded.predict(row["path"], age=50)[0] in learn.dls.vocab
    assert loaded.get_preds(dl=loaded.dls.test_dl([row["path"]]))[0].shape == (1, 7)
    assert len(loaded.dls.pixels) == 0  # without the data


def test_fastais_interpretation_shows_confusions_and_largest_losses(learn):
    found = ClassificationInterpretation.from_learner(learn)
    ours = lf.Interpretation.from_learner(learn)
    np.testing.assert_array_equal(found.confusion_matrix(), ours.confusion().to_numpy())
    for truth, decision, count in found.most_confused():
        assert ours.confusion().loc[truth, decision] == count
    found.plot_top_losses(4)
    titles = [axis.get_title().split(" / ") for axis in plt.gcf().axes]
    assert all({decision, truth} <= set(learn.dls.vocab) for decision, truth, *_ in titles)
    found.plot_confusion_matrix()
    plt.close("all")


def test_what_is_validated_is_what_get_preds_decides_and_its_name_has_the_rule(learn):
    fits(learn)
    names = learn.recorder.metric_names[2:-1]
    assert "accuracy (rule balanced)" in names and "macro_auc" in names
    measured = dict(zip(names, learn.validate(), strict=True))
    _, targets, decided = learn.get_preds(with_decoded=True)
    share = (decided == targets).float().mean().item()
    assert measured["accuracy (rule balanced)"] == pytest.approx(share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "config", replace(learn.config, rule="argmax"))
        learn.prior = learn.prior
        probabilities, _, decided = learn.get_preds(with_decoded=True)
        assert torch.equal(decided, probabilities.argmax(1))


def test_the_seed_decides_whatever_set_seed_says(dls):
    found = []
    for seed in (1, 2):
        set_seed(seed, reproducible=True)
        learn = lf.lesion_learner(dls, "test_resnet", weights="none")
        fits(learn)
        found.append(learn.recorder.values[-1])
    assert found[0] == found[1]
    other = lf.lesion_learner(dls, "test_resnet", weights="none", seed=7)
    assert fits(other) and other.recorder.values[-1] != found[0]
    assert "set_seed" in lf.lesion_learner.__doc__


def test_a_learner_trained_by_hand_becomes_a_run(learn, tmp_path):
    with quiet(learn):
        learn.fit_one_cycle(2, 1e-3)
        learn.fit(1, 1e-4)
    run = lf.Run.from_learner(learn, tmp_path / "runs" / "mine")
    assert run.condition() == ("whole", {}) and list(run.history["epoch"]) == [1, 2, 3]
    assert run.history["lr"].iloc[2] == pytest.approx(1e-4)
    read = lf.Interpretation.from_run(run, "valid")
    with quiet(learn):
        _, targets = learn.get_preds()
    assert [run.classes[code] for code in targets] == read.rows["truth"].tolist()
    row = learn.dls.rows.iloc[0]
    predicted = lf.Predictor(run, views=1)(row["path"], age=row["age"], sex=row["sex"])
    own = learn.predict(row)[2]
    model = [predicted[f"uncalibrated_{name}"] for name in run.classes]
    assert model == pytest.approx(own.tolist(), abs=0.02)
    again = lf.lesion_learner(lf.LesionDataLoaders.from_run(run), run)
    torch.testing.assert_close(again.predict(row)[2], own, atol=0.02, rtol=0)
    with pytest.raises(LesionfastError, match="already has a directory mine"):
        lf.Run.from_learner(learn, tmp_path / "runs" / "mine")


def test_only_a_learner_of_lesions_becomes_a_run(others, tmp_path):
    block, few = others
    with pytest.raises(LesionfastError, match="takes a Learner of lesion_learner, not int"):
        lf.Run.from_learner(3, tmp_path / "mine")
    learn = lf.lesion_learner(block.dataloaders(few, bs=16), Small)
    with pytest.raises(LesionfastError, match="only LesionDataLoaders know"):
        lf.Run.from_learner(learn, tmp_path / "mine")


def test_an_untrained_learner_becomes_a_run_that_says_so(learn, tmp_path):
    run = lf.Run.from_learner(learn, tmp_path / "raw")
    assert run.history["phase"].tolist() == ["not trained by fit"]
    assert lf.compare([run]).table["status"].tolist() == ["finished"]


def test_what_was_changed_in_a_row_counts(learn):
    fits(learn)
    row = learn.dls.rows.iloc[0]
    changed = row.copy()
    changed["age"], changed["sex"] = 90.0, "male" if row["sex"] == "female" else "female"
    old, new = learn.predict(row)[2], learn.predict(changed)[2]
    assert not torch.equal(old, new)
    about = {"age": changed["age"], "sex": changed["sex"]}
    torch.testing.assert_close(learn.predict(row, **about)[2], new)
    rows = learn.dls.rows.head(2)
    with pytest.raises(LesionfastError, match="there is no such file"):
        learn.dls.test_dl(rows.assign(path="/nowhere.jpg"))
    assert len(learn.dls.test_dl(pd.concat([rows, rows])).items) == 4
    for one in (row, dict(row), row["path"]):
        assert len(learn.dls.test_dl(one).items) == 1
    with pytest.raises(LesionfastError, match="no items to predict"):
        learn.dls.test_dl([])


def test_a_learner_changes_nothing_in_the_dataloaders_that_it_was_given(df):
    few = df.groupby(["split", "target"]).head(8).reset_index(drop=True)
    dls = lf.LesionDataLoaders.from_df(few, size=32, bs=16)
    plain = lf.lesion_learner(dls, "test_resnet", weights="none")
    balanced = lf.lesion_learner(dls, "test_resnet", weights="none", balance="sampler")
    divided = lf.lesion_learner(dls, subclass="mel=2")
    assert dls.train.sampler is None and plain.dls.train.sampler is None
    assert balanced.dls.train.sampler is not None
    again = lf.lesion_learner(dls, "test_resnet", weights="none", balance="sampler")
    assert balanced.dls.train.sampler is not None and fits(balanced) and fits(plain)
    assert max(int(batch[2].max()) for batch in dls.train) == 6
    assert max(int(batch[2].max()) for batch in divided.dls.train) == 7
    np.testing.assert_allclose(again.prior, 1 / 7)


def test_making_a_learner_leaves_the_users_draws_alone(dls):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    lf.lesion_learner(dls, "test_resnet", weights="none")
    assert torch.equal(torch.rand(2), expected)


@pytest.fixture(scope="module")
def made(df, tmp_path_factory):
    """A small run, and the table that it was trained on."""
    few = df.groupby(["split", "target"]).head(6).reset_index(drop=True)
    small = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "tta": 1}
    return lf.train(few, out=tmp_path_factory.mktemp("made"), **small), few


def test_a_learner_of_a_run_has_its_classes_and_its_model(made):
    run, few = made
    without = few[few["target"] != "vasc"].reset_index(drop=True)
    learn = lf.lesion_learner(lf.LesionDataLoaders.from_run(run, without), run)
    assert list(learn.dls.vocab) == run.classes
    assert (lf.Interpretation.from_learner(learn).rows["truth"] != "vasc").all()
    other = lf.LesionDataLoaders.from_df(without, size=32)
    with pytest.raises(LesionfastError, match="other classes or another encoding of metadata"):
        lf.lesion_learner(other, run)
    with pytest.raises(LesionfastError, match=r"so fusion can't be chosen"):
        lf.lesion_learner(lf.LesionDataLoaders.from_run(run), run, fusion="film")


def test_a_learner_of_a_run_on_another_split_is_refused_where_it_would_leak(made, df):
    run, few = made
    mixed = lf.load_data(seed=7)
    mixed = mixed[mixed["image_id"].isin(few["image_id"])]
    with pytest.raises(LesionfastError, match=r"train"):
        lf.lesion_learner(lf.LesionDataLoaders.from_run(run, mixed), run)
    learn = lf.lesion_learner(lf.LesionDataLoaders.from_run(run), run)
    assert learn.config.weights == str(run.path)  # what the run of it would say


def test_options_without_an_effect_on_a_learner_are_refused(dls):
    with pytest.raises(LesionfastError, match=r"epochs, patience would have no effect"):
        lf.lesion_learner(dls, Small, epochs=9, patience=3)


def test_the_learning_rate_finder_is_no_part_of_the_history(learn, tmp_path):
    learn.lr_find(num_it=20, show_plot=False)
    assert learn.history_lines == [] and learn.seconds_trained == 0
    fits(learn)
    assert len(lf.Run.from_learner(learn, tmp_path / "found").history) == 1


def test_interpretation_of_training_images_sees_them_without_augmentation(learn):
    read = lf.Interpretation.from_learner(learn, "train")
    rows = learn.dls.rows[learn.dls.rows["split"] == "train"]
    plain = learn.get_preds(dl=learn.dls.test_dl(rows))[0]
    np.testing.assert_allclose(read.probabilities, plain, atol=1e-6)
    assert read.rows["image_id"].tolist() == rows["image_id"].tolist()


def test_batches_without_labels_and_several_samples_show_themselves(learn):
    loader = learn.dls.test_dl(learn.dls.rows.head(4))
    loader.show_batch()
    learn.show_results(dl=loader)
    assert all("→" in axis.get_title() for axis in plt.gcf().axes)
    ClassificationInterpretation.from_learner(learn).show_results([0, 1])
    plt.close("all")


@pytest.mark.filterwarnings("ignore:You are shadowing an attribute")  # by fastai's own
def test_callbacks_that_hook_the_model_see_it_in_validation(learn):
    assert fits(learn, cbs=ActivationStats(with_hist=True))


def test_a_learner_of_images_alone_predicts_and_shows(df):
    import fastai.vision.learner  # noqa: F401 (draws the losses of images)

    few = df.groupby("target").head(8)
    about = {"fn_col": "path", "label_col": "target", "path": "/", "item_tfms": Resize(32)}
    learn = lf.lesion_learner(ImageDataLoaders.from_df(few, bs=16, **about), Small)
    assert learn.predict(few["path"].iloc[0])[0] in learn.dls.vocab
    with quiet(learn):
        ClassificationInterpretation.from_learner(learn).plot_top_losses(2)
    plt.close("all")


def test_a_table_without_its_options_is_checked_all_the_same(df):
    hint = df.assign(hint=df["target"])
    hint.attrs = {}
    with pytest.raises(LesionfastError, match="column 'hint' of the table can't be an input"):
        lf.train(hint, metadata="hint")
    with pytest.raises(LesionfastError, match=r"the table was loaded with val=0.15, so val=0.3"):
        lf.train(df, lf.TrainConfig(val=0.3))
    for table, message in [
        ("x.csv", r"load_data\('x.csv'\)"),
        (df.drop(columns="split"), "has no column split"),
        (df[df["split"] != "valid"], "no row in 'valid'"),
    ]:
        with pytest.raises(LesionfastError, match=message):
            lf.train(table)
    with pytest.raises(LesionfastError, match="Name options by keyword: arch='densenet121'"):
        lf.train(df, "densenet121")
    with pytest.raises(LesionfastError, match="Did you mean 'batch_size'"):
        lf.train(df, bs=16)


def test_an_exported_learner_does_not_become_a_run_for_lack_of_data(learn, tmp_path):
    learn.export()
    with pytest.raises(LesionfastError, match="exported without its data"):
        lf.Run.from_learner(load_learner(learn.path / "export.pkl"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_comparison_prints_as_the_command_shows_it(made):
    run, _ = made
    assert run.path.name in str(lf.compare(run)) and "balanced accuracy" in str(lf.compare(run))
    with pytest.raises(LesionfastError, match=r"predict takes a table, not list"):
        lf.Predictor(run).predict(["a.jpg"])


def test_a_fusion_is_a_name_or_a_class(dls):
    class _Beside(nn.Module):
        def __init__(self, n_image, n_metadata):
            super().__init__()
            self.width = n_image + n_metadata

        def forward(self, features, metadata):
            return torch.cat([features, metadata], dim=1)

    learn = lf.lesion_learner(dls, Small, fusion=_Beside)
    assert fits(learn) and learn.config.fusion == "Beside"
