"""The figures are real pictures with the run's numbers on them."""

import logging
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.report import images as module
from lesionfast.report.errors import confusion, draw_confusion, melanoma
from lesionfast.report.images import decision_caption, draw_grid, rounded_percent
from lesionfast.report.metrics import (
    draw_precision_recall,
    draw_roc,
    draw_training,
    metrics,
    training,
)
from lesionfast.report.page import class_styles, drawn_classes
from lesionfast.runs import Run

NAMES = [
    "confusion.png",
    "melanomas_taken_for_nevi.png",
    "precision_recall.png",
    "roc.png",
    "top_losses.png",
    "training.png",
]


def words(figure: Figure) -> str:
    """All text on a figure."""
    texts = [each.get_text() for axis in figure.axes for each in axis.findobj(match=_is_text)]
    return "\n".join([figure.get_suptitle(), figure.get_supxlabel(), *texts])


def _is_text(artist) -> bool:
    return hasattr(artist, "get_text")


def test_every_figure_is_a_picture_with_something_on_it(make_run, images):
    interpretation = Interpretation.of(make_run())
    images(interpretation.top_losses())
    images(interpretation.taken_for())
    findings = Findings(interpretation)
    for build in (melanoma, confusion, metrics, training):
        build(findings)
    findings.drawn(module.draw_top_losses)
    paths = sorted(findings.files.values())
    assert [path.name for path in paths] == NAMES
    for path in paths:
        assert path.parent == interpretation.run.path / "figures"
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert 700 < picture.width < 3000 and 300 < picture.height < 4000
            grey = np.asarray(picture.convert("L"))
        assert 0.01 < (grey < 200).mean() < 0.9
        assert "<svg" in path.with_suffix(".svg").read_text()[:1000]
    assert len(list(paths[0].parent.iterdir())) == 2 * len(NAMES)
    pyplot = sys.modules.get("matplotlib.pyplot")  # only if another test imported it
    assert pyplot is None or not pyplot.get_fignums()


def test_confusion_has_every_count_and_share(make_run, tmp_path, drawn):
    interpretation = Interpretation.of(make_run(), rule="argmax")
    draw_confusion(interpretation, tmp_path)
    counts, text = interpretation.confusion(), words(drawn["confusion"])
    for truth in counts.index:
        for decision in counts.columns:
            count, share = counts.loc[truth, decision], counts.loc[truth] / counts.loc[truth].sum()
            if count:
                assert f"{rounded_percent(share[decision])}\n{count}" in text
    assert f"mel (melanoma)\nn {counts.loc['mel'].sum()}" in text
    assert "test, 600 images, rule argmax" in text
    assert interpretation.run.path.name in text and "0123456789ab" in text


def test_curves_name_every_class_with_its_number(make_run, tmp_path, drawn):
    interpretation = Interpretation.of(make_run())
    measures = Findings(interpretation).measures
    draw_roc(interpretation, measures, tmp_path)
    draw_precision_recall(interpretation, measures, tmp_path)
    for name, metric in (("roc.png", "auc"), ("precision_recall.png", "average_precision")):
        axis = drawn[name.removesuffix(".png")].axes[0]
        legend = [text.get_text() for text in axis.get_legend().get_texts()]
        assert [text.split(" ")[0] for text in legend] == interpretation.classes
        rows = measures[measures["metric"] == metric].set_index("of").loc[interpretation.classes]
        counts = interpretation.metrics["counts"]
        for text, row in zip(legend, rows.itertuples(), strict=True):
            assert f", n {counts[row.Index]}\nA" in text
            assert text.endswith(f" {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]")
        assert axis.get_xlabel() and axis.get_ylabel()


def test_marks_sit_where_the_rule_decides(make_run, tmp_path, drawn):
    interpretation = Interpretation.of(make_run())
    draw_precision_recall(interpretation, Findings(interpretation).measures, tmp_path)
    marks = drawn["precision_recall"].axes[0].collections
    found = np.array([each.get_offsets()[0] for each in marks])
    table = interpretation.sensitivity_table()
    assert found == pytest.approx(table[["sensitivity", "precision"]].to_numpy())


