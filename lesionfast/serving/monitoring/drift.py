"""Drift: how far the pictures of a log are from those that the model was checked on.

Without diagnoses nobody can tell whether a model has become worse. What can be told is whether it
gets other pictures: other ages, sexes, sites, more that are unlike the training images, other
answers.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2

from lesionfast.diagnoses import move_prior
from lesionfast.errors import LesionfastError, did_you_mean, pluralize
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import sha256
from lesionfast.run import Run
from lesionfast.serving.bundle import Bundle
from lesionfast.serving.monitoring.log import Lines, classify, hash_decisions
from lesionfast.stats.bootstrap import wilson

logger = logging.getLogger("lesionfast")

LITTLE, MUCH = 0.1, 0.25  # of a stability index (Siddiqi 2006, Credit Risk Scorecards)
LEVEL = 0.99  # of what chance alone gives
TWO_SIDED = 2.5758  # standard errors that hold 99 % of a mean
LEAST = 0.05  # of the validation images in a class of numbers; smaller ones are joined
RARE = 0.02  # of a text; rarer ones are "other"
MISSING, OTHER = "missing", "other"
ALIKE, SOMEWHAT, DIFFERS, FEW = "alike", "a little different", "different", "too few to tell"
OUTLIERS, ANSWERS = "outliers", "answers"
DIGITS = 9  # of a number of pictures that is read
MOST_PERIODS = 600  # a log of eleven years by week; each is compared, and has its place in a figure
WEEKS = 12  # of a log that are told one by one; a longer one by month
EVERY = ("week", "month")
# "55-59", "90+", "5 to 7.5"
CLASS = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]\d+)?)(?:(\+)|(-| to )(.+))")


@dataclass(frozen=True)
class Reference:
    """What validation was like: counts of metadata by class, answers, probabilities and outliers.

    `metadata` has a Counter a column, `numeric` names those of numbers, `answers` counts the
    classes that were decided, and `probabilities` (m, k) are the calibrated ones; `lesions` is how
    many there were, `outliers` the share of images above the threshold of the OOD score, None
    without one.
    """

    classes: tuple[str, ...]
    metadata: dict[str, Counter]
    numeric: frozenset[str]
    answers: Counter
    probabilities: np.ndarray
    lesions: int
    outliers: float | None

    @classmethod
    def from_run(cls, run: Run, bundle: Bundle) -> "Reference":
        """Read the validation predictions of a run; raises `LesionfastError` without them."""
        valid, seen = Interpretation.from_run(run, "valid"), {}
        for learned in bundle.encoder.learned:
            if (name := learned["name"]) in valid.table:
                seen[name] = Counter(classify(learned, value) for value in valid.table[name])
        return cls(
            tuple(run.classes),
            seen,
            frozenset(one["name"] for one in bundle.encoder.learned if one["kind"] == "number"),
            Counter(valid.rows["decision"]),
            bundle.move(bundle.calibrate(valid.probabilities)),
            len(set(valid.lesions)),
            1 - bundle.ood.level if bundle.ood else None,
        )


@dataclass(frozen=True)
class Shift:
    """How far one thing is from validation: `value` is a stability index, or a share of outliers.

    `chance` is what chance alone gives at most (99 % of the time), `needed` how many pictures it
    takes to tell, None if validation itself is too small; `change` is the largest one in words.
    """

    what: str
    pictures: int
    value: float
    chance: float
    needed: int | None
    verdict: str
    change: str


@dataclass(frozen=True)
class Period:
    """The pictures of a week, a month or a block: what they are called, and their shifts."""

    name: str
    pictures: int
    shifts: dict[str, Shift]
    means: dict[str, float]


@dataclass(frozen=True)
class Drift:
    """What a log says against validation, as a whole and by period.

    `left_out` says which lines were not used; `means` has the mean calibrated probability of each
    class as (validation, log, how far chance alone moves it).
    """

    pictures: int
    shifts: dict[str, Shift]
    periods: list[Period]
    means: dict[str, tuple[float, float, float]]
    expected_outliers: float | None
    left_out: list[str]

    @property
    def newest(self) -> Period | None:
        """The last of several periods."""
        return self.periods[-1] if len(self.periods) > 1 else None

    @cached_property
    def alarms(self) -> list[Shift]:
        """What is different, in the whole log or in its newest period."""
        found = [shift for shift in self.shifts.values() if shift.verdict == DIFFERS]
        known = {shift.what for shift in found}
        recent = self.newest.shifts.values() if self.newest else ()
        return found + [
            replace(shift, change=f"{shift.change}, in {self.newest.name}")
            for shift in recent
            if shift.verdict == DIFFERS and shift.what not in known
        ]


def stability_index(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the population stability index of counts (c,): sum of (f - e) ln(f / e) over shares.

    It is Kullback and Leibler's divergence both ways (1951, doi:10.1214/aoms/1177729694). Every
    count is raised by a half, so that no class is empty.
    """
    shares = [(counts + 0.5) / (counts + 0.5).sum() for counts in (expected, found)]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def index_by_chance(classes: int, expected: int, found: int, level: float = LEVEL) -> float:
    """Return what the index of two samples of one population stays below, `level` of the time.

    It is a chi-squared quantile times 1/expected + 1/found (Yurdakul 2018, dissertation, Western
    Michigan University, theorem 3.1); for independent pictures.
    """
    return float(chi2.ppf(level, max(classes - 1, 1)) * (1 / expected + 1 / found))


