import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lesionfast.config import TrainConfig
from lesionfast.data.sources import FileReader
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.models.ensemble import open_engine
from lesionfast.serving.bundle import INT8, SCHEMA, Bundle
from lesionfast.serving.export import export
from lesionfast.serving.onnx import CALIBRATED, PLAIN, OnnxEngine, write_onnx
from lesionfast.serving.predictor import Predictor


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """The run exported with both ONNX files."""
    return export(trained, tmp_path_factory.mktemp("onnx") / "model", onnx=True, int8=True)


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def given(folder):
    """200 images that are noise, with and without metadata."""
    bundle, draw = Bundle.read(folder), np.random.default_rng(0)
    pixels = draw.integers(0, 256, (200, bundle.size, bundle.size, 3), dtype=np.uint8)
    pixels = (pixels * draw.uniform(0.2, 1, (200, 1, 1, 3))).astype(np.uint8)
    metadata = draw.normal(size=(200, bundle.encoder.width)).astype(np.float32)
    metadata[::2] = bundle.encoder.transform(unknown(bundle))
    return pixels, metadata


def unknown(bundle):
    import pandas as pd

    return pd.DataFrame({"age": [np.nan], "sex": pd.Series([np.nan], dtype=object)})


@pytest.mark.parametrize("batch", [1, 3, 17, 200])
def test_it_gives_what_pytorch_gives(folder, trained, given, batch):
    pixels, metadata = (each[:batch] for each in given)
    bundle = Bundle.read(folder)
    torch_engine = open_engine(
        folder / "model.safetensors", bundle.model, views=2, precision="float32", device="cpu"
    )
    expected, features = torch_engine(pixels, metadata)
    found = OnnxEngine(folder / "model.onnx").run(pixels, metadata)
    np.testing.assert_allclose(found[PLAIN], expected, rtol=0, atol=1e-4)
    calibrated = bundle.calibrator.apply(expected)
    np.testing.assert_allclose(found[CALIBRATED], calibrated, rtol=0, atol=1e-4)
    scale = np.abs(features).max()
    np.testing.assert_allclose(found["features"], features, rtol=0, atol=1e-4 * scale)


def test_its_rows_are_those_of_the_run(folder, trained):
    df = load_dataset(trained.config, split=trained.path / "split.csv")
    df = df[df["split"] == "test"]
    expected = Predictor(trained).predict(df)
    found = Predictor(folder / "model.onnx").predict(df)
    assert list(found) == list(expected)
    for name in ("decision", "prediction_set", "refer", "outlier", "not_known", "error"):
        assert found[name].tolist() == expected[name].tolist(), name
    numbers = [name for name in found if name.startswith(("p_", "uncalibrated_"))]
    np.testing.assert_allclose(
        found[numbers].to_numpy(float), expected[numbers].to_numpy(float), rtol=0, atol=1e-4
    )


