"""Everything wrong with a dataset, as a table: missing, corrupt, duplicate, leaking."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.config import DataConfig, SplitConfig
from lesionfast.console import MOST_ROWS, Cell, Table
from lesionfast.data.columns.leaks import FORMER, KEYS
from lesionfast.data.corrections.answers import UNCLEAR
from lesionfast.data.corrections.applying import LEFT_OUT, Effect, correct, is_corrected
from lesionfast.data.duplicates import find_near_duplicates, open_pictures
from lesionfast.data.images import Images, find_sizes, iterate_rows, read_image
from lesionfast.data.layouts.base import Dataset
from lesionfast.data.layouts.recognise import describe, find_dataset, name_group
from lesionfast.data.metadata import read_dataset
from lesionfast.data.sources import name_without_suffix
from lesionfast.data.split import split_metadata
from lesionfast.diagnoses import Classes, join_names, quote
from lesionfast.errors import LesionfastError, list_first, pluralize

FLAT = 3  # levels of 256 between the pixels of an image of one colour
TINY = 32  # pixels of a side
COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of an audit; `verdict` is 'ok', 'note' (it is handled) or 'problem'."""

    check: str
    count: int
    verdict: str = "ok"
    detail: str = ""


@dataclass(frozen=True)
class Audit:
    """What was found in a dataset, and the pairs of near-duplicates under different lesion ids.

    `summary` says in one sentence what it was recognised as.
    """

    summary: str
    findings: list[Finding]
    near_duplicates: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def ok(self) -> bool:
        """Whether no finding is a problem."""
        return all(finding.verdict != "problem" for finding in self.findings)

    def to_json(self) -> str:
        """Return findings and pairs as JSON."""
        pairs = self.near_duplicates.to_dict(orient="records")
        findings = list(map(vars, self.findings))
        report = {"ok": self.ok, "summary": self.summary, "findings": findings}
        return json.dumps({**report, "near_duplicates": pairs}, indent=2)


def audit(
    config: DataConfig,
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[str], object] | None = None,
) -> Audit:
    """Check a dataset. A problem stops a training or lets a lesion leak; a note is handled.

    Every image is decoded. `announce` is called with the summary as soon as the dataset is
    recognised, `progress(done, total)` during the search for near-duplicates. Raises
    `LesionfastError` if the table or its columns can't be read.
    """
    found = find_dataset(config)
    df = read_dataset(found, config)
    summary, noun = describe(found, df), name_group(found)
    whole, df = df, correct(df.assign(split="train"), config)
    corrections = [*check_corrections(df, config)]
    df = df[df["split"] != LEFT_OUT].drop(columns=["split", *FORMER], errors="ignore")
    df = df.reset_index(drop=True)
    if announce:
        announce(summary)
    images = open_pictures(df["path"].tolist(), cache=config.cache)
    pairs = find_near_duplicates(df, progress, images=images, cache=config.cache)
    findings = [
        *count_classes(df, noun),
        *name_classes(df),
        *corrections,
        *check_groups(df, whole, noun, config),
        *check_missing(df, config),
        *check_files(found),
        check_corrupt(df, images, config),
        *check_pictures(df, images),
        *check_exact(df, find_exact_duplicates(df, images)),
        *check_near(pairs),
    ]
    return Audit(summary, findings, pairs)


def judge(check: str, count: int, verdict: str, detail: str) -> Finding:
    """Return a line of an audit; a count of 0 is 'ok', without details."""
    return Finding(check, count, verdict, detail) if count else Finding(check, 0)


def count_classes(df: pd.DataFrame, noun: str) -> Iterator[Finding]:
    """Count images and groups, in all and by class; `noun` is what a group is."""
    parts = [("images", df), *((f"images of {name}", rows) for name, rows in df.groupby("target"))]
    for check, rows in parts:
        yield judge(check, len(rows), "ok", pluralize(rows["group"].nunique(), noun))


def name_classes(df: pd.DataFrame) -> Iterator[Finding]:
    """Say which classes count as malignant, and which of them is melanoma."""
    classes = Classes(sorted(df["target"].unique()))
    cancers = join_names(classes.malignant)
    melanoma = f"; melanoma is {quote(classes.melanoma)}" if classes.melanoma else ""
    advice = "; no class is melanoma by its name (train --melanoma NAME)" * (not melanoma)
    yield Finding("malignant classes", len(classes.malignant), "ok", cancers + (melanoma or advice))
    if classes.doubtful:
        detail = f"{join_names(classes.doubtful)}: count them with train --malignant"
        yield Finding("benign classes with alarming names", len(classes.doubtful), "note", detail)