def pictures_needed(classes: int, expected: int, bound: float = MUCH) -> int | None:
    """Return from how many pictures on chance stays below a bound; None if it never does."""
    rest = bound / chi2.ppf(LEVEL, max(classes - 1, 1)) - 1 / expected
    return ceil(1 / rest) if rest > 0 else None


def group_texts(expected: Counter) -> dict[str, str]:
    """Return the group that each text is counted in: itself, or "other" below 2 % of the known."""
    known = {name: n for name, n in expected.items() if name is not None}
    total = sum(known.values())
    return {name: name if n >= RARE * total else OTHER for name, n in known.items()}


def group_numbers(expected: Counter) -> dict[str, str]:
    """Return the group that each class of numbers is counted in: with neighbours, 5 % of the known.

    Such as "55-64" for "55-59" and "60-64".
    """
    known = sorted((name for name in expected if name is not None), key=lower_end)
    least, groups = LEAST * sum(expected[name] for name in known), [[]]
    for name in known:
        if sum(expected[one] for one in groups[-1]) >= least:
            groups.append([])
        groups[-1].append(name)
    if len(groups) > 1 and sum(expected[one] for one in groups[-1]) < least:
        groups[-2:] = [groups[-2] + groups[-1]]
    return {name: name_group(group) for group in groups for name in group}


def split_ends(name: str) -> tuple[str, str, str]:
    """Return where a class of numbers begins, what stands between, and where it ends."""
    return CLASS.fullmatch(name).groups("")  # type: ignore[union-attr]


def lower_end(name: str) -> float:
    """Return where a class of numbers begins, such as 55 of "55-59"."""
    return float(split_ends(name)[0])


def name_group(group: Sequence[str]) -> str:
    """Return the name of neighbouring classes: "55-64" of "55-59" and "60-64"."""
    return split_ends(group[0])[0] + "".join(split_ends(group[-1])[1:])


def find_group(name: str | None, groups: dict[str, str], numeric: bool) -> str:
    """Return the group of a class; of numbers that validation lacks that of the next lower ones."""
    if name is None:
        return MISSING
    if name in groups or not (numeric and groups and CLASS.fullmatch(name)):
        return groups.get(name, OTHER)
    below = [one for one in groups if lower_end(one) <= lower_end(name)]
    return groups[max(below, key=lower_end) if below else min(groups, key=lower_end)]


def compare_counts(
    what: str, expected: Counter, found: Counter, lesions: int, numeric: bool = False
) -> Shift:
    """Return how far counts by class are from those of validation, by the stability index."""
    groups = group_numbers(expected) if numeric else group_texts(expected)
    both = [Counter(), Counter()]
    for counts, grouped in zip((expected, found), both, strict=True):
        for name, n in counts.items():
            grouped[find_group(name, groups, numeric)] += n
    names = list(dict.fromkeys([*both[0], *both[1]]))
    before, now = (np.array([counts[name] for name in names], float) for counts in both)
    value, n = stability_index(before, now), int(now.sum())
    chance = index_by_chance(len(names), lesions, n)
    shares = before / before.sum(), now / now.sum()
    place = int(np.argmax(np.abs(shares[1] - shares[0])))
    change = f"{names[place]} {shares[1][place]:.0%} instead of {shares[0][place]:.0%}"
    needed, verdict = pictures_needed(len(names), lesions), judge(value, chance)
    return Shift(what, n, value, chance, needed, verdict, change)


