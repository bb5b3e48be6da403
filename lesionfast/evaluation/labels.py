"""Labels that may be wrong, and images of one lesion that were decided differently."""

import logging
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from lesionfast.console import counting_bar
from lesionfast.data.columns.labels import DROP
from lesionfast.data.corrections.answers import UNCLEAR, Answers, read_answers
from lesionfast.data.corrections.applying import name_classes
from lesionfast.data.duplicates import find_near_duplicates
from lesionfast.data.parts.groups import join_groups
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import probability_columns
from lesionfast.errors import DamageError, LesionfastError, pluralize
from lesionfast.evaluation.decisions import Decisions
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.run import CORRECTIONS, Run

logger = logging.getLogger("lesionfast")

ABOUT = ("dx_type", "age", "sex", "localization", "path")  # shown where the dataset has them
SAME_LESION, NEAR_DUPLICATE = "same lesion", "near-duplicate"
MOST_OF_A_LESION = 100  # images: all pairs of a patient with thousands would fill the memory
SHARES_ALIKE = 0.1  # more than the class shares of the folds of one small data set differ by


def suspicious_labels(
    runs: Sequence[Run], answers: Answers | None = None, chances: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the images whose label is probably wrong by confident learning, least likely first.

    `runs` is the run of `lesionfast train --folds 5 --all`, or those of `--fold 0` to `--fold 4`:
    each fold predicts its own validation part, and all of them the test images, whose probabilities
    are averaged. Another single run covers its validation and test images. An image is listed if a
    class other than its own has more than the mean probability that the images of that class give
    it, and the most of such classes (Northcutt et al. 2021, arXiv:1911.00068, the confident joint;
    by cleanlab). Probabilities are the models' own, or `chances`, such as `calibrated_chances`.
    What `answers` and the corrections of the runs say is applied first, and no image is listed
    whose label has been answered. Columns:
    image_id, group, target, suggested (the most probable class), self_confidence (the probability
    of the label), probability (of the suggested class), calibrated (whether they are), and dx_type,
    age, sex, localization and path where the dataset has them. Raises `LesionfastError` for runs
    that are not folds of one dataset.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_self_confidence_for_each_label

    answers = join_answers(runs, answers)
    table = apply_answers(out_of_sample(runs), answers, runs[0])
    logger.info("label check: %s", describe_coverage(runs))
    truth, probabilities = runs[0].read_probabilities(table)
    if chances is not None:
        probabilities = chances.loc[table["image_id"]].to_numpy()
    present, codes = np.unique(truth, return_inverse=True)  # no threshold without images
    shares = probabilities[:, present]
    shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-12)
    doubted = np.zeros(len(table), bool)
    if len(present) > 1:
        doubted = find_label_issues(codes, shares, filter_by="confident_learning", n_jobs=1)
    names = np.asarray(runs[0].classes, dtype=object)[present]
    estimates = {
        "suggested": names[shares.argmax(axis=1)],
        "self_confidence": get_self_confidence_for_each_label(codes, shares),
        "probability": shares.max(axis=1),
        "calibrated": chances is not None,
    }
    columns = ["image_id", "group", "target", *estimates]
    columns += [name for name in ABOUT if name in table]
    rows = table.assign(**estimates).loc[doubted, columns]
    rows = rows[~rows["image_id"].isin(answers.labels)]
    return rows.sort_values(["self_confidence", "image_id"]).reset_index(drop=True)


def doubtful_labels(runs: Sequence[Run], answers: Answers | None = None) -> pd.DataFrame:
    """Return `suspicious_labels` by `calibrated_chances`, where these can be had."""
    return suspicious_labels(runs, answers, calibrated_chances(runs))


def calibrated_chances(runs: Sequence[Run]) -> pd.DataFrame | None:
    """Return calibrated probabilities of the images that runs were not trained on, by image id.

    Neither model nor calibration has seen the label of an image: those of validation are calibrated
    by a fit without their lesion, those of the test by the whole fit, averaged over the runs. None
    where the validation of a run is too small to calibrate on.
    """
    columns, valid, test = probability_columns(runs[0].classes), [], []

    def by_image(read: Interpretation) -> pd.DataFrame:
        return pd.DataFrame(read.probabilities, read.rows["image_id"], columns)

    for run in runs:
        decisions, splits = Decisions(run), set(run.predictions["split"])
        if "valid" not in splits or decisions.calibrator_or_none is None:
            return None
        valid.append(by_image(decisions.shown))
        if "test" in splits:
            test.append(by_image(decisions.show(Interpretation.from_run(run, "test"))))
    means = [sum(test[1:], test[0]) / len(test)] if test else []
    return pd.concat([*valid, *means])


