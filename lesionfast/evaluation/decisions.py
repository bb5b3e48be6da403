"""All that is chosen on a run's validation: read where the run keeps it, else chosen and kept."""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from lesionfast.data.dataset import load_dataset
from lesionfast.evaluation.calibration import FILE as CALIBRATION
from lesionfast.evaluation.calibration import calibrator_of, keep_calibration, read_calibration
from lesionfast.evaluation.conformal import (
    COVERAGE,
    Conformal,
    check_coverage,
    choose_conformal,
    keep_conformal,
    read_conformal,
)
from lesionfast.evaluation.conformal import FILE as SETS
from lesionfast.evaluation.features import read_features
from lesionfast.evaluation.fitted import few_words, keep
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.operating import OperatingPoint, read_points
from lesionfast.evaluation.outliers import NAME as OUTLIERS
from lesionfast.evaluation.outliers import OutlierScorer
from lesionfast.evaluation.scaling import Calibrator
from lesionfast.evaluation.selective import FILE as REFERRAL
from lesionfast.evaluation.selective import (
    SHARE,
    Referral,
    check_share,
    keep_referral,
    read_referral,
    referral_of,
)
from lesionfast.runs import Run

logger = logging.getLogger("lesionfast")
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
