"""Corrections applied to a table that is split: labels, left-out images, joined lesions.

The split itself stays: it is the one that the table has without corrections. What an image was
before stands in the columns original_target, original_group and original_split.
"""

import hashlib
import logging
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.columns.labels import DROP, OTHER, RARE, fold, read_map
from lesionfast.data.corrections.answers import IS, RIGHT, UNCLEAR, Answers, read_answers
from lesionfast.data.parts.groups import join_groups
from lesionfast.diagnoses import NAMES, join_names, split_names
from lesionfast.errors import LesionfastError, did_you_mean, list_first, pluralize
from lesionfast.files import readable_name

logger = logging.getLogger("lesionfast")

LEFT_OUT = "left out"  # in the column `split`: neither trained on nor measured
ORIGINAL = {name: f"original_{name}" for name in ("target", "group", "split")}
CORRECTION = "correction"  # the answer about the label of an image
ATTR = "corrections"  # in the attrs of a table: the file as it was read
RANKS = {"train": 0, "valid": 1, "test": 2}  # who is held out more


@dataclass(frozen=True)
class Effect:
    """How many images corrections concern: `changed` have another label, `confirmed` the same.

    `unclear` images are left out; `joined` lesions have become fewer ones; `moved` images are left
    out because their lesion is now in a part that is held out more.
    """

    changed: int
    confirmed: int
    unclear: int
    joined: int
    moved: int

    @classmethod
    def of(cls, df: pd.DataFrame) -> "Effect":
        """Return the effect on a corrected table."""
        unclear = df[CORRECTION] == UNCLEAR
        lesions = df[[ORIGINAL["group"], "group"]].drop_duplicates()
        return cls(
            changed=int((df["target"] != df[ORIGINAL["target"]]).sum()),
            confirmed=int((df[CORRECTION] == RIGHT).sum()),
            unclear=int(unclear.sum()),
            joined=int(lesions["group"].duplicated(keep=False).sum()),
            moved=int(((df["split"] == LEFT_OUT) & ~unclear).sum()),
        )

    def __str__(self) -> str:
        words = [
            f"{pluralize(self.changed, 'label')} changed",
            f"{self.confirmed:,} confirmed",
            f"{pluralize(self.unclear, 'unclear image')} left out",
        ]
        if self.joined:
            words.append(f"{pluralize(self.joined, 'lesion')} joined to fewer")
        if self.moved:
            words.append(
                f"{pluralize(self.moved, 'image')} left out whose lesion is now held out elsewhere"
            )
        return "; ".join(words)


def correct(df: pd.DataFrame, config: DataConfig, kept: Path | None = None) -> pd.DataFrame:
    """Return a split table with the corrections that the options name, or as it is.

    `kept` is the copy in a run, which goes before the file that was named. A class that changes
    keeps what it was in `original_target`, a lesion in `original_group`, and `original_split` is
    the part. Images that are unclear get the split 'left out', and so do those of a joined lesion
    that is in several parts, in all but the part that is held out most. Images that the table does
    not have are counted. Raises `LesionfastError` for an unknown class, if no image of the file is
    in the table, and if a class has no training image any more.
    """
    if kept is None and config.corrections is None:
        return df
    answers = read_answers(kept or config.corrections)
    if kept is not None:
        answers = Answers(answers.log, config.corrections or answers.name, answers.data)
    return apply(df, answers, config)


