"""The fastai way in: an ordinary DataLoaders and Learner with two inputs."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.fp16 import MixedPrecision
from safetensors.torch import load_file

from lesionfast.config import TrainConfig
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_dataset
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.training.callbacks.inference import Autocast
from lesionfast.training.callbacks.tracking import history_columns, save_tensors
from lesionfast.training.learner import history_names, lesion_learner, precision_callbacks

TINY = TrainConfig(arch="test_resnet", weights="none", size=64, batch_size=32)


@pytest.fixture(scope="module")
def df():
    return load_dataset(TINY)


@pytest.fixture
def learn(df, tmp_path):
    learn = lesion_learner(LesionDataLoaders.from_df(df, TINY), config=TINY)
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging():
        yield learn


def test_a_sampler_that_draws_fewer_rows_than_the_batch_size_still_makes_a_batch(df):
    config = replace(TINY, balance="downsample", batch_size=280)
    learn = lesion_learner(LesionDataLoaders.from_df(df, config), config=config)
    assert len(learn.dls.train) == 1 and learn.dls.train.n < 280


def test_show_batch_and_show_results_draw_pictures_with_captions(learn):
    learn.dls.show_batch(max_n=4)
    titles = [axis.get_title() for axis in plt.gcf().axes]
    assert len(titles) == 4 and all(t.split("\n")[0] in learn.dls.vocab for t in titles)
    learn.show_results(max_n=4)
    assert all("→" in axis.get_title() for axis in plt.gcf().axes)
    plt.close("all")


def test_fine_tune_fit_one_cycle_and_lr_find_work_with_two_inputs(learn):
    assert 1e-7 < learn.lr_find(show_plot=False, num_it=20).valley < 10
    learn.fine_tune(1)
    learn.fit_one_cycle(1, 1e-3)
    assert np.isfinite(learn.recorder.values[-1]).all()
    probabilities, targets = learn.get_preds()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(targets)))


def test_freeze_leaves_only_the_head_learning_batch_norm_included(learn):
    learn.freeze()
    learning = [name for name, p in learn.model.named_parameters() if p.requires_grad]
    assert learning and not [name for name in learning if name.startswith("backbone")]


def test_the_history_has_the_metrics_of_the_field(learn):
    names = list(learn.metrics.attrgot("name"))
    by = " (rule balanced)"
    assert names == [f"balanced_accuracy{by}", "macro_auc", f"mel_sensitivity{by}", f"accuracy{by}"]
    learn.fit(1)
    assert tuple(history_columns(learn)) == history_names(learn.classes)


def test_bfloat16_agrees_with_float32(df):
    outputs = []
    for name in ("float32", "bfloat16"):
        config = replace(TINY, precision=name)
        learn = lesion_learner(LesionDataLoaders.from_df(df, config), config=config)
        with learn.no_bar(), learn.no_logging():
            outputs.append(learn.get_preds()[0])
    torch.testing.assert_close(*outputs, atol=0.02, rtol=0)


@pytest.mark.parametrize(("arch", "size"), [("mobilenetv3_small_050", 64), ("inception_v3", 75)])
def test_the_loss_with_a_frozen_backbone_is_that_of_the_saved_weights(df, arch, size, tmp_path):
    """Batch norm that follows the batches while it is frozen would give another loss once saved."""
    few = df.groupby(["split", "target"]).head(2).reset_index(drop=True)
    config = replace(TINY, arch=arch, size=size, batch_size=7)
    dls = LesionDataLoaders.from_df(few, config)
    learn = lesion_learner(dls, config=config)
    norms = [m for m in learn.model.modules() if hasattr(m, "running_mean")]
    first = [norm.running_mean.clone() for norm in norms]
    with learn.no_bar(), learn.no_logging():
        for phase in (learn.freeze, learn.unfreeze):
            phase()
            learn.fit(1, 1e-2)
            kept = all(torch.equal(n.running_mean, f) for n, f in zip(norms, first, strict=True))
            assert norms and kept == (phase == learn.freeze)
            save_tensors(learn.model.state_dict(), tmp_path / "weights.safetensors")
            assert loss_of(dls, config, tmp_path) == pytest.approx(
                learn.recorder.values[-1][1], rel=1e-5
            )


def loss_of(dls, config, folder):
    """The validation loss of a new model with the weights in a folder."""
    learn = lesion_learner(dls, config=replace(config, seed=1))
    learn.model.load_state_dict(load_file(folder / "weights.safetensors"))
    with learn.no_bar(), learn.no_logging():
        return learn.validate()[0]


def test_the_melanoma_that_was_named_is_the_one_that_is_measured(df):
    config = replace(TINY, melanoma="nv")
    learn = lesion_learner(LesionDataLoaders.from_df(df, config), config=config)
    rows = df[df["split"] == "test"]
    truth = rows["target"].map(learn.classes.index).to_numpy()
    chances = np.eye(len(learn.classes))[np.full(len(rows), learn.classes.index("nv"))]
    about = (None, "test", learn.decision_rule, learn.classes)
    found = Interpretation.build(about, truth, chances, rows.reset_index(drop=True)).metrics
    assert found["rules"]["argmax"]["mel_sensitivity"] == 1.0


def test_each_precision_has_its_callback():
    assert precision_callbacks("float32", torch.device("cpu")) == []
    assert isinstance(precision_callbacks("bfloat16", torch.device("cpu"))[0], Autocast)
    assert isinstance(precision_callbacks("float16", torch.device("cuda"))[0], MixedPrecision)
