import numpy as np
import pytest

from lesionfast.diagnoses import Classes
from lesionfast.stats.advice.advice import (
    BENIGN,
    EXAMINE,
    NO_CANCER,
    NO_DECISION,
    SEVERAL,
    UNLIKELY,
    UNSURE,
    advice_table,
    advise,
)
from lesionfast.stats.advice.costs import Costs

CLASSES = Classes(["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"])


def picture(**shares):
    return np.array([[shares.get(name, 0.0) for name in CLASSES]])


def one(probabilities, chosen=(), costs=None, **more):
    sets = np.array([[name in chosen for name in CLASSES]])
    found = advise(probabilities, CLASSES, costs or Costs(), sets, **more)
    return found.key[0], {CLASSES[i] for i in np.flatnonzero(found.open[0])}, bool(found.refer[0])


def test_a_nevus_with_a_little_dermatofibroma_is_a_nevus():
    likely = picture(nv=0.94, df=0.04, mel=0.02)
    assert one(likely, ["nv"]) == (BENIGN, {"nv"}, False)
    assert one(likely, ["df", "nv"]) == (SEVERAL, {"df", "nv"}, False)


def test_what_costs_tip_can_not_be_ruled_out():
    assert one(picture(nv=0.9, mel=0.1), ["nv"]) == (EXAMINE, {"mel", "nv"}, True)
    assert one(picture(nv=0.8, bcc=0.2), ["nv"]) == (EXAMINE, {"bcc", "nv"}, True)
    several = picture(nv=0.91, mel=0.02, akiec=0.035, bcc=0.035)  # none of them alone
    assert one(several, ["nv"]) == (EXAMINE, {"mel", "nv"}, True)


def test_a_cancer_is_not_named_because_another_one_is_likely():
    likely = picture(bcc=0.99, mel=0.003, nv=0.007)
    assert one(likely, ["bcc"]) == (EXAMINE, {"bcc"}, True)


def test_a_cancer_that_is_not_worth_an_examination_is_still_named():
    likely, cheap = picture(nv=0.9, mel=0.1), Costs(missed_melanoma=2)
    assert one(likely, ["mel", "nv"], cheap) == (UNLIKELY, {"mel", "nv"}, False)
    assert one(likely, ["nv"], cheap) == (BENIGN, {"nv"}, False)


def test_a_most_probable_cancer_is_examined_whatever_it_costs():
    spread = picture(bcc=0.4, nv=0.3, bkl=0.3)
    assert one(spread, [], Costs(missed_cancer=0.01))[0] == EXAMINE


def test_a_picture_unlike_the_training_images_gets_no_decision():
    key, left, refer = one(picture(nv=1.0), ["nv"], outlier=np.array([True]))
    assert (key, left, refer) == (NO_DECISION, set(CLASSES), True)


def test_the_least_certain_are_referred():
    key, left, refer = one(picture(nv=0.6, df=0.4), ["nv"], unsure=np.array([True]))
    assert (key, left, refer) == (UNSURE, {"nv"}, True)


@pytest.mark.parametrize("costs", [Costs(), Costs(2, 1, 1), Costs(1000, 1000, 1)])
def test_no_two_lines_contradict_each_other(costs):
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(7, 0.3), 3000)
    sets = rng.random(p.shape) < 0.3
    outlier, unsure = rng.random(3000) < 0.1, rng.random(3000) < 0.2
    found = advise(p, CLASSES, costs, sets, unsure, outlier)
    malignant = np.isin(CLASSES, CLASSES.malignant)
    left = found.open[:, malignant].any(axis=1)
    assert (found.open >= sets).all()  # so the coverage holds
    assert found.open[np.arange(3000), p.argmax(axis=1)].all()
    for key in (BENIGN, SEVERAL):
        assert not left[found.key == key].any() and not found.refer[found.key == key].any()
    for key in (EXAMINE, UNLIKELY):
        assert left[found.key == key].all()
    assert not malignant[found.likely[~found.refer]].any()
    assert (found.key == NO_DECISION).tolist() == outlier.tolist()


def test_a_higher_cost_of_misses_never_examines_less():
    p = np.random.default_rng(1).dirichlet(np.full(7, 0.3), 500)
    few, many = (advise(p, CLASSES, Costs(price, price, 1)).refer for price in (2, 20))
    assert (many >= few).all() and many.sum() > few.sum()


def test_without_a_class_of_cancer_nothing_is_said_of_it():
    found = advise(np.array([[0.9, 0.1]]), ["eczema", "acne"], Costs())
    assert found.key.tolist() == [NO_CANCER] and not found.refer.any()


def test_the_table_counts_each_kind_of_lesion():
    truth = np.array([4, 4, 1, 5, 5, 5, 5])
    key = np.array([EXAMINE, NO_DECISION, UNSURE, EXAMINE, BENIGN, SEVERAL, NO_DECISION], object)
    table = advice_table(truth, key, np.arange(7).astype(str), CLASSES).set_index("of")
    assert table["value"].to_dict() == {
        "melanoma": 0.5, "other cancer": 1.0, "benign": 0.25, "all": 3 / 7
    }  # fmt: skip
    told = table[["examined", "no_decision", "left"]]
    assert told.loc["melanoma"].tolist() == [1, 1, 0]  # who got no decision was not examined by it
    assert told.loc["all"].tolist() == [3, 2, 2] and (told.sum(axis=1) == table["images"]).all()
    assert table["images"].to_dict() == {"melanoma": 2, "other cancer": 1, "benign": 4, "all": 7}
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    assert list(advice_table(truth[3:], key[3:], np.arange(4), CLASSES)["of"]) == [
        "benign",
        "all",
    ]


def test_no_plausible_class_is_no_certainty():
    assert one(picture(nv=0.99, bkl=0.01), ())[0] == UNSURE
    assert one(picture(nv=0.99, bkl=0.01), ("nv",))[0] == BENIGN


def test_without_sets_the_most_probable_classes_are_left():
    found = advise(np.array([[0.6, 0.4], [0.95, 0.05]]), ["nv", "bkl"], Costs())
    assert found.open.tolist() == [[True, True], [True, False]]
    several = advise(picture(nv=0.5, bkl=0.49, df=0.01), CLASSES, Costs())
    assert several.key[0] == SEVERAL and several.open[0].sum() == 2


@pytest.mark.parametrize("name", ["unk", "misc", "carcinoma of some kind"])
def test_a_class_that_tells_nothing_is_not_benign(name):
    classes = Classes(["mel", "nv", name], malignant=["mel"])
    p = np.array([[0.001, 0.99, 0.009], [0.001, 0.3, 0.699]])
    sets = np.array([[False, True, False], [False, True, True]])
    assert advise(p, classes, Costs(), sets).key.tolist() == [BENIGN, UNSURE]
