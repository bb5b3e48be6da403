import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lesionfast.config import TrainConfig
from lesionfast.data.loaders import LesionDataLoaders
from lesionfast.data.split import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.decisions import Decisions
from lesionfast.evaluation.features import read_features
from lesionfast.serving.bundle import UNLIKE, flag_column
from lesionfast.serving.export import export
from lesionfast.serving.inputs import Item
from lesionfast.serving.predictor import AHEAD, CHUNK, Predictor
from lesionfast.training.experiment import train
from lesionfast.training.learner import lesion_learner


@pytest.fixture(scope="module")
def predictor(exported):
    return Predictor(exported)


@pytest.fixture(scope="module")
def test_rows(trained):
    df = load_dataset(trained.config, split=trained.path / "split.csv")
    return df[df["split"] == "test"]


@pytest.mark.parametrize("source", ["run", "folder"])
def test_the_probabilities_are_those_of_the_training(source, trained, exported, test_rows):
    found = Predictor(trained if source == "run" else str(exported)).predict(test_rows)
    assert found.index.equals(test_rows.index)
    known = trained.predictions.set_index("image_id")
    columns = [f"p_{name}" for name in trained.classes]
    expected = known.loc[found["image"], columns].to_numpy()
    own = found[[f"uncalibrated_{name}" for name in trained.classes]].to_numpy(float)
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-5)
    shown = Decisions(trained).calibrator.apply(expected)
    shown[found["outlier"].to_numpy(bool)] = np.nan  # without a decision
    np.testing.assert_allclose(found[columns].to_numpy(float), shown, rtol=0, atol=1e-4)
    assert (found["error"] == "").all()


def test_features_are_those_that_the_run_keeps(trained, test_rows, predictor):
    found = Predictor(trained, features=True).predict(test_rows)
    names = [name for name in found if name.startswith("feature_")]
    expected = read_features(trained).loc[found["image"]].to_numpy()
    np.testing.assert_allclose(found[names].to_numpy(), expected, rtol=1e-3, atol=1e-3)  # float16
    pd.testing.assert_frame_equal(found.drop(columns=names), predictor.predict(test_rows))


def test_one_image_is_the_row_of_many(predictor, test_rows):
    row = test_rows.dropna(subset=["age", "sex"]).iloc[0]
    many = predictor.predict(test_rows).set_index("image").loc[row["image_id"]]
    one = predictor(row["path"], age=row["age"], sex=row["sex"])
    assert one["decision"] == many["decision"] and one["prediction_set"] == list(
        many["prediction_set"]
    )
    names = [name for name in one if name.startswith(("p_", "uncalibrated_"))]
    assert len(names) == 2 * len(predictor.bundle.classes)
    np.testing.assert_allclose([one[n] for n in names], many[names].astype(float), atol=1e-6)
    assert sum(one[f"p_{name}"] for name in predictor.bundle.classes) == pytest.approx(1, abs=1e-5)


def test_an_image_may_come_as_bytes_picture_or_array(predictor, photos):
    with open(photos[0], "rb") as file:
        data = file.read()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    found = [predictor(each)["p_mel"] for each in (photos[0], data, picture, np.asarray(picture))]
    assert found == pytest.approx([found[0]] * 4, abs=1e-5)


