"""When not to rely on a model: what it was tested on, what it learned from, what it knows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lesionfast.diagnoses import Classes
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.advice.sentences import (
    name_class,
    read_messages,
    say,
    translate,
    word,
)
from lesionfast.run import Run
from lesionfast.stats.advice.advice import REASSURING
from lesionfast.stats.advice.limits import ANY, SITE, Count, count_answers, count_few
from lesionfast.stats.metrics import ALL
from lesionfast.stats.subgroups import COLUMNS, group_labels

LIGHT, DRAWN, UNRECORDED = "light", "drawn", "unrecorded"  # skin in the pictures of the training
HAM10000 = ("ISIC_0024306", "ISIC_0034320")  # its first and last image
MOST_NAMED = 12  # classes
COUNT = {"count": int, "images": int, "low": float, "high": float}
SHAPE = {
    "skin": (LIGHT, DRAWN, UNRECORDED),
    "tested": int,
    "answers": {str: dict.fromkeys((*REASSURING, ANY), COUNT)},
    "few": {str: {str: int}},
}


@dataclass(frozen=True)
class Limits:
    """What a model was tested on and learned from, as far as that is known.

    `skin` is one of the constants of this module, `tested` the number of test images. `answers` is
    of `count_answers`, empty where it was not measured, and `few` of `count_few`.
    """

    skin: str = UNRECORDED
    tested: int = 0
    answers: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    few: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-safe values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, described: dict[str, Any]) -> "Limits":
        """Return what `to_dict` described, of `SHAPE`."""
        answers = {
            kind: {key: Count(**{name: one[name] for name in COUNT}) for key, one in told.items()}
            for kind, told in described["answers"].items()
        }
        return cls(**{name: described[name] for name in SHAPE} | {"answers": answers})

    def unmeasured(self) -> "Limits":
        """Return the limits of a model that answers otherwise than the one that was tested."""
        return replace(self, answers={})


def find_limits(run: Run, answers: bool = True) -> Limits:
    """Return the limits of a run's model, with `answers` those that cancers of the test got.

    Measuring these takes the images; they are left out where those are not at hand.
    """
    if "test" not in set(run.predictions["split"]):
        return Limits(find_skin(run))
    return measure_limits(Findings(Interpretation.from_run(run)), answers)


def measure_limits(findings: Findings, answers: bool = True) -> Limits:
    """Return the limits by the test images of a run; see `find_limits`."""
    read = findings.interpretation
    positive = np.isin(read.truth, [read.classes.index(name) for name in target_of(read.classes)])
    present = [name for name in COLUMNS if name in read.table]
    groups = {name: group_labels(read.table[name], name) for name in present}
    few = count_few(positive, read.lesions, groups) if positive.any() else {}
    got = measure_answers(findings) if answers else {}
    return Limits(find_skin(findings.run), len(read.rows), got, few)


def target_of(classes: Classes) -> list[str]:
    """Return the classes that must not be missed: melanoma, or else all malignant ones."""
    return [classes.melanoma] if classes.melanoma else list(classes.malignant)


def measure_answers(findings: Findings) -> dict[str, dict[str, Count]]:
    """Return `count_answers` of the test images; empty if the advice on them can't be known."""
    if not (findings.on_test and findings.interpretation.classes.malignant):
        return {}
    read = findings.interpretation
    try:
        if findings.keeps_features and findings.ood_scores is None:
            return {}
        return count_answers(read.truth, findings.advice.key, read.lesions, read.classes)
    except DamageError:
        raise
    except LesionfastError:
        return {}


def find_skin(run: Run) -> str:
    """Return what is known of the skin in the training pictures."""
    if run.config.data is None and run.config.csv is None:
        return DRAWN
    return LIGHT if run.split["image_id"].between(*HAM10000).all() else UNRECORDED


def list_limits(limits: Limits | None, classes: Classes) -> list[str]:
    """Return when not to rely on a model, a short sentence each.

    Without `limits`, as of a model that an earlier version exported, it is what its classes say.
    """
    more = ["…"] if len(classes) > MOST_NAMED else []
    names = join_words([*map(name_class, classes[:MOST_NAMED]), *more])
    words = [say("limits.classes", n=len(classes), names=names)]
    if limits is None:
        return words
    words.append(say(f"limits.{limits.skin}"))
    if not limits.tested:
        return [*words, say("limits.untested")]
    return [*words, *list_few(limits, classes)]


def list_few(limits: Limits, classes: Classes) -> list[str]:
    """Return of which people and sites few lesions were tested."""
    of = word("share.melanomas" if classes.melanoma else "share.cancers")
    people = [
        f"{name_group(column, group)} ({of}: {count})"
        for column, groups in limits.few.items()
        if column not in (ALL, SITE)
        for group, count in groups.items()
    ]
    sites = [translate(site) for site in limits.few.get(SITE, {})]
    all_ = limits.few.get(ALL, {})
    words = [say("limits.few_in_all", of=of, n=all_[ALL])] if all_ else []
    words += [say("limits.few", groups=join_words(people))] if people else []
    return [*words, *([say("limits.sites", of=of, sites=join_words(sites))] if sites else [])]


def name_group(column: str, group: str) -> str:
    """Return what people of a group are called, such as "people under 40" for "<40"."""
    return read_messages()["group"].get(group) or f"{translate(column)} {translate(group)}"


def join_words(words: Sequence[str]) -> str:
    """Return "a, b and c"."""
    *most, last = words
    return f"{', '.join(most)} {word('names.and')} {last}" if most else last


def list_misses(limits: Limits | None, classes: Classes, key: str = ANY) -> list[str]:
    """Return how often cancers of the test got the answer `key`, or any that reassures.

    Where none got that one, it is how many got any: no count should sound like an all-clear. Empty
    for other answers, and where it was not measured.
    """
    words: list[str] = []
    measured = limits.answers if limits and key in (*REASSURING, ANY) else {}
    for kind, counts in measured.items():
        others = "share.other_cancers" if classes.melanoma else "share.cancers"
        of = word("share.melanomas" if kind == "melanoma" else others)
        if counts[key].count or not words:
            words.append(describe_count(counts, key, of))
    return words


def describe_count(counts: Mapping[str, Count], key: str, of: str) -> str:
    """Return one sentence on how many of a kind got the answer `key`, or any reassuring one."""
    is_same = key != ANY and counts[key].count
    found = counts[key if is_same else ANY]
    which = "same" if is_same else "any" if found.count else "none"
    values = {"low": f"{100 * found.low:.0f}", "high": f"{100 * found.high:.0f}"}
    return say(f"limits.{which}", count=found.count, images=found.images, of=of, **values)
