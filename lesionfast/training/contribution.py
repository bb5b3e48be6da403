"""Does the metadata help? The run without it, without images, and with it withheld."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from lesionfast.config import TrainConfig
from lesionfast.data.dataset import load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.contribution import (
    WITHHELD,
    contribution_table,
    in_words,
    melanomas_missed,
)
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.runs import Run
from lesionfast.training.study import Entry, Study, run_study

IMAGE, METADATA = "image alone", "metadata alone"


@dataclass(frozen=True, eq=False)
class Contribution:
    """A fused run beside the same run with less to go by, over the same images."""

    run: Run
    others: dict[str, Run]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Metrics and paired differences from the fused run; see `contribution_table`."""
        split = "test" if "test" in self.run.metrics else "valid"
        read = {name: Interpretation.of(each, split) for name, each in self.others.items()}
        return contribution_table(Interpretation.of(self.run, split), read)

    def words(self) -> list[str]:
        """Return a sentence for each of the others, and what becomes of the melanomas."""
        columns = " and ".join(self.run.model["metadata"])
        loses = {
            IMAGE: f"training without {columns}",
            METADATA: "training without images",
            WITHHELD: f"withholding {columns} at prediction",
        }
        words = [in_words(self.table, name, loses[name]) for name in self.others]
        missed = melanomas_missed(self.table, self.run.model["metadata"])
        return [*words, missed] if missed else words


def ablate(run: Run, out: str | Path | None = None) -> Contribution:
    """Train a fused run anew on images alone and on metadata alone, and predict without metadata.

    Split, seed and all other options are those of the run. The runs lie under `out`, by default
    the run's own directory `ablation`; what is there already is kept, what was stopped goes on.
    Raises `LesionfastError` for a run that has not ended, is a committee, or fuses nothing.
    """
    check_fused(run)
    folder = Path(out) if out else run.path / "ablation"
    base = replace(run.config, split=str(run.path / "split.csv"), budget=None)
    outcome = run_study(Study(run.path.name, base, entries_of(base)), folder)
    if outcome.failures:
        told = "; ".join(f"'{name}': {why}" for name, why in outcome.failures.items())
        raise LesionfastError(f"the ablation did not end. {told}")
    image, metadata = outcome.runs
    withheld = predict_without_metadata(run, folder)
    return Contribution(run, {IMAGE: image, METADATA: metadata, WITHHELD: withheld})


def entries_of(base: TrainConfig) -> list[Entry]:
    """Return the two systems that are trained."""
    plain = TrainConfig().metadata_dropout  # there is none to withhold
    alone = replace(base, fusion="none", metadata="none", metadata_dropout=plain)
    return [
        Entry(IMAGE, alone),
        Entry(METADATA, replace(base, fusion="metadata", unfreeze="none")),
    ]


def check_fused(run: Run) -> None:
    """Raise `LesionfastError` unless a run has ended and fuses images with metadata."""
    if not run.finished:
        raise LesionfastError(
            f"{run.path} did not end. Go on with: lesionfast train --resume {run.path}"
        )
    if "members" in run.model:
        raise LesionfastError(f"{run.path} is a committee. Name one of its members.")
    if run.model["fusion"] in ("none", "metadata") or not run.model["metadata"]:
        raise LesionfastError(
            f"{run.path} has fusion '{run.model['fusion']}', so there is nothing to take away. "
            "Name a run that fuses images with metadata: lesionfast train --fusion concat"
        )


def predict_without_metadata(run: Run, folder: Path) -> Run:
    """Return a run of the same weights that predicted every age, sex and site as unknown.

    It has no weights of its own. One that is there already is kept.
    """
    path = folder / WITHHELD.replace(" ", "-")
    if Run(path).finished:
        return Run(path)
    from lesionfast.training.experiment import predict_again

    df = load_dataset(run.config, split=run.file("split.csv"))
    df = df.assign(**dict.fromkeys(run.model["metadata"], None))
    return predict_again(run, df, run.config, folder, path.name)
