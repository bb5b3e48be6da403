"""What a model from a stranger may do: an exported folder, an ONNX file, a run, a weights file.

Each is refused with a sentence, in bounded time and memory, or predicts; nothing else is touched.
"""

import hashlib
import json
import logging
import os
import shutil
import struct
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.models.backbones import create_backbone
from lesionfast.models.lineage import read_lineage
from lesionfast.models.weights import read_weights
from lesionfast.run import Run
from lesionfast.serving.bundle import hash_description
from lesionfast.serving.export import export
from lesionfast.serving.predictor import Predictor

TINY = TrainConfig(
    arch="test_resnet", weights="none", size=32, epochs=1, head_epochs=0, tta=1, precision="float32"
)
PHOTO = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
GROWTH = 900 * 2**20  # bytes that an attack may cost


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


VALUES = {
    "null": None,
    "true": True,
    **{"minus one": -1, "zero": 0, "half": 0.5, "seven": 7, "10^9": 10**9, "10^400": 10**400},
    **{"NaN": float("nan"), "infinity": float("inf"), "1e308": 1e308},
    **{"text": "x", "nothing": "", "path": "../../../../etc/passwd", "absolute": "/etc/passwd"},
    **{"drive": "C:\\Windows\\win.ini", "NUL": "a\0b\n", "URL": "http://127.0.0.1:9/x"},
    **{"hub": "hf-hub:owner/name", "local hub": "transformers:/etc", "module": "os:system"},
    **{"list": [], "object": {}, "list of null": [None], "ones": [1] * 7, "huge": [1e308] * 7},
    **{"negative": [-1.0] * 7, "many": list(range(50_000)), "deep": nested(300)},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache_folder) -> Run:
    """A run of a tiny model, as a stranger may have one."""
    from lesionfast.training.experiment import train

    return train(load_dataset(TINY), TINY, tmp_path_factory.mktemp("runs"), "run")


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """That run, exported; a prediction has warmed everything up."""
    made = export(run, tmp_path_factory.mktemp("made") / "model")
    Predictor(made)(PHOTO)
    return made


@pytest.fixture
def model(folder, tmp_path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(folder, tmp_path / "model"))


def write_description(folder: Path, told: dict) -> None:
    """Write a model.json whose own SHA-256 is right: a stranger can compute it too."""
    text = json.dumps(told | {"sha256": hash_description(told)})
    (folder / "model.json").write_text(text, "utf-8")


def attempt(source: Path) -> str:
    """'refused', or 'answered' with probabilities; anything else is raised."""
    try:
        row = Predictor(source)(PHOTO, age=50)
    except LesionfastError as error:
        outcome, message = "refused", str(error)
        assert message[-1] not in ":," and "Traceback" not in message and len(message) < 4100
    else:
        found = [value for name, value in row.items() if name.startswith("p_")]
        if any(value is not None for value in found):  # none where it is unlike the training
            assert min(found) >= 0 and sum(found) == pytest.approx(1, abs=1e-3)
        outcome = "answered"
    return outcome


def campaign(model: Path, names: tuple[str, ...], list_parts: Callable) -> Counter:
    """Replace each field of model.json by each value, and count what comes of it."""
    told = json.loads((model / "model.json").read_text("utf-8"))
    del told["sha256"]
    outcomes: Counter = Counter()
    for path, change in list_parts(told):
        for name in names if path and path[0] != "files" else ():
            write_description(model, change(VALUES[name]))
            try:
                outcomes[attempt(model)] += 1
            except Exception as error:
                pytest.fail(f"{'.'.join(map(str, path))} = {name}: {error!r}")
    return outcomes


@pytest.fixture(autouse=True)
def bounded(memory):
    """Whatever a test here does may cost no more."""
    with memory(GROWTH):
        yield


