"""What to label next of a folder of unlabelled images, and the labelled ones as a dataset."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.corrections.answers import IS, Answers
from lesionfast.data.sources import FileReader, image_stem
from lesionfast.data.split import FOLD
from lesionfast.diagnoses import probability_columns
from lesionfast.errors import LesionfastError, list_first, pluralize, shell_quote
from lesionfast.evaluation.features import read_features
from lesionfast.evaluation.labelling.selection import (
    choose_images,
    disagreements,
    margins,
    share_scores,
)
from lesionfast.files import (
    check_target,
    csv_text,
    disk_errors,
    workspace,
    write_csv,
    write_sheet,
    write_text,
)
from lesionfast.models.ensemble import EnsembleEngine
from lesionfast.run import Run
from lesionfast.serving.bundle import own_columns
from lesionfast.serving.inputs import Item, find_items
from lesionfast.serving.predictor import Predictor

logger = logging.getLogger("lesionfast")

COLUMNS = ("image", "path", "suggested", "probability", "margin", "disagreement")


@dataclass
class Votes:
    """Runs an ensemble as `engine` does, and keeps what each of its models said."""

    engine: EnsembleEngine
    kept: list[np.ndarray] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __call__(self, pixels: Any, metadata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities and features, as the engine does."""
        found = self.engine.vote(pixels, metadata)
        self.kept.append(np.stack([probabilities for probabilities, _ in found]))
        return self.engine.pool_votes(found)


