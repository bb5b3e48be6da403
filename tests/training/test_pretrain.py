"""Pretraining without labels on the built-in sample, and the classifiers that start from it."""

import os
import re
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.files import sha256
from lesionfast.models.backbones import create_backbone
from lesionfast.models.fusion import load_model
from lesionfast.models.lineage import read_lineage
from lesionfast.models.weights import read_weights
from lesionfast.run import Run, list_runs
from lesionfast.training.experiment import prepare_learner, train
from lesionfast.training.fitting import plan_training
from lesionfast.training.pretrain import Autoencoder, ImageIsTarget, pretrain

TINY = TrainConfig(arch="vanilla_cnn", size=32, epochs=2, batch_size=32)


@pytest.fixture(scope="module")
def df():
    return load_dataset(TINY)


@pytest.fixture(scope="module")
def folder(df, tmp_path_factory):
    return pretrain(df, TINY, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(df, folder, tmp_path_factory):
    """A classifier that started from the encoder."""
    config = replace(TINY, weights=str(folder), epochs=1)
    return train(df, config, tmp_path_factory.mktemp("runs"))


def test_the_directory_is_complete_and_no_run(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        ".manifest.lock",
        "manifest.json",
        "pretrain.json",
        "environment.json",
        "split.csv",
        "history.csv",
        "weights.safetensors",
        "log.txt",
        "figures/reconstructions.png",
        "figures/reconstructions.svg",
    }
    assert list_runs(folder.parent) == []
    with pytest.raises(LesionfastError, match="is a pretraining, which has no predictions"):
        Run.open(folder)
    config = TrainConfig.from_json((folder / "pretrain.json").read_text())
    assert (config.arch, config.monitor) == ("vanilla_cnn", "valid_loss")


def test_the_reconstructions_get_better_and_the_best_encoder_alone_is_kept(folder):
    history = Run(folder).history
    assert history["valid_loss"].iloc[-1] < history["valid_loss"].iloc[0] < 0.2
    assert list(history) == ["epoch", "phase", "lr", "train_loss", "valid_loss"]
    names = load_file(folder / "weights.safetensors")
    assert all(name.startswith("backbone.body.") for name in names)


def test_neither_labels_nor_test_images_are_looked_at(df, folder, tmp_path):
    labels = df["target"].sample(frac=1, random_state=0).to_numpy()
    blind = df.assign(target=labels)[df["split"] != "test"].reset_index(drop=True)
    again = pretrain(blind, TINY, tmp_path)
    for name in ("history.csv", "weights.safetensors"):
        assert sha256(again / name) == sha256(folder / name)


def test_a_classifier_starts_from_the_encoder_and_says_so(df, folder, run):
    learn = prepare_learner(df, run.config)
    state, encoder = learn.model.backbone.body.state_dict(), read_weights(folder)
    assert state.keys() == encoder.keys()
    assert all(torch.equal(state[name], encoder[name]) for name in encoder)
    assert plan_training(learn.model, run.config).unfreeze == "fresh"
    assert run.model["weights_origin"] == f"weights of the run {folder}"
    assert f"weights of the run {folder}" in (run.path / "log.txt").read_text()


def test_a_classifier_of_the_projects_own_comes_back_with_its_pooling(run):
    assert run.config.pool == "auto" and run.model["pool"] == "max"
    model, image = load_model(run), torch.rand(2, 3, 32, 32)
    assert torch.equal(model.features(image), model.backbone(image).amax((2, 3)))


def test_a_classifier_starts_from_the_backbone_of_another(df, run):
    backbone = prepare_learner(df, replace(TINY, weights=str(run.path))).model.backbone
    assert backbone.pretrained and backbone.origin == f"weights of the run {run.path}"
    encoder = read_weights(run.path)
    state = backbone.body.state_dict()
    assert all(torch.equal(state[name], encoder[name]) for name in state)


@pytest.mark.parametrize("name", ["", "weights.safetensors"])
@pytest.mark.parametrize("start", [train, pretrain])
def test_weights_that_have_seen_the_test_are_refused(folder, tmp_path, name, start):
    config = replace(TINY, weights=str(folder / name), seed=1)
    df = load_dataset(config)
    learned = Run(folder).split.query("split == 'train'")["image_id"]
    count = (df["image_id"].isin(learned) & (df["split"] != "train")).sum()
    split = re.escape(str(folder / "split.csv"))
    message = rf"trained on {count} images .* test \(.* valid \(.*--split {split}"
    with pytest.raises(LesionfastError, match=message):
        start(df, config, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    mended = replace(config, split=str(folder / "split.csv"))
    assert prepare_learner(load_dataset(mended), mended).model.backbone.pretrained


def test_weights_moved_alone_say_what_they_learned_from(df, folder, run, tmp_path):
    """A pretraining's, and those of a run that started from it."""
    for made in (folder, run.path):
        alone = shutil.copyfile(made / "weights.safetensors", tmp_path / "alone.safetensors")
        lineage = read_lineage(alone)
        assert lineage.arch == TINY.arch
        assert (lineage.contains(df, "train") == (df["split"] == "train")).all()
        assert (lineage.contains(df, "valid") == (df["split"] == "valid")).all()


@pytest.mark.parametrize("epochs_done", [0, 1])
def test_ctrl_c_ends_it_with_the_best_weights_so_far(df, tmp_path, monkeypatch, epochs_done):
    before = ImageIsTarget.before_batch

    def press(callback):
        before(callback)
        if callback.epoch == epochs_done and callback.training:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ImageIsTarget, "before_batch", press)
    if epochs_done:
        folder = pretrain(df, TINY, tmp_path)
        assert len(Run(folder).history) == epochs_done and read_weights(folder)
        assert (folder / "figures" / "reconstructions.png").is_file()
    else:
        with pytest.raises(LesionfastError, match="lesionfast pretrain --config .*pretrain.json"):
            pretrain(df, TINY, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "vanila_cnn"}, "Did you mean 'vanilla_cnn'"),
        ({"augment": "rotat"}, "Did you mean 'rotate'"),
        ({"size": 16}, "Type --size 32 or more"),
        ({"weights": "nowhere"}, "there is no weights file"),
    ],
)
def test_a_wrong_name_is_found_before_a_directory_is_made(df, tmp_path, changes, message):
    with pytest.raises(LesionfastError, match=message):
        pretrain(df, replace(TINY, **changes), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_learning_rate_can_be_found(df, tmp_path):
    config = replace(TINY, arch="test_resnet", weights="none", lr="auto", epochs=1, batch_size=7)
    df = df.groupby(["split", "target"]).head(1).reset_index(drop=True)
    assert "suggested learning rate" in (pretrain(df, config, tmp_path) / "log.txt").read_text()


def build_autoencoder(arch, size):
    torch.manual_seed(0)
    return Autoencoder(create_backbone(arch, size=size, weights="none"), size)


@pytest.mark.parametrize(
    ("arch", "size"),
    [("vanilla_cnn", 32), ("pyramid_cnn", 75), ("test_resnet", 50), ("test_vit", 64)],
)
def test_a_reconstruction_is_an_image_of_the_same_size_that_all_weights_draw(arch, size):
    model = build_autoencoder(arch, size)
    image = torch.rand(2, 3, size, size)
    drawn = model(image)
    assert drawn.shape == image.shape and drawn.min() >= 0 and drawn.max() <= 1
    (drawn - image).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_decoder_is_small_beside_the_encoder():
    model = build_autoencoder("vanilla_cnn", 128)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.decoder, model.backbone)]
    assert sizes[0] < sizes[1] / 5


def test_to_build_it_leaves_the_encoder_as_it_was():
    backbone = create_backbone("test_resnet", size=32, weights="none")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    Autoencoder(backbone, 32)
    assert backbone.training
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("arch", ["vanilla_cnn", "test_resnet"])
def test_its_weights_are_read_as_those_of_its_encoder(arch, tmp_path):
    model = build_autoencoder(arch, 32)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    net = getattr(model.backbone.body, "net", model.backbone.body)
    assert read_weights(tmp_path).keys() == net.state_dict().keys()