@pytest.fixture
def in_silence(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lesionfast"), "disabled", True)


def test_a_field_of_another_kind_is_refused_or_harmless(model, list_parts, in_silence):
    outcomes = campaign(model, ("null", "10^9", "1e308", "deep"), list_parts)
    assert outcomes["refused"] > 300 and sum(outcomes.values()) > 400


def test_an_error_does_not_repeat_all_that_a_stranger_wrote(model, change_description):
    change_description(model, lambda told: told.update(schema=VALUES["many"]))
    with pytest.raises(LesionfastError, match=r"has the schema \[0, 1.*pip install") as error:
        Predictor(model)
    assert len(str(error.value)) < 4100


@pytest.mark.attack
def test_every_field_with_every_value_is_refused_or_harmless(model, list_parts, in_silence):
    outcomes = campaign(model, tuple(VALUES), list_parts)
    print(f"{dict(outcomes)} of {len(VALUES)} values")
    assert outcomes["refused"] > 2000


def test_a_model_json_that_is_no_plain_json_is_refused(model, tmp_path):
    file = model / "model.json"
    whole = file.read_text("utf-8")
    twice = whole.replace('"image_column":', '"image_column": "x", "image_column":', 1)
    texts = {
        "twice": (twice, "has the key 'image_column' twice"),
        "deep": ("[" * 100_000, "is broken"),
        "deep objects": ('{"a":' * 5_000 + "1" + "}" * 5_000, "is broken"),
        "digits": (f'{{"schema": {"9" * 10_000}}}', "is broken"),
        "future": (whole.replace('"schema": 3', '"schema": 99', 1), "Upgrade it: pip install"),
        "past": (whole.replace('"schema": 3', '"schema": 0', 1), "the schema 0"),
        "not UTF-8": (b"\xff\xfe{", "is broken"),
    }
    for text, message in texts.values():
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(LesionfastError, match=message):
            Predictor(model)


def test_what_is_no_regular_file_is_not_waited_for(model):
    file = model / "model.json"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(LesionfastError, match="a named pipe"):
        Predictor(model)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(LesionfastError, match="a device"):
        Predictor(model)
    shutil.copyfile(model / "model.safetensors", model / "aside")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(LesionfastError):
        Predictor(model)


def test_memory_is_seen_below_the_peak_of_earlier_tests(memory):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is seen on Linux only")
    assert len(b"x" * (300 * 2**20))
    with pytest.raises(AssertionError), memory(50 * 2**20):
        assert len(b"x" * (100 * 2**20))
    with memory(50 * 2**20):
        assert len(b"x" * (10 * 2**20))


def test_half_a_gigabyte_of_json_is_not_read(model, memory):
    with (model / "model.json").open("wb") as file:
        file.write(b"[")
        file.seek(500 * 10**6)
        file.write(b"]")
    words = r"it has 500\.0 MB, and at most 33\.6 MB are read"
    with memory(50 * 2**20), pytest.raises(LesionfastError, match=words):
        Predictor(model)


def test_a_model_of_any_size_costs_no_more_than_its_file_justifies(model, change_description):
    begun = time.monotonic()
    for arch in ("vit_giant_patch14_dinov2", "convnextv2_huge", "regnety_1280"):
        change_description(
            model, lambda told, arch=arch: told["model"].update(arch=arch, size=224, pool="avg")
        )
        with pytest.raises(LesionfastError, match="far more weights than model.safetensors has"):
            Predictor(model)
    change_description(model, lambda told: told["model"].update(arch="vgg19", size=32))
    with pytest.raises(LesionfastError, match=r"is not the whole model"):  # its head is left out
        Predictor(model)
    assert time.monotonic() - begun < 120


def signed(folder: Path, data: bytes, name: str = "model.safetensors") -> None:
    """Put bytes in the place of a file, under a SHA-256 that is right."""
    (folder / name).write_bytes(data)
    told = json.loads((folder / "model.json").read_text("utf-8"))
    del told["sha256"]
    told["files"][name] = hashlib.sha256(data).hexdigest()
    write_description(folder, told)


def pack(header: object, data: bytes = b"") -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HARMFUL = {
    "empty": b"",
    "a header of 2 GB": struct.pack("<Q", 2 * 2**30) + b"{}",
    "a header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": pack(b"\x80\x04garbage"),
    "a deep header": pack(b'{"a":' + b"[" * 90_000),
    "overlapping": pack({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "a hole": pack({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12)),
    "beyond the end": pack({"a": entry(0, 4 * 10**9, [10**9])}, bytes(8)),
    "10^30 numbers": pack({"a": entry(0, 8, [10**15, 10**15])}, bytes(8)),
    "negative": pack({"a": entry(0, 8, [-2])}, bytes(8)),
    "backwards": pack({"a": entry(8, 0, [2])}, bytes(8)),
    "of no size": pack({"a": entry(0, 0, [0])}),
    "of float8": pack({"a": entry(0, 4, [4], "F8_E4M3")}, bytes(4)),
    "of an unknown type": pack({"a": entry(0, 4, [1], "OBJECT")}, bytes(4)),
    "no tensors": pack({}),
    "metadata of a wrong kind": pack({"__metadata__": {"header": 7}}),
    "many names": pack({f"t{i}": entry(0, 0, [0]) for i in range(20_000)}),
}


@pytest.mark.parametrize("harm", HARMFUL)
@pytest.mark.parametrize("name", ["model.safetensors", "outliers.safetensors"])
def test_weights_that_are_none_are_refused(model, harm, name):
    signed(model, HARMFUL[harm], name)
    assert attempt(model) == "refused"


MISFITS = ("of no size", "of float8", "no tensors", "many names")  # whose architecture is guessed


@pytest.mark.parametrize(
    "harm",
    [pytest.param(one, marks=[pytest.mark.attack] * (one in MISFITS)) for one in HARMFUL],
)
def test_weights_that_are_none_are_no_start_of_a_training(tmp_path, harm):
    (tmp_path / "w.safetensors").write_bytes(HARMFUL[harm])
    with pytest.raises(LesionfastError, match="--weights"):
        create_backbone("test_resnet", size=32, weights=str(tmp_path / "w.safetensors"))
    assert read_lineage(tmp_path / "w.safetensors") is None


def test_weights_that_overflow_give_no_answer(model):
    """The numbers are finite, and what the model makes of them is not."""
    tensors = load((model / "model.safetensors").read_bytes())
    for value in (3e38, -3e38):
        grown = {
            name: torch.full_like(tensor, value) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        signed(model, save(grown))
        assert attempt(model) == "refused"


def own_state() -> dict[str, torch.Tensor]:
    return create_backbone("test_resnet", size=32, weights="none").body.net.state_dict()


STATES = {
    "NaN": lambda state, name: {**state, name: state[name] * float("nan")},
    "infinite": lambda state, name: {**state, name: state[name] + float("inf")},
    "complex": lambda state, name: {**state, name: state[name].to(torch.complex64)},
    "sparse": lambda state, name: {**state, name: state[name].to_sparse()},
    "on no device": lambda state, name: {**state, name: state[name].to("meta")},
    "blown up": lambda state, name: {**state, name: torch.zeros(1).expand(10**6, 10**6)},
    "quantised": lambda state, name: {
        **state,
        name: torch.quantize_per_tensor(state[name], 0.1, 0, torch.qint8),
    },
    "numbers as names": lambda state, name: dict(enumerate(state.values())),
    "texts as tensors": lambda state, name: dict.fromkeys(state, "x"),
    "a list": lambda state, name: list(state.values()),
    "a tensor": lambda state, name: state[name],
    "nested": lambda state, name: {"state_dict": {"model": {"state_dict": [1]}}},
}


@pytest.mark.parametrize("kind", STATES)
def test_a_pytorch_file_of_other_than_plain_numbers_is_refused(tmp_path, kind):
    state = own_state()
    name = next(name for name in state if state[name].ndim == 4)
    torch.save(STATES[kind](state, name), tmp_path / "w.pt")
    with pytest.raises(LesionfastError, match="--weights"):
        create_backbone("test_resnet", size=32, weights=str(tmp_path / "w.pt"))


def test_a_pytorch_file_that_unpacks_to_more_is_not_unpacked(tmp_path):
    torch.save(own_state(), tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as archive,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in archive.infolist():
            bomb.writestr(member.filename, archive.read(member))
        bomb.writestr("archive/data/999", bytes(50 * 2**20))
    with pytest.raises(LesionfastError, match="unpacks to more than its own size"):
        read_weights(tmp_path / "bomb.pt")
