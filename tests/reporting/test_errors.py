"""What is confused with what: as figures, and as tables of at most 80 columns."""

import sys

import numpy as np
import pandas as pd
from PIL import Image

from lesionfast.catalog.listing import select_runs
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting import images as module
from lesionfast.reporting.errors import (
    confusion,
    confusion_table,
    draw_confusion,
    interpretation_tables,
    melanoma,
    most_confused_table,
    taken_for_table,
)
from lesionfast.reporting.images import rounded_percent
from lesionfast.reporting.metrics import (
    metrics,
    metrics_table,
    training,
)
from lesionfast.reporting.page import drawn_classes

NAMES = [
    "confusion.png",
    "melanomas_taken_for_nevi.png",
    "precision_recall.png",
    "roc.png",
    "top_losses.png",
    "training.png",
]


def test_every_figure_is_a_picture_with_something_on_it(make_run, images):
    interpretation = Interpretation.from_run(make_run())
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


def test_other_classes_have_no_grid_of_melanomas(make_run, images):
    findings = Findings(Interpretation.from_run(make_run(classes=("benign", "malignant"), n=30)))
    assert melanoma(findings) is None
    for build in (confusion, metrics, training):
        build(findings)
    findings.drawn(module.draw_top_losses)
    names = sorted(path.name for path in findings.files.values())
    assert names == [name for name in NAMES if "melanoma" not in name]


def test_confusion_has_every_count_and_share(make_run, tmp_path, drawn, words):
    interpretation = Interpretation.from_run(make_run(), rule="argmax")
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


def test_of_hundreds_of_classes_thirty_are_drawn_melanoma_first(make_run, tmp_path, drawn):
    names = ("mel", *(f"class {number}" for number in range(60)))
    interpretation = Interpretation.from_run(make_run(classes=names, n=300))
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
    interpretation = Interpretation.from_run(make_run(n=60))
    files = [draw_confusion(interpretation, tmp_path / name) for name in "ab"]
    for suffix in (".png", ".svg"):
        first, second = (file.with_suffix(suffix).read_bytes() for file in files)
        assert first == second


def test_everything_fits_80_columns(make_run, render):
    run = make_run(localization="lower extremity")
    tables = [
        *interpretation_tables(Findings.from_run(run)),
        metrics_table(run),
        select_runs([run]).to_table(),
    ]
    for table in tables:
        natural = render(table, 200)
        assert max(map(len, natural)) <= 80
        assert not any("…" in line for line in render(table, 80))


def test_confusion_table_has_the_counts(make_run, render, line_of):
    interpretation = Interpretation.from_run(make_run())
    lines, confusion = render(confusion_table(interpretation)), interpretation.confusion()
    for name in interpretation.classes:
        expected = [*confusion.loc[name], confusion.loc[name].sum()]
        assert line_of(lines, f"{name} ")[1:] == [str(value) for value in expected]
    shares = render(confusion_table(interpretation, normalize=True))
    expected = confusion.loc["nv", "nv"] / confusion.loc["nv"].sum()
    assert f"{expected:.0%}" in line_of(shares, "nv ")


def test_many_long_names_get_numbered_columns(make_run, render, line_of):
    classes = tuple(f"some rare diagnosis {letter}" for letter in "abcdefghij")
    lines = render(confusion_table(Interpretation.from_run(make_run(classes=classes, n=80))))
    assert line_of(lines, "truth")[-11:] == [*map(str, range(1, 11)), "all"]
    assert any(line.startswith("10 some rare diagnosis j") for line in lines)


def test_a_matrix_of_too_many_classes_is_left_to_the_figure(make_run):
    many = Findings.from_run(make_run(classes=tuple(f"class {i}" for i in range(13)), n=100))
    titles = [table.title for table in interpretation_tables(many)]
    assert not any(title.startswith("Confusion") for title in titles)
    assert any(title.startswith("Most confused") for title in titles)


def test_most_confused_table_starts_with_melanoma(make_run, render):
    interpretation = Interpretation.from_run(make_run())
    lines = render(most_confused_table(interpretation))
    first = interpretation.most_confused().iloc[0]
    assert lines[3].startswith("mel (melanoma)")
    assert lines[3].split()[-2:] == [str(first["count"]), f"{first['share']:.0%}"]


def test_the_pair_with_the_most_images_is_shown_whatever_its_class(make_run, monkeypatch, render):
    interpretation = Interpretation.from_run(make_run())
    rows = [("mel", "nv", 3, 0.1), ("bcc", "akiec", 5, 0.2), ("nv", "mel", 181, 0.2)]
    pairs = pd.DataFrame(rows, columns=["truth", "decision", "count", "share"])
    monkeypatch.setattr(type(interpretation), "most_confused", lambda self: pairs)
    shown = "\n".join(render(most_confused_table(interpretation, most=2)))
    assert "181" in shown and shown.index("mel (") < shown.index("181")
    assert "bcc" not in shown and "the 2 of 3 pairs" in shown


def test_taken_for_table_counts_and_lists(make_run, render):
    interpretation = Interpretation.from_run(make_run(rule="argmax"))
    taken = interpretation.taken_for()
    lines = render(taken_for_table(interpretation), 100)
    assert len(taken) > 10
    assert f"mel taken for nv: {len(taken)} of" in " ".join(lines)
    shown = [line.split()[0] for line in lines if line.startswith("ISIC_")]
    assert shown == taken["image_id"].head(10).tolist()
    assert f"the 10 most confident of {len(taken)}" in " ".join(lines)