def join_answers(runs: Sequence[Run], answers: Answers | None = None) -> Answers:
    """Return answers after those that the runs were trained with, unless they begin with them."""
    own = answers or Answers()
    files = [run.file(CORRECTIONS) for run in runs if run.holds(CORRECTIONS)]
    kept = {path.read_bytes(): path for path in files}
    logs = [read_answers(path).log for data, path in kept.items() if not own.data.startswith(data)]
    return Answers(tuple(one for log in [*logs, own.log] for one in log), own.name, own.data)


def apply_answers(table: pd.DataFrame, answers: Answers, run: Run) -> pd.DataFrame:
    """Return predictions of a run with the labels that were answered; counted.

    Without images that are unclear, or of a class that the run leaves out. Raises `LesionfastError`
    for a class that neither the run nor its --map and --drop-class have.
    """
    labels = answers.labels
    own = set(labels) & set(table["image_id"])
    named = name_classes(answers, run.classes, run.config, own)
    changes = {image: name for image, name in named.items() if name != DROP}
    unclear = {image for image in own if labels[image].kind == UNCLEAR}
    unclear |= named.keys() - changes.keys()
    if own:
        logger.info(
            "answered already, so not listed: %s (%d other classes, %d unclear)",
            pluralize(len(own), "label"), len(changes), len(unclear),
        )  # fmt: skip
    target = table["image_id"].map(changes).fillna(table["target"])
    table = table.assign(target=target)
    table = join_groups(table, answers.pairs) if "group" in table else table
    return table[~table["image_id"].isin(unclear)].reset_index(drop=True)