def test_a_dicom_file_brings_age_and_sex_unless_they_are_given(predictor, photos, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    pixels = np.asarray(Image.open(photos[0]).convert("RGB"))
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *pixels.shape[:2], 3
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.PlanarConfiguration = 7, 0, 0
    dataset.PhotometricInterpretation, dataset.PixelData = "RGB", pixels.tobytes()
    dataset.PatientAge, dataset.PatientSex = "045Y", "F"
    dataset.save_as(tmp_path / "a.dcm")
    path = str(tmp_path / "a.dcm")
    assert set(predictor(photos[0])["not_known"]) - set(predictor(path)["not_known"]) == {
        "age",
        "sex",
    }
    for given in ({}, {"sex": "male"}):
        tags = {"age": 45, "sex": "female", **given}
        assert predictor(path, **given)["p_mel"] == predictor(pixels, **tags)["p_mel"]


def test_a_picture_that_is_cut_off_is_told(predictor, photos):
    with open(photos[0], "rb") as file:
        data = file.read()
    with pytest.raises(LesionfastError, match="can't be predicted: image file is truncated"):
        predictor(Image.open(io.BytesIO(data[: len(data) // 2])))


def test_what_is_not_known_is_said_and_changes_the_answer(predictor, photos):
    known, unknown = predictor(photos[0], age=85, sex="male"), predictor(photos[0])
    assert known["not_known"] == [] and unknown["not_known"] == ["age", "sex"]
    assert known["p_mel"] != unknown["p_mel"]
    assert predictor(photos[0], age=None, sex="unknown") == unknown


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"height": 180}, "does not take height; it takes age, sex"),
        ({"age": "old"}, "age is 'old', which is not an age"),
        ({"age": 999}, "age is '999', which is not an age"),
        ({"age": 1e308}, "which is not an age"),
        ({"sex": "robot"}, "sex is 'robot', which the model never saw in training"),
    ],
)
def test_wrong_metadata_is_an_error(predictor, photos, metadata, message):
    with pytest.raises(LesionfastError, match=message):
        predictor(photos[0], **metadata)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"age": "old"},
            r"age is 'old', which is not an age in years.* Type for example age=\d\d\.",
        ),
        ({"age": "inf"}, "age is 'inf', which is not an age"),
        ({"age": "-5"}, "age is '-5', which is not an age"),
        (
            {"sex": "femal"},
            "which the model never saw in training. Did you mean 'female'",
        ),
        ({"sex": "3"}, "Type one of: female, male, unknown."),
    ],
)
def test_what_is_said_of_all_images_is_checked_before_the_first(predictor, told, message):
    with pytest.raises(LesionfastError, match=message):
        predictor.check(told)
    predictor.check({"age": "unknown", "sex": "female"})
    predictor.check({})
    assert not predictor.metadata.unseen


@pytest.mark.parametrize("age", ["1e308", "999", "5500", "-40", "inf", "old"])
def test_an_impossible_age_in_a_table_is_the_error_of_its_row(predictor, photos, age):
    items = [Item(name, photos[0], {"age": told}) for name, told in (("a", age), ("b", "55"))]
    found = next(iter(predictor.stream(items)))
    reason = f"age is '{age}', which is not an age in years (0 to 120)"
    assert found["error"].tolist() == [reason, ""]
    assert found["decision"].isna().tolist() == [True, False]


def test_a_value_that_training_never_saw_counts_as_not_known(predictor, photos, caplog):
    found = next(iter(predictor.stream([Item("a", photos[0], {"sex": "other"})])))
    predictor.metadata.report()
    assert found["not_known"].tolist() == [("age", "sex")]
    assert "values that training never saw count as missing: sex other (1)" in caplog.text


def test_fewer_views_are_another_mean(trained, photos):
    first, both = (Predictor(trained, views=n)(photos[0])["p_mel"] for n in (1, 2))
    assert first != both


def test_bfloat16_gives_nearly_what_float32_does(trained, test_rows):
    columns, found = [f"uncalibrated_{name}" for name in trained.classes], {}
    for precision in ("float32", "bfloat16"):
        predictor = Predictor(trained)
        predictor.engine.precision = precision
        found[precision] = predictor.predict(test_rows.head(40))[columns].to_numpy(float)
    differences = np.abs(found["bfloat16"] - found["float32"])
    assert 0 < differences.max() < 0.1 and differences.mean() < 0.01  # 8 bits of mantissa