def judge(value: float, chance: float) -> str:
    """Return the verdict on a stability index; what chance explains is no difference."""
    if value > chance and value > LITTLE:
        return DIFFERS if value > MUCH else SOMEWHAT
    return ALIKE if chance <= MUCH else FEW


def compare_outliers(found: Sequence[bool], expected: float) -> Shift:
    """Return how the share of outliers is to that of validation: twice as many are different."""
    n, share = len(found), float(np.mean(found))
    low, high = wilson(share, n)
    verdict = DIFFERS if low > 2 * expected else SOMEWHAT if low > expected else ALIKE
    needed = next(count for count in range(20, 10_000) if wilson(expected, count)[1] < 2 * expected)
    if verdict == ALIKE and high > 2 * expected:
        verdict = FEW
    change = f"{share:.0%} instead of {expected:.0%} [{low:.0%}, {high:.0%}]"
    return Shift(OUTLIERS, n, share, wilson(expected, n)[1], needed, verdict, change)


def compare_lines(lines: Sequence[dict[str, Any]], reference: Reference) -> dict[str, Shift]:
    """Return the shifts of lines of a log: of each metadata column, of outliers and of answers."""
    shifts, m = {}, reference.lesions
    for name, expected in reference.metadata.items():
        found = Counter(line["metadata"].get(name) for line in lines)
        shifts[name] = compare_counts(name, expected, found, m, name in reference.numeric)
    answers = [line["answer"] for line in lines if line["answer"]]
    outliers = [bool(answer["outlier"]) for answer in answers if "outlier" in answer]
    if outliers and reference.outliers is not None:
        shifts[OUTLIERS] = compare_outliers(outliers, reference.outliers)
    decided = Counter(answer["decision"] for answer in answers if answer["decision"])
    if decided:
        shifts[ANSWERS] = compare_counts(ANSWERS, reference.answers, decided, m)
    return shifts


def mean_probabilities(lines: Iterable[dict[str, Any]], classes: Sequence[str]) -> np.ndarray:
    """Return the calibrated probabilities (n, k) of the lines that have a decision."""
    answers = [line["answer"] for line in lines if line["answer"] and line["answer"]["decision"]]
    given = [answer["probabilities"] or {} for answer in answers]
    rows = [[shares.get(name, np.nan) for name in classes] for shares in given]
    return np.array(rows, float).reshape(-1, len(classes))


def measure_drift(run: Run, log: Lines, every: str = "") -> Drift:
    """Return how far a log is from the validation of a run.

    `every` is week, month, or a number of pictures; by default a week, or a month of a log that is
    longer than 12 weeks. A picture that was predicted more than once counts once, at last. All
    probabilities are those for the class shares of the last line. Raises `LesionfastError` for a
    log without a line of this model.
    """
    bundle = Bundle.from_run(run)
    lines, left_out = choose_lines(run, bundle, log)
    lines, clinic = align_priors(lines, bundle)
    reference = Reference.from_run(run, replace(bundle, clinic=clinic))
    classes = reference.classes
    expected, found = reference.probabilities, mean_probabilities(lines, classes)
    error = np.sqrt(
        expected.var(axis=0) / reference.lesions + found.var(axis=0) / max(len(found), 1)
    )
    now = found.mean(axis=0) if len(found) else np.full(len(classes), np.nan)
    rows = np.column_stack([expected.mean(axis=0), now, TWO_SIDED * error]).tolist()
    return Drift(
        len(lines),
        compare_lines(lines, reference),
        [describe_period(*period, reference) for period in cut_periods(lines, every)],
        {name: tuple(row) for name, row in zip(classes, rows, strict=True)},
        reference.outliers,
        left_out,
    )