def check_corrections(df: pd.DataFrame, config: DataConfig) -> Iterator[Finding]:
    """Count what the corrections of a table change; nothing without any."""
    if not is_corrected(df):
        return
    effect, file = Effect.of(df), config.corrections
    changed = df[df["target"] != df["original_target"]]
    named = [
        f"{row.image_id} ({row.original_target} to {row.target})" for row in changed.itertuples()
    ]
    detail = f"{list_first(named, 5)} by {file}"
    yield judge("labels changed by corrections", effect.changed, "note", detail)
    yield judge("labels confirmed by corrections", effect.confirmed, "ok", f"by {file}")
    unclear = df.loc[df["correction"] == UNCLEAR, "image_id"]
    detail = f"{list_first(unclear, 5)}: unclear by {file}, so they are not used"
    yield judge("images left out by corrections", effect.unclear, "note", detail)
    yield judge("lesions joined by corrections", effect.joined, "note", f"by {file}")


def check_groups(
    df: pd.DataFrame, whole: pd.DataFrame, noun: str, config: DataConfig
) -> Iterator[Finding]:
    """Count groups with several images, and try whether the classes can be split.

    `whole` is the table without corrections, which is what is split.
    """
    sizes = df["group"].value_counts()
    several = sizes[sizes > 1]
    detail = f"{several.sum():,} images, up to {sizes.max()} per {noun}"
    yield judge(f"{noun}s with several images", len(several), "ok", detail)
    try:
        split_metadata(whole, SplitConfig(**vars(config)))
    except LesionfastError as error:
        yield judge("classes that can't be split", 1, "problem", error.message)


def check_missing(df: pd.DataFrame, config: DataConfig) -> Iterator[Finding]:
    """Count the missing values of each column, and ages of 0."""
    for name in df.columns.difference([*KEYS, "split"], sort=False):
        is_input = name in config.metadata_columns
        detail = (
            "the rows are kept, with an indicator input; or type --missing drop"
            if is_input
            else "not an input of the model (--metadata)"
        )
        yield judge(f"images without {name}", int(df[name].isna().sum()), "note", detail)
    if "age" in df:
        yield judge("images with age 0", int((df["age"] == 0).sum()), "note", "the age is kept")


def check_files(found: Dataset) -> Iterator[Finding]:
    """Count rows without an image and images without a row."""
    ids = set(found.rows[found.image])
    if found.files is None:
        lost = set(found.rows.loc[found.rows["path"] == "", found.image])
        stems = ids - lost
    else:
        ids, stems = {name_without_suffix(name) for name in ids}, set(found.files["stem"])
    for check, names in {
        "rows without an image": sorted(ids - stems),
        "images without a row": sorted(stems - ids),
    }.items():
        yield judge(check, len(names), "note", list_first(names, 5))


def check_corrupt(df: pd.DataFrame, images: Images, config: DataConfig) -> Finding:
    """Name the images that can't be read: a problem unless they are to be skipped."""
    detail = "; ".join(
        f"{Path(df['path'].iloc[i]).name}: {images.bad[i]}" for i in sorted(images.bad)
    )
    if config.skip_bad:
        return judge("corrupt images", len(images.bad), "note", detail)
    detail += ". Replace them, or type --skip-bad"
    return judge("corrupt images", len(images.bad), "problem", detail)


def check_pictures(df: pd.DataFrame, images: Images) -> Iterator[Finding]:
    """Name the images that show no lesion: of one colour, such as black, or tiny.

    `images` are those of `open_pictures`; only those of one colour there are read at full size.
    """
    paths, names = df["path"].tolist(), df["image_id"].tolist()
    good = [i for i in range(len(df)) if i not in images.bad]
    squares = zip(good, iterate_rows(images.pixels, good), strict=True)
    flat = [i for i, pixels in squares if is_flat(pixels)]
    flat = [i for i in flat if is_flat(np.asarray(read_image(paths[i])))]
    black = {i: " (black)" if images.pixels[i].max() <= FLAT else "" for i in flat}
    advice = ". They show no lesion: replace them, or remove their rows"
    detail = list_first((f"{names[i]}{black[i]}" for i in flat), 5) + advice
    yield judge("images of one colour", len(flat), "note", detail)
    sizes = find_sizes(paths)
    tiny = np.flatnonzero((sizes.min(axis=1) < TINY) & (sizes.max(axis=1) > 0))
    detail = list_first((f"{names[i]} ({sizes[i, 0]} x {sizes[i, 1]})" for i in tiny), 5)
    detail += ". They are enlarged, but show little"
    yield judge(f"images with a side below {TINY} pixels", len(tiny), "note", detail)


