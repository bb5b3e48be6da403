"""Decisions: what a run's validation chose, each fitted, kept, read and applied in one way.

These are the operating points, the calibration, the prediction sets, the referral, the OOD score
and the rule's weight on melanoma. Nothing else in lesionfast is fitted after training, and nothing
of it on test images. Points, sets and referral are of the probabilities that people see, which are
calibrated. Beside them the run keeps the costs of errors that a person stated.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd

from lesionfast.data.split import PARTS
from lesionfast.errors import DamageError, DiskError, LesionfastError, list_first, shell_quote
from lesionfast.evaluation.features import read_features
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.melanoma import ARGMAX, FEWEST, describe_rule, describe_weight, fit_rule
from lesionfast.evaluation.outliers import fit_ood, load_ood, save_ood
from lesionfast.files import disk_errors, read_json
from lesionfast.run import FEATURES, FITTED, Run
from lesionfast.stats.advice.costs import Costs
from lesionfast.stats.calibration import Calibrator, apply_held_out, fit_calibrator
from lesionfast.stats.conformal import COVERAGE, Conformal, check_coverage, fit_conformal
from lesionfast.stats.metrics import json_safe
from lesionfast.stats.ood import NeighbourScorer, Scorer
from lesionfast.stats.selective import SHARE, Referral, check_share, fit_referral
from lesionfast.stats.thresholds import OperatingPoint, apply_points, choose_points

logger = logging.getLogger("lesionfast")

WARNED: set[tuple[Path, str]] = set()  # of runs that can't be written to, what was logged
SHOWN = {"of": "shown probabilities"}  # in a file: earlier versions fitted on the model's own
COSTS = "costs.json"
AGAIN = "What was fitted on validation is used but not kept: the next command fits it again."
Value = TypeVar("Value")


@dataclass(frozen=True)
class Kept(Generic[Value]):
    """One thing that is fitted on validation and kept in the run as a file.

    `fit_on` takes the validation predictions and options. `shape` is that of the JSON, as
    `check_shape` takes it; `to_json` takes the value and the number of validation images. `about`
    are values that the JSON has to have: a file of an earlier version that has not is stale.
    """

    name: str
    file: str
    fit_on: Callable[..., Value]
    shape: Any = None
    to_json: Callable[[Value, int], dict[str, Any]] | None = None
    from_json: Callable[[dict[str, Any]], Value] | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    def fit(self, valid: Interpretation, **options: Any) -> Value:
        """Return it, fitted; raises `LesionfastError` for another split than validation."""
        if valid.split != "valid":
            raise LesionfastError(
                f"fit the {self.name} on the split 'valid'; found '{valid.split}'. "
                "Pass Interpretation.from_run(run, 'valid')."
            )
        return self.fit_on(valid, **options)

    def write(self, run: Run, value: Value) -> Path:
        """Write it into a run."""
        images = int((run.predictions["split"] == "valid").sum())
        about = {"classes": list(run.classes), **self.about}
        content = about | self.to_json(value, images) | {"fitted_on": "valid"}
        return run.write_json(self.file, content)

    def load(self, path: Path, advice: str) -> Any:
        """Return what a file holds; raises `DamageError`, which ends in `advice`."""
        return read_json(path, self.shape, advice)

    def read(self, run: Run, *, stale: bool = False) -> Value | None:
        """Return what a run keeps, None if it keeps none or, unless asked for, a stale one.

        Raises `LesionfastError` if that is damaged, or of other classes or another split.
        """
        if not run.holds(self.file):
            return None
        path = run.file(self.file)
        content = self.load(path, run.remedy(self.file))
        if content.get("fitted_on") != "valid" or content.get("classes") != list(run.classes):
            raise LesionfastError(
                f"{path} was fitted on the split '{content.get('fitted_on')}' and the classes "
                f"{content.get('classes')}; the run needs 'valid' and {list(run.classes)}. "
                "Remove the file, and it is fitted again."
            )
        fresh = self.about.items() <= content.items()
        return self.from_json(content) if fresh or stale else None


@dataclass(frozen=True)
class KeptScorer(Kept[Scorer]):
    """The OOD score is kept as safetensors, for it holds large arrays."""

    def write(self, run: Run, value: Scorer) -> Path:
        """Write it into a run."""
        return run.write(self.file, lambda path: save_ood(value, path))

    def load(self, path: Path, advice: str) -> Scorer:
        """Return it; raises `DamageError` for a damaged file."""
        return load_ood(path)

    def read(self, run: Run, *, stale: bool = False) -> Scorer | None:
        """Return what a run keeps, None if it keeps none; raises `DamageError`."""
        if not run.holds(self.file):
            return None
        scorer = load_ood(run.file(self.file))
        if isinstance(scorer, NeighbourScorer):
            logger.warning(
                "The OOD score of %s was fitted by an earlier version, which recognizes fewer "
                "pictures that are not dermoscopic. To fit it again, remove %s and type: "
                "lesionfast interpret %s", run.path, run.path / self.file,
                shell_quote(run.path),
            )  # fmt: skip
        return scorer


def fit_sets(valid: Interpretation, coverage: float = COVERAGE) -> Conformal:
    """Return prediction sets; classes with too few lesions are named in the log.

    Of calibrated probabilities, the calibration must not have been fitted on the same images, which
    would use up part of the guarantee: see `Decisions.shown`.
    """
    sets = fit_conformal(*labelled(valid), coverage)
    if sets.unbounded:
        counts = dict(zip(sets.classes, sets.lesions, strict=True))
        logger.warning(
            "Too few validation lesions of %s for a coverage of %g: class-conditional prediction "
            "sets can never rule them out.",
            ", ".join(f"{name} ({counts[name]})" for name in sets.unbounded),
            coverage,
        )
    return sets


def labelled(valid: Interpretation) -> tuple[Any, ...]:
    """Return truth, probabilities, lesions and classes, on which most is fitted."""
    return valid.truth, valid.probabilities, valid.lesions, valid.classes


def fit_referral_threshold(valid: Interpretation, share: float = SHARE) -> Referral:
    """Return which images to refer, under the rule of the validation predictions."""
    threshold = fit_referral(valid.confidence, share)
    return Referral(float(share), threshold, valid.rule, tuple(valid.classes))


def as_json(value: Calibrator | Conformal | Referral, images: int) -> dict[str, Any]:
    """Return the fields of a value, and the number of images that it was fitted on."""
    return json_safe(asdict(value)) | {"images": images}


def from_fields(kind: type[Value], content: dict[str, Any]) -> Value:
    """Return a dataclass with `classes` from the fields that a JSON object has."""
    known = {field.name: content[field.name] for field in fields(kind) if field.name in content}
    return kind(**known | {"classes": tuple(content["classes"])})


def linear(method: str, weight: Any) -> dict[str, Any]:
    """Return the shape of a calibration by a weight and a bias."""
    return {"classes": [str], "method": method, "parameters": {"weight": weight, "bias": [float]}}


NUMBERS = dict.fromkeys(("level", "threshold", "sensitivity", "specificity"), float)
POINTS = Kept(
    "operating point",
    "operating.json",
    fit_on=lambda valid: choose_points(valid.truth, valid.probabilities, valid.classes),
    shape={"points": [{"of": str, "goal": str, **NUMBERS}]},
    to_json=lambda points, images: {"points": [asdict(point) for point in points]},
    from_json=lambda content: [OperatingPoint(**point) for point in content["points"]],
    about=SHOWN,
)
CALIBRATION = Kept(
    "calibration",
    "calibration.json",
    fit_on=lambda valid, **options: fit_calibrator(*labelled(valid), **options),
    shape=(
        {"classes": [str], "method": "none"},
        {"classes": [str], "method": "temperature", "parameters": {"temperature": float}},
        linear("vector", [float]),
        linear("dirichlet", [[float]]),
    ),
    to_json=as_json,
    from_json=lambda content: from_fields(Calibrator, content),
)
SETS = Kept(
    "prediction set",
    "conformal.json",
    fit_on=fit_sets,
    shape={
        "coverage": float,
        "classes": [str],
        "marginal": (float, None),
        "by_class": [(float, None)],
        "lesions": [int],
    },
    to_json=lambda sets, images: as_json(sets, images) | {"unbounded": sets.unbounded},
    from_json=Conformal.from_dict,
    about=SHOWN,
)
REFERRAL = Kept(
    "referral",
    "referral.json",
    fit_on=fit_referral_threshold,
    shape={"share": float, "threshold": float, "rule": str, "classes": [str]},
    to_json=as_json,
    from_json=lambda content: from_fields(Referral, content),
    about=SHOWN,
)
OOD = KeptScorer("OOD score", "outliers.safetensors", lambda valid: fit_ood(valid.run))
KEPT = {kept.file: kept for kept in (POINTS, CALIBRATION, SETS, REFERRAL, OOD)}


class Decisions:
    """What a run's validation chose: thresholds, calibration, prediction sets, referral, OOD score.

    `coverage`, `refer` and `cost` (of errors, such as missed_melanoma=50) replace what the run
    keeps. Without them the run's choice holds, and only what is missing is fitted, by the defaults.
    It is kept in the run; if the run can't be written to, a warning says so and the choice is used.
    Raises `LesionfastError` for shares outside 0 to 1, unknown costs, and for a run without
    validation.
    """

    def __init__(
        self,
        run: Run,
        *,
        coverage: float | None = None,
        refer: float | None = None,
        cost: str | None = None,
    ) -> None:
        check_coverage(COVERAGE if coverage is None else coverage)
        check_share(SHARE if refer is None else refer)
        self.run, self.coverage, self.refer, self.cost = run, coverage, refer, cost
        self.costs = state_costs(run, cost)

    @cached_property
    def valid(self) -> Interpretation:
        """The validation predictions under the run's own rule."""
        valid = Interpretation.from_run(self.run, "valid")
        if warning := few_lesions_warning(valid):
            logger.warning("%s", warning)
        return valid

    @cached_property
    def shown(self) -> Interpretation:
        """The validation predictions as people see them: calibrated, the most probable class.

        The probabilities of each lesion are calibrated by a fit without it, for points, sets and
        referral are fitted on them. They are the model's own where no calibration can be fitted.
        """
        valid, calibrator = self.valid, self.calibrator_or_none
        if calibrator is None:
            return show(valid, valid.probabilities)
        data = valid.truth, valid.probabilities, valid.lesions
        return show(valid, apply_held_out(calibrator, *data))

    def show(self, test: Interpretation) -> Interpretation:
        """Return predictions of another split as people see them."""
        require_unseen(test)
        calibrator = self.calibrator_or_none
        return show(
            test, calibrator.apply(test.probabilities) if calibrator else test.probabilities
        )

    @cached_property
    def points(self) -> list[OperatingPoint]:
        """The thresholds of melanoma and malignancy."""
        return self._read_or_fit(POINTS)

    @cached_property
    def calibrator(self) -> Calibrator:
        """The calibration."""
        return self._read_or_fit(CALIBRATION)

    @cached_property
    def calibrator_or_none(self) -> Calibrator | None:
        """The calibration, None where validation is too small to fit one."""
        try:
            return self.calibrator
        except DamageError:
            raise
        except LesionfastError as error:
            logger.warning("The probabilities are not calibrated: %s", error)
            return None

    @cached_property
    def conformal(self) -> Conformal:
        """The prediction sets."""
        kept, before = SETS.read(self.run), SETS.read(self.run, stale=True)
        if kept and self.coverage in (None, kept.coverage):
            return kept
        return self._fit(SETS, coverage=self.coverage or (before.coverage if before else COVERAGE))

    @cached_property
    def referral(self) -> Referral:
        """Which images to refer, by the probability of the most probable class."""
        kept, before = REFERRAL.read(self.run), REFERRAL.read(self.run, stale=True)
        share = self.refer or (before.share if before else SHARE)
        if kept and kept.share == share:
            return kept
        return self._fit(REFERRAL, share=share)

    @cached_property
    def ood(self) -> Scorer:
        """The OOD score; raises `LesionfastError` without features, or with data elsewhere."""
        return self._read_or_fit(OOD)

    def choose(self) -> None:
        """Fit and keep what was asked for now, whether or not anything shows it."""
        if self.coverage is not None:
            _ = self.conformal
        if self.refer is not None:
            _ = self.referral
        if self.cost is not None:
            keep(self.run, lambda: self.run.write_json(COSTS, asdict(self.costs)))

    def kept_choices(self) -> list[str]:
        """Return, in words, what the run keeps that was not asked for now and is not a default."""
        sets, referral = (kept.read(self.run, stale=True) for kept in (SETS, REFERRAL))
        words = []
        words += filter(None, [describe_weight(self.run)])
        if sets and self.coverage is None and sets.coverage != COVERAGE:
            words.append(f"prediction sets with a coverage of {sets.coverage:g} (--coverage)")
        if referral and self.refer is None and referral.share != SHARE:
            words.append(f"a share of {referral.share:g} to refer (--refer)")
        if self.cost is None and self.costs != Costs():
            words.append(f"costs of errors: {self.costs} (--cost)")
        return words

    def _read_or_fit(self, kept: Kept[Value]) -> Value:
        value = kept.read(self.run)
        return self._fit(kept) if value is None else value

    def _fit(self, kept: Kept[Value], **options: Any) -> Value:
        value = kept.fit(self.shown if kept.about else self.valid, **options)
        keep(self.run, lambda: kept.write(self.run, value))
        return value