def test_a_class_named_malignant_has_its_own_images_in_the_legend(make_run, tmp_path, drawn):
    interpretation = Interpretation.of(make_run(classes=("benign", "malignant"), n=60))
    draw_roc(interpretation, Findings(interpretation).measures, tmp_path)
    legend = [text.get_text() for text in drawn["roc"].axes[0].get_legend().get_texts()]
    count = int((interpretation.truth == 1).sum())
    assert count > 0 and legend[1].startswith(f"malignant, n {count}\nAUC 0.")


def test_a_class_without_others_has_neither_curve_nor_number(make_run, tmp_path, drawn):
    run = make_run()
    table = run.predictions[run.predictions["target"] == "nv"]
    table.to_csv(run.path / "predictions.csv", index=False)
    interpretation = Interpretation.of(Run(run.path))
    draw_precision_recall(interpretation, Findings(interpretation).measures, tmp_path)
    axis = drawn["precision_recall"].axes[0]
    assert all(t.get_text().endswith("\nundefined") for t in axis.get_legend().get_texts())
    assert all(len(line.get_xdata()) == 0 for line in axis.lines)


def test_a_class_without_images_keeps_its_place_in_the_legend(make_run, tmp_path, drawn):
    run = make_run()
    table = run.predictions[run.predictions["target"] != "df"]
    table.to_csv(run.path / "predictions.csv", index=False)
    interpretation = Interpretation.of(Run(run.path))
    draw_roc(interpretation, Findings(interpretation).measures, tmp_path)
    legend = drawn["roc"].axes[0].get_legend().get_texts()
    assert legend[3].get_text() == "df (dermatofibroma), n 0\nundefined"


def test_classes_keep_their_look_whichever_others_there_are():
    few, many = class_styles(["mel", "nv"]), class_styles(["akiec", "bcc", "mel", "nv", "scc"])
    assert few["mel"] == many["mel"] and few["nv"] == many["nv"]
    looks = [tuple(map(str, each.values())) for each in class_styles(map(str, range(30))).values()]
    assert len(set(looks)) == 30


def test_training_shows_phases_and_the_epoch_that_was_kept(make_run, tmp_path, drawn):
    run = make_run()
    draw_training(Interpretation.of(run), tmp_path)
    figure = drawn["training"]
    text = words(figure)
    assert "epoch 5: its weights are kept" in text and "balanced accuracy" in text
    phases = [t.get_text() for t in figure.axes[0].child_axes[0].get_xticklabels()]
    assert phases == ["head", "head + last 1 stage", "head + last 2 stages", "all"]
    assert figure.axes[1].lines[0].get_ydata().tolist() == run.history["balanced_accuracy"].tolist()


def test_one_epoch_is_drawn(make_run, tmp_path, drawn):
    run = make_run()
    lines = (run.path / "history.csv").read_text().splitlines()
    (run.path / "history.csv").write_text("\n".join(lines[:2]) + "\n")
    draw_training(Interpretation.of(Run(run.path)), tmp_path)
    assert drawn["training"].axes[0].lines[0].get_ydata().tolist() == [1.52]


def test_other_classes_have_no_grid_of_melanomas(make_run, images):
    findings = Findings(Interpretation.of(make_run(classes=("benign", "malignant"), n=30)))
    assert melanoma(findings) is None
    for build in (confusion, metrics, training):
        build(findings)
    findings.drawn(module.draw_top_losses)
    names = sorted(path.name for path in findings.files.values())
    assert names == [name for name in NAMES if "melanoma" not in name]


def test_grid_shows_the_pictures_and_says_how_many_of_how_many(make_run, images, tmp_path, drawn):
    interpretation = Interpretation.of(make_run(rule="argmax"))
    taken = interpretation.taken_for()
    images(taken)
    module.draw_melanomas_taken_for_nevi(interpretation, tmp_path, most=6)
    figure = drawn["melanomas_taken_for_nevi"]
    melanomas = interpretation.confusion().loc["mel"].sum()
    assert f"{len(taken)} of {melanomas} melanomas, the 6 most confident" in figure.get_suptitle()
    assert "test, 600 images, rule argmax" in figure.get_suptitle()
    pictures = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title(loc="left") for axis in pictures] == taken["image_id"][:6].tolist()
    for axis, (_, row) in zip(pictures, taken.iterrows(), strict=False):
        expected = Image.open(row["path"]).convert("RGB")
        assert (axis.images[0].get_array() == np.asarray(expected)).all()
        assert axis.get_xlabel() == decision_caption(row)


