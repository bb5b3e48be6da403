import string
from threading import Thread

import pytest

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError
from lesionfast.reporting.advice.chapter import CANCERS
from lesionfast.reporting.advice.sentences import (
    choose_language,
    describe_advice,
    label_class,
    list_languages,
    name_class,
    read_language,
    read_messages,
    say,
    speaking,
    translate,
)
from lesionfast.stats.advice import advice

KEYS = [value for name, value in vars(advice).items() if name.isupper() and isinstance(value, str)]
HAM = Classes(["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"])
PAD = Classes(["ACK", "BCC", "MEL", "NEV", "SCC", "SEK"])


def test_every_advice_has_its_sentences():
    keys = {key for key in KEYS if key in read_messages()["key"]}
    own = set(read_messages()["key"]) - set(CANCERS)  # in [examine] those of one picture
    assert keys == own == set(read_messages()["advice"]) and len(keys) == 7
    for section in [part for code in list_languages() for part in read_language(code).values()]:
        assert all(text and not text.endswith(" ") for text in section.values())


@pytest.mark.parametrize(
    ("key", "likely", "left", "classes", "expected"),
    [
        (
            advice.EXAMINE, "nv", ["nv", "mel"], HAM,
            "Melanoma can't be ruled out: have it examined.",
        ),
        (
            advice.EXAMINE, "bcc", ["bcc", "mel", "akiec"], HAM,
            "Most likely a basal cell carcinoma; melanoma or actinic keratosis can't be ruled out: "
            "have it examined soon.",
        ),
        (
            advice.EXAMINE, "mel", ["mel", "nv"], HAM,
            "Most likely a melanoma: have it examined soon.",
        ),
        (
            advice.EXAMINE, "SCC", ["SCC", "ACK"], PAD,
            "Most likely a squamous cell carcinoma; actinic keratosis can't be ruled out: have it "
            "examined soon.",
        ),
        (
            advice.EXAMINE, "benign", ["benign", "malignant"], Classes(["benign", "malignant"]),
            "A malignant lesion can't be ruled out: have it examined.",
        ),
        (
            advice.BENIGN, "nv", ["nv"], HAM,
            "The model is fairly sure of a nevus (mole); that is no all-clear: have it examined if "
            "it has changed or worries you.",
        ),
        (
            advice.SEVERAL, "nv", ["nv", "bkl"], HAM,
            "Probably a nevus (mole) or a benign keratosis, which are benign; that is no "
            "all-clear: have it examined if it has changed or worries you.",
        ),
        (
            advice.UNLIKELY, "nv", ["nv", "mel"], HAM,
            "Probably a nevus (mole). Melanoma is unlikely, but not ruled out: have it examined if "
            "it has changed or worries you.",
        ),
        (
            advice.NO_DECISION, "nv", list(HAM), HAM,
            "This does not look like a dermoscopic picture; no decision is given. If it shows a "
            "lesion, have that examined.",
        ),
        (
            advice.NO_CANCER, "acne", ["acne"], Classes(["acne", "eczema"]),
            "Most likely acne. The model was not trained to find cancer; that is no all-clear.",
        ),
    ],
)  # fmt: skip
def test_it_reads_as_a_person_would_say_it(key, likely, left, classes, expected):
    assert describe_advice(key, likely, left, classes) == expected


def test_a_name_that_is_not_known_stays_as_it_is():
    assert name_class("Nevus, {atypical}") == "Nevus, {atypical}"
    classes = Classes(["Melanoma, {NOS}", "other"])
    assert "Melanoma, {NOS} can't" in describe_advice(advice.EXAMINE, "other", classes, classes)


def test_what_is_filled_in_is_named_in_one_place():
    names = {
        name
        for text in read_messages()["advice"].values()
        for _, name, _, _ in string.Formatter().parse(text)
        if name
    }
    assert names == {"likely", "left", "Cancers"}
    assert say("page.failed", status=500).startswith("The page failed with status 500")


def fields_of(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("code", list_languages())
def test_every_language_has_the_keys_and_values_of_english(code):
    english, own = read_language("en"), read_language(code)
    for section in ("advice", "reason", "share", "detail", "key", "page", "refusal", "group"):
        assert set(own[section]) == set(english[section])
        for name, text in own[section].items():
            assert fields_of(text) == fields_of(english[section][name]), (section, name)
    assert set(own["indefinite"]) >= set(english["indefinite"])
    of_page = {key for key in english["limits"] if key not in ("of_run", "of_predictions")}
    assert of_page <= set(own["limits"])
    for key in of_page:
        assert fields_of(own["limits"][key]) == fields_of(english["limits"][key]), key


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("", "en"),
        ("de", "de"),
        ("de-AT,de;q=0.9,en;q=0.8", "de"),
        ("fr,en;q=0.5,de;q=0.9", "de"),
        ("en-GB,de;q=0.9", "en"),
        ("de;q=0,fr", "en"),
        ("de;q=x, *", "en"),
    ],
)
def test_the_language_is_what_the_browser_likes_best(accepted, expected):
    assert choose_language(accepted) == expected


def test_a_language_is_spoken_by_one_request_alone():
    args = (advice.EXAMINE, "nv", ["nv", "mel"], HAM)
    other = []
    with speaking("de"):
        assert describe_advice(*args).startswith("Melanom: nicht auszuschließen.")
        assert label_class("mel") == "mel (Melanom)" and translate("female") == "weiblich"
        assert say("run.no_cancer", classes="nv").startswith("The model")  # not translated
        thread = Thread(target=lambda: other.append(describe_advice(*args)))
        thread.start()
        thread.join()
    assert other == [describe_advice(*args)] == ["Melanoma can't be ruled out: have it examined."]
    assert label_class("mel") == "mel (melanoma)" and translate("female") == "female"


def test_an_unknown_language_is_refused():
    with (
        pytest.raises(LesionfastError, match=r"'dee'.*Did you mean 'de'.*: de, en\."),
        speaking("dee"),
    ):
        pass
