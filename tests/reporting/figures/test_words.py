"""A figure in words has the numbers that it shows."""

from matplotlib.figure import Figure

from lesionfast.reporting.figures.words import MOST, describe_figure


def test_curves_bars_and_cells_are_told_with_their_labels():
    figure = Figure()
    figure.suptitle("Of three kinds\ntest, 9 images")
    curve, bars, cells = figure.subplots(3)
    curve.plot([0, 0.5, 1], [0, 0.8, 1], label="mel\nAUC 0.812")
    curve.plot([0, 1], [0, 1])
    curve.set(xlabel="share", ylabel="sensitivity", title="Curve")
    bars.barh([0, 1], [3, 40])
    bars.set_yticks([0, 1], ["age", "sex"])
    cells.imshow([[1, 2], [3, 4]])
    cells.set_xticks([0, 1], ["mel", "nv"])
    cells.set_yticks([0, 1], ["mel", "nv"])
    cells.text(1, 0, "20 %\n2")
    assert describe_figure(figure).splitlines() == [
        "Of three kinds, test, 9 images",
        "Curve; sensitivity over share; mel, AUC 0.812: 0 at 0, 0.8 at 0.5, 1 at 1.",
        "3 at age, 40 at sex.",
        "mel as nv: 20 %, 2.",
    ]


def test_long_ones_are_cut():
    figure = Figure()
    axis = figure.subplots()
    for number in range(500):
        axis.text(0, number, f"word {number} and others")
    assert len(describe_figure(figure)) <= MOST + 2


def test_an_empty_figure_has_no_words():
    assert describe_figure(Figure()) == ""
