"""The curves name every class with its numbers; the table has both rules."""

import numpy as np
import pytest

from lesionfast.console import print_table
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.metrics import (
    draw_precision_recall,
    draw_roc,
    draw_training,
    metrics_table,
)
from lesionfast.run import Run


def test_curves_name_every_class_with_its_number(make_run, tmp_path, drawn):
    interpretation = Interpretation.from_run(make_run())
    measures = interpretation.measures
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
    interpretation = Interpretation.from_run(make_run())
    draw_precision_recall(interpretation, interpretation.measures, tmp_path)
    marks = drawn["precision_recall"].axes[0].collections
    found = np.array([each.get_offsets()[0] for each in marks])
    table = interpretation.sensitivity_table()
    assert found == pytest.approx(table[["sensitivity", "precision"]].to_numpy())


def test_a_class_named_malignant_has_its_own_images_in_the_legend(make_run, tmp_path, drawn):
    interpretation = Interpretation.from_run(make_run(classes=("benign", "malignant"), n=60))
    draw_roc(interpretation, interpretation.measures, tmp_path)
    legend = [text.get_text() for text in drawn["roc"].axes[0].get_legend().get_texts()]
    count = int((interpretation.truth == 1).sum())
    assert count > 0 and legend[1].startswith(f"malignant, n {count}\nAUC 0.")


def test_a_class_without_others_has_neither_curve_nor_number(make_run, tmp_path, drawn):
    run = make_run()
    table = run.predictions[run.predictions["target"] == "nv"]
    table.to_csv(run.path / "predictions.csv", index=False)
    interpretation = Interpretation.from_run(Run(run.path))
    draw_precision_recall(interpretation, interpretation.measures, tmp_path)
    axis = drawn["precision_recall"].axes[0]
    assert all(t.get_text().endswith("\nundefined") for t in axis.get_legend().get_texts())
    assert all(len(line.get_xdata()) == 0 for line in axis.lines)


def test_a_class_without_images_keeps_its_place_in_the_legend(make_run, tmp_path, drawn):
    run = make_run()
    table = run.predictions[run.predictions["target"] != "df"]
    table.to_csv(run.path / "predictions.csv", index=False)
    interpretation = Interpretation.from_run(Run(run.path))
    draw_roc(interpretation, interpretation.measures, tmp_path)
    legend = drawn["roc"].axes[0].get_legend().get_texts()
    assert legend[3].get_text() == "df (dermatofibroma), n 0\nundefined"


def test_training_shows_phases_and_the_epoch_that_was_kept(make_run, tmp_path, drawn, words):
    run = make_run()
    draw_training(Interpretation.from_run(run), tmp_path)
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
    draw_training(Interpretation.from_run(Run(run.path)), tmp_path)
    assert drawn["training"].axes[0].lines[0].get_ydata().tolist() == [1.52]


def test_metrics_table_shows_both_rules_and_which_decides(make_run, render, line_of):
    run = make_run()
    lines, rules = render(metrics_table(run, "test")), run.metrics["test"]["rules"]
    assert "argmax" in lines[1] and lines[0].endswith("rule in use: balanced")
    for label, key in (("balanced accuracy", "balanced_accuracy"), ("macro F1", "macro_f1")):
        expected = [f"{rules[rule][key]:.3f}" for rule in ("argmax", "balanced")]
        assert line_of(lines, label)[2:] == expected
    assert line_of(lines, "macro AUC")[2] == f"{run.metrics['test']['macro_auc']:.3f}"
    body = [line for line in lines if line.strip()]
    assert body[-2].startswith("accuracy")
    assert "split sha256 0123456789ab" in body[-1]


def test_metrics_table_has_sensitivity_and_precision_of_each_class(make_run, render):
    run = make_run(rule="argmax")
    lines, rules = render(metrics_table(run, "valid")), run.metrics["valid"]["rules"]
    assert lines[0].endswith("rule in use: argmax")
    found = [line.split()[-2:] for line in lines if line.strip().startswith("mel (melanoma)")]
    assert found == [
        [f"{rules[rule][key]['mel']:.3f}" for rule in ("argmax", "balanced")]
        for key in ("sensitivity", "precision")
    ]


def test_metrics_table_of_other_classes_has_no_melanoma(make_run, render):
    text = "\n".join(render(metrics_table(make_run(classes=("benign", "malignant"), n=40))))
    assert "melanoma" not in text and "malignant, n " in text


def test_metrics_table_names_an_unknown_split(make_run):
    with pytest.raises(LesionfastError, match="'tset'.*Did you mean 'test'"):
        metrics_table(make_run(), "tset")


def test_print_table_writes_whole_tables_to_pipes(make_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    print_table(metrics_table(make_run(classes=("[bold]a", "b"), n=40)), stderr=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[bold]a, n " in captured.err and "\x1b" not in captured.err
