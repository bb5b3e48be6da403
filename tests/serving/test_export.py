import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

import lesionfast
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import UNFINISHED, sha256, sweep_once, workspace
from lesionfast.models.lineage import check_weights
from lesionfast.models.weights import read_weights
from lesionfast.reporting.advice.limits import find_limits
from lesionfast.run import Run
from lesionfast.serving.bundle import SCHEMA, Bundle
from lesionfast.serving.export import export, list_files_to_share, write_card
from lesionfast.serving.predictor import Predictor


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def test_the_folder_is_whole_and_told(exported, trained):
    told = json.loads((exported / "model.json").read_text("utf-8"))
    assert sorted(told["files"]) == ["model.safetensors", "outliers.safetensors"]
    for name, expected in told["files"].items():
        assert sha256(exported / name) == expected
    assert told["schema"] == 3 and told["split_sha256"] == trained.metrics["split_sha256"]
    assert {"encoder", "operating_points", "calibration", "conformal", "referral"} <= set(told)
    assert told["of"] == "shown probabilities" and told["costs"]["missed_melanoma"] == 30
    assert sum(told["prevalence"]) == pytest.approx(1) and told["clinic"] is None
    assert told["operating_points"] and told["model"]["prior"] == trained.model["prior"]


def test_the_card_says_what_a_reader_must_know(exported, trained):
    card = (exported / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: lesionfast\n")
    for words in ("Not a medical device", "SYNTHETIC", "Intended use", "melanoma sensitivity"):
        assert words.lower() in card.lower()
    assert trained.metrics["split_sha256"] in card
    assert re.search(r"\| balanced accuracy \| 0\.\d{3} \[0\.\d{3}, [01]\.\d{3}\] \|", card)


def test_the_card_shows_class_names_letter_by_letter(trained):
    run, names = Run(trained.path), {"bkl": "<script>|bkl", "nv": "[nv](javascript:x)"}
    table = trained.predictions.rename(columns={f"p_{a}": f"p_{b}" for a, b in names.items()})
    classes = [names.get(name, name) for name in trained.classes]
    run.__dict__["model"] = trained.model | {"classes": classes}
    run.__dict__["predictions"] = table.assign(target=table["target"].replace(names))
    bundle = replace(Bundle.from_run(trained), name="<b>run")
    card = write_card(Findings(Interpretation.from_run(run)), bundle, [])
    assert "<script" not in card and "<b>" not in card and "[nv](" not in card
    assert "&lt;script&gt;\\|bkl" in card and "&lt;b&gt;run" in card


def test_what_is_read_is_what_was_written(exported, trained):
    there, here = Bundle.read(exported), Bundle.from_run(trained)
    assert there.to_dict() == here.to_dict() | {"limits": find_limits(trained).to_dict()}
    assert there.digest() == here.digest() and there.limits.answers  # which decide nothing
    assert there.ood.threshold == pytest.approx(here.ood.threshold)


def test_a_folder_is_never_overwritten(exported, trained):
    with pytest.raises(LesionfastError, match="exists already. Type another --to"):
        export(trained, exported)


def test_nothing_is_left_of_an_export_that_fails(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("lesionfast.serving.export.write_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(trained, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def without_counter(tensors):
    name = next(name for name in sorted(tensors) if name.endswith("num_batches_tracked"))
    return {key: tensor for key, tensor in tensors.items() if key != name}


def of_float16(tensors):
    return {
        name: each.half() if each.is_floating_point() else each for name, each in tensors.items()
    }


def with_nan(tensors):
    name = "head.1.bias" if "head.1.bias" in tensors else next(reversed(tensors))
    return tensors | {name: tensors[name] * float("nan")}


def of_another_run(tensors):
    last = [name for name in tensors if name.startswith("head.")]
    return tensors | {name: -tensors[name] for name in last}


HARMS = {
    "cut off": (lambda data: data[: len(data) // 2], "is not the whole model"),
    "emptied": (lambda data: b"", "is not the whole model"),
    "of another architecture": (lambda data: save(resnet()), "tensors match"),
    "without a tensor": (lambda data: save(dict(sorted(load(data).items())[1:])), "is missing"),
    "without a counter": (lambda data: save(without_counter(load(data))), "is missing"),
    "of other numbers": (lambda data: save(of_float16(load(data))), "is of torch.float16"),
    "not numbers": (lambda data: save(with_nan(load(data))), "contains NaN or infinite values"),
    "of another run": (lambda data: save(of_another_run(load(data))), "do not reproduce pred"),
}


def resnet():
    return {"backbone.body.net.conv1.weight": torch.zeros(64, 3, 7, 7)}


@pytest.mark.parametrize("harm", HARMS)
def test_weights_that_are_not_the_runs_own_are_not_exported(trained, tmp_path, harm):
    change, message = HARMS[harm]
    run = Path(shutil.copytree(trained.path, tmp_path / "run"))
    data = (run / "weights.safetensors").read_bytes()
    Run(run).write("weights.safetensors", lambda aside: aside.write_bytes(change(data)))
    with pytest.raises(LesionfastError, match=message):
        export(Run(run), tmp_path / "model")
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_a_run_whose_data_is_elsewhere_is_exported_and_that_is_said(
    trained, tmp_path, monkeypatch, caplog
):
    def elsewhere(*_):
        raise LesionfastError("there is no folder data")

    monkeypatch.setattr("lesionfast.serving.bundle.load_dataset", lambda *_, **__: elsewhere())
    made = export(trained, tmp_path / "model")
    assert "not compared with predictions.csv: there is no folder data" in caplog.text
    assert Bundle.read(made)


@pytest.mark.parametrize("how", ["the folder", "its file", "its file alone"])
def test_training_from_an_exported_model_refuses_the_images_that_it_saw(
    exported, trained, tmp_path, how
):
    weights = {"the folder": exported, "its file": exported / "model.safetensors"}.get(how)
    if weights is None:
        weights = shutil.copyfile(exported / "model.safetensors", tmp_path / "any.safetensors")
    df = load_dataset(trained.config, split=trained.path / "split.csv")
    check_weights(df, str(weights), trained.config.arch)
    assert read_weights(Path(weights)).keys() == read_weights(trained.path).keys()
    other = load_dataset(replace(trained.config, seed=7))
    learned = df.loc[df["split"] == "train", "image_id"]
    seen = (other["image_id"].isin(learned) & (other["split"] != "train")).sum()
    assert seen
    with pytest.raises(LesionfastError, match=f"were trained on {seen} images"):
        check_weights(other, str(weights), trained.config.arch)
    with pytest.raises(LesionfastError, match="not of vgg16. Type --arch"):
        check_weights(df, str(weights), "vgg16")


def test_a_full_disk_says_what_is_needed_and_keeps_no_half_folder(trained, small_disk, monkeypatch):
    message = r"model needs about \d\d\.\d MB, and 1\.0 MB are free\. Free some space, or type"
    with pytest.raises(LesionfastError, match=message):
        export(trained, small_disk / "model")
    monkeypatch.setattr("lesionfast.serving.export.check_room", lambda *_: None)
    with pytest.raises(LesionfastError, match="model can't be written: the disk is full; it"):
        export(trained, small_disk / "model")
    assert not list(small_disk.iterdir())


def test_a_read_only_folder_says_so(trained, read_only, tmp_path):
    (tmp_path / "closed").mkdir()
    read_only(tmp_path / "closed")
    with pytest.raises(LesionfastError, match="closed/model can't be written: "):
        export(trained, tmp_path / "closed" / "model")
    assert not list((tmp_path / "closed").iterdir())


def test_what_a_killed_export_left_is_removed_by_the_next_one(trained, tmp_path):
    with workspace(tmp_path) as living:
        dead = tmp_path / f"{UNFINISHED}dead" / "model"
        dead.mkdir(parents=True)
        (dead / "model.safetensors").touch()
        sweep_once.cache_clear()
        made = export(trained, tmp_path / "model")
        assert sorted(tmp_path.iterdir()) == sorted([living.parent, made])


def test_what_interpret_chose_is_exported_and_predicted_with(trained, tmp_path):
    run = Path(shutil.copytree(trained.path, tmp_path / "run"))
    Findings.from_run(Run(run), coverage=0.7, refer=0.4)
    names = ("operating.json", "calibration.json", "conformal.json", "referral.json")
    kept = {name: (run / name).read_bytes() for name in names if (run / name).is_file()}
    made = Bundle.read(export(Run(run), tmp_path / "model"))
    for bundle in (made, Predictor(run).bundle):
        assert (bundle.conformal.coverage, bundle.referral.share) == (0.7, 0.4)
    assert {name: (run / name).read_bytes() for name in kept} == kept


def test_a_read_only_run_that_was_never_interpreted_predicts_as_any(trained, read_only, tmp_path):
    run = Path(shutil.copytree(trained.path, tmp_path / "run"))
    chosen = ("operating.json", "calibration.json", "conformal.json", "referral.json")
    Run(run).remove(*chosen, "outliers.safetensors")
    read_only(run)
    there, here = Bundle.from_run(Run(run)), Bundle.from_run(trained)
    assert there.to_dict() == here.to_dict() | {"name": "run"}
    assert there.ood.threshold == pytest.approx(here.ood.threshold)


@pytest.fixture
def listing(change_description):
    """A function that changes the files that model.json lists."""
    return lambda copy, change: change_description(copy, lambda told: change(told["files"]))


@pytest.mark.parametrize("name", ["model.safetensors", "outliers.safetensors"])
def test_a_changed_file_that_was_taken_out_of_the_list_is_not_opened(copy, name, listing):
    (copy / name).write_bytes(b"changed")
    listing(copy, lambda files: files.pop(name))
    with pytest.raises(LesionfastError, match=f"has no SHA-256 of {name}"):
        Predictor(copy)


@pytest.mark.parametrize("name", ["*", "../key", "/etc/passwd", "a/b", "key", "README.md"])
def test_a_list_of_other_files_is_refused_and_nothing_of_it_shared(copy, name, listing):
    listing(copy, lambda files: files.update({name: "0" * 64}))
    for read in (Predictor, list_files_to_share):
        with pytest.raises(LesionfastError, match="which no export holds"):
            read(copy)


@pytest.mark.parametrize("digest", [None, 7, "", "0" * 63, "x" * 64])
def test_a_list_without_hashes_is_refused(copy, digest, listing):
    listing(copy, lambda files: files.update({"model.safetensors": digest}))
    with pytest.raises(LesionfastError, match="has no SHA-256 of model.safetensors"):
        Predictor(copy)


def test_a_model_json_that_lacks_a_part_is_told(copy, change_description):
    whole = (copy / "model.json").read_text("utf-8")
    for name in ("encoder", "model", "operating_points", "name"):
        (copy / "model.json").write_text(whole, "utf-8")
        change_description(copy, lambda told, name=name: told.pop(name))
        with pytest.raises(LesionfastError, match=f"can't be used: it has no '{name}'"):
            Bundle.read(copy)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *((("operating_points", 0, "threshold"), value) for value in (float("nan"), None, "0.5")),
        *((("referral", "threshold"), value) for value in (float("inf"), "none")),
        *((("model", "tta"), value) for value in (0, 10**9, "8")),
        *((("model", "classes"), value) for value in (7, "mel", [1, 2])),
        (("model", "malignant"), ["no class"]),
        (("model", "melanoma"), "no class"),
        (("calibration", "parameters"), {"weight": [[float("nan")]], "bias": [0]}),
        (("encoder",), [{"name": "age", "kind": "number", "mean": 1, "scale": "wide"}]),
    ],
)
def test_a_model_json_of_a_wrong_form_is_told_before_anything_is_predicted(
    copy, part, value, change_description
):
    def change(inner):
        for key in part[:-1]:
            inner = inner[key]
        inner[part[-1]] = value

    change_description(copy, change)
    with pytest.raises(LesionfastError, match="the description of the model can't be used"):
        Bundle.read(copy)


def test_what_lies_beside_an_exported_model_is_not_shared(copy):
    (copy / "id_rsa").write_text("key")
    assert {each.name for each in list_files_to_share(copy)} == {
        *("model.json", "README.md"),
        *("model.safetensors", "outliers.safetensors"),
    }
    (copy / "README.md").unlink()
    (copy / "README.md").symlink_to(copy / "id_rsa")
    with pytest.raises(LesionfastError, match="README.md is not an ordinary file"):
        list_files_to_share(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "outliers.safetensors"])
@pytest.mark.parametrize("harm", ["truncated", "changed", "gone"])
def test_a_file_that_is_not_what_was_exported_is_told(copy, name, harm):
    file = copy / name
    data = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(data[:-9] if harm == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    expected = "is missing" if harm == "gone" else "is not the file that was exported"
    with pytest.raises(LesionfastError, match=f"{name} {expected}.*Copy the whole folder again"):
        Predictor(copy)


def test_a_changed_model_json_is_noticed(copy):
    file = copy / "model.json"
    told = json.loads(file.read_text("utf-8"))
    told["operating_points"][0]["threshold"] += 0.1
    file.write_text(json.dumps(told), "utf-8")
    for read in (Predictor, list_files_to_share):
        with pytest.raises(LesionfastError, match="model.json is not the file that was exported"):
            read(copy)
    del told["sha256"]  # as an earlier version wrote it
    file.write_text(json.dumps(told, indent=4), "utf-8")
    assert Bundle.read(copy).points[0].threshold == told["operating_points"][0]["threshold"]


def test_a_newer_schema_says_to_upgrade(copy):
    told = json.loads((copy / "model.json").read_text("utf-8"))
    (copy / "model.json").write_text(json.dumps(told | {"schema": SCHEMA + 1}), "utf-8")
    expected = f"has the schema {SCHEMA + 1}, and this lesionfast reads up to {SCHEMA}"
    with pytest.raises(LesionfastError, match=expected):
        Predictor(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"classes": []}', '{"schema": 1}'])
def test_a_model_json_that_is_none_is_told(copy, text):
    (copy / "model.json").write_text(text, "utf-8")
    with pytest.raises(LesionfastError, match="model.json"):
        Predictor(copy)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "outliers.safetensors"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_pickle_in_place_of_a_file_is_not_opened(copy, name, signed, tmp_path, listing):
    trap = tmp_path / "sprung"
    (copy / name).write_bytes(pickle.dumps(Trap(trap)))
    if signed and name != "model.json":
        listing(copy, lambda files: files.update({name: sha256(copy / name)}))
    with pytest.raises(LesionfastError):
        Predictor(copy)
    assert not trap.exists()
    pickle.loads((copy / name).read_bytes())  # so the trap is one
    assert trap.exists()


def test_a_pickle_in_place_of_a_file_of_a_run_is_not_opened(trained, tmp_path):
    for name in ("weights.safetensors", "outliers.safetensors", "model.json", "encoder.json"):
        run, trap = Path(shutil.copytree(trained.path, tmp_path / name)), tmp_path / f"{name}.trap"
        (run / name).write_bytes(pickle.dumps(Trap(trap)))
        with pytest.raises((LesionfastError, ValueError)):
            Predictor(run)(b"")
        assert not trap.exists()


def test_no_module_that_loads_a_model_unpickles():
    package = Path(lesionfast.__file__).parent
    rooms = [*(package / "serving").glob("*.py"), package / "models" / "fusion.py"]
    for path in rooms:
        assert not re.search(
            r"(import|from) pickle|torch\.load|joblib\.load|allow_pickle=True", path.read_text()
        )


def test_an_ensemble_names_the_members_that_are_gone(make_ensemble):
    with pytest.raises(LesionfastError, match=r"averages 2 runs, and .*ensemble/a is missing"):
        Bundle.from_run(make_ensemble)


@pytest.fixture
def make_ensemble(trained, tmp_path):
    from lesionfast.run import Run

    run = Run(shutil.copytree(trained.path, tmp_path / "ensemble"))
    run.write_json("model.json", trained.model | {"members": ["a", "b"]})
    return run


def test_the_command_predicts_from_the_folder(run_apart, exported, photos, tmp_path):
    command = ["predict", exported, photos[0]]
    done = run_apart(*command, "--set", "age=55", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.startswith("image,advice,refer,prediction_set,p_akiec") and row.startswith(
        photos[0]
    )
    failed = run_apart(*command, exported / "README.md", "--out", "out.jsonl", cwd=tmp_path)
    assert failed.returncode == 2 and "no prediction for 1 of 2 images" in failed.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