def is_flat(pixels: np.ndarray) -> bool:
    """Return whether pixels (H, W, 3) have one colour, but for what compression changes."""
    return bool(np.ptp(pixels.reshape(-1, 3), axis=0).max() <= FLAT)


def find_exact_duplicates(df: pd.DataFrame, images: Images) -> list[list[int]]:
    """Return the positions of images with the same pixels at full size, in sets of two or more.

    `images` are those of `open_pictures`; only images alike there are read at full size.
    """
    good = [i for i in range(len(df)) if i not in images.bad]
    paths, sets = df["path"].tolist(), []
    for alike in find_equal(good, iterate_rows(images.pixels, good)):
        sets += find_equal(alike, (np.asarray(read_image(paths[i])) for i in alike))
    return sets


def find_equal(positions: list[int], pixels: Iterable[np.ndarray]) -> list[list[int]]:
    """Return the positions of equal arrays, in sets of two or more."""
    sets: dict[tuple, list[int]] = {}
    for i, array in zip(positions, pixels, strict=True):
        digest = hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).digest()
        sets.setdefault((array.shape, digest), []).append(i)
    return [equal for equal in sets.values() if len(equal) > 1]


def check_exact(df: pd.DataFrame, sets: list[list[int]]) -> Iterator[Finding]:
    """Count sets of identical images: in one lesion, in several, and with different labels."""
    lesions = np.array([df["group"].iloc[positions].nunique() for positions in sets], int)
    labels = np.array([df["target"].iloc[positions].nunique() for positions in sets], int)
    for check, chosen, verdict, advice in [
        ("in one lesion", lesions == 1, "note", ""),
        (
            "under different lesion ids",
            (lesions > 1) & (labels == 1),
            "problem",
            ". Keep one of each, or type --join-duplicates",
        ),
        ("with different labels", labels > 1, "problem", ". Correct the labels"),
    ]:
        named = [" = ".join(df["image_id"].iloc[sets[i]]) for i in np.flatnonzero(chosen)]
        detail = list_first(named, 5) + advice
        yield judge(f"identical images {check}", len(named), verdict, detail)


def check_near(pairs: pd.DataFrame) -> Iterator[Finding]:
    """Count the pairs of different groups, which leak from training into the test.

    Two ids contradict each other; an image without an id, which is a group of its own, does not.
    """
    lone = (pairs["group_a"] == pairs["image_a"]) | (pairs["group_b"] == pairs["image_b"])
    for check, chosen, verdict in [
        ("near-duplicates under different lesion ids", pairs[~lone], "problem"),
        ("near-duplicates without a lesion id", pairs[lone], "note"),
    ]:
        named = [f"{a} ~ {b}" for a, b in zip(chosen["image_a"], chosen["image_b"], strict=True)]
        torn = int((chosen["target_a"] != chosen["target_b"]).sum())
        labels = f" {torn} of them have different labels: check those." if torn else ""
        advice = "Keep them in one part of the split with --join-duplicates"
        yield judge(check, len(named), verdict, f"{list_first(named, 5)}.{labels} {advice}")


def audit_table(report: Audit) -> list[Table]:
    """Return the checks of a dataset, and its near-duplicates if there are any."""
    table = Table("Dataset check", ["check", "count", "verdict", "detail"])
    for row in report.findings:
        verdict = Cell(row.verdict, style=COLOURS[row.verdict])
        table.add(row.check, row.count, verdict, row.detail)
    pairs = report.near_duplicates
    if pairs.empty:
        return [table]
    more = f"{MOST_ROWS} of {len(pairs):,} pairs; all: --json" if len(pairs) > MOST_ROWS else ""
    title = "Near-duplicates in different groups"
    return [table, Table.from_frame(pairs.head(MOST_ROWS), title, note=more)]
