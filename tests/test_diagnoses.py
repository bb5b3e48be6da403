"""What classes mean, whatever a dataset calls them, and lists of them as people type them."""

import json
import re
from dataclasses import asdict, dataclass

import numpy as np
import pytest

from lesionfast.diagnoses import (
    Classes,
    full_name,
    is_malignant,
    is_melanoma,
    is_nevus,
    join_names,
    move_prior,
    quote,
    read_class_weights,
    read_costs,
    read_subclasses,
    read_weights,
    split_names,
    split_unquoted,
    write_weights,
)
from lesionfast.errors import LesionfastError


@pytest.mark.parametrize(
    ("names", "melanoma", "malignant", "cancer"),
    [
        (["akiec", "bcc", "mel", "nv"], "mel", ["akiec", "bcc", "mel"], "malignant"),
        (["AK", "BCC", "MEL", "NV", "SCC"], "MEL", ["AK", "BCC", "MEL", "SCC"], "malignant"),
        (["ACK", "Basal Cell_Carcinoma", "Melanoma", "NEV", "SEK"], "Melanoma",
         ["ACK", "Basal Cell_Carcinoma", "Melanoma"], "malignant"),
        (["BEN_OTH", "MAL_OTH", "SCCKA", "INF"], None, ["MAL_OTH", "SCCKA"], "malignant"),
        (["Melanoma, NOS", "Nevus", "Solar or actinic keratosis"], "Melanoma, NOS",
         ["Melanoma, NOS", "Solar or actinic keratosis"], "malignant"),
        (["melanoma", "not melanoma"], "melanoma", ["melanoma"], "malignant"),
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
        ("mel", "bcc", "--malignant bcc leaves out 'mel', the melanoma class"),
        (None, "bcc", "--malignant bcc leaves out 'mel'.* name another class with --melanoma"),
    ],
)
def test_a_name_that_is_no_class_is_an_error(melanoma, malignant, message):
    with pytest.raises(LesionfastError, match=message):
        Classes.chosen(["mel", "nv", "bcc"], melanoma, malignant)


def test_a_class_whose_name_speaks_of_cancer_is_not_benign_in_silence():
    mixed = "Melanoma Skin Cancer Nevi and Moles"
    names = [mixed, "bcc", "Merkel cell carcinoma", "nv", "benign keratosis", "pseudolymphoma"]
    classes = Classes(names)
    assert classes.melanoma is None and classes.malignant == ["bcc", "Merkel cell carcinoma"]
    assert classes.doubtful == [mixed, "pseudolymphoma"]
    assert Classes(["mel", "bcc", "nv", "melanocytic nevus", "not malignant"]).doubtful == []