def show(read: Interpretation, probabilities: np.ndarray) -> Interpretation:
    """Return predictions with the probabilities that people see, and the most probable class."""
    rule = replace(read.decision_rule.plain, base=ARGMAX)
    about = (read.run, read.split, rule, read.classes)
    return Interpretation.build(about, read.truth, probabilities, read.table)


def state_costs(run: Run, cost: str | None = None) -> Costs:
    """Return the costs of errors that a run keeps, or else the defaults, changed by `cost`.

    Raises `DamageError` for a damaged file, unless they are stated again.
    """
    if not run.holds(COSTS):
        return Costs.parse(cost)
    advice = f"State them again: lesionfast interpret {shell_quote(run.path)} --cost {Costs()}"
    try:
        path = run.manifest.require(COSTS, advice)
        kept = Costs(**read_json(path, dict.fromkeys(asdict(Costs()), float), advice))
    except DamageError:
        if cost is None:
            raise
        kept = None
    return Costs.parse(cost, kept)


def keep(run: Run, write: Callable[[], object], instead: str = AGAIN) -> None:
    """Write something into a run; if that can't be done, a warning says what happens instead."""
    try:
        with disk_errors(run.path):
            write()
    except DiskError as error:  # read-only or full, or somebody else's folder
        if (run.path, instead) not in WARNED:
            WARNED.add((run.path, instead))
            logger.warning("%s %s", error.problem, instead)


