"""Interpretation: what a run gets right and wrong, as tables over its predictions."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file

from lesionfast.diagnoses import Classes
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.files import damage_explained
from lesionfast.runs import Run
from lesionfast.stats.metrics import confusion_counts, decide, json_safe, losses, summarize
from lesionfast.stats.selective import rule_confidence

KEPT = ("image_id", "group", "age", "sex", "localization", "path")  # columns that a table shows


@dataclass(frozen=True, eq=False, repr=False)
class Interpretation:
    """The predictions of one split of a run, decided by one rule.

    `truth` and `decision` (n,) are class numbers, `probabilities` is (n, k); `rows` has one row an
    image: image_id, group, truth, decision, probability (of the decision), probability_of_truth,
    loss (-log of it, in nats), and age, sex, localization and path where the dataset has them.
    """

    run: Run
    split: str
    rule: str
    classes: Classes
    truth: np.ndarray
    decision: np.ndarray
    probabilities: np.ndarray
    rows: pd.DataFrame

    @classmethod
    def of(cls, run: Run, split: str = "test", rule: str | None = None) -> "Interpretation":
        """Read a run's predictions; `rule` is the run's own unless given.

        Never runs the model. Raises `LesionfastError` for an unknown rule, a split that the run
        has no predictions of, and predictions that do not fit the run's classes.
        """
        return cls.of_table(run, predictions_of(run, split), split, rule)

    @classmethod
    def of_table(
        cls, run: Run, predictions: pd.DataFrame, split: str, rule: str | None = None
    ) -> "Interpretation":
        """Read rows of predictions.csv, of this run or of others of the same classes.

        Raises `LesionfastError` as `of` does.
        """
        rule = rule or run.model["rule"]
        truth, probabilities = codes_and_probabilities(run, predictions)
        decision = decide(probabilities, rule, run.model["prior"])
        rows = describe(predictions, run.classes, truth, decision, probabilities)
        return cls(run, split, rule, run.classes, truth, decision, probabilities, rows)

    def __repr__(self) -> str:
        return f"Interpretation({self.run!r}, {self.split!r}, {self.rule!r}, {len(self.rows)} rows)"

    @cached_property
    def lesions(self) -> np.ndarray:
        """The lesion of each image (n,), the image itself where lesions are unknown."""
        return self.rows["group" if "group" in self.rows else "image_id"].to_numpy(str)

    @cached_property
    def confidence(self) -> np.ndarray:
        """How sure the rule is of each decision (n,), 0 to 1; see `rule_confidence`."""
        return rule_confidence(self.probabilities, self.rule, self.run.model["prior"])

    @property
    def caption(self) -> str:
        """What a figure or table is about: "test, 1500 images, rule balanced"."""
        return f"{self.split}, {len(self.rows)} images, rule {self.rule}"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What `summarize` says of these predictions, for both rules."""
        return summarize(self.truth, self.probabilities, self.classes, self.run.model["prior"])

    def confusion(self, normalize: bool = False) -> pd.DataFrame:
        """Return truth (rows) by decision (columns): counts, or shares of the truth.

        The share of a class that no image has is NaN.
        """
        counts = confusion_counts(self.truth, self.decision, len(self.classes))
        table = pd.DataFrame(
            counts,
            index=pd.Index(self.classes, name="truth"),
            columns=pd.Index(self.classes, name="decision"),
        )
        return table.div(table.sum(axis=1), axis=0) if normalize else table

    def most_confused(self) -> pd.DataFrame:
        """Return truth, decision, count and share of the truth for each kind of error that occurs.

        Melanomas taken for something else come first, then the other malignant classes, then the
        rest; within each the largest share of the truth first.
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
        """Return the k rows where the truth was given the least probability, worst first."""
        worst = self.rows.sort_values("loss", ascending=False, kind="stable")
        return worst.head(k).reset_index(drop=True)

    def error_named(self, truth: str | None, decision: str | None) -> tuple[str, str]:
        """Return truth and decision, unless they are named those of melanomas taken for nevi.

        Raises `LesionfastError` if there are no such classes.
        """
        classes = self.classes
        names = ("melanoma", truth or classes.melanoma), ("nevus", decision or classes.nevus)
        for what, name in names:
            if name is None:
                raise LesionfastError(
                    f"no class of {self.run.path} is known as {what}; it has: "
                    f"{', '.join(classes)}. Name the truth and the decision."
                )
        return names[0][1], names[1][1]

    def taken_for(self, truth: str | None = None, decision: str | None = None) -> pd.DataFrame:
        """Return all rows of one class that were decided another, the most confident first.

        Unless they are named, these are melanomas taken for nevi. Raises `LesionfastError` if
        there is no such class.
        """
        truth, decision = self.error_named(truth, decision)
        self._require_class(truth)
        self._require_class(decision)
        chosen = (self.rows["truth"] == truth) & (self.rows["decision"] == decision)
        confident = self.rows[chosen].sort_values("probability", ascending=False, kind="stable")
        return confident.reset_index(drop=True)

    def sensitivity_table(self) -> pd.DataFrame:
        """Return one row a class: images, sensitivity, precision, specificity, AUC, AP."""
        rule = self.metrics["rules"][self.rule]
        table = pd.DataFrame(
            {
                "images": self.metrics["counts"],
                **{name: rule[name] for name in ("sensitivity", "precision", "specificity")},
                "auc": self.metrics["auc"],
                "average_precision": self.metrics["average_precision"],
            },
            index=pd.Index(self.classes, name="class"),
        )
        return table.astype({name: float for name in table if name != "images"})

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-safe values; what is missing or undefined is None."""
        taken = self.taken_for() if self.classes.costliest else None
        return {
            "run": str(self.run.path),
            "split": self.split,
            "rule": self.rule,
            "classes": list(self.classes),
            "metrics": self.metrics,
            "confusion": self.confusion().to_numpy().tolist(),
            "most_confused": records(self.most_confused()),
            "top_losses": records(self.top_losses()),
            "melanomas_taken_for_nevi": None if taken is None else records(taken),
        }

    def _require_class(self, name: str) -> None:
        if name not in self.classes:
            raise LesionfastError(
                f"there is no class '{name}' in {self.run.path}.{did_you_mean(name, self.classes)} "
                f"Name one of: {', '.join(self.classes)}."
            )