MELANOMAS = """
MEL; mel; Melanoma; malignant melanoma; Melanoma, NOS; Melanoma Invasive; melanoma metastasis
melanoma (in situ); melanoma (less than 0.76 mm); lentigo maligna
superficial spreading melanoma ssm; melanoma-acral-lentiginous; nodular-melanoma-(nm)
2. Melanoma 15.75k; Melanoma in situ; 0 mel; MEL (malignant); mel in situ
malignes Melanom; mélanome
"""
CANCERS = """
BCC; SCC; BCC nodular; SCC in situ; SCCKA; AK; ACK; akiec; MAL_OTH
malignant; Malignancy; cancer; actinic_keratoses
basal_cell_carcinoma; BasalCellCarcinoma; Squamous cell carcinoma, NOS
solid cystic basal cell carcinoma; Solar or actinic keratosis; mycosis-fungoides
subcutaneous-t-cell-lymphoma; kaposi sarcoma; CTCL; cutaneous T-cell lymphoma
Merkel cell carcinoma; dermatofibrosarcoma protuberans; leukemia-cutis
squamous-cell-carcinoma-keratoacanthoma; Bowen's disease; malignant- ak
malignant cutaneous lymphoma; malignant epidermal
Collision - At least one malignant proliferation; nonmelanoma skin cancer
"""
NEVI = """
NV; nev; Nevus; melanocytic_Nevi; clark nevus; reed or spitz nevus; nevocytic nevus; Nevus, NOS
benign-melanocytic nevus; 5. Melanocytic Nevi (NV) - 7970; halo nevus; atypical nevus; naevi
"""
HARMLESS = """
BKL; DF; VASC; SEK; BEN_OTH; INF; UNK; benign; Non-melanoma; not malignant; Nonmalignant
nevus sebaceous of jadassohn; becker nevus; seborrheic keratosis; benign_keratosis-like_lesions
normal; solar lentigo; porokeratosis actinic; lymphangioma; granuloma annulare; sarcoidosis
unknown; other
"""


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (MELANOMAS, (True, True, False)),
        (CANCERS, (False, True, False)),
        (NEVI, (False, False, True)),
        (HARMLESS, (False, False, False)),
    ],
)
def test_names_of_all_datasets_are_known_in_any_spelling(listed, told):
    for name in filter(None, re.split("; ?|\n", listed)):
        for spelling in (name, name.upper(), name.replace(" ", "_"), name.replace(" ", "-")):
            assert (is_melanoma(spelling), is_malignant(spelling), is_nevus(spelling)) == told, name


def test_of_kinds_of_melanoma_the_plainest_name_is_the_class():
    kinds = ["melanoma (in situ)", "melanoma", "melanoma metastasis", "clark nevus", "blue nevus"]
    classes = Classes(kinds)
    assert (classes.melanoma, classes.nevus) == ("melanoma", "clark nevus")
    assert classes.malignant == kinds[:3] and classes.other_melanomas == [kinds[0], kinds[2]]
    classes = Classes(["lentigo maligna", "nodular melanoma", "nv"])
    assert classes.melanoma is None and len(classes.malignant) == 2
    assert Classes(["lentigo maligna", "halo nevus"]).costliest == ("lentigo maligna", "halo nevus")
    assert Classes(["halo nevus", "blue nevus", "mel"]).costliest is None


def test_a_run_keeps_what_it_says_of_its_classes():
    told = {"classes": ["Melanoma, invasive", "nv"], "melanoma": None, "malignant": []}
    classes = Classes.of_model(told)
    assert (classes.melanoma, classes.malignant, classes.cancer) == (None, [], None)


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
    assert full_name("MAL_OTH") == "MAL_OTH (other malignant lesion)"
    assert full_name("AK") == "AK (actinic keratosis)" and full_name("NEV") == "NEV (nevus)"


NAMES = ["mel", "basal cell", "a, b", "c=d", "e:f", 'the "best"', " edge ", '"', "nävus", ",,"]


def test_what_is_joined_is_split_again():
    assert split_names(join_names(NAMES)) == NAMES
    assert [name for name in NAMES if quote(name) == name] == ["mel", "basal cell", "nävus"]


@pytest.mark.parametrize("separator", [",", "=", ":"])
def test_a_separator_within_quotes_does_not_split(separator):
    typed = f'"a{separator}b"{separator} c {separator}""'
    assert split_unquoted(typed, separator) == [f'"a{separator}b"', " c ", '""']


CLASSES = ["bcc", "mel", "nv"]


def test_weights_costs_and_subclasses_are_read():
    np.testing.assert_array_equal(read_class_weights("mel=2, bcc=1.5", CLASSES), [1.5, 2, 1])
    np.testing.assert_array_equal(read_class_weights(None, CLASSES), [1, 1, 1])
    costs = read_costs("mel:nv=4,bcc:nv=2", CLASSES)
    np.testing.assert_array_equal(costs, [[0, 0, 2], [0, 0, 4], [0, 0, 0]])
    assert read_subclasses("mel=3,nv=2", CLASSES) == {"mel": 3, "nv": 2}
    assert read_subclasses(None, CLASSES) == {}


