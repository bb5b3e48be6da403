"""Features of a backbone: kept under a key of all that they depend on, and checked."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lesionfast.cache import is_sound, kept_array
from lesionfast.config import TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.models import features as module
from lesionfast.models.backbones import create_backbone
from lesionfast.models.features import (
    FeatureEngine,
    Features,
    can_be_cut,
    frozen_stages,
    prefix_maps,
    resume_maps,
)
from lesionfast.models.fusion import FusionModel, build_model
from lesionfast.models.inference import TorchEngine

ROWS = np.arange(20)


def model_of(arch, pool="avg", **options):
    torch.manual_seed(0)
    backbone = create_backbone(arch, size=32, **{"weights": "none", **options})
    parts = {"pool": pool, "fusion": "none", "dropout": 0.0}
    return FusionModel(backbone, n_metadata=0, n_classes=3, **parts)


@pytest.fixture
def pixels(tmp_path, monkeypatch):
    """Pixels that are in a cache of this test's own."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    return kept_array(tmp_path / "cache" / "images" / "a.npy", 20, lambda append: append(noise))


def damage_bit(data):
    return data[:3000] + bytes([data[3000] ^ 64]) + data[3001:]


@pytest.mark.parametrize("stages", [None, 2])
@pytest.mark.parametrize(
    "damage", [damage_bit, lambda data: data[:3000], lambda data: bytes(len(data))]
)
def test_damaged_features_are_noticed_said_and_computed_again(damage, stages, pixels, caplog):
    model = model_of("test_resnet")
    right = np.array(Features(model, pixels, stages=stages).kept(ROWS))
    np.testing.assert_array_equal(right, Features(model, pixels, stages=stages).compute(ROWS))
    file = Features(model, pixels, stages=stages).file(ROWS)
    file.write_bytes(damage(file.read_bytes()))
    is_sound.cache_clear()
    np.testing.assert_array_equal(Features(model, pixels, stages=stages).kept(ROWS), right)
    assert f"{file} is damaged" in caplog.text
    assert os.listdir(file.parent) == [file.name]


def test_one_weights_file_of_two_architectures_has_features_of_each(pixels, tmp_path):
    """The layers have the same names and shapes, but pad and normalise in other ways."""
    source = create_backbone("timm:efficientnet_b0", size=32, weights="none")
    save_file(source.body.net.state_dict(), tmp_path / "weights.safetensors")
    weights = str(tmp_path / "weights.safetensors")
    for stages in (None, 2):
        kept = []
        for arch in ("timm:efficientnet_b0", "tf_efficientnet_b0"):
            model = model_of(arch, weights=weights)
            kept.append(Features(model, pixels, stages=stages).kept(ROWS))
            np.testing.assert_array_equal(
                kept[-1], Features(model, pixels, stages=stages).compute(ROWS)
            )
        assert np.abs(kept[0] - kept[1]).max() > 0.1 * np.abs(kept[0]).max()


@pytest.fixture
def computed(monkeypatch):
    """The numbers of images that backbones have computed features of, call by call."""
    counts, compute = [], Features.compute_blocks

    def count(self, rows, *rest):
        counts.append(len(rows))
        compute(self, rows, *rest)

    monkeypatch.setattr(Features, "compute_blocks", count)
    return counts