@pytest.mark.parametrize("leaves_cpu_free", [False, True])
def test_many_chunks_keep_their_order_and_are_not_read_at_once(
    predictor, photos, monkeypatch, leaves_cpu_free
):
    monkeypatch.setattr(predictor.engine, "leaves_cpu_free", leaves_cpu_free)
    opened = 0

    def items():
        nonlocal opened
        for i in range(5 * CHUNK):
            opened += 1
            yield Item(str(i), photos[i % 3])

    tables = predictor.stream(items())
    first = next(tables)
    assert opened == (1 + AHEAD * leaves_cpu_free) * CHUNK
    table = pd.concat([first, *tables])
    assert table["image"].tolist() == [str(i) for i in range(5 * CHUNK)]
    assert table["p_nv"].nunique() <= 3 * 2  # the last bit may differ with the batch


def test_another_folder_is_no_model(tmp_path):
    with pytest.raises(LesionfastError, match="is not a model: neither a run, nor a folder"):
        Predictor(tmp_path)
    with pytest.raises(LesionfastError, match="is not a model"):
        Predictor(tmp_path / "gone")


def test_a_table_without_paths_is_an_error(predictor):
    with pytest.raises(LesionfastError, match="no column 'path'; it has: image_id"):
        predictor.predict(pd.DataFrame({"image_id": ["a"]}))


def test_a_run_gives_back_a_fastai_learner(trained):
    from fastai.learner import Learner

    learn = lesion_learner(LesionDataLoaders.from_run(trained), trained)
    assert isinstance(learn, Learner) and list(learn.dls.vocab) == trained.classes
    with learn.no_bar(), learn.no_logging():
        found = learn.get_preds(ds_idx=1)[0].numpy()
        both = Predictor(trained, views=1).predict(learn.dls.rows.query("split == 'valid'"))
        learn.fit(1, 0.0)
    columns = [f"uncalibrated_{name}" for name in trained.classes]
    np.testing.assert_allclose(found, both[columns].to_numpy(float), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"fusion": "none", "metadata": "none"}, {"fusion": "metadata"}], ids=str
)
def test_a_model_of_images_or_of_metadata_alone(changes, photos, tmp_path):
    config = TrainConfig(
        arch="test_resnet", weights="none", size=32, epochs=1, batch_size=16, tta=1, **changes
    )
    df = load_dataset(config)
    run = train(df, config, tmp_path)
    known = run.predictions.set_index("image_id")
    found = Predictor(export(run, tmp_path / "model")).predict(df[df["split"] == "test"])
    expected = known.loc[found["image"], [f"p_{name}" for name in run.classes]].to_numpy()
    own = found[[f"uncalibrated_{name}" for name in run.classes]].to_numpy(float)
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-5)


def test_what_is_unlike_the_training_images_has_no_decision(exported, photos):
    predictor = Predictor(exported)
    bundle = predictor.bundle
    calm, bar = predictor(photos[0]), replace(bundle.ood, threshold=-99.0)
    assert calm["decision"] in bundle.classes and calm["no_decision"] == ""
    predictor.bundle = replace(bundle, ood=bar)  # now everything is above the threshold
    row = predictor(photos[0])
    assert row["decision"] is None and row["no_decision"] == UNLIKE
    assert row["outlier"] is True and row["refer"] is True
    assert row["prediction_set"] == bundle.classes  # an order would tell what is withheld
    assert {row[flag_column(point)] for point in bundle.points} == {None}
    assert row["likely"] is None and row["advice"].startswith("This does not look like")
    assert {row[f"p_{name}"] for name in bundle.classes} == {None}
    kept = [f"uncalibrated_{name}" for name in bundle.classes]
    assert [row[name] for name in kept] == [calm[name] for name in kept]