def predictions_of(run: Run, split: str) -> pd.DataFrame:
    """Return the predictions of one split; raises `LesionfastError` if there are none."""
    predictions = run.predictions
    found = predictions[predictions["split"] == split].reset_index(drop=True)
    if found.empty:
        known = sorted(predictions["split"].unique())
        raise LesionfastError(
            f"{run.path} has no predictions of the split '{split}'; it has: {', '.join(known)}."
            f"{did_you_mean(split, known)} Choose one with --split."
        )
    return found


def codes_and_probabilities(run: Run, predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return class numbers (n,) and probabilities (n, k) in the run's class order."""
    columns = [f"p_{name}" for name in run.classes]
    missing = [name for name in columns if name not in predictions]
    numbers = {name: number for number, name in enumerate(run.classes)}
    truth = predictions["target"].astype(str).map(numbers)
    if missing or truth.isna().any():
        unknown = predictions.loc[truth.isna(), "target"].astype(str).unique().tolist()
        raise LesionfastError(
            f"predictions.csv and model.json of {run.path} do not fit: missing columns {missing}, "
            f"classes that the model does not know {unknown}. Use both as the training wrote them."
        )
    return truth.to_numpy(np.int64), predictions[columns].to_numpy(np.float64)


def describe(
    predictions: pd.DataFrame,
    classes: list[str],
    truth: np.ndarray,
    decision: np.ndarray,
    probabilities: np.ndarray,
) -> pd.DataFrame:
    """Return the `rows` of an Interpretation."""
    names, every = np.asarray(classes, dtype=object), np.arange(len(truth))
    told = {name: predictions[name] for name in KEPT if name in predictions}
    first = {name: told.pop(name) for name in ("image_id", "group") if name in told}
    found = {
        "truth": names[truth],
        "decision": names[decision],
        "probability": probabilities[every, decision],
        "probability_of_truth": probabilities[every, truth],
        "loss": losses(truth, probabilities),
    }
    return pd.DataFrame({**first, **found, **told})


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table as a list of JSON-safe dicts, missing values as None."""
    present = table.astype(object).where(table.notna(), None)
    return [json_safe(row) for row in present.to_dict("records")]


NAME = "features.safetensors"


def write_features(run: Run, image_ids: list[str], features: np.ndarray) -> None:
    """Keep the pooled image features (n, F) of a run, as float16 if none is too large for it."""
    header = {"image_ids": json.dumps(image_ids)}
    fits = np.abs(features).max(initial=0) <= np.finfo(np.float16).max
    kept = np.ascontiguousarray(features, np.float16 if fits else np.float32)
    run.write(NAME, lambda aside: save_file({"features": kept}, aside, header))


def has_features(run: Run) -> bool:
    """Return whether features were kept with a run."""
    return run.holds(NAME)


def read_features(run: Run) -> pd.DataFrame:
    """Return the features of a run's images, float32, one row an image, by image id.

    Raises `LesionfastError` if none were kept (an ensemble, a run without a backbone, an old run).
    """
    if not run.holds(NAME):
        raise LesionfastError(
            f"{run.path} keeps no {NAME}: it looks at no image, is an ensemble, or is old. "
            f"Train it again: lesionfast train --config {run.path / 'config.json'}"
        )
    path = run.file(NAME)
    with damage_explained(path, run.remedy(NAME)), safe_open(path, framework="np") as file:
        ids = json.loads(file.metadata()["image_ids"])
        features = file.get_tensor("features").astype(np.float32)
        return pd.DataFrame(features, index=pd.Index(ids, name="image_id"))
