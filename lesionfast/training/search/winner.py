"""What a search found: the best trial, what its choosing costs, and the run that it becomes."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from filelock import FileLock

from lesionfast.diagnoses import join_names
from lesionfast.errors import LesionfastError, TrainingInterrupted, pluralize
from lesionfast.evaluation.comparison import align_images
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.run import Run
from lesionfast.stats.bootstrap import interval, out_of_bag_choice
from lesionfast.stats.measures import weighted_metrics
from lesionfast.stats.metrics import ALL, METRIC_NAMES
from lesionfast.training.search.trials import SPLIT, Search, number_of

logger = logging.getLogger("lesionfast")

BEST = "best-{:04d}"  # the number of the trial
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
        name, tried = METRIC_NAMES[self.by].split(",")[0], pluralize(self.trials, "trial")
        best = (
            f"{name} {self.value:.3f} is the best of {tried} on the validation images, which chose "
            "it"
        )
        if np.isnan(self.corrected):
            return f"{best}; they have too few lesions of a class to say what to expect on others"
        return (
            f"{best}; on other images expect about {self.corrected:.3f} "
            f"[{self.low:.3f}, {self.high:.3f}]"
        )


def price_choice(search: Search) -> Price:
    """Return what choosing the best of the finished trials costs.

    A bootstrap over lesions chooses the best trial in each resample, and reads its metric on the
    lesions that were not drawn (Tsamardinos et al. 2018, doi:10.1007/s10994-018-5714-4). The best
    30 trials take part: others are seldom chosen. Resamples that leave no lesion of a class out are
    not counted. It is an estimate from the validation images alone. Raises `LesionfastError` if no
    trial has finished.
    """
    best = search.best
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
    value = float(best.value)
    mean = float("nan") if np.isnan(drawn).all() else float(np.nanmean(drawn))
    tried = search.in_state("COMPLETE", "PRUNED", "FAIL")
    return Price(search.settings.by, len(tried), value, mean, low, high)


def weighted(one: Interpretation, order: np.ndarray, by: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of weights (b, n) of images in an order that gives a metric, (b,)."""
    parts = (one.truth, one.probabilities, one.decision)
    find = weighted_metrics(*(part[order] for part in parts), one.classes)
    return lambda weights: find(weights)[by, ALL]


def train_best(search: Search) -> Run:
    """Return the run of the best trial: trained once more, with the options of [final].

    Trials meet no test images, this run does. It is named after the trial; one that is there is
    kept or resumed. A search that goes on may find a better trial, whose run is then another one
    that has met the test images: the log says how many. Raises `TrainingInterrupted` after Ctrl-C.
    """
    from lesionfast.training.experiment import resume, train_once

    with FileLock(search.path / ".best.lock"):
        best = search.best
        name = BEST.format(number_of(best))
        run = Run(search.path / name)
        if run.finished and run.metrics["status"] == "finished":
            return run
        if run.holds("model.json"):
            run = resume(run)
        else:
            shutil.rmtree(run.path, ignore_errors=True)  # it stopped before its training began
            config = search.settings.configure(best.params, final=True)
            config = replace(config, split=str(search.path / SPLIT))
            logger.info("%s is trained with the best options, and predicts test images", run.path)
            run = train_once(search.load(config), config, search.path, name)
        if run.metrics["status"] != "finished":
            raise TrainingInterrupted(
                f"{run.path} was interrupted. Type the same command again to continue."
            )
    others = sorted(path.name for path in search.path.glob(BEST.replace("{:04d}", "*")))
    if len(others) > 1:
        logger.warning(
            "%d runs of this search have met the test images: %s. Choosing among them by their "
            "test metrics would make those too good",
            *(len(others), join_names(others)),
        )
    return run
