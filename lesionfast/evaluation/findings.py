"""Findings: all that is said of a run's predictions, each part worked out when it is asked for."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.evaluation.measures import as_records, by_lesion, measure
from lesionfast.evaluation.metrics import decide
from lesionfast.runs import Run


class Findings:
    """What a run's predictions of one split say, with what was chosen on validation."""

    def __init__(self, interpretation: Interpretation) -> None:
        self.interpretation = interpretation
        self.run = interpretation.run
        self.files: dict[str, Path] = {}  # the figures that were drawn, by name

    @classmethod
    def of(cls, run: Run, split: str = "test", rule: str | None = None) -> "Findings":
        """Read a run's predictions; `rule` is the run's own unless given.

        Raises `LesionfastError` as `Interpretation.of` does.
        """
        return cls(Interpretation.of(run, split, rule))

    @property
    def folder(self) -> Path:
        """Where the figures are drawn: figures/, or figures/<split>/ unless it is the test."""
        folder, split = self.run.path / "figures", self.interpretation.split
        return folder if split == "test" else folder / split

    @cached_property
    def lesions(self) -> np.ndarray:
        """The lesion of each image (n,), or the image itself where lesions are not known."""
        rows = self.interpretation.rows
        return rows["group" if "group" in rows else "image_id"].to_numpy(str)

    @cached_property
    def valid(self) -> Interpretation | None:
        """The validation predictions under the same rule, on which everything is chosen."""
        splits = set(self.run.predictions["split"])
        if "valid" not in splits:
            return None
        return Interpretation.of(self.run, "valid", self.interpretation.rule)

    @cached_property
    def measures(self) -> pd.DataFrame:
        """Every metric over the images: metric, of, n, value, low, high."""
        read = self.interpretation
        return measure(read.truth, read.probabilities, read.decision, self.lesions, read.classes)

    @cached_property
    def lesion_measures(self) -> pd.DataFrame:
        """Every metric over the lesions, the probabilities of whose images are averaged."""
        read = self.interpretation
        truth, probabilities, names = by_lesion(read.truth, read.probabilities, self.lesions)
        decision = decide(probabilities, read.rule, self.run.model["prior"])
        return measure(truth, probabilities, decision, names, read.classes)

    def drawn(self, draw: Callable[..., Path], *more: Any) -> Path:
        """Return the figure of `draw(interpretation, *more, folder)`, drawn once."""
        name = draw.__name__.removeprefix("draw_")
        if name not in self.files:
            self.files[name] = draw(self.interpretation, *more, self.folder)
        return self.files[name]

    def measure(self, metric: str, of: str) -> pd.Series | None:
        """Return the row of one metric over the images; None if there is none."""
        found = self.measures[(self.measures["metric"] == metric) & (self.measures["of"] == of)]
        return None if found.empty else found.iloc[0]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-safe values; what is missing or undefined is None."""
        told = self.interpretation.to_dict()
        tables = {"estimates": self.measures, "estimates_by_lesion": self.lesion_measures}
        return told | {name: as_records(table) for name, table in tables.items()}