def out_of_sample(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the predictions of images that no model was trained on, one row an image."""
    if not runs:
        raise LesionfastError("there are no runs. Pass one, or the folds of a cross-validation.")
    if len(runs) == 1:
        return runs[0].predictions.reset_index(drop=True)
    check_folds(runs)
    tables = [run.predictions for run in runs]
    valid = [table[table["split"] == "valid"] for table in tables]
    table = pd.concat([*valid, average_tests(runs)], ignore_index=True)
    twice = table["image_id"][table["image_id"].duplicated()]
    if len(twice):
        raise LesionfastError(
            f"{twice.nunique()} images are in the validation part of several runs, such as "
            f"{twice.iloc[0]}. Pass each --fold of one split once."
        )
    return table


def average_tests(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the predictions of the test images, their probabilities averaged over the runs."""
    tables = [run.predictions for run in runs]
    parts = [table[table["split"] == "test"].sort_values("image_id") for table in tables]
    for run, part in zip(runs, parts, strict=True):
        if part["image_id"].tolist() != parts[0]["image_id"].tolist():
            raise LesionfastError(
                f"{run.path} and {runs[0].path} have predictions of different test images. "
                "Pass runs that differ in --fold alone."
            )
    columns = probability_columns(runs[0].classes)
    mean = np.mean([part[columns].to_numpy() for part in parts], axis=0)
    return parts[0].assign(**dict(zip(columns, mean.T, strict=True)))


def check_folds(runs: Sequence[Run]) -> None:
    """Raise `LesionfastError` unless the runs are different folds of the same data."""
    first = runs[0]
    folds = [run.config.folds for run in runs]
    if None in folds:
        raise LesionfastError(
            f"{runs[folds.index(None)].path} is not a fold of a cross-validation. Pass a single "
            "run, such as that of: lesionfast train --folds 5 --all"
        )
    for run in runs[1:]:
        for name in ("data", "csv", "target", "group", "seed", "test", "folds", "corrections"):
            ours, theirs = getattr(first.config, name), getattr(run.config, name)
            if ours != theirs:
                raise LesionfastError(
                    f"{run.path} has --{name} {theirs}, and {first.path} {ours}: they are not "
                    "folds of one cross-validation. Pass runs that differ in --fold alone."
                )
        if run.classes != first.classes:
            raise LesionfastError(
                f"{run.path} has the classes {', '.join(run.classes)}, and {first.path} "
                f"{', '.join(first.classes)}. Pass runs of the same data."
            )
        if not np.allclose(run.model["prior"], first.model["prior"], atol=SHARES_ALIKE):
            raise LesionfastError(
                f"{run.path} and {first.path} were trained on different class shares. Pass runs "
                "that differ in --fold alone."
            )
        if set(run.split["image_id"]) != set(first.split["image_id"]):
            raise LesionfastError(
                f"{run.path} and {first.path} split different images. Pass runs of the same data."
            )


def describe_coverage(runs: Sequence[Run]) -> str:
    """Return "6,609 of 10,015 images, the validation parts of 3 of 5 folds and the test"."""
    table, total = out_of_sample(runs), runs[0].split["image_id"].nunique()
    if len(runs) == 1 and runs[0].is_out_of_fold:
        parts = f"out of fold by {len(runs[0].model['members'])} models"
        parts += ", and the test by their mean" if (table["split"] == "test").any() else ""
    elif len(runs) == 1:
        parts = "validation and test of one run; it can't judge its own training images"
    else:
        parts = f"the validation parts of {len(runs)} of {runs[0].config.folds} folds"
        parts += " and the test" if (table["split"] == "test").any() else ""
    return f"{len(table):,} of {total:,} images, {parts}"


def contradictions(
    runs: Sequence[Run], pairs: pd.DataFrame | None = None, answers: Answers | None = None
) -> pd.DataFrame:
    """Return what `disagreeing_duplicates` does, over all images that the runs were not trained on.

    The first run's rule decides. What was answered is applied first. Raises `LesionfastError` as
    `suspicious_labels` does.
    """
    answers = join_answers(runs, answers)
    table = apply_answers(out_of_sample(runs), answers, runs[0])
    read = Interpretation.from_table(runs[0], table, "unseen")
    return disagreeing_duplicates(read, pairs)


PAIRS = ["kind", "image_a", "image_b", "group_a", "group_b", "truth_a", "truth_b"]
PAIRS += ["decision_a", "decision_b", "difference"]


def disagreeing_duplicates(
    interpretation: Interpretation, pairs: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return pairs of images of the same thing that were decided differently.

    These are images of one lesion (groups of more than 100 images are patients, and left out), and
    the near-duplicates in `pairs` (image_a and image_b, as `find_near_duplicates` returns them) if
    both are predicted. Columns: kind ('same lesion' or
    'near-duplicate'), image, group, truth and decision of either, and difference, the total
    variation distance of their probabilities (0 to 1), the largest first.
    """
    rows, probabilities = interpretation.rows, interpretation.probabilities
    positions = {name: place for place, name in enumerate(rows["image_id"])}
    decision = rows["decision"].to_numpy()
    groups = [*rows.groupby("group", sort=False).indices.values()]
    lesions = [members for members in groups if len(members) <= MOST_OF_A_LESION]
    if patients := len(groups) - len(lesions):
        logger.info(
            "Groups of more than %d images are not compared, as those of one lesion would be: %d",
            MOST_OF_A_LESION, patients,
        )  # fmt: skip
    kinds = {
        (a, b): SAME_LESION
        for members in lesions
        for a, b in combinations(sorted(members.tolist()), 2)
        if decision[a] != decision[b]
    }
    if pairs is not None:
        require_pairs(pairs)
        seen = pairs[pairs["image_a"].isin(positions) & pairs["image_b"].isin(positions)]
        logger.info("near-duplicates: %d of %d pairs are predicted", len(seen), len(pairs))
        for a, b in zip(seen["image_a"], seen["image_b"], strict=True):
            kinds.setdefault(tuple(sorted((positions[a], positions[b]))), NEAR_DUPLICATE)
    lines = []
    for (a, b), kind in kinds.items():
        if decision[a] != decision[b]:
            names = ("image_id", "group", "truth", "decision")
            sides = [rows[name].iat[place] for name in names for place in (a, b)]
            distance = float(np.abs(probabilities[a] - probabilities[b]).sum() / 2)
            lines.append((kind, *sides, distance))
    table = pd.DataFrame(lines, columns=PAIRS)
    return table.sort_values("difference", ascending=False, kind="stable", ignore_index=True)


def require_pairs(pairs: pd.DataFrame) -> None:
    """Raise `LesionfastError` unless a table has both ends of pairs."""
    missing = {"image_a", "image_b"} - set(pairs)
    if missing:
        raise LesionfastError(
            f"the pairs have no column {' and '.join(sorted(missing))}; they have: "
            f"{', '.join(map(str, pairs))}. Pass what find_near_duplicates returns."
        )


def find_duplicates(run: Run) -> pd.DataFrame | None:
    """Return the near-duplicates in the data of a run; without the data warn, and return None."""
    try:
        df = load_dataset(run.config, split=run.file("split.csv"))
        with counting_bar("comparing images") as progress:
            return find_near_duplicates(df, progress, cache=run.config.cache)
    except DamageError:
        raise
    except LesionfastError as error:
        logger.warning("near-duplicates are left out: %s", error)
        return None