def test_images_of_other_sets_are_not_computed_again_and_have_the_same_bits(
    pixels, computed, tmp_path
):
    model = model_of("test_vit", "avg")
    fresh = Features(model, pixels).compute(ROWS)
    computed.clear()
    Features(model, pixels).kept(ROWS[:12])
    half = Features(model, pixels).kept(ROWS[8:])
    assert computed == [12, 8]
    np.testing.assert_array_equal(half, fresh[8:])
    order = np.random.default_rng(0).permutation(20)
    shuffled = np.concatenate([pixels[order], pixels[:1] // 2])
    file = tmp_path / "cache" / "images" / "b.npy"
    shuffled = kept_array(file, 21, lambda append: append(shuffled))
    found = Features(model, shuffled).kept(np.arange(21))
    np.testing.assert_array_equal(found[:20], fresh[order])
    assert computed == [12, 8, 1]
    Features(model_of("test_vit", "max"), pixels).kept(ROWS)
    assert computed == [12, 8, 1, 20]


def test_equal_pixels_share_their_features_and_augmented_ones_are_each_rows_own(pixels, computed):
    model = model_of("test_resnet")
    twice = np.array([3, 3, 4])
    np.testing.assert_array_equal(
        Features(model, pixels).kept(twice), Features(model, pixels).compute(twice)
    )
    computed.clear()
    change = {"change": lambda image, rows: image + 0.1 * image.new_tensor(rows).view(-1, 1, 1, 1)}
    for rows in (ROWS[:4], ROWS[:3]):
        Features(model, pixels, about=("a seed",), **change).kept(rows)
    assert computed == [4, 3]


@pytest.mark.parametrize(("arch", "fusion"), [("test_vit", "concat"), (None, "metadata")])
def test_cached_views_predict_what_the_images_do(arch, fusion, pixels, computed):
    torch.manual_seed(0)
    config = TrainConfig(arch=arch or "test_vit", weights="none", size=32, fusion=fusion)
    model = build_model(config, n_metadata=2, n_classes=3).eval()
    tables = np.random.default_rng(1).normal(size=(2, 20, 2)).astype(np.float32)
    how = {"views": 3, "precision": "float32"}
    expected = TorchEngine(model, **how).run(pixels, ROWS, *tables)
    found = FeatureEngine(model, **how).run(pixels, ROWS, *tables)
    for of_features, of_images in zip(found[0], expected[0], strict=True):
        np.testing.assert_allclose(of_features, of_images, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
    computed.clear()
    FeatureEngine(model, **how).run(pixels, ROWS[5:], *tables[:, 5:])
    assert computed == ([] if arch else [15] * 3)


def other_norm(model):
    next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).eps = 0.1


def other_weight(model):
    with torch.no_grad():
        next(model.backbone.parameters()).view(-1)[0] += 1


def other_statistics(model):
    next(b for name, b in model.backbone.named_buffers() if "running_mean" in name).add_(1)


def other_mean(model):
    model.backbone.mean = (0.4, 0.4, 0.4)


@pytest.mark.parametrize("change", [other_norm, other_weight, other_statistics, other_mean])
@pytest.mark.parametrize("stages", [None, 2])
def test_features_of_another_model_are_not_taken(change, stages, pixels):
    model = model_of("test_resnet")
    before = Features(model, pixels, stages=stages).file(ROWS)
    assert Features(model_of("test_resnet"), pixels, stages=stages).file(ROWS) == before
    change(model)
    assert Features(model, pixels, stages=stages).file(ROWS) != before


@pytest.mark.parametrize("package", ["torch", "timm", "torchvision"])
def test_features_of_another_version_are_not_taken(package, pixels, monkeypatch):
    model = model_of("test_resnet")
    before = Features(model, pixels).file(ROWS)
    monkeypatch.setattr(getattr(module, package), "__version__", "0")
    assert Features(model, pixels).file(ROWS) != before


def test_features_in_other_numbers_on_another_processor_or_threads_are_not_taken(
    pixels, monkeypatch
):
    model = model_of("test_resnet")
    files = [Features(each, pixels).file(ROWS) for each in (model, model_of("test_resnet", "max"))]
    files.append(Features(model, pixels, "bfloat16").file(ROWS))
    files.append(Features(model, pixels).file(ROWS[1:]))
    monkeypatch.setattr(module, "capabilities", lambda: "another")
    files.append(Features(model, pixels).file(ROWS))
    monkeypatch.setattr(module, "images_at_once", lambda device: 64)
    files.append(Features(model, pixels).file(ROWS))
    assert len(set(files)) == len(files)


def test_what_learns_above_the_first_stages_does_not_change_their_key(pixels):
    model = model_of("test_resnet")
    before = [Features(model, pixels, stages=stages).file(ROWS) for stages in (2, None)]
    model.backbone.stages[-1][0].data.add_(1)
    after = [Features(model, pixels, stages=stages).file(ROWS) for stages in (2, None)]
    assert before[0] == after[0] and before[1] != after[1]


@pytest.mark.parametrize("arch", ["vanilla_cnn", "resnet18"])
def test_maps_of_a_row_do_not_depend_on_the_rows_beside_it(arch, pixels):
    model = model_of(arch)
    maps = Features(model, pixels, stages=2).compute(ROWS)
    for row in ROWS[:3]:
        alone = Features(model, pixels, stages=2).compute(ROWS[[row]])
        np.testing.assert_array_equal(alone[0], maps[row])


def test_a_full_disk_ends_in_an_error_and_not_in_a_dead_process(pixels, small_disk, monkeypatch):
    """A mapped file that the disk has no room for would end the process by SIGBUS."""
    monkeypatch.setenv("LESIONFAST_CACHE", str(small_disk))
    with pytest.raises(LesionfastError, match=r"the disk is full; it needs .*--no-cache"):
        Features(model_of("test_resnet"), pixels, stages=1).kept(np.tile(ROWS, 10))
    assert os.listdir(small_disk / "features") == []


def test_two_processes_that_want_the_same_features_compute_them_once(pixels):
    code = (
        "import sys\n"
        "from lesionfast.cache import open_array\n"
        "from test_features import ROWS, Features, model_of, Path\n"
        "pixels = open_array(Path(sys.argv[1]))\n"
        "for stages in (None, 2):\n"
        "    source = Features(model_of('test_resnet'), pixels, stages=stages)\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    done = []\n"
        "    features = source.kept(ROWS, lambda *now: done.append(now))\n"
        "    print(len(done), features.shape[0], features.sum(), flush=True)"
    )
    command = [sys.executable, "-c", code, pixels.filename]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    options = {**pipes, "env": {**os.environ, "PYTHONPATH": path}}
    both = [subprocess.Popen(command, **options) for _ in "ab"]
    for files in (1, 2):  # of whole features, then also of a stage
        for process in both:
            assert process.stdout.readline() == "ready\n"
        for process in both:
            process.stdin.write("\n")
            process.stdin.flush()
        told = [process.stdout.readline().split() for process in both]
        assert sorted(int(each[0]) > 0 for each in told) == [False, True]
        assert told[0][1:] == told[1][1:]
        assert len(os.listdir(Path(pixels.filename).parents[1] / "features")) == files
    assert [process.wait() for process in both] == [0, 0]


ARCHS = ["vanilla_cnn", "densenet_scratch", "mobilenetv3_small_050", "resnet18", "vgg11"]


@pytest.mark.parametrize("arch", ARCHS)
def test_the_halves_give_what_the_whole_gives(arch):
    torch.manual_seed(0)
    backbone = create_backbone(arch, size=64, weights="none").eval()
    image = torch.rand(3, 3, 64, 64)
    whole = backbone(image)
    for stages in range(1, len(backbone.stages)):
        assert can_be_cut(backbone, stages, 64)
        maps = prefix_maps(backbone, image, stages)
        torch.testing.assert_close(resume_maps(backbone, maps, stages, 64), whole)
    assert torch.equal(backbone(image), whole)  # nothing is left of the cut


def test_the_prefix_does_not_run_the_rest():
    backbone = create_backbone("resnet18", size=64, weights="none").eval()
    ran = []
    backbone.blocks[-1][0].register_forward_hook(lambda *_: ran.append("rest"))
    backbone.blocks[0][0].register_forward_hook(lambda *_: ran.append("prefix"))
    maps = prefix_maps(backbone, torch.rand(1, 3, 64, 64), 2)
    assert ran == ["prefix"]
    ran.clear()
    resume_maps(backbone, maps, 2, 64)
    assert ran == ["prefix", "rest"]  # hooks are called, but the block passes on what it is given


def test_a_connection_around_the_blocks_can_not_be_cut():
    backbone = create_backbone("pyramid_cnn", size=64, weights="none")
    assert can_be_cut(backbone, 1, 64)
    assert not any(can_be_cut(backbone, stages, 64) for stages in range(2, len(backbone.stages)))
    assert backbone.training


def test_frozen_stages_are_counted_from_the_stem():
    backbone = create_backbone("resnet18", size=64, weights="none")
    assert frozen_stages(backbone) == 0
    for stages in range(1, len(backbone.stages) + 1):
        for each in backbone.stages[stages - 1]:
            each.requires_grad_(False)
        assert frozen_stages(backbone) == stages


def test_gradients_of_the_rest_are_those_of_the_whole():
    torch.manual_seed(0)
    backbone = create_backbone("vgg11", size=64, weights="none").eval()
    image = torch.rand(2, 3, 64, 64)
    learns = backbone.stages[-1][0]
    backbone(image).sum().backward()
    expected, learns.grad = learns.grad, None
    stages = len(backbone.stages) - 1
    resume_maps(
        backbone, prefix_maps(backbone, image, stages).detach(), stages, 64
    ).sum().backward()
    torch.testing.assert_close(learns.grad, expected)