def align_priors(
    lines: Sequence[dict[str, Any]], bundle: Bundle
) -> tuple[list[dict[str, Any]], tuple[float, ...] | None]:
    """Return lines with probabilities for the class shares of the last, and those; None if its own.

    Lines for other shares are moved and counted in the log; a class whose share was 0 stays at 0.
    """
    clinics = [line.get("prior") for line in lines]
    clinics = [prior if prior and len(prior) == len(bundle.classes) else None for prior in clinics]
    last, aligned = clinics[-1], list(lines)
    target = last or bundle.prevalence
    for place, (line, clinic) in enumerate(zip(lines, clinics, strict=True)):
        if clinic != last and (answer := line["answer"]):
            found = mean_probabilities([line], bundle.classes)
            if len(found):
                moved = move_prior(found, clinic or bundle.prevalence, target)[0].tolist()
                chances = dict(zip(bundle.classes, moved, strict=True))
                aligned[place] = line | {"answer": answer | {"probabilities": chances}}
    others = sum(clinic != last for clinic in clinics)
    if others:
        logger.warning(
            "%s of the log %s predicted for other class shares than the last one (--prior). Their "
            "probabilities are moved to those of the last line; their answers are as they were "
            "given.",
            *(pluralize(others, "line"), "was" if others == 1 else "were"),
        )
    return aligned, tuple(last) if last else None


def describe_period(name: str, lines: list[dict[str, Any]], reference: Reference) -> Period:
    """Return what the lines of a period say."""
    found = mean_probabilities(lines, reference.classes)
    means = {}
    if len(found):
        means = dict(zip(reference.classes, found.mean(axis=0).tolist(), strict=True))
    return Period(name, len(lines), compare_lines(lines, reference), means)


def choose_lines(run: Run, bundle: Bundle, log: Lines) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the lines of a run's model, each picture once, in order of time; what was left out."""
    split, digest = bundle.split_sha256, hash_decisions(bundle)
    weights = run.file("model.json" if run.members else "weights.safetensors")
    known = {digest, sha256(weights)}
    own = [line for line in log.lines if known & {line["model"], line["decisions"]}]
    if not own:
        found = sorted({line["split"][:12] for line in log.lines})
        raise LesionfastError(
            f"the log has no answer of {run.path} (split {split[:12]}); it has "
            f"{pluralize(len(log.lines), 'line')} of other models (split "
            f"{', '.join(found) or 'none'}). Name the run that predicted, or another log."
        )
    own.sort(key=lambda line: line["time"])
    latest = {line["input"] or str(place): line for place, line in enumerate(own)}
    lines = sorted(latest.values(), key=lambda line: line["time"])
    failed = sum(line["answer"] is None for line in lines)
    reasons = {
        "of another model": len(log.lines) - len(own),
        "of pictures that were predicted again": len(own) - len(lines),
        "that can't be read": log.torn,
        "without an answer, which count in the metadata only": failed,
    }
    return lines, [f"{pluralize(n, 'line')} {why}" for why, n in reasons.items() if n]


def cut_periods(
    lines: Sequence[dict[str, Any]], every: str = ""
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the lines by week, month, or in blocks of so many pictures; see `measure_drift`."""
    size = int(every[:DIGITS]) if every.isdecimal() else 0
    periods = cut_blocks(lines, size) if size else cut_calendar(lines, every)
    if len(periods) > MOST_PERIODS:
        raise LesionfastError(
            f"the log has {len(periods):,} periods, and at most {MOST_PERIODS} are compared. "
            f"Compare more pictures at a time: --every {ceil(len(lines) / MOST_PERIODS)}."
        )
    return periods


def cut_blocks(
    lines: Sequence[dict[str, Any]], size: int
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the lines in blocks of so many, the last may be shorter."""
    blocks = [list(lines[start : start + size]) for start in range(0, len(lines), size)]
    ends = [(n * size + 1, n * size + len(block)) for n, block in enumerate(blocks)]
    return [(f"{a} to {b}", block) for (a, b), block in zip(ends, blocks, strict=True)]


def cut_calendar(
    lines: Sequence[dict[str, Any]], every: str
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the lines by week or month; raises `LesionfastError` for another period."""
    if every and every not in EVERY:
        raise LesionfastError(
            f"--every {every} is not a period.{did_you_mean(every, EVERY)} Type week, month, or a "
            "number of pictures such as 500."
        )
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    weekly = every == "week" or (not every and (times[-1] - times[0]).days <= 7 * WEEKS)
    names = [f"{time:%G-W%V}" if weekly else f"{time:%Y-%m}" for time in times]
    frame = pd.Series(range(len(lines))).groupby(pd.Series(names), sort=True)
    return [(str(name), [lines[place] for place in places]) for name, places in frame]
