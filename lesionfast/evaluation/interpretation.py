"""Interpretation: what a run gets right and wrong, as tables over its predictions."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.split import PARTS
from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.notebook import predictions_html
from lesionfast.run import Run
from lesionfast.stats.measures import by_lesion, measure
from lesionfast.stats.metrics import confusion_counts, json_safe, losses, summarize
from lesionfast.stats.rules import DecisionRule
from lesionfast.stats.subgroups import COLUMNS, group_labels, measure_gaps, measure_subgroups

logger = logging.getLogger("lesionfast")

OUT_OF_FOLD = (  # what validation means for a run of folds
    "Validation is out of fold: each image was predicted by the model that did not train on it or "
    "on others of its lesion, and test images by the mean of all {n}. What validation decides "
    "(rule, calibration, thresholds, prediction sets, referral) is so fitted on single models and "
    "used on their mean, which is mostly better and less sure: calibrated probabilities may be too "
    "cautious and prediction sets too large (cross-conformal prediction, Barber et al. 2021, "
    "doi:10.1214/20-AOS1965)."
)
ABOUT = ("age", "sex", "localization", "path")  # what a row shows of an image, where it is there


@dataclass(frozen=True, eq=False, repr=False)
class Interpretation:
    """The predictions of one split of a run, decided by one rule: where every table starts.

    `truth` and `decision` (n,) are class numbers, `probabilities` is (n, k), `decision_rule` what
    decides, and `rule` its name; `rows` has one row an image: image_id, group, truth, decision,
    probability (of the decision), probability_of_truth, loss (-log of it, in nats), and age, sex,
    localization and path where the dataset has them. `table` are the predictions as they were read.
    `run` is None for the predictions of a learner. Make it with `from_run` or `from_learner`, which
    raise `LesionfastError` for an unknown split or rule.

    >>> list(lf.Interpretation.from_run(run).most_confused())
    ['truth', 'decision', 'count', 'share']
    """

    run: Run | None
    split: str
    decision_rule: DecisionRule
    classes: Classes
    truth: np.ndarray
    decision: np.ndarray
    probabilities: np.ndarray
    rows: pd.DataFrame
    table: pd.DataFrame

    @classmethod
    def from_run(
        cls, run: Run | str | Path, split: str = "test", rule: str | DecisionRule | None = None
    ) -> "Interpretation":
        """Read a run's predictions; `rule` is the run's own unless given, with its weight.

        'argmax' and 'balanced' are the plain rules.

        Never runs the model. Raises `LesionfastError` for an unknown rule, a split that the run
        has no predictions of, and predictions that do not match the run's classes.
        """
        run = Run.open(run)
        return cls.from_table(run, run.predictions_of(split), split, rule)

    @classmethod
    def before_corrections(
        cls, run: Run, split: str = "test", rule: str | DecisionRule | None = None
    ) -> "Interpretation | None":
        """Read the predictions of all held-out images by their original labels and lesions.

        None for a run without corrections, and for a split that it does not predict.
        """
        table = run.predictions_before_corrections
        rows = None if table is None else table[table["split"] == split].reset_index(drop=True)
        if rows is None or rows.empty:
            return None
        return cls.from_table(run, rows, split, rule)

    @classmethod
    def from_table(
        cls,
        run: Run,
        predictions: pd.DataFrame,
        split: str,
        rule: str | DecisionRule | None = None,
    ) -> "Interpretation":
        """Read rows of predictions.csv, of this run or of others of the same classes.

        Raises `LesionfastError` as `from_run` does.
        """
        truth, probabilities = run.read_probabilities(predictions)
        if not isinstance(rule, DecisionRule):
            rule = DecisionRule.of_model(run.model, rule)
        return cls.build((run, split, rule, run.classes), truth, probabilities, predictions)

    @classmethod
    def from_learner(
        cls, learn: Any, split: str = "valid", rule: str | None = None
    ) -> "Interpretation":
        """Predict a split with a Learner as it is now, one view of each image.

        `learn` comes from `lesion_learner`; `rule` is its own unless given. Raises
        `LesionfastError` for a split that its DataLoaders do not have.

        >>> lf.Interpretation.from_learner(learn).confusion().shape
        (7, 7)
        """
        splits = PARTS[: len(learn.dls.loaders)]
        if split not in splits:
            raise LesionfastError(
                f"the learner has no split '{split}'.{did_you_mean(split, splits)} Type one of: "
                f"{', '.join(splits)}."
            )
        loader = learn.dls.loaders[splits.index(split)].new(shuffle=False, drop_last=False)
        if split == "train":  # without its augmentation
            loader = learn.dls.test_dl(loader.dataset.items, with_labels=True)
        with learn.no_bar():
            probabilities, truth = learn.get_preds(dl=loader)
        images = getattr(loader.dataset, "items", None)
        if not isinstance(images, pd.DataFrame) or "image_id" not in images:
            images = pd.DataFrame({"image_id": np.arange(len(truth)).astype(str)})
        by = replace(learn.decision_rule.plain, base=rule) if rule else learn.decision_rule
        predicted = truth.numpy().astype(np.int64), probabilities.numpy().astype(np.float64)
        about = (None, split, by, learn.classes)
        return cls.build(about, *predicted, images.reset_index(drop=True))

    @classmethod
    def build(
        cls,
        about: tuple[Run | None, str, DecisionRule, Classes],
        truth: np.ndarray,
        probabilities: np.ndarray,
        table: pd.DataFrame,
    ) -> "Interpretation":
        """Return the interpretation of probabilities (n, k) of the images of a table (n rows).

        `about` is run, split, rule and classes.
        """
        _, _, rule, classes = about
        decision = rule.decide(probabilities)
        names, images = np.asarray(classes, dtype=object), np.arange(len(truth))
        values = {
            "truth": names[truth],
            "decision": names[decision],
            "probability": probabilities[images, decision],
            "probability_of_truth": probabilities[images, truth],
            "loss": losses(truth, probabilities),
        }
        keys = {name: table[name] for name in ("image_id", "group") if name in table}
        more = {name: table[name] for name in ABOUT if name in table}
        rows = pd.DataFrame({**keys, **values, **more})
        return cls(*about, truth, decision, probabilities, rows, table)

    def __repr__(self) -> str:
        return f"Interpretation({self.run!r}, {self.split!r}, {self.rule!r}, {len(self.rows)} rows)"

    def _repr_html_(self) -> str:
        decided = self.truth, self.probabilities, self.decision, self.lesions
        return predictions_html(f"{self.source}: {self.caption}", *decided, self.classes)

    @property
    def source(self) -> str:
        """What predicted: the path of the run, or "the learner"."""
        return "the learner" if self.run is None else str(self.run.path)

    @property
    def rule(self) -> str:
        """The name of the rule that decided, such as "balanced"."""
        return self.decision_rule.name

    @property
    def caption(self) -> str:
        """What a figure or table is about: "test, 1500 images, rule balanced"."""
        return f"{self.images}, rule {self.rule}"

    @property
    def images(self) -> str:
        """The same without the rule: "test, 1500 images"."""
        split = f"{self.split} (out of fold)" if self.is_out_of_fold else self.split
        return f"{split}, {len(self.rows)} images"

    @property
    def is_out_of_fold(self) -> bool:
        """Whether these are the validation predictions of a run of folds."""
        return self.split == "valid" and self.run is not None and self.run.is_out_of_fold

    @cached_property
    def lesions(self) -> np.ndarray:
        """The lesion of each image (n,), the image itself where lesions are unknown."""
        return self.rows["group" if "group" in self.rows else "image_id"].to_numpy(str)

    @cached_property
    def confidence(self) -> np.ndarray:
        """How sure the rule is of each decision (n,), 0 to 1; see `DecisionRule.confidence`."""
        return self.decision_rule.confidence(self.probabilities)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The metrics of `summarize`, for both plain rules and for the one in use."""
        rule = self.decision_rule
        return summarize(self.truth, self.probabilities, self.classes, rule.prior, rule)

    @cached_property
    def measures(self) -> pd.DataFrame:
        """Every metric over the images with its 95 % interval: metric, of, n, value, low, high.

        `of` is a class, 'malignant' or 'all'; see `lesionfast interpret`.
        """
        return measure(self.truth, self.probabilities, self.decision, self.lesions, self.classes)

    @cached_property
    def lesion_measures(self) -> pd.DataFrame:
        """Every metric over the lesions, the probabilities of whose images are averaged."""
        truth, probabilities, names = by_lesion(self.truth, self.probabilities, self.lesions)
        decision = self.decision_rule.decide(probabilities)
        return measure(truth, probabilities, decision, names, self.classes)

    def confusion(self, normalize: bool = False) -> pd.DataFrame:
        """Return truth (rows) by decision (columns): counts, or shares of the truth.

        The share of a class without images is NaN.
        """
        counts = confusion_counts(self.truth, self.decision, len(self.classes))
        axes = (pd.Index(self.classes, name=name) for name in ("truth", "decision"))
        table = pd.DataFrame(counts, *axes)
        return table.div(table.sum(axis=1), axis=0) if normalize else table

    def most_confused(self) -> pd.DataFrame:
        """Return truth, decision, count and share of the truth for each kind of error that occurs.

        Misclassified melanomas come first, then the other malignant classes, then the rest; within
        each the largest share of the truth first.
        """
        counts, shares = self.confusion(), self.confusion(normalize=True)
        pairs = [
            (truth, decision, int(counts.loc[truth, decision]), float(shares.loc[truth, decision]))
            for truth in self.classes
            for decision in self.classes
            if truth != decision and counts.loc[truth, decision]
        ]
        pairs.sort(key=lambda pair: (self.classes.gravity(pair[0]), -pair[3], -pair[2]))
        return pd.DataFrame(pairs, columns=["truth", "decision", "count", "share"])

    def top_losses(self, k: int = 12) -> pd.DataFrame:
        """Return the k rows with the lowest probability of the truth, worst first."""
        worst = self.rows.sort_values("loss", ascending=False, kind="stable")
        return worst.head(k).reset_index(drop=True)

    def taken_for(self, truth: str | None = None, decision: str | None = None) -> pd.DataFrame:
        """Return all rows of one class that were decided another, the most confident first.

        By default, these are melanomas taken for nevi. Raises `LesionfastError` for a class that
        does not exist.
        """
        truth, decision = self.name_error(truth, decision)
        chosen = (self.rows["truth"] == truth) & (self.rows["decision"] == decision)
        confident = self.rows[chosen].sort_values("probability", ascending=False, kind="stable")
        return confident.reset_index(drop=True)

    def name_error(self, truth: str | None, decision: str | None) -> tuple[str, str]:
        """Return truth and decision, by default those of melanomas taken for nevi.

        Raises `LesionfastError` for classes that do not exist.
        """
        classes = self.classes
        names = truth or classes.melanoma, decision or classes.nevus
        for what, name in zip(("melanoma", "nevus"), names, strict=True):
            if name is None:
                raise LesionfastError(
                    f"{self.source} has no class for {what}; it has: {', '.join(classes)}. "
                    "Name the truth and the decision."
                )
            if name not in classes:
                raise LesionfastError(
                    f"there is no class '{name}' in {self.source}.{did_you_mean(name, classes)} "
                    f"Name one of: {', '.join(classes)}."
                )
        return names

    def sensitivity_table(self) -> pd.DataFrame:
        """Return one row a class: images, sensitivity, precision, specificity, AUC, AP."""
        rule = self.metrics["rules"][self.rule]
        columns = {name: rule[name] for name in ("sensitivity", "precision", "specificity")}
        columns |= {name: self.metrics[name] for name in ("auc", "average_precision")}
        index = pd.Index(self.classes, name="class")
        table = pd.DataFrame({"images": self.metrics["counts"], **columns}, index=index)
        return table.astype(dict.fromkeys(columns, float))

    def subgroups(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the metrics of each group of patients with their 95 % intervals.

        `columns` are those of the predictions, by default sex, age (cut at `AGE_BANDS`) and
        localization; missing values are a group of their own. The columns of the table: column,
        group, metric, of (`Classes.targets`, each against the others, or 'all'), images and lesions
        (of the group), positives and negatives (lesions that are, and are not, `of`; for 'all'
        those of the rarest class, and 0), value, low, high, few and rank. A cell with fewer than 20
        lesions to count (positive ones; for an AUC negative ones too; for balanced accuracy those
        of each class) is `few`, and has no rank. Raises `LesionfastError` for a missing column.
        """
        return measure_subgroups(*self._grouped(columns))[0]

    def gaps(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return how far the best group of each column is from its worst; see `measure_gaps`."""
        return measure_gaps(*self._grouped(columns))

    def _grouped(self, columns: Sequence[str] | None) -> tuple[Any, ...]:
        table = self.table
        if columns is None:
            missing = [name for name in COLUMNS if name not in table]
            if missing:
                logger.info("No subgroups by %s: the data has no such column", ", ".join(missing))
            columns = [name for name in COLUMNS if name in table]
        for name in columns:
            if name not in table:
                raise LesionfastError(
                    f"column '{name}' is not in the predictions of {self.source}; they have: "
                    f"{', '.join(table)}.{did_you_mean(name, list(table))} Name one of those."
                )
        groups = {name: group_labels(table[name], name) for name in columns}
        decided = self.truth, self.probabilities, self.decision
        return *decided, self.lesions, groups, self.classes

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-safe values; what is missing or undefined is None."""
        taken = records(self.taken_for()) if self.classes.costliest else None
        return {
            "run": self.source,
            "split": self.split,
            "rule": self.rule,
            "classes": list(self.classes),
            "metrics": self.metrics,
            "confusion": self.confusion().to_numpy().tolist(),
            "most_confused": records(self.most_confused()),
            "top_losses": records(self.top_losses()),
            "melanomas_taken_for_nevi": taken,
        }


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table as a list of JSON-safe dicts, missing values as None."""
    present = table.astype(object).where(table.notna(), None)
    return [json_safe(row) for row in present.to_dict("records")]
