import numpy as np
import pytest

from lesionfast.errors import LesionfastError
from lesionfast.stats.advice.costs import Costs

CLASSES = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]


def test_the_expected_cost_is_that_of_the_matrix_by_hand():
    probabilities = np.array([[0.1, 0, 0.2, 0, 0.05, 0.65, 0]])
    found = Costs().expected(probabilities, CLASSES)
    assert found == pytest.approx(np.array([[0.05 * 30 + 0.1 * 10, 0.85]]))


@pytest.mark.parametrize(("melanoma", "examine"), [(0.0322, False), (0.0323, True)])
def test_a_missed_melanoma_that_counts_30_times_is_worth_it_from_1_in_31(melanoma, examine):
    leaving, examining = Costs().expected([[melanoma, 1 - melanoma]], ["melanoma", "nevus"])[0]
    assert (leaving >= examining) == examine


def test_the_classes_of_other_datasets_are_known_by_their_names():
    ack = ["ACK", "BCC", "MEL", "NEV", "SCC", "SEK"]  # PAD-UFES-20
    assert Costs().misses(ack).tolist() == [10, 10, 30, 0, 10, 0]
    kinds = ["melanoma in situ", "melanoma", "nevus"]
    assert Costs().misses(kinds).tolist() == [30, 30, 0]
    assert Costs().misses(["benign", "malignant"]).tolist() == [0, 10]
    assert Costs().misses(["eczema", "acne"]).tolist() == [0, 0]


def test_costs_are_told_in_the_unit_of_a_needless_excision():
    costs = Costs(60, 10, 4)
    assert costs.relative() == Costs(15, 2.5, 1)
    chances = [[0.2, 0.3, 0.5]]
    classes = ["mel", "bcc", "nv"]
    relative = costs.relative().expected(chances, classes)
    assert relative == pytest.approx(costs.expected(chances, classes) / 4)


def test_costs_that_are_not_typed_stay():
    base = Costs.parse("missed_melanoma=50, needless_excision=2")
    assert base == Costs(50, 10, 2)
    assert Costs.parse("missed_cancer=5", base) == Costs(50, 5, 2)
    assert Costs.parse(None) == Costs()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missed_melanom=3", "is not a cost. Did you mean 'missed_melanoma'"),
        ("mel:nv=3", "The costs are missed_melanoma, missed_cancer, needless_excision"),
        ("missed_cancer=3,missed_cancer=4", "'missed_cancer' is there twice"),
        ("missed_cancer=much", "'much' is not a number. Type such as --cost"),
        ("missed_cancer=-1", "missed_cancer is -1.0; costs are numbers above 0"),
        ("missed_cancer=nan", "costs are numbers above 0"),
        (
            "missed_cancer=1e200,needless_excision=1e-200",
            "needless_excision=1e-200 are too far apart",
        ),
    ],
)
def test_what_is_not_a_cost_is_an_error(text, message):
    with pytest.raises(LesionfastError, match=message):
        Costs.parse(text)
