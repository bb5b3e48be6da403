"""What an ONNX file from a stranger may do: its graph is looked at before it is run."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.serving import graph
from lesionfast.serving.predictor import Predictor

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numbers, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
PHOTO = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


def node(kind: str, given: list[str], made: str, **attributes):
    return helper.make_node(kind, given, [made], **attributes)


def array(name: str, values: list, kind=np.int64):
    return numbers.from_array(np.array(values, kind), name)


class Graph:
    """A graph of an exported folder that gives each image the same answer, and what is added."""

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / "model.json").read_text("utf-8"))
        model = told["model"]
        self.size, self.classes = model["size"], len(model["classes"])
        self.width, self.described = model["n_metadata"], told | {"files": {}, "outliers": False}
        self.initialisers = [
            array("share", [[1 / self.classes] * self.classes], np.float32),
            array("zero", [0.0], np.float32),
            array("axes", [1]),
        ]
        self.nodes = [
            node("ReduceSum", ["metadata", "axes"], "sum", keepdims=1),
            node("Mul", ["sum", "zero"], "nothing"),
            node("Add", ["nothing", "share"], "probabilities"),
            node("Identity", ["probabilities"], "model_probabilities"),
            node("Identity", ["nothing"], "features"),
        ]
        self.outputs = {"probabilities": self.classes, "model_probabilities": self.classes}
        self.outputs["features"] = 1

    def add(self, *more) -> None:
        """Add nodes, whose last output is added to the probabilities."""
        last = more[-1].output[0]
        self.nodes[2] = node("Add", ["nothing", "share"], "plain")
        self.nodes[3:3] = [*more, node("Add", ["plain", last], "probabilities")]

    def proto(self):
        image = ["batch", self.size, self.size, 3]
        inputs = [
            helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, image),
            helper.make_tensor_value_info("metadata", FLOAT, ["batch", self.width]),
        ]
        outputs = [helper.make_tensor_value_info(name, FLOAT, None) for name in self.outputs]
        built = helper.make_graph(self.nodes, "graph", inputs, outputs, self.initialisers)
        model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 9
        model.metadata_props.add(key="lesionfast", value=json.dumps(self.described))
        return model

    def write(self, path: Path) -> Path:
        path.write_bytes(self.proto().SerializeToString())
        return path


@pytest.fixture
def made(exported) -> Graph:
    return Graph(exported)


@pytest.fixture(autouse=True)
def bounded(memory):
    """Whatever a test here does may cost no gigabyte."""
    with memory(2**30):
        yield


def refuse(path: Path, message: str) -> None:
    """The file is refused with that sentence, and soon."""
    begun = time.monotonic()
    with pytest.raises(LesionfastError, match=message):
        Predictor(path)(PHOTO)
    assert time.monotonic() - begun < 60


def test_a_plain_graph_answers(made, tmp_path):
    row = Predictor(made.write(tmp_path / "m.onnx"))(PHOTO)
    assert sum(row[name] for name in row if name.startswith("p_")) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret", "beside.bin", "/dev/zero", ""])
def test_weights_in_another_file_are_not_read(made, tmp_path, place):
    (tmp_path / "beside.bin").write_bytes(bytes(100))
    (tmp_path.parent / "secret").write_bytes(bytes(100))
    share = made.initialisers[0]
    share.ClearField("raw_data")
    share.data_location = onnx.TensorProto.EXTERNAL
    share.external_data.add(key="location", value=place)
    refuse(made.write(tmp_path / "m.onnx"), "keeps weights in another file")


def test_weights_in_another_file_are_not_read_for_an_attribute(made, tmp_path):
    value = array("value", [1.0], np.float32)
    value.ClearField("raw_data")
    value.external_data.add(key="location", value="/etc/passwd")
    made.add(node("Constant", [], "more", value=value))
    refuse(made.write(tmp_path / "m.onnx"), "keeps weights in another file")


def test_a_loop_that_does_not_end_is_not_begun(made, tmp_path):
    body = helper.make_graph(
        [node("Identity", ["on"], "still"), node("Identity", ["x"], "y")],
        "body",
        [
            helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", FLOAT, None),
        ],
    )
    made.initialisers += [array("most", 2**62), array("true", True, bool)]
    made.add(node("Loop", ["most", "true", "nothing"], "looped", body=body))
    refuse(made.write(tmp_path / "m.onnx"), r"has a loop or a branch \(Loop\)")


def test_a_function_of_its_own_is_not_called(made, tmp_path):
    opset = [helper.make_opsetid("", 18)]
    function = helper.make_function("own", "F", ["x"], ["y"], [node("Identity", ["x"], "y")], opset)
    model = made.proto()
    model.functions.append(function)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refuse(tmp_path / "m.onnx", "has functions of its own")


def test_an_operation_that_is_not_known_is_refused(made, tmp_path):
    made.add(node("Evil", ["nothing"], "more", domain="com.evil"))
    refuse(made.write(tmp_path / "m.onnx"), "can't be read as ONNX")


@pytest.mark.parametrize("count", [3 * 10**9, 10**12, 2**62, -5])
def test_more_memory_than_the_limit_is_refused(made, tmp_path, count, monkeypatch):
    """The shape is computed while the graph runs, so that nothing sees it before."""
    made.initialisers.append(array("count", [count]))
    made.add(
        node("Cast", ["nothing"], "whole", to=onnx.TensorProto.INT64),
        node("ReduceSum", ["whole"], "none", keepdims=0),
        node("Add", ["count", "none"], "shape"),
        node("ConstantOfShape", ["shape"], "large"),
        node("ReduceSum", ["large"], "total", keepdims=0),
    )
    refuse(made.write(tmp_path / "m.onnx"), "can't be run")


@pytest.mark.parametrize(
    "shape", [[10**9, 10**9], [-1], [2**62], [0, 7]], ids=lambda shape: str(shape)
)
def test_a_tensor_of_another_size_than_its_numbers_is_refused(made, tmp_path, shape):
    made.initialisers[0].ClearField("dims")
    made.initialisers[0].dims.extend(shape)
    refuse(made.write(tmp_path / "m.onnx"), "can't be (read as ONNX|run)")


def test_outputs_that_do_not_fit_are_refused(made, tmp_path):
    for shape in ([1, 3], [3, 1], [7], [1, 1, 7]):
        other = Graph.__new__(Graph)
        other.__dict__.update(made.__dict__)
        other.nodes = list(made.nodes)
        other.initialisers = [*made.initialisers, array("shape", shape)]
        value = array("value", [0.1], np.float32)
        other.nodes[3] = node("ConstantOfShape", ["shape"], "model_probabilities", value=value)
        refuse(other.write(tmp_path / "m.onnx"), ".")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 5.0, -0.2])
def test_answers_that_are_no_probabilities_are_refused(made, tmp_path, value):
    made.initialisers[0] = array("share", [[value] * made.classes], np.float32)
    refuse(made.write(tmp_path / "m.onnx"), "probabilities")


@pytest.mark.parametrize("data", [b"", b"\x80\x04garbage", b"\x08\x09" * 1000, b"<html>"])
def test_what_is_no_onnx_is_refused(tmp_path, data):
    (tmp_path / "m.onnx").write_bytes(data)
    refuse(tmp_path / "m.onnx", "m.onnx")


def test_a_file_beyond_the_limit_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "MOST_BYTES", 1000)
    (tmp_path / "m.onnx").write_bytes(bytes(1001))
    refuse(tmp_path / "m.onnx", "an ONNX file has at most")


@pytest.mark.parametrize(
    "described",
    [
        *(None, [], "x", 7, {}, {"schema": 99}, {"schema": "x"}),
        *({"files": 7}, {"files": {"outliers.safetensors": 7}, "outliers": True}),
        *({"model": {}}, {"model": {"n_metadata": 10**9}}, {"encoder": []}),
    ],
)
def test_a_description_of_a_wrong_form_is_refused_or_harmless(made, tmp_path, described):
    if isinstance(described, dict) and described and "schema" not in described:
        described = made.described | described
    made.described = described
    try:
        Predictor(made.write(tmp_path / "m.onnx"))(PHOTO)
    except LesionfastError as error:
        assert "m.onnx" in str(error) or "model" in str(error)


def test_an_onnx_file_that_is_not_the_exported_one_is_not_opened(exported, made, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    made.write(folder / "model.onnx")
    refuse(folder / "model.onnx", "has no SHA-256 of model.onnx")
