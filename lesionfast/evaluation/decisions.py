"""All that is chosen on a run's validation: read where the run keeps it, else chosen and kept."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from lesionfast.data.split import load_dataset
from lesionfast.errors import DamageError, DiskError, LesionfastError, list_first
from lesionfast.evaluation.interpretation import Interpretation, lesions_of, read_features
from lesionfast.files import disk_errors, read_json
from lesionfast.runs import FEATURES, FITTED, WITHOUT_METADATA, Run
from lesionfast.stats.calibration import Calibrator, fit_calibrator
from lesionfast.stats.conformal import COVERAGE, Conformal, check_coverage, fit_conformal
from lesionfast.stats.metrics import json_safe
from lesionfast.stats.ood import OUTLIERS, OutlierScorer
from lesionfast.stats.selective import SHARE, Referral, check_share, fit_referral, rule_confidence
from lesionfast.stats.thresholds import OperatingPoint, apply_points, choose_points

logger = logging.getLogger("lesionfast")

FEWEST = 10  # validation lesions of a class
SAID: set[Path] = set()  # runs that can't take what was chosen, of which that was said
OF_THE_WEIGHTS = (  # what a run says of its weights, which further training changes
    *("metrics.json", "predictions.csv", WITHOUT_METADATA),
    *FITTED,
)
SHAPES = {
    "operating.json": {
        "points": [
            {
                **{"of": str, "goal": str},
                **dict.fromkeys(("level", "threshold", "sensitivity", "specificity"), float),
            }
        ]
    },
    "calibration.json": (
        {"classes": [str], "method": "none"},
        {"classes": [str], "method": "temperature", "parameters": {"temperature": float}},
        {"classes": [str], "method": "vector", "parameters": {"weight": [float], "bias": [float]}},
        {
            "classes": [str],
            "method": "dirichlet",
            "parameters": {"weight": [[float]], "bias": [float]},
        },
    ),
    "conformal.json": {
        "coverage": float,
        "classes": [str],
        "marginal": (float, None),
        "by_class": [(float, None)],
        "lesions": [int],
    },
    "referral.json": {"share": float, "threshold": float, "rule": str, "classes": [str]},
}


def require_validation(valid: Interpretation, what: str) -> None:
    """Raise `LesionfastError` unless the split is validation: nothing is fitted on test."""
    if valid.split != "valid":
        raise LesionfastError(
            f"a {what} is fitted on the split 'valid'; found '{valid.split}'. "
            "Pass Interpretation.of(run, 'valid')."
        )


def require_other(test: Interpretation) -> None:
    """Raise `LesionfastError` for the split that a calibration is fitted on."""
    if test.split == "valid":
        raise LesionfastError(
            "before and after are shown on a split that nothing was fitted on; found 'valid'. "
            "Pass Interpretation.of(run, 'test')."
        )


def few_words(valid: Interpretation) -> str:
    """Return a warning that names the classes of fewer than ten validation lesions, or ''.

    What is fitted for them rests on so few lesions that it would be another with others.
    """
    lesions = lesions_of(valid)
    counts = {
        name: len(np.unique(lesions[valid.truth == number]))
        for number, name in enumerate(valid.classes)
    }
    few = [f"{name} ({count})" for name, count in counts.items() if count < FEWEST]
    if not few:
        return ""
    return (
        f"Warning: validation has fewer than {FEWEST} lesions of {list_first(few, 10)}. What is "
        "chosen or measured for these classes, such as thresholds, calibration and limits of "
        "prediction sets, is hardly more than chance."
    )


def images_in(run: Run) -> dict[str, int]:
    """Return how many images of validation there were to fit on, as a file of the run says it."""
    return {"images": int((run.predictions["split"] == "valid").sum())}


def write_fitted(run: Run, name: str, fitted: dict[str, Any]) -> Path:
    """Write what was fitted on a run's validation to a JSON file of the run."""
    return run.write_json(name, fitted | {"fitted_on": "valid"})


def keep(run: Run, write: Callable[[], Any]) -> None:
    """Write a choice into a run; where that can't be done, say so once and go on with it."""
    try:
        with disk_errors(run.path):
            write()
    except DiskError as error:  # read-only or full, or a folder of somebody else
        say_not_kept(run.path, error.problem)