def correct_late(df: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Return a table with the corrections of the options, unless it was loaded with them."""
    return df if is_corrected(df) else correct(df, config)


def apply(df: pd.DataFrame, answers: Answers, config: DataConfig) -> pd.DataFrame:
    """Return a split table with answers; see `correct`."""
    df = restore(df)
    labels, known = answers.labels, set(df["image_id"])
    report_unknown(answers, known)
    own, rare = df["target"].unique(), df.attrs.get(RARE, {})
    wanted = name_classes(answers, own, config, rare=rare)
    changes = {image: name for image, name in wanted.items() if image in known}
    texts = {image: answer.text for image, answer in labels.items()}
    unclear = {image for image, name in wanted.items() if name == DROP}
    texts |= dict.fromkeys(unclear, UNCLEAR)
    target = df["image_id"].map({k: v for k, v in changes.items() if v != DROP})
    target = target.fillna(df["target"]).astype("str")
    original = {ORIGINAL[name]: df[name] for name in ("target", "group")}
    correction = df["image_id"].map(texts).fillna("").astype("str")
    corrected = df.assign(**original, **{CORRECTION: correction}, target=target)
    corrected = join_groups(corrected, answers.pairs)
    corrected = settle_parts(corrected)
    corrected.attrs[ATTR] = {"name": answers.name, "data": answers.data.decode("latin-1")}
    check_classes(corrected, answers)
    check_parts(corrected, answers.name)
    report(corrected, answers)
    return corrected


def report_unknown(answers: Answers, known: set[str]) -> None:
    """Count the images that the table does not have; raise `LesionfastError` if it has none."""
    absent = sorted(answers.images - known)
    if not absent:
        return
    if not answers.images & known:
        hint = did_you_mean(absent[0], known)
        raise LesionfastError(
            f"none of the {pluralize(len(absent), 'image')} of {answers.name} is in the data; the "
            f"first is '{absent[0]}'.{hint} Name the corrections of this dataset with "
            "--corrections."
        )
    logger.warning(
        "%s: left out answers about %s that the data does not have, such as %s",
        answers.name, pluralize(len(absent), "image"), absent[0],
    )  # fmt: skip


def name_classes(
    answers: Answers,
    own: Iterable[str],
    config: DataConfig,
    images: Container[str] | None = None,
    rare: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the class of each image that is given one by the answers, in the spelling of `own`.

    `own` are the classes of the data, or of a run that has `config`; only `images` are named.
    `rare` says what --rare made of classes; None, of a run, which does not know them: there it has
    made the same of each class that the run has not.

    A class that --map renames gets its new name, and one that the options leave out is 'drop';
    what --rare makes of answers is counted. Raises `LesionfastError` for a class that is none.
    """
    classes = {fold(name): name for name in own}
    few = {fold(name): became for name, became in (rare or {}).items()}
    names = {fold(name): DROP for name in split_names(config.drop_class or "")} | few
    renamed = read_map(config.map) if config.map else {}
    names |= {fold(old): (names | classes).get(fold(new), new) for old, new in renamed.items()}
    names |= classes
    any_other = fate_of_rare(config, classes) if rare is None else None
    wanted, by_rarity = {}, []
    for image, answer in answers.labels.items():
        if answer.kind != IS or (images is not None and image not in images):
            continue
        value = fold(answer.value)
        lost = any_other if value not in names and is_another(value, classes) else None
        if (name := names.get(value, lost)) is None:
            raise LesionfastError(
                f"{answers.name} says that '{image}' is '{answer.value}', which is not a class of "
                f"the data.{did_you_mean(answer.value, classes.values())} Its classes: "
                f"{list_first(sorted(classes.values()), 30)}. Correct the line, or append 'undo'."
            )
        wanted[image] = name
        if value in few or value not in names:
            by_rarity.append(f"'{answer.value}' ({name})")
    if by_rarity:
        logger.warning(
            "%s: %s of classes that --rare %s leaves out or joins count so, too: %s",
            answers.name, pluralize(len(by_rarity), "answer"), config.rare, list_first(by_rarity),
        )  # fmt: skip
    return wanted


def is_another(name: str, classes: Iterable[str]) -> bool:
    """Return whether a folded name is that of another diagnosis, and none of `classes` mistyped."""
    meanings = {NAMES.get(fold(one), fold(one)) for one in classes}
    if name in (*NAMES, *NAMES.values()):
        return NAMES.get(name, name) not in meanings
    return not did_you_mean(name, (*classes, *meanings))


def fate_of_rare(config: DataConfig, classes: Mapping[str, str]) -> str | None:
    """Return what --rare made of a class that a run does not have; None without --rare."""
    kind = fold((config.rare or "").rpartition("=")[2])
    return DROP if kind == DROP else classes.get(OTHER) if kind == OTHER else None


def settle_parts(df: pd.DataFrame) -> pd.DataFrame:
    """Return a corrected table whose column `split` is that of the corrections.

    What it is now becomes `original_split`. No joined lesion is in two parts: its images in the
    part that is held out most stay.
    """
    part = df["split"]
    rank = part.map(RANKS)
    joined = df["group"].map(df.groupby("group")[ORIGINAL["group"]].nunique()) > 1
    behind = joined & (rank < rank.groupby(df["group"]).transform("max"))
    away = behind | (df[CORRECTION] == UNCLEAR)
    return df.assign(**{ORIGINAL["split"]: part, "split": part.mask(away, LEFT_OUT)})


def is_corrected(df: pd.DataFrame) -> bool:
    """Return whether a table has corrections."""
    return CORRECTION in df


def restore(df: pd.DataFrame) -> pd.DataFrame:
    """Return a table as it is without its corrections: labels, lesions and parts."""
    if not is_corrected(df):
        return df
    present = {name: former for name, former in ORIGINAL.items() if former in df}
    before = df.assign(**{name: df[former] for name, former in present.items()})
    return before.drop(columns=[*present.values(), CORRECTION])


def held_out(df: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the images of a part with those that corrections leave out of it."""
    part = ORIGINAL["split"] if is_corrected(df) else "split"
    return df[df[part] == split]


def carry(df: pd.DataFrame, split: pd.Series) -> pd.DataFrame:
    """Return a table with other parts, whose corrections stay."""
    df = df.assign(split=split)
    if not is_corrected(df):
        return df
    df = settle_parts(df)
    check_parts(df, kept_name(df))
    return df


def check_classes(df: pd.DataFrame, answers: Answers) -> None:
    """Raise `LesionfastError` if a class has no training image, but had some before."""
    before = set(df[ORIGINAL["target"]])
    gone = sorted(before - set(df.loc[df["split"] == "train", "target"]))
    if gone:
        raise LesionfastError(
            f"{answers.name} leaves no training image of class {list_first(gone, 5)}. Take some "
            "answers back with 'undo', or make classes one with --map."
        )


def check_parts(df: pd.DataFrame, name: object) -> None:
    """Raise `LesionfastError` if a part has no image by the corrections `name`, but had some."""
    if gone := sorted(set(df[ORIGINAL["split"]]) - set(df["split"])):
        raise LesionfastError(
            f"{name} leaves no image in the part {join_names(gone)}: each is unclear or of a "
            "lesion that is held out elsewhere. Take some answers back with 'undo'."
        )


def report(df: pd.DataFrame, answers: Answers) -> None:
    """Log what corrections change, and which lesions have several labels now."""
    logger.info(
        "corrections %s (sha256 %s): %s",
        answers.name, answers.sha256[:12], Effect.of(df),
    )  # fmt: skip
    used = df[df["split"] != LEFT_OUT]
    moved = df[(df["split"] == LEFT_OUT) & (df[CORRECTION] != UNCLEAR)]
    if len(moved):
        logger.warning(
            "%s left out of training or validation, because their lesions are joined with lesions "
            "that are held out: %s",
            pluralize(len(moved), "image"), list_first(moved["image_id"]),
        )  # fmt: skip
    touched = used.loc[
        (used[CORRECTION] != "") | (used["group"] != used[ORIGINAL["group"]]), "group"
    ]
    of_touched = used[used["group"].isin(touched)]
    torn = of_touched.groupby("group")["target"].nunique()
    if len(names := torn.index[torn > 1]):
        logger.warning(
            "Images of one lesion have different classes after the corrections: %s, such as %s. "
            "Answer the other images too",
            pluralize(len(names), "lesion"), list_first(names),
        )  # fmt: skip


def describe_effect(df: pd.DataFrame) -> dict[str, object]:
    """Return what a run keeps of the corrections of its table: the file, its hash, the effect."""
    told = {"file": kept_name(df), "sha256": hashlib.sha256(kept_data(df)).hexdigest()}
    return told | vars(Effect.of(df))


def kept_name(df: pd.DataFrame) -> str:
    """Return how the file of a table's corrections was named."""
    return readable_name(df.attrs.get(ATTR, {}).get("name", "corrections.csv"))


def kept_data(df: pd.DataFrame) -> bytes:
    """Return the file of a table's corrections as it was read; nothing if it has none."""
    return df.attrs.get(ATTR, {}).get("data", "").encode("latin-1")
