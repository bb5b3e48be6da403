"""Parts of a user's own: registered in a notebook or a module, and found again by name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lesionfast as lf
from lesionfast.config import TrainConfig
from lesionfast.data.augment import augment, build_recipe, name_augmentation
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.models.archs import archs, name_backbone
from lesionfast.models.fusion import check_registered, name_fusion
from lesionfast.training.experiment import check_seeds
from lesionfast.training.losses import CrossEntropy, losses, name_loss

MODULE = '''
import torch
import lesionfast as lf

@lf.register_backbone("tiny")
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Conv2d(3, 8, 5, 4)
    def forward(self, image):
        return self.net(image)

@lf.register_loss("hinge")
class Hinge(torch.nn.MultiMarginLoss):
    """A hinge loss."""

@lf.register_fusion("beside")
class Beside(torch.nn.Module):
    def __init__(self, n_image, n_metadata):
        super().__init__()
        self.width = n_image + n_metadata
    def forward(self, features, metadata):
        return torch.cat([features, metadata], dim=1)

@lf.register_augmentation("noise")
def noise(images):
    return (images + 0.1 * torch.rand_like(images)).clamp(0, 1)
'''
OPTIONS = [
    *("--arch", "tiny", "--loss", "hinge", "--fusion", "beside", "--augment", "noise"),
    *("--size", "32", "--epochs", "1", "--tta", "1", "--out", "runs", "--name", "mine"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_apart):
    """A folder with a module that registers, and a run of the command line that used it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "parts.py").write_text(MODULE)
    done = run_apart("--import", "parts", "train", *OPTIONS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The command line, run in a folder that Python does not search of itself."""
    code = [sys.executable, "-P", "-m", "lesionfast", *arguments]
    return subprocess.run(code, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def few():
    return lf.load_data().groupby(["split", "target"]).head(6).reset_index(drop=True)


def test_a_run_remembers_the_modules_that_registered_what_it_used(folder):
    model = json.loads((folder / "runs" / "mine" / "model.json").read_text())
    names = ("arch", "fusion", "loss", "augment")
    assert model["registered"] == dict.fromkeys(names, "parts")
    assert set(model["registered_digest"]) == set(names)
    assert all(len(digest) == 8 for digest in model["registered_digest"].values())


def test_predict_says_which_import_is_missing_and_works_with_it(folder, run_apart, few):
    image = few["path"].iloc[0]
    predict = ["predict", "runs/mine", image, "--out", "predictions.csv"]
    assert run_apart("--import", "parts", *predict, cwd=folder).returncode == 0
    with pytest.raises(
        LesionfastError, match=r"'tiny' was registered by parts. Import it first: .*--import parts"
    ):
        lf.Predictor(folder / "runs" / "mine")


def test_what_needs_no_model_needs_no_import(folder):
    assert lf.Interpretation.from_run(folder / "runs" / "mine").rows.shape[0]
    assert command(folder, "runs", "--verify").returncode == 0


def test_a_module_that_is_not_there_is_named(folder):
    done = command(folder, "--import", "prats", "runs")
    assert done.returncode == 2 and "there is no Python module 'prats'" in done.stderr


def test_no_folder_is_searched_for_modules_unless_one_is_asked_for(folder):
    (folder / "rich.py").write_text("raise SystemExit(9)")
    assert command(folder, "runs").returncode == 0
    (folder / "rich.py").unlink()


def test_running_a_cell_twice_replaces_the_entry_and_says_so_once(caplog):
    with caplog.at_level("INFO", logger="lesionfast"):
        for kind, register in (
            ("loss", lf.register_loss),
            ("fusion", lf.register_fusion),
            ("augmentation", lf.register_augmentation),
            ("architecture", lf.register_backbone),
        ):
            caplog.clear()
            for _ in range(3):
                register("cell")(lambda: None)
            assert caplog.messages == [f"the {kind} 'cell' is replaced"]
    assert losses.modules["cell"] == __name__


def test_a_backbone_can_t_take_the_name_of_another_library():
    with pytest.raises(LesionfastError, match="'resnet18' is a backbone of torchvision"):
        lf.register_backbone("resnet18")


def test_a_function_of_images_is_an_augmentation_that_the_seed_decides():
    @lf.register_augmentation("noise")
    def noise(images):
        return images + torch.rand_like(images)

    recipe, images = build_recipe("noise"), torch.rand(4, 3, 8, 8)

    def changed(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return augment(images, recipe, generators if len(seeds) > 1 else generators[0])

    state = torch.get_rng_state()
    assert torch.equal(changed(1), changed(1)) and not torch.equal(changed(1), changed(2))
    assert torch.equal(torch.get_rng_state(), state)  # the user's own draws go on undisturbed
    assert not torch.equal(changed(1, 2), images)


def test_an_augmentation_that_changes_the_shape_is_refused():
    lf.register_augmentation("half")(lambda images: images[..., ::2])
    with pytest.raises(LesionfastError, match=r"made \(4, 3, 8, 4\) of images \(4, 3, 8, 8\)"):
        augment(torch.rand(4, 3, 8, 8), build_recipe("half"), torch.Generator())


def test_a_transform_of_torchvision_is_an_augmentation():
    from torchvision.transforms import v2

    lf.register_augmentation("flip")(lambda: v2.RandomHorizontalFlip(1.0))
    images = torch.rand(2, 3, 4, 4)
    flipped = augment(images, build_recipe("flip"), torch.Generator())
    assert torch.equal(flipped, images.flip(3))


def test_a_loss_gets_the_class_weights_if_it_takes_them(few):
    dls = lf.LesionDataLoaders.from_df(few, size=32, bs=16)
    lf.register_loss("weighted")(nn.CrossEntropyLoss)
    lf.register_loss("plain")(lambda logits, target: logits.mean())
    learn = lf.lesion_learner(dls, "vanilla_cnn", loss_func="weighted", balance="weights")
    assert learn.objective.loss.loss.weight is not None
    with pytest.raises(LesionfastError, match="takes no class weights"):
        lf.lesion_learner(dls, "vanilla_cnn", loss_func="plain", balance="weights")


def test_a_fusion_without_a_width_is_refused(few):
    class Bare(nn.Module):
        def __init__(self, n_image, n_metadata):
            super().__init__()

    lf.register_fusion("bare")(Bare)
    dls = lf.LesionDataLoaders.from_df(few, size=32, bs=16)
    with pytest.raises(LesionfastError, match=r"no attribute width.*Set self.width"):
        lf.lesion_learner(dls, "vanilla_cnn", fusion="bare")


def test_a_backbone_says_how_its_images_are_normalised_and_whether_it_is_pretrained(few):
    class Known(nn.Conv2d):
        mean, std, pretrained = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), True

    lf.register_backbone("known")(lambda: Known(3, 4, 8, 8))
    dls = lf.LesionDataLoaders.from_df(few, size=32, bs=16)
    backbone = lf.lesion_learner(dls, "known").model.backbone
    assert (backbone.mean, backbone.std, backbone.pretrained) == (Known.mean, Known.std, True)


def test_two_modules_of_one_class_have_two_names_and_the_same_module_has_one(few):
    dls = lf.LesionDataLoaders.from_df(few, size=32, bs=16)
    nets = [nn.Sequential(nn.Conv2d(3, n, 8, 8), nn.ReLU()) for n in (4, 5, 4)]
    names = [lf.lesion_learner(dls, net).config.arch for net in nets]
    assert names[0] == names[2] != names[1] and names[0].startswith("Sequential-")


def test_what_is_passed_never_replaces_a_built_in_or_what_another_registered():
    assert name_loss(F.cross_entropy) == name_loss(F.cross_entropy) == "cross_entropy-2"
    assert losses["cross_entropy"] is CrossEntropy and "cross_entropy" not in losses.modules
    assert name_loss(CrossEntropy) == "cross_entropy"

    @lf.register_loss("hinge")
    def hinge(logits, target):
        return logits.mean()

    def other(logits, target):
        return logits.sum()

    other.__name__ = "hinge"
    assert (name_loss(hinge), name_loss(other)) == ("hinge", "hinge-2")
    assert losses["hinge"] is hinge and losses["hinge-2"] is other


def test_a_backbone_that_is_passed_gets_no_name_of_another_library():
    def resnet18():
        return nn.Conv2d(3, 4, 8, 8)

    def vanilla_cnn():
        return nn.Conv2d(3, 4, 8, 8)

    before = archs["vanilla_cnn"]
    assert name_backbone(resnet18) == "resnet18-2" and archs["resnet18-2"] is resnet18
    assert name_backbone(vanilla_cnn) == "vanilla_cnn-2" and archs["vanilla_cnn"] is before


def test_a_cell_that_runs_again_replaces_what_it_passed_but_another_function_does_not():
    cell = "def mine(logits, target):\n    return logits.mean()"
    defined = []
    for module in ("notebook", "notebook", "elsewhere"):
        exec(cell, names := {"__name__": module})
        defined.append(names["mine"])
    assert [name_loss(loss) for loss in defined] == ["mine", "mine", "mine-2"]
    assert losses["mine"] is defined[1]
    lf.register_loss("mine")(defined[2])
    assert name_loss(defined[0]) == "mine-3"  # mine is registered now
    lambdas = [lambda logits, target, k=k: k * logits.mean() for k in (1, 2)]
    assert [name_loss(loss) for loss in (*lambdas, *lambdas)] == ["unnamed", "unnamed-2"] * 2


def test_modules_that_differ_in_an_attribute_alone_have_two_names():
    class Focus(nn.Module):
        def __init__(self, gamma):
            super().__init__()
            self.gamma = gamma

    names = [name_loss(Focus(gamma)) for gamma in (2, 3, 2)]
    assert names[0] == names[2] != names[1]


def test_a_built_in_is_not_taken_for_what_a_module_registered():
    check_registered({"registered": {}}, {"fusion": "film"})
    with pytest.raises(LesionfastError, match="'film' was registered by parts"):
        check_registered({"registered": {"fusion": "parts"}}, {"fusion": "film"})
    with pytest.raises(LesionfastError, match="First run the cell or the script"):
        check_registered({"registered": {"fusion": "__main__"}}, {"fusion": "film"})
    lf.register_fusion("film")(nn.Identity)
    check_registered({"registered": {"fusion": "__main__"}}, {"fusion": "film"})
    check_registered({"registered": {"fusion": __name__}}, {"fusion": "film"})
    with pytest.raises(LesionfastError, match="was registered by parts"):
        check_registered({"registered": {"fusion": "parts"}}, {"fusion": "film"})


@pytest.mark.parametrize("module", ["os; rm -rf ~", "\x1b[2J", "a..b", "", "a b", "x\n", "1a"])
def test_only_the_name_of_a_module_is_told_of_a_model_json(module):
    with pytest.raises(LesionfastError) as raised:
        check_registered({"registered": {"arch": module}}, {"arch": "mine\x1b[2J"})
    assert str(raised.value) == (
        "the architecture 'mine\\x1b[2J' was registered by a module whose name is not a Python "
        "identifier. First import the module that registers it."
    )


@pytest.mark.parametrize("wrong", [["parts"], {"arch": 1}, "parts", {"arch": ["parts"]}])
@pytest.mark.parametrize("name", ["registered", "registered_digest"])
def test_a_model_json_with_another_shape_is_damaged(name, wrong, make_run):
    run = make_run()
    model = json.loads((run.path / "model.json").read_text())
    (run.path / "model.json").write_text(json.dumps(model | {name: wrong}))
    with pytest.raises(DamageError, match=name):
        lf.Run(run.path).model  # noqa: B018


def test_train_takes_a_class_as_fusion_and_a_function_as_augmentation(few, tmp_path):
    class Beside(nn.Module):
        def __init__(self, n_image, n_metadata):
            super().__init__()
            self.width = n_image + n_metadata

        def forward(self, features, metadata):
            return torch.cat([features, metadata], dim=1)

    def darker(images):
        return images / 2

    tiny = {"arch": "vanilla_cnn", "size": 32, "epochs": 1, "tta": 1}
    run = lf.train(few, out=tmp_path, fusion=Beside, augment=darker, **tiny)
    assert (run.config.fusion, run.config.augment) == ("Beside", "darker")
    assert run.model["registered"] == dict.fromkeys(("fusion", "augment"), __name__)
    assert lf.Predictor(run).bundle.model["fusion"] == "Beside"


@pytest.mark.parametrize(
    ("name_it", "wrong", "message"),
    [
        (name_fusion, nn.Identity(), "fusion is Identity.*a class of torch.nn.Module"),
        (name_fusion, 3, "fusion is 3; it takes a name"),
        (name_augmentation, None, "augment is None; it takes a name, or a function"),
    ],
)
def test_what_can_t_be_a_part_is_refused_with_what_to_pass(name_it, wrong, message):
    with pytest.raises(LesionfastError, match=message):
        name_it(wrong)


def test_a_fusion_gets_both_inputs_in_one_number_format(few):
    class Product(nn.Module):
        def __init__(self, n_image, n_metadata):
            super().__init__()
            self.product, self.width = nn.Bilinear(n_image, n_metadata, 4), 4

        def forward(self, features, metadata):
            return self.product(features, metadata)

    lf.register_fusion("product")(Product)
    dls = lf.LesionDataLoaders.from_df(few, size=32, bs=16)
    learn = lf.lesion_learner(dls, "vanilla_cnn", fusion="product", precision="bfloat16")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert learn.get_preds()[0].shape[1] == 7


def test_what_is_no_run_is_refused():
    for wrong in ([1, 2], None, 3):
        with pytest.raises(LesionfastError, match="is not a run. Name one run"):
            lf.Interpretation.from_run(wrong)


def test_seeds_need_first_weights_of_their_own(few, tmp_path):
    tiny = {"size": 32, "epochs": 1, "tta": 1, "seeds": 2, "out": tmp_path}
    with pytest.raises(LesionfastError, match="2 seeds would start from the same.*Pass its class"):
        lf.train(few, arch=nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU()), **tiny)
    assert not any(tmp_path.iterdir())
    runs = lf.train(few, arch=lambda: nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU()), **tiny)
    assert len(runs) == 2
    known = nn.Conv2d(3, 4, 8, 8)
    known.pretrained = True
    check_seeds(TrainConfig(arch=name_backbone(known)), tmp_path, None, 2)


def test_the_names_of_all_seeds_are_checked_before_the_first_training(few, tmp_path):
    (tmp_path / "s-seed43").mkdir()
    with pytest.raises(LesionfastError, match="already has s-seed43. Type another --name"):
        lf.train(few, name="s", seeds=3, out=tmp_path, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["s-seed43"]


@pytest.mark.parametrize(
    "loss",
    [
        nn.BCEWithLogitsLoss(),
        lambda logits, target: (logits.argmax(1) != target).float().mean(),
        lambda logits, target: 3.0,
    ],
    ids=["another shape", "no gradient", "no tensor"],
)
def test_a_loss_that_can_t_be_learned_from_is_refused_before_there_is_a_run(few, tmp_path, loss):
    with pytest.raises(LesionfastError, match="can't be learned from.*one number with a gradient"):
        lf.train(few, arch="vanilla_cnn", loss=loss, size=32, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(LesionfastError, match=r"--size is .32, 32.; it takes a whole number"):
        lf.train(few, size=(32, 32))


def test_a_run_whose_backbone_was_defined_anew_says_so(few, tmp_path, caplog):
    cell = """
class Net(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 8, 8)

    def forward(self, image):
        return super().forward(image).CHANGE()
"""

    def run_cell(change):
        names = {"torch": torch, "__name__": "__main__"}
        exec(cell.replace("CHANGE", change), names)
        lf.register_backbone("anew")(names["Net"])

    run_cell("relu")
    run = lf.train(few, arch="anew", size=32, epochs=1, tta=1, out=tmp_path)
    image = few["path"].iloc[0]
    run_cell("relu")
    lf.Predictor(run)(image)
    assert "another source" not in caplog.text
    run_cell("tanh")
    lf.Predictor(run)(image)
    assert "the architecture 'anew' has another source now" in caplog.text
