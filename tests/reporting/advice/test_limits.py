"""When not to rely on a model is said from its own numbers, and only where they were measured."""

import json
import re

import numpy as np
import pytest

from lesionfast.diagnoses import Classes
from lesionfast.evaluation.findings import Findings
from lesionfast.files import check_shape
from lesionfast.reporting.advice.limits import (
    SHAPE,
    Limits,
    find_limits,
    list_limits,
    list_misses,
    measure_limits,
)
from lesionfast.reporting.advice.sentences import say, speaking
from lesionfast.stats.advice.advice import BENIGN, EXAMINE, NO_DECISION, SEVERAL, UNLIKELY
from lesionfast.stats.advice.limits import ANY, count_answers, count_few

HAM = Classes(["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"])


@pytest.fixture
def findings(make_run):
    return Findings.from_run(make_run(n=300))


def counts_of(keys, truth=4):
    truth = np.full(len(keys), truth)
    return count_answers(truth, np.array(keys, object), np.arange(len(keys)), HAM)


def test_the_same_answer_is_counted_with_its_interval():
    answers = counts_of([BENIGN] * 3 + [SEVERAL] + [EXAMINE] * 156 + [NO_DECISION] * 6)
    same, any_ = (answers["melanoma"][key] for key in (BENIGN, ANY))
    assert (same.count, same.images, any_.count) == (3, 166, 4)
    assert same.low <= 3 / 166 <= same.high < 0.06
    [words] = list_misses(Limits(tested=166, answers=answers), HAM, BENIGN)
    assert words.startswith(
        "In the test, 3 of 166 melanomas were wrongly given this same answer. Of 100 more "
    )


def test_an_answer_that_no_melanoma_got_sounds_like_no_all_clear():
    limits = Limits(tested=60, answers=counts_of([BENIGN] * 2 + [EXAMINE] * 58))
    [words] = list_misses(limits, HAM, UNLIKELY)
    assert words.startswith(
        "In the test, 2 of 60 melanomas wrongly got an answer that does not say"
    )
    none = Limits(tested=60, answers=counts_of([EXAMINE] * 60))
    [words] = list_misses(none, HAM, BENIGN)
    assert re.search(r"None of 60 melanomas .* Of 100 more melanomas, up to [1-9] may", words)
    assert list_misses(limits, HAM, EXAMINE) == list_misses(limits, HAM, NO_DECISION) == []


def test_other_cancers_are_named_where_they_got_it_too():
    mixed = counts_of([EXAMINE] * 40) | counts_of([BENIGN, EXAMINE], truth=1)
    words = list_misses(Limits(tested=42, answers=mixed), HAM, BENIGN)
    assert words[0].startswith("None of 40 melanomas in the test")
    assert words[1].startswith("In the test, 1 of 2 other cancers and precursors were wrongly")


def test_groups_with_few_melanomas_are_named():
    positive, lesions = np.ones(50, bool), np.arange(50)
    groups = {
        "age": np.array(["60+"] * 40 + ["<40"] * 10, object),
        "localization": np.array(["back"] * 49 + ["ear"], object),
    }
    few = count_few(positive, lesions, groups)
    assert few == {"age": {"40-59": 0, "<40": 10}, "localization": {"ear": 1}}
    words = " ".join(list_limits(Limits("light", 50, {}, few), HAM))
    assert (
        "tested on people aged 40 to 59 (melanomas: 0) and people under 40 (melanomas: 10)" in words
    )
    assert (
        "sites: ear (at most one of the melanomas each). Have lesions there examined," in words
        and "light skin. On dark skin have a lesion examined, whatever the answer." in words
    )
    assert "only these 7 kinds of lesion: actinic keratosis, basal cell carcinoma," in words


def test_a_small_test_is_said_once_and_cancels_no_answer():
    positive, lesions = np.arange(200) < 12, np.arange(200)
    groups = {
        "sex": np.array(["female", "male"] * 100, object),
        "age": np.array(["<40", "40-59", "60+", "60+"] * 50, object),
        "localization": np.array(["back", "ear"] * 100, object),
    }
    few = count_few(positive, lesions, groups)
    assert few == {"all": {"all": 12}}
    words = list_limits(Limits("light", 200, {}, few), HAM)
    assert words[-1] == "The test had very few melanomas (12): too few to rely on the model."
    assert not re.search("women|men |people", " ".join(words))
    unknown = {"sex": np.array(["female"] * 5 + ["unknown"] * 195, object)}  # it is not small
    assert count_few(np.ones(200, bool), lesions, unknown) == {"sex": {"female": 5}}


def test_what_is_missing_agrees_in_number():
    for language in ("en", "de"):
        with speaking(language):
            words = say("page.favours", columns="age, sex")
            assert "(age, sex)" in words and "sex is" not in words and "Fehlt " not in words


def test_the_limits_of_a_run_are_of_its_test_and_survive_json(findings):
    limits = measure_limits(findings)
    told, truth = findings.advice, findings.interpretation.truth
    expected = int((~told.refer & (truth == 4)).sum())
    assert limits.answers["melanoma"][ANY].count == expected and limits.tested == 300
    described = json.loads(json.dumps(limits.to_dict()))
    check_shape(described, SHAPE)
    assert Limits.from_dict(described) == limits
    assert limits.unmeasured().answers == {} and find_limits(findings.run).skin == "drawn"
    assert find_limits(findings.run, answers=False) == limits.unmeasured()


def test_nothing_is_said_that_was_not_measured(make_run):
    [classes] = list_limits(None, HAM)  # of a model that an earlier version exported
    assert classes.startswith("The model knows only") and list_misses(None, HAM, BENIGN) == []
    run = make_run(classes=("acne", "eczema"), n=100)
    limits = find_limits(run)
    assert limits.answers == {} and limits.few == {}
    untested = list_limits(Limits(), HAM)
    assert "how often it is wrong is not known" in untested[-1]


def test_german_has_the_same_numbers(findings):
    limits, classes = measure_limits(findings), findings.interpretation.classes
    english = [*list_misses(limits, classes, BENIGN), *list_limits(limits, classes)]
    with speaking("de"):
        german = [*list_misses(limits, classes, BENIGN), *list_limits(limits, classes)]
    numbers = [sorted(re.findall(r"\d+", words)) for words in (" ".join(english), " ".join(german))]
    assert numbers[0] == numbers[1] and not set(english) & set(german)