def say_not_kept(folder: Path, why: str) -> None:
    """Warn, once a process, that a run can't take what was chosen on its validation."""
    if folder not in SAID:
        SAID.add(folder)
        logger.warning(
            "%s What is chosen on validation is used, but not kept: the next command chooses it "
            "again",
            why,
        )


def discard_damaged(run: Run) -> list[str]:
    """Remove what a run keeps of its validation, and its features, where they are damaged.

    It is said, and made anew when it is asked for. Returns the names of the files.
    """
    damaged = {name: why for name in FITTED if (why := damage_of(run, name))}
    for name, why in damaged.items():
        logger.warning("it is made anew: %s", why)
        run.remove(name)
    return list(damaged)


def damage_of(run: Run, name: str) -> str | None:
    """Return what is wrong with one of these files, None if it can be used or there is none."""
    readers = {FEATURES: lambda: read_features(run), OUTLIERS: lambda: OutlierScorer.load(file)}
    try:
        if not run.holds(name):
            return None
        file = run.file(name)
        readers.get(name, lambda: read_json(file, SHAPES[name], ""))()
    except DamageError as error:
        return str(error).removesuffix(run.remedy(name)).strip()
    return None


def read_fitted(run: Run, name: str, make: str) -> dict[str, Any]:
    """Return what was fitted on a run's validation and kept as JSON; `make` says how to make it.

    Raises `LesionfastError` if there is none, or it is of other classes or another split.
    """
    if not run.holds(name):
        raise LesionfastError(f"{run.path} has no {name}. Make it: {make}")
    path = run.file(name)
    found = read_json(path, SHAPES[name], run.remedy(name))
    if found.get("fitted_on") != "valid" or found.get("classes") != list(run.classes):
        raise LesionfastError(
            f"{path} is of the split '{found.get('fitted_on')}' and the classes "
            f"{found.get('classes')}, the run of 'valid' and {list(run.classes)}. "
            "Remove it, and it is chosen anew."
        )
    return found


POINTS = "operating.json"


def write_points(run: Run) -> Path:
    """Choose the points on a run's validation predictions, keep them in operating.json."""
    return keep_points(run, points_of(run))


def points_of(run: Run) -> list[OperatingPoint]:
    """Return the points that a run's validation predictions choose."""
    require_valid_rows(run)
    valid = Interpretation.of(run, "valid", "argmax")
    return choose_points(valid.truth, valid.probabilities, valid.classes)


def keep_points(run: Run, points: Sequence[OperatingPoint]) -> Path:
    """Write points that a run's validation chose to operating.json."""
    told = {"classes": list(run.classes), "points": [asdict(point) for point in points]}
    return write_fitted(run, POINTS, told)


def read_points(run: Run) -> list[OperatingPoint]:
    """Return the points kept in a run, chosen and kept now if there are none yet."""
    if not run.holds(POINTS):
        points = points_of(run)
        keep(run, lambda: keep_points(run, points))
        return points
    found = read_fitted(run, POINTS, f"remove {run.path / POINTS}; it is written anew.")
    return [OperatingPoint(**point) for point in found["points"]]


def require_valid_rows(run: Run) -> None:
    """Raise `LesionfastError` unless a run has validation predictions."""
    known = sorted(run.predictions["split"].unique())
    if "valid" not in known:
        raise LesionfastError(
            f"{run.path} has no validation predictions, which operating points are chosen on; "
            f"it has: {', '.join(known)}. Train it again: lesionfast train"
        )


def points_table(test: Interpretation) -> pd.DataFrame:
    """Return what the run's points reach on a split that they were not chosen on."""
    if test.split == "valid":
        raise LesionfastError(
            "operating points are reported on a split that they were not chosen on; found 'valid'. "
            "Pass Interpretation.of(run, 'test')."
        )
    given = test.truth, test.probabilities, lesions_of(test), test.classes
    return apply_points(read_points(test.run), *given)


CALIBRATION = "calibration.json"


def calibrator_of(valid: Interpretation, method: str = "auto", seed: int = 0) -> Calibrator:
    """Return the calibrator of a run's validation; raises `LesionfastError` for another split."""
    require_validation(valid, "calibration")
    lesions = lesions_of(valid)
    return fit_calibrator(valid.truth, valid.probabilities, lesions, valid.classes, method, seed)