def test_it_needs_no_pytorch_and_no_other_file(folder, photos, tmp_path):
    alone = shutil.copy(folder / "model.onnx", tmp_path / "model.onnx")
    code = (
        "import sys; from lesionfast.cli import main\n"
        f"sys.argv = ['lesionfast', 'predict', {str(alone)!r}, {photos[0]!r}, '--set', 'age=55']\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "assert not {'torch', 'fastai', 'timm'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert "outlier" not in head and row.startswith(photos[0])
    assert "outliers.safetensors is not beside model.onnx" in done.stderr


def test_other_views_than_its_own_are_refused(folder):
    with pytest.raises(LesionfastError, match="the 2 views of .* are built in. Leave --tta out"):
        Predictor(folder / "model.onnx", views=8)
    Predictor(folder / "model.onnx", views=2)


HARMS = ["changed", "truncated", "foreign", "cut off", "text", "gone", "newer"]


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_that_is_no_model_is_told(copy, harm, tmp_path):
    import onnx

    file = copy / "model.onnx"
    data, expected = file.read_bytes(), "can't be read as ONNX"
    if harm == "changed":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        expected = "is not the file that was exported"
    else:
        (copy / "model.json").unlink()
    if harm == "truncated":
        file.write_bytes(data[: len(data) // 2])
    if harm == "text":
        file.write_text("no model")
    if harm == "gone":
        file.unlink()
        expected = "there is no .*model.onnx. Make it: lesionfast export"
    if harm in ("foreign", "newer", "cut off"):
        graph = onnx.load(file)
        told = json.loads(graph.metadata_props[0].value)
        del graph.metadata_props[:]
        if harm == "newer":
            value = json.dumps(told | {"schema": SCHEMA + 1})
            graph.metadata_props.add(key="lesionfast", value=value)
        if harm == "cut off":
            graph.metadata_props.add(key="lesionfast", value='{"schema": ')
        onnx.save(graph, file)
        expected = (
            f"has the schema {SCHEMA + 1}" if harm == "newer" else "is not a model of lesionfast"
        )
    with pytest.raises(LesionfastError, match=expected):
        Predictor(file)


def test_eight_bits_are_a_smaller_file_whose_change_is_told(folder, trained, photos):
    whole, small = folder / "model.onnx", folder / INT8
    assert small.stat().st_size < 0.5 * whole.stat().st_size
    told = OnnxEngine(small).description["int8"]
    assert OnnxEngine(small).description["limits"]["answers"] == {}  # the counts are of float32
    assert told["images"] == len(photos) and set(told["int8"]) == set(told["float32"])
    assert f"in 8-bit numbers {told['int8']['balanced_accuracy']:.3f}" in (
        folder / "README.md"
    ).read_text("utf-8")
    decided = [Predictor(each)(photos[0])["decision"] for each in (whole, small)]
    assert all(each in (*trained.classes, None) for each in decided)


def test_a_file_that_differs_from_pytorch_is_not_kept(trained, tmp_path, monkeypatch):
    bundle, file, run = Bundle.from_run(trained), tmp_path / "model.onnx", OnnxEngine.run
    monkeypatch.setattr(
        OnnxEngine, "run", lambda *given: {k: v + 2e-4 for k, v in run(*given).items()}
    )
    with pytest.raises(
        LesionfastError, match=r"differ by up to 2\.\de-04 on \d+ validation images"
    ):
        write_onnx(trained, bundle, file)
    assert not file.exists()


@pytest.mark.parametrize(
    "changes", [{"fusion": "none", "metadata": "none"}, {"fusion": "metadata"}], ids=str
)
def test_a_model_of_images_or_of_metadata_alone(changes, tmp_path):
    from lesionfast.training.experiment import train

    config = TrainConfig(
        arch="test_resnet",
        weights="none",
        size=32,
        epochs=1,
        batch_size=16,
        tta=2,
        precision="float32",
        **changes,
    )
    df = load_dataset(config)
    run = train(df, config, tmp_path)
    found = Predictor(export(run, tmp_path / "model", onnx=True) / "model.onnx").predict(df)
    known = run.predictions.set_index("image_id")
    own = [f"uncalibrated_{name}" for name in run.classes]
    found = found.set_index("image").loc[known.index, own].to_numpy(float)
    expected = known[[f"p_{name}" for name in run.classes]].to_numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_graph_gives_the_probabilities_of_another_clinic(trained, tmp_path, photos):
    folder = export(trained, tmp_path / "model", onnx=True, prior="mel=0.01,nv=0.9")
    predictor = Predictor(folder / "model.onnx")
    found = predictor(photos[0])
    with FileReader() as reader:
        pixels = [look[None] for look in predictor.pixels(reader, photos[0])]
    graph = predictor.engine.run(pixels, predictor.metadata.encode([{}]))[CALIBRATED][0]
    shown = [found[f"p_{name}"] for name in trained.classes]
    np.testing.assert_allclose(graph, shown, rtol=0, atol=1e-4)
    assert found["p_mel"] < Predictor(trained)(photos[0])["p_mel"]


def test_missing_packages_say_what_to_type(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(LesionfastError, match=r"pip install 'lesionfast\[onnx\]'"):
        export(trained, tmp_path / "model", onnx=True)
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_that_is_not_in_the_list_beside_it_is_not_opened(copy, change_description):
    change_description(copy, lambda told: told["files"].pop("model.onnx"))
    with pytest.raises(LesionfastError, match="has no SHA-256 of model.onnx"):
        Predictor(copy / "model.onnx")


@pytest.mark.parametrize("name", ["model.onnx", "model-int8.onnx"])
def test_outliers_that_were_changed_beside_an_onnx_file_are_not_opened(copy, name):
    (copy / "model.json").unlink()
    assert Predictor(copy / name).bundle.ood
    (copy / "outliers.safetensors").write_bytes(b"changed")
    with pytest.raises(LesionfastError, match="outliers.safetensors is not the file"):
        Predictor(copy / name)
