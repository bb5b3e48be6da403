"""Findings: all that is said of a run's predictions, each part worked out when it is asked for."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import read_costs
from lesionfast.errors import DamageError, LesionfastError, did_you_mean
from lesionfast.evaluation.contribution import WITHHELD, contribution_table, without_metadata
from lesionfast.evaluation.decisions import Decisions
from lesionfast.evaluation.interpretation import (
    Interpretation,
    has_features,
    predictions_of,
    read_features,
)
from lesionfast.runs import Run
from lesionfast.stats.calibration import Calibrator
from lesionfast.stats.conformal import Conformal
from lesionfast.stats.measures import as_records, by_lesion, measure
from lesionfast.stats.metrics import decide
from lesionfast.stats.ood import OODScorer
from lesionfast.stats.selective import Referral
from lesionfast.stats.subgroups import (
    COLUMNS,
    Labels,
    group_labels,
    measure_gaps,
    measure_subgroups,
)
from lesionfast.stats.thresholds import cost_decision, cost_table

logger = logging.getLogger("lesionfast")


def subgroup_table(
    interpretation: Interpretation, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return the metrics of each group of patients with their 95 % intervals.

    `columns` are those of the predictions, sex, age and localization unless given; age is cut at
    `AGE_BANDS`, and what is not known is a group of its own. Columns: column, group, metric, of
    (`Classes.targets`, each against the others, or 'all'), images and lesions (of the group),
    positives and negatives (lesions that are, and are not, `of`; for 'all' those of the rarest
    class, and 0), value, low, high, few and rank. A cell with fewer than 20 lesions to count
    (positive ones; for an AUC negative ones too; for balanced accuracy those of each class) is
    `few`, and has no rank. Raises `LesionfastError` for a column that is not there.
    """
    return measure_subgroups(*subgroup_data(interpretation, columns))[0]


def subgroup_data(interpretation: Interpretation, columns: Sequence[str] | None) -> tuple:
    """Return what `measure_subgroups` takes."""
    read, groups = interpretation, labels_of(interpretation, columns)
    return read.truth, read.probabilities, read.decision, read.lesions, groups, read.classes


def labels_of(interpretation: Interpretation, columns: Sequence[str] | None = None) -> Labels:
    """Return the group of each image by each column; default columns that are not there are said.

    Raises `LesionfastError` for a column asked for that the predictions do not have.
    """
    table = predictions_of(interpretation.run, interpretation.split)
    if columns is None:
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            logger.info("no subgroups by %s: the dataset has no such column", ", ".join(missing))
        columns = [name for name in COLUMNS if name in table]
    for name in columns:
        if name not in table:
            raise LesionfastError(
                f"column '{name}' is not in the predictions of {interpretation.run.path}; they "
                f"have: {', '.join(table)}.{did_you_mean(name, list(table))} Name one of those."
            )
    return {name: group_labels(table[name], name) for name in columns}


