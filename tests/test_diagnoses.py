"""What classes mean, whatever a dataset calls them."""

import json
from dataclasses import asdict, dataclass

import pytest

from lesionfast.diagnoses import Classes, full_name
from lesionfast.errors import LesionfastError


@pytest.mark.parametrize(
    ("names", "melanoma", "malignant", "cancer"),
    [
        (["akiec", "bcc", "mel", "nv"], "mel", ["akiec", "bcc", "mel"], "malignant"),
        (["AK", "BCC", "MEL", "NV", "SCC"], "MEL", ["BCC", "MEL", "SCC"], "malignant"),
        (["ACK", "Basal Cell_Carcinoma", "Melanoma"], "Melanoma",
         ["Basal Cell_Carcinoma", "Melanoma"], "malignant"),
        (["benign", "malignant"], None, ["malignant"], "malignant"),
        (["benign", "Malignant", "mel"], "mel", ["Malignant", "mel"], "any malignant"),
        (["nevus", "wart"], None, [], None),
    ],
)  # fmt: skip
def test_malignant_classes_are_known_by_their_names_in_any_case(names, melanoma, malignant, cancer):
    classes = Classes(names)
    assert (classes.melanoma, classes.malignant, classes.cancer) == (melanoma, malignant, cancer)
    if cancer:
        assert [n for n, m in zip(names, classes.members(cancer), strict=True) if m] == malignant


def test_what_is_typed_comes_first():
    names = ["a, b", "deadly", "nv", "mel"]
    classes = Classes.chosen(names, "deadly", 'deadly, "a, b"')
    assert (classes.melanoma, classes.malignant) == ("deadly", ["deadly", "a, b"])
    assert [classes.gravity(name) for name in names] == [1, 0, 2, 2]
    assert classes.costliest == ("deadly", "nv")
    assert Classes.chosen(names, None, None).melanoma == "mel"


@pytest.mark.parametrize(
    ("melanoma", "malignant", "message"),
    [
        ("melanom", None, "--melanoma names 'melanom'.*Did you mean 'mel'.*has: mel, nv, bcc"),
        (None, "mel,bc", "--malignant names 'bc'.*Did you mean 'bcc'"),
        ("mel", "bcc", "--malignant bcc leaves out 'mel', the class of melanoma"),
        (None, "bcc", "--malignant bcc leaves out 'mel'.* name another class with --melanoma"),
    ],
)
def test_a_name_that_is_no_class_is_an_error(melanoma, malignant, message):
    with pytest.raises(LesionfastError, match=message):
        Classes.chosen(["mel", "nv", "bcc"], melanoma, malignant)


def test_a_class_whose_name_speaks_of_cancer_is_not_benign_in_silence():
    names = ["Melanoma, invasive", "bcc", "Merkel cell carcinoma", "nv", "benign keratosis"]
    classes = Classes(names)
    assert classes.melanoma is None and classes.malignant == ["bcc"]
    assert classes.doubtful == ["Melanoma, invasive", "Merkel cell carcinoma"]
    assert Classes(["mel", "bcc", "nv", "melanocytic nevus"]).doubtful == []


def test_melanoma_is_typed_with_or_without_quotes():
    names = ["Melanoma, invasive", "nv"]
    for typed in ("Melanoma, invasive", '"Melanoma, invasive"'):
        assert Classes.chosen(names, typed, None).melanoma == names[0]


def test_an_unknown_group_is_not_answered_with_itself():
    with pytest.raises(LesionfastError) as error:
        Classes(["nv", "df"]).members("malignant")
    assert "Did you mean" not in str(error.value) and "Name one of: nv, df." in str(error.value)


def test_a_model_says_what_its_classes_mean():
    told = {"classes": ["x", "nv"], "melanoma": "x", "malignant": ["x"]}
    classes = Classes.of_model(json.loads(json.dumps(told)))
    assert classes == ["x", "nv"] and classes.targets == ["x", "malignant"]
    assert Classes.of_model({"classes": ["mel", "nv"]}).targets == ["mel", "malignant"]


def test_names_stay_a_list():
    @dataclass
    class Kept:
        classes: list

    assert json.dumps(asdict(Kept(Classes(["mel", "nv"])))) == '{"classes": ["mel", "nv"]}'


def test_full_names():
    assert full_name("MEL") == "MEL (melanoma)" and full_name("wart") == "wart"