def test_no_rows_become_a_figure_that_says_so(make_run, tmp_path, drawn):
    run = make_run()
    table = run.predictions
    table.loc[table["target"] == "mel", [f"p_{c}" for c in run.classes]] = 0.0
    table.loc[table["target"] == "mel", "p_mel"] = 1.0
    table.to_csv(run.path / "predictions.csv", index=False)
    path = module.draw_melanomas_taken_for_nevi(Interpretation.of(Run(run.path)), tmp_path)
    assert path.is_file()
    assert "no melanoma was taken for a nevus" in words(drawn["melanomas_taken_for_nevi"])


def test_a_missing_image_is_a_grey_box_and_is_counted_in_the_log(make_run, images, caplog):
    rows = Interpretation.of(make_run()).top_losses(5)
    images(rows.iloc[:3])
    Path(rows["path"][2]).write_bytes(b"")
    rows.loc[4, "path"] = None
    with caplog.at_level(logging.WARNING, logger="lesionfast"):
        figure = draw_grid(rows, "title", "subtitle", "nothing")
    assert "3 of 5 images not drawn" in caplog.text
    text = words(figure)
    assert "predictions.csv has no path" in text.replace("\n", " ")
    boxes = [axis for axis in figure.axes if axis.images and axis.texts]
    assert [axis.get_title(loc="left") for axis in boxes] == rows["image_id"][2:].tolist()


def test_a_zip_member_is_drawn(tmp_path):
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "part/a.png")
    pixels = module.read_pixels(f"{tmp_path}/images.zip/part/a.png")
    assert pixels.shape == (30, 40, 3) and (pixels[0, 0] == [200, 10, 10]).all()
    with pytest.raises(LesionfastError):
        module.read_pixels(float("nan"))


def test_captions_are_plain_words(make_run):
    row = Interpretation.of(make_run()).top_losses(1).iloc[0].copy()
    row["truth"], row["decision"], row["age"], row["sex"] = "mel", "nv", 65.0, None
    row["probability"], row["probability_of_truth"] = 0.934, 0.0004
    assert (
        decision_caption(row)
        == "truth: mel (melanoma), <1%\ndecision: nv (nevus), 93%\n65 years, sex unknown"
    )
    assert "years" not in decision_caption(row.drop(["age", "sex"]))


def test_a_percentage_never_rounds_to_none_or_all():
    values = (0, 0.004, 0.005, 0.5, 0.995, 0.996, 1)
    texts = ["0%", "<1%", "<1%", "50%", ">99%", ">99%", "100%"]
    assert [*map(rounded_percent, values)] == texts


def test_of_hundreds_of_classes_thirty_are_drawn_melanoma_first(make_run, tmp_path, drawn):
    names = ("mel", *(f"class {number}" for number in range(60)))
    interpretation = Interpretation.of(make_run(classes=names, n=300))
    shown = drawn_classes(interpretation)
    assert len(shown) == 30 and shown[0] == "mel"
    draw_confusion(interpretation, tmp_path)
    figure = drawn["confusion"]
    assert len(figure.axes[0].get_yticks()) == 30 and max(figure.get_size_inches()) < 22
    assert "; 30 of 61 classes" in figure.get_suptitle()
    totals = interpretation.rows["truth"].value_counts()
    label = figure.axes[0].get_yticklabels()[1].get_text()
    assert label == f"{shown[1]}\nn {totals[shown[1]]}"


def test_the_same_figure_is_the_same_file(make_run, tmp_path):
    interpretation = Interpretation.of(make_run(n=60))
    files = [draw_confusion(interpretation, tmp_path / name) for name in "ab"]
    for suffix in (".png", ".svg"):
        first, second = (file.with_suffix(suffix).read_bytes() for file in files)
        assert first == second