def gap_table(interpretation: Interpretation, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return how far the best ranked group of a column is from its worst: columns as `gaps_of`."""
    return measure_gaps(*subgroup_data(interpretation, columns))


class Findings:
    """What a run's predictions of one split say, with what was chosen on validation."""

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
        self.decisions = Decisions(self.run, coverage=coverage, refer=refer)
        self.cost = cost
        self.costs = read_cost_matrix(cost, interpretation.classes)  # (k, k)
        self.explain, self.masks = explain or masks is not None, masks
        self.files: dict[str, Path] = {}  # the figures that were drawn, by name

    @classmethod
    def of(
        cls, run: Run, split: str = "test", rule: str | None = None, **chosen: Any
    ) -> "Findings":
        """Read a run's predictions; `rule` is the run's own unless given.

        `chosen` are `coverage` (of the prediction sets) and `refer` (the share of images to refer),
        which the run keeps from then on, and without which what it keeps holds; `cost` (of errors,
        such as mel:nv=10), `explain` (run the model for what speaks for its decisions) and `masks`
        (a folder of lesion masks to compare that with), which are of this reading alone, as `rule`
        is. Raises `LesionfastError` as `Interpretation.of` does, and for what can't be chosen.
        """
        findings = cls(Interpretation.of(run, split, rule), **chosen)
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
        return self.interpretation.split != "valid" and "valid" in set(
            self.run.predictions["split"]
        )

    @cached_property
    def validation(self) -> Interpretation:
        """The validation predictions under the same rule, on which everything is chosen."""
        return Interpretation.of(self.run, "valid", self.interpretation.rule)

    @property
    def calibrator(self) -> Calibrator:
        """The calibration that validation chose."""
        return self.decisions.calibrator

    @cached_property
    def chances(self) -> np.ndarray:
        """The probabilities (n, k) to be read as chances: calibrated, if there is validation."""
        try:
            calibrator = self.calibrator
        except LesionfastError as error:
            logger.warning("costs and decision curves are of uncalibrated probabilities: %s", error)
            return self.interpretation.probabilities
        return calibrator.apply(self.interpretation.probabilities)

    @property
    def conformal(self) -> Conformal:
        """The prediction sets that validation chose."""
        return self.decisions.conformal

    @cached_property
    def referral(self) -> Referral:
        """Which images to refer under the rule of these decisions, by a threshold of validation."""
        return self.decisions.referral_by(self.interpretation.rule)

    @property
    def ood(self) -> OODScorer:
        """The OOD score; raises `LesionfastError` without features, or with data elsewhere."""
        return self.decisions.ood

    @property
    def keeps_features(self) -> bool:
        """Whether the image features were kept with the run."""
        return has_features(self.run)

    @cached_property
    def dataset(self) -> pd.DataFrame:
        """The whole dataset under the run's split; raises `LesionfastError` if it is elsewhere."""
        return load_dataset(self.run.config, split=self.run.file("split.csv"))

    @cached_property
    def features(self) -> pd.DataFrame:
        """The image features kept with the run, by image id; raises `LesionfastError` if none."""
        return read_features(self.run)

    @cached_property
    def measures(self) -> pd.DataFrame:
        """Every metric over the images: metric, of, n, value, low, high."""
        read = self.interpretation
        return measure(read.truth, read.probabilities, read.decision, read.lesions, read.classes)

    @cached_property
    def lesion_measures(self) -> pd.DataFrame:
        """Every metric over the lesions, the probabilities of whose images are averaged."""
        read = self.interpretation
        truth, probabilities, names = by_lesion(read.truth, read.probabilities, read.lesions)
        decision = decide(probabilities, read.rule, self.run.model["prior"])
        return measure(truth, probabilities, decision, names, read.classes)

    @cached_property
    def contribution(self) -> pd.DataFrame | None:
        """What withholding all metadata changes, paired; None if the run has not tried it."""
        read = self.interpretation
        other = without_metadata(self.run, read.split, read.rule)
        return None if other is None else contribution_table(read, {WITHHELD: other})

    def drawn(self, draw: Callable[..., Path], *more: Any) -> Path:
        """Return the figure of `draw(interpretation, *more, folder)`, drawn once."""
        name = draw.__name__.removeprefix("draw_")
        if name not in self.files:
            self.files[name] = draw(self.interpretation, *more, self.folder)
        return self.files[name]

    def left_out(self, what: str, why: Exception) -> None:
        """Say that a part can't be had, and why; damage is raised, for it must be mended."""
        if isinstance(why, DamageError):
            raise why
        logger.warning("left out: %s; %s", what, why)

    def measure(self, metric: str, of: str | None) -> pd.Series | None:
        """Return the row of one metric over the images; None if there is none."""
        found = self.measures[(self.measures["metric"] == metric) & (self.measures["of"] == of)]
        return None if found.empty else found.iloc[0]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-safe values; what is missing or undefined is None."""
        told = self.interpretation.to_dict()
        tables = {"estimates": self.measures, "estimates_by_lesion": self.lesion_measures}
        return told | {name: as_records(table) for name, table in tables.items()}


def read_cost_matrix(text: str | None, classes: list[str]) -> np.ndarray:
    """Return the cost (k, k) of deciding a column where a row is true, from "mel:nv=10".

    Every other error costs 1, a right decision nothing. Raises as `read_costs`.
    """
    said = read_costs(text, classes)
    return np.where(said > 0, said, 1 - np.eye(len(classes)))


def mean_costs(findings: "Findings") -> pd.DataFrame:
    """Return the mean cost an image of each rule, and of the least expected cost.

    An expected cost is made of chances, so that decision takes the calibrated probabilities.
    Columns: rule, value, low, high.
    """
    read, prior = findings.interpretation, findings.run.model["prior"]
    decisions = {rule: decide(read.probabilities, rule, prior) for rule in ("argmax", "balanced")}
    decisions["least expected cost"] = cost_decision(findings.chances, findings.costs)
    return cost_table(read.truth, decisions, findings.costs, read.lesions)