def write_calibration(run: Run, method: str = "auto", seed: int = 0) -> Path:
    """Fit a calibrator on the run's validation and write it to calibration.json."""
    return keep_calibration(run, calibrator_of(Interpretation.of(run, "valid"), method, seed))


def keep_calibration(run: Run, fitted: Calibrator) -> Path:
    """Write a calibrator that was fitted on the run's validation to calibration.json."""
    return write_fitted(run, CALIBRATION, fitted.to_dict() | images_in(run))


def read_calibration(run: Run) -> Calibrator:
    """Return the calibrator of a run; raises `LesionfastError` if it has none that fits."""
    found = read_fitted(run, CALIBRATION, "write_calibration(run)")
    told = {key: found[key] for key in ("method", "parameters", "classes")}
    more = {"regularisation": found.get("regularisation", 0.0), "scores": found.get("scores")}
    return Calibrator.from_dict(told | more)


SETS = "conformal.json"


def write_conformal(run: Run, coverage: float = COVERAGE) -> Path:
    """Fit prediction sets on the run's validation and write them to conformal.json.

    They are of the probabilities as predictions.csv has them, not of calibrated ones: a
    calibration fitted on the same images would take part of the promise. Classes with too few
    lesions are named in the log and the file.
    """
    return keep_conformal(run, choose_conformal(Interpretation.of(run, "valid"), coverage))


def choose_conformal(valid: Interpretation, coverage: float = COVERAGE) -> Conformal:
    """Return the sets of a run's validation, and log the classes with too few lesions."""
    fitted = conformal_of(valid, coverage)
    if fitted.unbounded:
        counts = dict(zip(fitted.classes, fitted.lesions, strict=True))
        few = ", ".join(f"{name} ({counts[name]})" for name in fitted.unbounded)
        logger.warning(
            "validation has too few lesions for a coverage of %g of: %s. "
            "These classes are in every class-conditional set.",
            coverage,
            few,
        )
    return fitted


def keep_conformal(run: Run, fitted: Conformal) -> Path:
    """Write prediction sets that were fitted on the run's validation to conformal.json."""
    told = images_in(run) | {"unbounded": fitted.unbounded}
    return write_fitted(run, SETS, json_safe(asdict(fitted) | told))


def conformal_of(valid: Interpretation, coverage: float = COVERAGE) -> Conformal:
    """Return the sets of a run's validation; raises `LesionfastError` for another split."""
    require_validation(valid, "prediction set")
    lesions = lesions_of(valid)
    return fit_conformal(valid.truth, valid.probabilities, lesions, valid.classes, coverage)


def read_conformal(run: Run) -> Conformal:
    """Return the prediction sets of a run; raises `LesionfastError` if it has none that fit."""
    return Conformal.from_dict(read_fitted(run, SETS, "write_conformal(run)"))


REFERRAL = "referral.json"


def confidence_in(interpretation: Interpretation) -> np.ndarray:
    """Return the confidence (n,) of a run's decisions under their rule."""
    prior = interpretation.run.model["prior"]
    return rule_confidence(interpretation.probabilities, interpretation.rule, prior)


def referral_of(valid: Interpretation, share: float = SHARE) -> Referral:
    """Return the referral of a run's validation; raises `LesionfastError` for another split."""
    require_validation(valid, "referral")
    threshold = fit_referral(confidence_in(valid), share)
    return Referral(float(share), threshold, valid.rule, tuple(valid.classes))


def write_referral(run: Run, share: float = SHARE, rule: str | None = None) -> Path:
    """Choose the threshold on the run's validation and write it to referral.json."""
    return keep_referral(run, referral_of(Interpretation.of(run, "valid", rule), share))


def keep_referral(run: Run, fitted: Referral) -> Path:
    """Write a referral that was chosen on the run's validation to referral.json."""
    told = asdict(fitted) | images_in(run) | {"classes": list(fitted.classes)}
    return write_fitted(run, REFERRAL, told)