ODD = ["a, b", "basal cell", "c=d:e", 'the "best"', "mel"]


def test_class_names_with_commas_colons_and_quotes_are_typed_in_double_quotes():
    weights = read_class_weights('"a, b"=2, basal cell=3,"c=d:e"=4,"the ""best"""=5', ODD)
    np.testing.assert_array_equal(weights, [2, 3, 4, 5, 1])
    costs = read_costs('"a, b":"c=d:e"=4,mel:basal cell=2', ODD)
    assert costs[0, 2] == 4 and costs[4, 1] == 2 and costs.sum() == 6
    assert read_subclasses('"a, b"=3', ODD) == {"a, b": 3}
    assert read_weights(write_weights(dict.fromkeys(ODD, 1.5))) == dict.fromkeys(ODD, 1.5)


def test_a_name_torn_at_its_comma_says_how_to_type_it():
    with pytest.raises(LesionfastError) as error:
        read_class_weights("a, b=2", ODD)
    assert str(error.value).startswith(
        "--class-weight has 'a', but it needs a class and a number above 0, such as mel=2."
    )
    assert """in double quotes: --class-weight '"a, b"=2'.""" in str(error.value)
    with pytest.raises(LesionfastError, match="""--cost '"a, b":nv=4'."""):
        read_costs("c=d:e:mel=2", ODD)
    with pytest.raises(LesionfastError, match='The data has: "a, b", basal cell, "c=d:e"'):
        read_subclasses("bb=2", ODD)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_class_weights, "mell=2", "names 'mell'.*Did you mean 'mel'"),
        (
            read_class_weights,
            "mel",
            "has 'mel', but it needs a class.*such as mel=2",
        ),
        (read_class_weights, "mel=-1", "needs a class and a number above 0"),
        (read_class_weights, "mel=inf", "needs a class and a number above 0"),
        (read_class_weights, "mel=2,mel=3", "names a class twice"),
        (read_costs, "mel=2", "needs two classes and a number above 0, such as mel:nv=4"),
        (read_costs, "mel:mel=2", "'mel:mel', but a right decision costs nothing.*--cost mel:nv=4"),
        (read_costs, "mel:nevus=2", "names 'nevus', which is not a class"),
        (read_subclasses, "mel=1", "type a whole number from 2"),
        (read_subclasses, "mel=2.5", "type a whole number from 2"),
    ],
)
def test_what_can_not_be_read_says_what_to_type(read, text, message):
    with pytest.raises(LesionfastError, match=message):
        read(text, CLASSES)


def test_a_moved_prior_keeps_the_balanced_decision_and_comes_back():
    rng = np.random.default_rng(0)
    probabilities, before, after = rng.dirichlet([1, 1, 1], 50), [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]
    moved = move_prior(probabilities, before, after)
    np.testing.assert_allclose(moved.sum(axis=1), 1)
    np.testing.assert_array_equal(
        (moved / after).argmax(axis=1), (probabilities / before).argmax(axis=1)
    )
    np.testing.assert_allclose(move_prior(moved, after, before), probabilities)
    assert move_prior(probabilities, before, before) is probabilities


def test_a_class_that_a_prior_lacks_gets_no_probability():
    moved = move_prior(np.array([[0.5, 0.5, 0.0]]), [0.5, 0.5, 0.0], [1 / 3] * 3)
    np.testing.assert_allclose(moved, [[0.5, 0.5, 0.0]])


@pytest.mark.parametrize("after", [[0.2, 0.2, 0.6], [0.5, 0.5, 0.0]])
def test_a_tensor_moves_as_an_array(after):
    import torch

    probabilities, before = np.random.default_rng(0).dirichlet([1, 1, 1], 9), [0.5, 0.5, 0.0]
    moved = move_prior(torch.tensor(probabilities, dtype=torch.float32), before, after)
    assert moved.dtype == torch.float32
    np.testing.assert_allclose(moved, move_prior(probabilities, before, after), atol=1e-6)