def test_what_people_get_has_no_line_against_another(predictor, test_rows):
    found, classes = predictor.predict(test_rows), predictor.bundle.classes
    judged = found[found["likely"].notna()]
    shown = judged[[f"p_{name}" for name in classes]].to_numpy(float)
    assert (judged["likely"] == np.asarray(classes)[shown.argmax(axis=1)]).all()
    for row in judged.itertuples():
        cancers = set(row.prediction_set) & set(classes.malignant)
        assert row.likely in row.prediction_set
        if not row.refer:
            assert row.likely not in classes.malignant
            assert ("not ruled out" in row.advice) == bool(cancers)
        if "can't be ruled out" in row.advice:
            assert row.refer and cancers
    assert found["refer"].nunique() == 2


def test_costs_and_class_shares_change_the_advice(exported, test_rows):
    usual = Predictor(exported).predict(test_rows)
    bold = Predictor(exported, cost="missed_melanoma=1.1,missed_cancer=1.1").predict(test_rows)
    rare = Predictor(exported, prior="mel=0.001").predict(test_rows)
    assert bold["refer"].sum() < usual["refer"].sum()
    assert rare["p_mel"].mean() < usual["p_mel"].mean() / 10
    columns = [f"p_{name}" for name in Predictor(exported).bundle.classes]
    judged = rare.loc[rare["likely"].notna(), columns]
    np.testing.assert_allclose(judged.to_numpy(float).sum(axis=1), 1, atol=1e-5)
    flags = [name for name in usual if "_at_" in name]
    pd.testing.assert_frame_equal(rare[flags], usual[flags])  # what they promise is by class
    with pytest.raises(LesionfastError, match="'missed' is not a cost"):
        Predictor(exported, cost="missed=3")
    with pytest.raises(LesionfastError, match="type it with predict and a folder"):
        Predictor(exported, prior="estimate")


def test_the_class_shares_of_pictures_are_estimated(exported, test_rows):
    predictor = Predictor(exported)
    items = [Item(row.image_id, row.path) for row in test_rows.itertuples()]
    found = predictor.estimate_prior(items)
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    assert not predictor.metadata.missing  # it counts for the predictions that follow
    with pytest.raises(LesionfastError, match="found no image that the model can judge"):
        predictor.estimate_prior([Item("gone", None)])


def test_the_columns_that_people_get_are_few(exported, photos):
    few = Predictor(exported, all_columns=False)
    assert few.columns == [
        *("image", "advice", "refer", "prediction_set"),
        *(f"p_{name}" for name in few.bundle.classes),
        "error",
    ]
    every = Predictor(exported)
    assert len(few.columns) == 12 and set(few.columns) < set(every.columns)
    row = few(photos[0])
    assert row == {name: every(photos[0])[name] for name in row}


def test_of_many_classes_the_gravest_and_the_most_frequent_are_shown(exported):
    bundle = Predictor(exported).bundle
    names = ["mel", *(f"benign {n}" for n in range(9)), "bcc"]
    model = bundle.model | {"classes": names, "malignant": ["mel", "bcc"], "prior": [1 / 11] * 11}
    many = replace(bundle, model=model, prevalence=tuple(np.arange(1, 12) / 66))
    expected = ["mel", *(f"benign {n}" for n in range(4, 9)), "bcc"]
    assert many.main_columns[3:] == [f"p_{name}" for name in expected]


def test_an_export_of_an_earlier_version_keeps_its_flags(exported, tmp_path, change_description):
    def make_old(told):
        for name in ("of", "costs", "prevalence", "clinic"):
            told.pop(name)
        told["schema"] = 2
        told["operating_points"][0]["threshold"] = 0.5

    folder = Path(shutil.copytree(exported, tmp_path / "old"))
    change_description(folder, make_old)
    bundle = Predictor(folder).bundle
    assert not bundle.of_shown and bundle.prevalence == tuple(bundle.model["prior"])
    own = np.full((2, 7), 0.05)
    own[0, 4] = own[1, 5] = 0.7
    point = bundle.points[0]
    assert point.of == "mel"
    row = replace(bundle, ood=None).assess(own, np.ones((2, 0)), [])
    assert row[flag_column(point)].tolist() == [True, False]
