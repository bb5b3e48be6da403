"""What a search found: the best trial, what its choosing costs, and the run that it becomes."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from filelock import FileLock

from lesionfast.errors import LesionfastError, pluralize
from lesionfast.evaluation.comparison import align_images
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.files import write_json
from lesionfast.run import Run
from lesionfast.stats.bootstrap import interval, out_of_bag_choice
from lesionfast.stats.measures import weighted_metrics
from lesionfast.stats.metrics import ALL
from lesionfast.training.search.trials import SPLIT, Search, number_of

logger = logging.getLogger("lesionfast")

BEST, FOUND = "best", "found.json"
MOST = 30  # trials that the price of choosing is computed from: the best ones


@dataclass(frozen=True)
class Price:
    """What a metric of the best of several trials is worth on images that did not choose it.

    `trials` are all that were tried, the pruned and failed ones too. `value` is the best trial's
    own, `corrected` the mean of what the best trial of a resample of lesions has on the lesions
    outside it, with its 95 % interval.
    """

    by: str
    trials: int
    value: float
    corrected: float
    low: float
    high: float

    def words(self) -> str:
        """Return the price in one sentence."""
        return (
            f"{self.by} {self.value:.3f} is the best of {pluralize(self.trials, 'trial')} on the "
            f"images that chose it; on others expect about {self.corrected:.3f} "
            f"[{self.low:.3f}, {self.high:.3f}]"
        )


def price_choice(search: Search) -> Price:
    """Return what choosing the best of the finished trials costs.

    A bootstrap over lesions chooses the best trial in each resample, and reads its metric on the
    lesions that were not drawn (Tsamardinos et al. 2018, doi:10.1007/s10994-018-5714-4). The best
    30 trials take part: others are never chosen. It is an estimate from the validation images
    alone, and rather too low: a resample has two thirds of the lesions to choose with.
    """
    sign = 1 if search.settings.more_is_better else -1
    done = sorted(search.in_state("COMPLETE"), key=lambda t: -sign * t.value)
    runs = [run for trial in done[:MOST] if (run := search.run_of(trial)).finished]
    if not runs:
        raise LesionfastError(f"no run of {search.path} is left to read. Type the search again.")
    read = [Interpretation.from_run(run, "valid") for run in runs]
    metrics = [
        weighted(one, order, search.settings.by)
        for one, order in zip(read, align_images(read), strict=True)
    ]
    order = align_images(read[:1])[0]
    truth, lesions = read[0].truth[order], read[0].lesions[order]
    drawn = out_of_bag_choice(metrics, truth, lesions, more_is_better=sign > 0)
    low, high = interval(drawn)
    value, mean = search.best.value, float(np.nanmean(drawn))
    tried = search.in_state("COMPLETE", "PRUNED", "FAIL")
    return Price(search.settings.by, len(tried), value, mean, low, high)


def weighted(one: Interpretation, order: np.ndarray, by: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of weights (b, n) of images in an order that gives a metric, (b,)."""
    parts = (one.truth, one.probabilities, one.decision)
    find = weighted_metrics(*(part[order] for part in parts), one.classes)
    return lambda weights: find(weights)[by, ALL]


def train_best(search: Search) -> Run:
    """Return the run of the best trial: trained once more, with the options of [final].

    It is the only one that test images meet, once. A run of the same values that is there is kept.
    """
    with FileLock(search.path / ".best.lock"):
        best, path = search.best, search.path / BEST
        config = search.settings.configure(best.params, final=True)
        config = replace(config, split=str(search.path / SPLIT))
        found = {"try": number_of(best), "values": best.params}
        file = search.path / FOUND
        same = file.is_file() and json.loads(file.read_text(encoding="utf-8")) == found
        if same and (run := Run(path)).finished and run.metrics["status"] == "finished":
            return run
        from lesionfast.training.experiment import train_once

        shutil.rmtree(path, ignore_errors=True)
        logger.info("%s is the best; it is trained again, and predicts test images", path)
        write_json(file, found)
        return train_once(search.load(config), config, search.path, BEST)