def choose_rule(run: Run, sensitivity: float) -> None:
    """Give the run's rule the weight on melanoma that a validation sensitivity takes, and keep it.

    It is kept in model.json, and metrics.json gets the metrics of the decisions by it; 0 takes the
    weight away. Raises `LesionfastError` as `fit_rule` does, and for a run without validation.
    """
    before, rule = run.decision_rule, fit_rule(Interpretation.from_run(run, "valid"), sensitivity)
    model = run.model | describe_rule(rule, sensitivity)
    plain = rule == before and not sensitivity and not run.melanoma_sensitivity
    splits = [split for split in PARTS if split in run.metrics]
    measured = all(rule.name in run.metrics[split]["rules"] for split in splits)
    if measured and (plain or model == run.model):
        return
    run.model = model
    run.metrics |= {split: Interpretation.from_run(run, split).metrics for split in splits}
    instead = f"The rule {rule.name} is used but not kept: other commands decide by {before.name}."
    keep(run, lambda: run.write_json("model.json", run.model), instead)
    keep(run, lambda: run.write_json("metrics.json", run.metrics), instead)


def require_unseen(test: Interpretation) -> None:
    """Raise `LesionfastError` for the split that everything is fitted on."""
    if test.split == "valid":
        raise LesionfastError(
            "report results on a split that nothing was fitted on; found 'valid'. "
            "Pass Interpretation.from_run(run, 'test')."
        )


