"""Findings: all that the report and `interpret` show of a run, each computed on first use."""

import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import read_costs
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.comparison import WITHHELD, contribution_table, without_metadata
from lesionfast.evaluation.decisions import Decisions, choose_rule, discard_damaged, show
from lesionfast.evaluation.features import dataset_features, keeps_features, read_features
from lesionfast.evaluation.interpretation import Interpretation, records
from lesionfast.evaluation.melanoma import describe_fewer_melanomas, price_of_weight
from lesionfast.evaluation.outliers import score_images
from lesionfast.run import FEATURES, Run
from lesionfast.stats.advice.advice import Advice, advise
from lesionfast.stats.calibration import Calibrator
from lesionfast.stats.conformal import check_coverage
from lesionfast.stats.rules import RULES, DecisionRule
from lesionfast.stats.selective import Referral, check_share
from lesionfast.stats.thresholds import cost_decision, cost_table

logger = logging.getLogger("lesionfast")


class Findings:
    """The findings on a run's predictions of one split, with what was chosen on validation."""

    def __init__(
        self,
        interpretation: Interpretation,
        *,
        coverage: float | None = None,
        refer: float | None = None,
        cost: str | None = None,
        explain: bool = False,
        masks: Path | None = None,
    ) -> None:
        self.interpretation = interpretation
        self.run = interpretation.run
        stated = None if cost is None or ":" in cost else cost  # of misses, which the run keeps
        self.decisions = Decisions(self.run, coverage=coverage, refer=refer, cost=stated)
        self.cost = None if stated else cost
        self.costs = read_cost_matrix(self.cost, interpretation.classes)  # (k, k)
        self.explain, self.masks = explain or masks is not None, masks
        self.files: dict[str, Path] = {}  # the figures that were drawn, by name

    @classmethod
    def from_run(
        cls,
        run: Run,
        split: str = "test",
        rule: str | None = None,
        *,
        melanoma_sensitivity: float | None = None,
        **chosen: Any,
    ) -> "Findings":
        """Read a run's predictions; `rule` is the run's own unless given.

        The run keeps from then on: `melanoma_sensitivity` (that the rule's weight on melanoma has
        to reach on validation; 0: no weight), `coverage` (of the prediction sets) and `refer` (the
        share of images to refer); without them what it keeps holds. For these findings alone, as
        `rule` is, are `cost` (of errors, such as mel:nv=10), `explain` (run the model for heat
        maps) and `masks` (a folder of lesion masks to compare those with). Raises `LesionfastError`
        as `Interpretation.from_run` and `choose_rule` do, and for values out of range.
        """
        if (coverage := chosen.get("coverage")) is not None:  # before the run keeps anything
            check_coverage(coverage)
        if (refer := chosen.get("refer")) is not None:
            check_share(refer)
        if melanoma_sensitivity is not None:
            choose_rule(run, melanoma_sensitivity)
        findings = cls(Interpretation.from_run(run, split, rule), **chosen)
        findings.decisions.choose()
        return findings

    @property
    def folder(self) -> Path:
        """Where the figures are drawn: figures/, or figures/<split>/ unless it is the test."""
        folder, split = self.run.path / "figures", self.interpretation.split
        return folder if split == "test" else folder / split

    @cached_property
    def on_test(self) -> bool:
        """Whether there are validation predictions to choose on, and these are others."""
        splits = set(self.run.predictions["split"])
        return self.interpretation.split != "valid" and "valid" in splits

    @cached_property
    def validation(self) -> Interpretation:
        """The validation predictions under the same rule, on which everything is chosen."""
        return Interpretation.from_run(self.run, "valid", self.interpretation.decision_rule)

    @cached_property
    def fewer_melanomas(self) -> str:
        """A sentence if the rule finds fewer validation melanomas than argmax does, or ''."""
        validated = "valid" in set(self.run.predictions["split"])
        return describe_fewer_melanomas(self.validation) if validated else ""

    @cached_property
    def price_of_weight(self) -> dict[str, pd.DataFrame]:
        """What the rule's weight on melanoma changes, by split; empty if it has none."""
        read = [self.validation, self.interpretation] if self.on_test else [self.interpretation]
        weighted = self.interpretation.decision_rule.weight > 1
        return {one.split: price_of_weight(one) for one in read} if weighted else {}

    @property
    def calibrator(self) -> Calibrator | None:
        """The calibration that validation chose; None, with a warning, if it can't be used."""
        return self.decisions.calibrator_or_none

    @cached_property
    def chances(self) -> np.ndarray:
        """The probabilities (n, k) to be read as chances: calibrated, if there is validation."""
        probabilities = self.interpretation.probabilities
        return self.calibrator.apply(probabilities) if self.calibrator else probabilities

    @cached_property
    def shown(self) -> Interpretation:
        """The predictions as people see them: calibrated, decided for the most probable class."""
        return show(self.interpretation, self.chances)

    @property
    def referral(self) -> Referral:
        """Which images to refer, by a threshold of validation."""
        return self.decisions.referral

    @cached_property
    def advice(self) -> Advice:
        """What a person would be told of these images, by what validation chose."""
        chances, decisions = self.chances, self.decisions
        sets = decisions.conformal.sets(chances)
        unsure = self.referral.referred(self.shown.confidence)
        outlier = np.zeros(len(chances), bool)
        if self.ood_scores is not None:
            outlier[self.ood_scores.index] = self.ood_scores > decisions.ood.threshold
        given = self.interpretation.classes, decisions.costs, sets, unsure, outlier
        return advise(chances, *given)

    @cached_property
    def ood_scores(self) -> pd.Series | None:
        """The OOD score of each image that has features, by its number; None without a scorer."""
        if not (self.on_test and self.keeps_features):
            return None
        images = self.interpretation.rows["image_id"]
        try:
            return score_images(self.run, self.decisions.ood, self.dataset, images)
        except LesionfastError as error:
            self.left_out("the OOD score", error)
            return None

    @property
    def keeps_features(self) -> bool:
        """Whether the image features were kept with the run."""
        return keeps_features(self.run)

    @cached_property
    def dataset(self) -> pd.DataFrame:
        """The whole dataset under the run's split; raises `LesionfastError` if it is elsewhere."""
        return load_dataset(self.run.config, split=self.run.file("split.csv"))

    @cached_property
    def features(self) -> pd.DataFrame:
        """The image features kept with the run, by image id; raises `LesionfastError` if none."""
        return read_features(self.run)

    @cached_property
    def mean_costs(self) -> pd.DataFrame:
        """The mean cost an image of each rule, and of the least expected cost.

        An expected cost takes chances, so that decision is by the calibrated probabilities.
        Columns: rule, value, low, high.
        """
        read, model = self.interpretation, self.run.model
        rules = [*(DecisionRule.of_model(model, base) for base in RULES), read.decision_rule]
        decisions = {rule.name: rule.decide(read.probabilities) for rule in rules}
        decisions["least expected cost"] = cost_decision(self.chances, self.costs)
        return cost_table(read.truth, decisions, self.costs, read.lesions)

    @cached_property
    def contribution(self) -> pd.DataFrame | None:
        """What withholding all metadata changes, paired; None if the run has not tried it."""
        read = self.interpretation
        other = without_metadata(self.run, read.split, read.decision_rule)
        return None if other is None else contribution_table(read, {WITHHELD: other})

    def drawn(
        self, draw: Callable[..., Path], *more: Any, read: Interpretation | None = None
    ) -> Path:
        """Return the figure of `draw(read, *more, folder)`, drawn once; of the predictions."""
        name = draw.__name__.removeprefix("draw_")
        if name not in self.files:
            self.files[name] = draw(read or self.interpretation, *more, self.folder)
        return self.files[name]

    def left_out(self, what: str, why: Exception) -> None:
        """Warn that a part is left out, and why; damage is raised, for it must be repaired."""
        if isinstance(why, DamageError):
            raise why
        logger.warning("Left out: %s; %s", what, why)

    def measure(self, metric: str, of: str | None) -> pd.Series | None:
        """Return the row of one metric over the images; None if there is none."""
        table = self.interpretation.measures
        rows = table[(table["metric"] == metric) & (table["of"] == of)]
        return None if rows.empty else rows.iloc[0]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-safe values; what is missing or undefined is None."""
        read = self.interpretation
        tables = {"estimates": read.measures, "estimates_by_lesion": read.lesion_measures}
        estimates = {name: records(table) for name, table in tables.items()}
        return read.to_dict() | estimates


def read_cost_matrix(text: str | None, classes: list[str]) -> np.ndarray:
    """Return the cost (k, k) of deciding a column where a row is true, from "mel:nv=10".

    Every other error costs 1, a right decision nothing. Raises as `read_costs`.
    """
    costs = read_costs(text, classes)
    return np.where(costs > 0, costs, 1 - np.eye(len(classes)))


def renew_damaged(run: Run) -> None:
    """Remove what was fitted on validation and is damaged; compute lost features again."""
    if FEATURES in discard_damaged(run):
        dataset_features(run, load_dataset(run.config, split=run.file("split.csv")))