def choose_next(
    run: Run,
    inputs: Sequence[str],
    n: int = 50,
    answers: Answers | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Return the n images of folders, tables or files that are to be labelled next, best first.

    Columns: image (the name of the file), path, suggested, probability (of it, calibrated), margin,
    disagreement (of the models of an ensemble, in nats, else 0) and the metadata that the model
    takes. Left out and counted are images that the run knows, those that `answers` have a label of,
    those that can't be read, and those unlike the training images. Raises `LesionfastError` if none
    is left, and for two images of one name.
    """
    if n < 1:
        raise LesionfastError(f"--n is {n}; type 1 or more.")
    predictor = open_predictor(run, device)
    items = list_unique(inputs, predictor.bundle.encoder.columns)
    items = leave_out_known(run, items, answers or Answers())
    if isinstance(predictor.engine, EnsembleEngine):
        predictor.engine = Votes(predictor.engine)
    table = pd.concat(list(predictor.stream(items)), ignore_index=True)
    read = (table["error"] == "").to_numpy()
    votes = getattr(predictor.engine, "kept", None)
    table = describe_doubt(run, table[read], np.concatenate(votes, axis=1) if votes else None)
    known = {item.name: item for item in items}
    alike = ~table.get("outlier", pd.Series(False, table.index)).fillna(False).astype(bool)
    report_left_out(table, alike, int((~read).sum()))
    table = table[alike].reset_index(drop=True)
    features = table[predictor.features].to_numpy(np.float32)
    trained = training_features(run) if features.shape[1] else features[:0]
    places = choose_images(
        table["margin"].to_numpy(), table["disagreement"].to_numpy(), features, trained, n
    )
    rows = table.loc[places, [name for name in COLUMNS if name != "path"]]
    rows.insert(1, "path", [known[name].path for name in rows["image"]])
    for name in predictor.bundle.encoder.columns:
        rows[name] = [known[image].metadata.get(name, "") for image in rows["image"]]
    return rows.reset_index(drop=True)


def open_predictor(run: Run, device: str) -> Predictor:
    """Return what predicts with a run, with image features if its model has some."""
    try:
        return Predictor(run, device=device, features=True)
    except LesionfastError:
        return Predictor(run, device=device)


def list_unique(inputs: Sequence[str], columns: Sequence[str]) -> list[Item]:
    """Return the images of inputs, each named like its file without suffix.

    Raises `LesionfastError` if two have one name: a name is the image id of a training.
    """
    found = list(find_items(inputs, columns=columns))
    items = [
        Item(image_stem(item.path), os.path.abspath(item.path), item.metadata)
        for item in found
        if item.path is not None
    ]
    if not items:
        raise LesionfastError(f"{list_first(inputs)} has no images. Name a folder of images.")
    names = pd.Series([item.name for item in items])
    if names.duplicated().any():
        name = names[names.duplicated()].iloc[0]
        paths = [item.path for item in items if item.name == name]
        raise LesionfastError(
            f"two images are named '{name}': {paths[0]} and {paths[1]}. Rename one of them, for "
            "the name is the image id of a training."
        )
    return items


def leave_out_known(run: Run, items: Sequence[Item], answers: Answers) -> list[Item]:
    """Return the images that a run does not know and that have no answer yet; others are counted.

    Raises `LesionfastError` if none is left.
    """
    known, answered = set(run.split["image_id"]), set(answers.labels)
    left = [item for item in items if item.name not in known | answered]
    for names, why in ((known, "that the run knows"), (answered, "with an answer")):
        if count := sum(item.name in names for item in items):
            logger.warning("Left out %s %s", pluralize(count, "image"), why)
    if not left:
        raise LesionfastError(
            f"all of {pluralize(len(items), 'image')} are known or answered, so there is nothing "
            "to label. Name another folder."
        )
    return left


def describe_doubt(run: Run, table: pd.DataFrame, votes: np.ndarray | None) -> pd.DataFrame:
    """Return predictions with suggested, probability, margin and disagreement.

    `votes` are the probabilities of the models of an ensemble, (models, n, k).
    """
    probabilities = table[own_columns(run.classes)].to_numpy(np.float64)
    shown = table[probability_columns(run.classes)]
    return table.assign(
        suggested=table["likely"],
        probability=shown.max(axis=1).astype(float),
        margin=margins(share_scores(probabilities, run.decision_rule)),
        disagreement=0.0 if votes is None else disagreements(votes.astype(np.float64)),
    )


def report_left_out(table: pd.DataFrame, alike: pd.Series, unread: int) -> None:
    """Count what can't be read or is unlike the training; raise `LesionfastError` if all is."""
    strange = int((~alike).sum())
    for count, why in ((unread, "that can't be read"), (strange, "unlike the training images")):
        if count:
            logger.warning("Left out %s %s", pluralize(count, "image"), why)
    if not alike.any():
        raise LesionfastError(
            f"{pluralize(unread + strange, 'image')} can't be read or are unlike the training "
            "images, so none is left to label. Name a folder of dermoscopic images."
        )


def training_features(run: Run) -> np.ndarray:
    """Return the features of the training images, float32 (n, F); none if the run keeps none."""
    try:
        features = read_features(run)
    except LesionfastError:
        return np.zeros((0, 1), np.float32)
    trained = run.split.loc[run.split["split"] == "train", "image_id"]
    return features.loc[features.index.isin(trained)].to_numpy(np.float32)


def write_list(table: pd.DataFrame, path: Path) -> Path:
    """Write a list of images for `lesionfast labels --page --list`; return its path."""
    return write_sheet(path, table)


def write_labelled(
    run: Run, inputs: Sequence[str], answers: Answers, folder: Path
) -> tuple[Path, Path]:
    """Write the images that were given a class as a new dataset, and a split with them in training.

    The folder has metadata.csv (image_id, dx and the metadata) and copies of the images; the split,
    FOLDER-split.csv, is that of the run with the new images as 'train', so that held-out images
    stay held out. Images that the run knows are left out and counted. Returns both paths. Raises
    `LesionfastError` if the folder exists, and if no new image of the inputs was given a class.
    """
    split = folder.with_name(f"{folder.name}-split.csv")
    check_target(split)
    if folder.exists():
        raise LesionfastError(f"{folder} exists already. Name another folder with --labelled.")
    items = list_unique(inputs, run.model.get("metadata") or [])
    named = {image: one.value for image, one in answers.labels.items() if one.kind == IS}
    known = set(run.split["image_id"])
    chosen = [item for item in items if item.name in named and item.name not in known]
    if count := sum(item.name in known for item in items if item.name in named):
        logger.warning(
            "Left out %s that the run knows; train with --corrections for the answers about them",
            pluralize(count, "image"),
        )
    if not chosen:
        raise LesionfastError(
            f"no new image of {list_first(inputs)} was given a class in {answers.name}. Label "
            f"some: lesionfast labels {shell_quote(run.path)} --page --list FILE"
        )
    rows = [{"image_id": item.name, "dx": named[item.name], **item.metadata} for item in chosen]
    with disk_errors(folder), workspace(folder.absolute().parent) as aside, FileReader() as reader:
        (aside / "images").mkdir()
        for item in chosen:
            name = item.name + Path(item.path).suffix
            (aside / "images" / name).write_bytes(reader.read(item.path))
        write_csv(pd.DataFrame(rows).fillna(""), aside / "metadata.csv")
        aside.rename(folder)
    parts = pd.DataFrame(list_parts(run, [item.name for item in chosen]))
    write_text(split, csv_text(parts))
    return folder, split


def list_parts(run: Run, new: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the part of each image of a run, then 'train' for new ones; fold 0 is validation."""
    for row in run.split.to_dict("records"):
        first = row["split"] == "train" and FOLD in row and float(row[FOLD]) == 0
        yield {"image_id": row["image_id"], "split": "valid" if first else row["split"]}
    yield from ({"image_id": name, "split": "train"} for name in new)