def points_table(test: Interpretation, points: list[OperatingPoint] | None = None) -> pd.DataFrame:
    """Return what operating points, the run's own unless given, reach on an unseen split."""
    decisions = Decisions(test.run)
    shown, points = decisions.show(test), decisions.points if points is None else points
    return apply_points(points, test.truth, shown.probabilities, test.lesions, test.classes)


def few_lesions_warning(valid: Interpretation) -> str:
    """Return a warning that names the classes of fewer than ten validation lesions, or ''."""
    lesions = pd.Series(valid.lesions).groupby(valid.truth).nunique()
    counts = {name: int(lesions.get(number, 0)) for number, name in enumerate(valid.classes)}
    few = [f"{name} ({count})" for name, count in counts.items() if count < FEWEST]
    if not few:
        return ""
    return (
        f"Warning: validation has fewer than {FEWEST} lesions of {list_first(few, 10)}. "
        "Thresholds, calibration and prediction sets are unreliable for these classes."
    )


def discard_damaged(run: Run) -> list[str]:
    """Remove what a run keeps of its validation, and its features, where they are damaged.

    They are made again when they are asked for. Returns the names of the files.
    """
    damaged = {name: why for name in FITTED if (why := find_damage(run, name))}
    for name, why in damaged.items():
        logger.warning("%s It is made again.", why)
        run.remove(name)
    return list(damaged)


def find_damage(run: Run, name: str) -> str | None:
    """Return what is wrong with one of these files, None if it can be used or there is none."""
    try:
        if not run.holds(name):
            return None
        if name == FEATURES:
            read_features(run)
        else:
            KEPT[name].load(run.file(name), "")
    except DamageError as error:
        return str(error).removesuffix(run.remedy(name)).strip()
    return None