def read_referral(run: Run) -> Referral:
    """Return the referral of a run; raises `LesionfastError` if it has none that fits."""
    found = read_fitted(run, REFERRAL, "write_referral(run)")
    classes = tuple(found["classes"])
    return Referral(found["share"], found["threshold"], found["rule"], classes)


Choice = TypeVar("Choice")


class Decisions:
    """What a run's validation chose: thresholds, calibration, prediction sets, referral, outliers.

    `coverage` and `refer` replace what the run keeps. Left out, what it keeps holds, and only what
    is missing is chosen, by the defaults. Whatever is chosen is kept in the run, under the rule
    that decides there; where it can't be written to, that is said once and the choice used.
    Raises `LesionfastError` for shares that are none, and for a run without validation.
    """

    def __init__(
        self, run: Run, *, coverage: float | None = None, refer: float | None = None
    ) -> None:
        check_coverage(COVERAGE if coverage is None else coverage)
        check_share(SHARE if refer is None else refer)
        self.run, self.coverage, self.refer = run, coverage, refer

    @cached_property
    def valid(self) -> Interpretation:
        """The validation predictions under the run's own rule."""
        valid = Interpretation.of(self.run, "valid")
        if few := few_words(valid):
            logger.warning("%s", few)
        return valid

    @cached_property
    def points(self) -> list[OperatingPoint]:
        """The thresholds of melanoma and malignancy."""
        return read_points(self.run)

    @cached_property
    def calibrator(self) -> Calibrator:
        """The calibration."""
        kept = self._kept(CALIBRATION, read_calibration)
        return kept or self._keep(calibrator_of(self.valid), keep_calibration)

    @cached_property
    def conformal(self) -> Conformal:
        """The prediction sets."""
        kept = self._kept(SETS, read_conformal)
        if kept and self.coverage in (None, kept.coverage):
            return kept
        wanted = COVERAGE if self.coverage is None else self.coverage
        return self._keep(choose_conformal(self.valid, wanted), keep_conformal)

    @cached_property
    def referral(self) -> Referral:
        """Which images to refer, under the run's own rule."""
        kept, rule = self._kept(REFERRAL, read_referral), self.run.model["rule"]
        wanted = self.refer or (kept.share if kept else SHARE)
        if kept and (kept.share, kept.rule) == (wanted, rule):
            return kept
        return self._keep(referral_of(self.valid, wanted), keep_referral)

    def referral_by(self, rule: str) -> Referral:
        """Return which images to refer under another rule, of the same share, which is not kept."""
        if rule == self.run.model["rule"]:
            return self.referral
        return referral_of(Interpretation.of(self.run, "valid", rule), self.referral.share)

    @cached_property
    def outliers(self) -> OutlierScorer:
        """What tells images unlike the training images.

        Raises `LesionfastError` if the run keeps no features, or its data is elsewhere.
        """
        kept = self._kept(OUTLIERS, lambda run: OutlierScorer.load(run.file(OUTLIERS)))
        return kept or self._keep(
            self._fit_outliers(), lambda run, scorer: run.write(OUTLIERS, scorer.save)
        )

    def _fit_outliers(self) -> OutlierScorer:
        features = read_features(self.run)
        df = load_dataset(self.run.config, split=self.run.file("split.csv"))
        return OutlierScorer.fit_split(df, features)

    def choose(self) -> None:
        """Choose and keep what was asked for now, whether or not anything shows it."""
        if self.coverage is not None:
            _ = self.conformal
        if self.refer is not None:
            _ = self.referral

    def kept_choices(self) -> list[str]:
        """Return, in words, what the run keeps that nobody asked for now and is no default."""
        told = []
        sets, referral = self._kept(SETS, read_conformal), self._kept(REFERRAL, read_referral)
        if sets and self.coverage is None and sets.coverage != COVERAGE:
            told.append(f"prediction sets of coverage {sets.coverage:g} (--coverage)")
        if referral and self.refer is None and referral.share != SHARE:
            told.append(f"a share of {referral.share:g} to refer (--refer)")
        return told

    def _kept(self, name: str, read: Callable[[Run], Choice]) -> Choice | None:
        return read(self.run) if self.run.holds(name) else None

    def _keep(self, choice: Choice, write: Callable[[Run, Choice], object]) -> Choice:
        keep(self.run, lambda: write(self.run, choice))
        return choice
