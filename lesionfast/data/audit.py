"""Everything wrong with a dataset, as a table: missing, corrupt, duplicate, leaking."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.console import MOST_ROWS, add_columns, new_table, plain
from lesionfast.data.duplicates import find_exact_duplicates, find_near_duplicates, open_pictures
from lesionfast.data.images import Images
from lesionfast.data.metadata import read_metadata, remove_suffixes, required_columns
from lesionfast.data.sources import Source, find_source, list_images
from lesionfast.data.split import assign_split
from lesionfast.data.table import read_table
from lesionfast.errors import LesionfastError, list_first

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

FIRST = 5  # names given in a detail


@dataclass(frozen=True)
class Finding:
    """One line of an audit; `verdict` is 'ok', 'note' or 'problem'."""

    check: str
    count: int
    verdict: str
    detail: str = ""


@dataclass(frozen=True)
class Audit:
    """What was found in a dataset, and the pairs of near-duplicates under different lesion ids."""

    findings: list[Finding]
    near_duplicates: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def ok(self) -> bool:
        """Whether nothing has to be mended: no finding is a problem."""
        return all(each.verdict != "problem" for each in self.findings)

    def table(self) -> pd.DataFrame:
        """Return the findings: check, count, verdict (ok, note or problem), detail."""
        return pd.DataFrame(
            map(vars, self.findings), columns=["check", "count", "verdict", "detail"]
        )

    def to_json(self) -> str:
        """Return findings and pairs as JSON."""
        pairs = self.near_duplicates.to_dict(orient="records")
        findings = [vars(each) for each in self.findings]
        return json.dumps({"ok": self.ok, "findings": findings, "near_duplicates": pairs}, indent=2)


def audit(config: DataConfig, progress: Callable[[int, int], None] | None = None) -> Audit:
    """Check a dataset. A problem stops a training or lets a lesion leak; a note is handled.

    Every image is decoded. `progress(done, total)` is called during the search for
    near-duplicates. Raises `LesionfastError` if the table or its columns can't be read.
    """
    source = find_source(config)
    df = read_metadata(source.csv, source.images, config)
    images = open_pictures(df["path"].tolist())
    near = find_near_duplicates(df, progress, images=images, cache=config.cache)
    findings = [
        *count_classes(df),
        *check_lesions(df),
        *check_missing(df, config),
        *check_files(source, config),
        *check_corrupt(df, images, config),
        *check_exact(df, find_exact_duplicates(df, images)),
        check_near(near),
    ]
    return Audit(findings, near)


def verdict(count: int, bad: str) -> str:
    """Return 'ok' for a count of 0, else `bad`."""
    return bad if count else "ok"


def count_classes(df: pd.DataFrame) -> Iterator[Finding]:
    """Count images and lesions, in all and by class."""
    yield Finding("images", len(df), "ok", f"{df['group'].nunique()} lesions")
    for name, rows in df.groupby("target"):
        lesions = rows["group"].nunique()
        yield Finding(f"images of {name}", len(rows), "ok", f"{lesions} lesions")


def check_lesions(df: pd.DataFrame) -> Iterator[Finding]:
    """Count lesions with several images, and try whether the classes can be split."""
    sizes = df["group"].value_counts()
    several = int((sizes > 1).sum())
    detail = f"{sizes[sizes > 1].sum()} images, up to {sizes.max()} a lesion"
    yield Finding("lesions with several images", several, "ok", detail if several else "")
    try:
        assign_split(df)
    except LesionfastError as error:
        yield Finding("classes that can't be split", 1, "problem", error.message)


def check_missing(df: pd.DataFrame, config: DataConfig) -> Iterator[Finding]:
    """Count what is not known of each column, and ages of 0."""
    keys = ["image_id", "path", "target", "group"]
    for name in df.columns.difference(keys, sort=False):
        count = int(df[name].isna().sum())
        use = "kept with an indicator input; or --missing drop"
        detail = use if name in config.metadata_columns else "no input (--metadata)"
        yield Finding(f"{name} not known", count, verdict(count, "note"), detail if count else "")
    if "age" in df:
        count = int((df["age"] == 0).sum())
        yield Finding("age is 0", count, verdict(count, "note"), "kept as it is" if count else "")


def check_files(source: Source, config: DataConfig) -> Iterator[Finding]:
    """Count rows without an image and images without a row."""
    table = read_table(source.csv, required_columns(config), config.separator)
    rows = set(remove_suffixes(table[config.image]))
    files = set(list_images(source.images)["stem"])
    alone = sorted(rows - files)
    yield Finding(
        "rows without an image",
        len(alone),
        verdict(len(alone), "note"),
        list_first(alone, FIRST) if alone else "",
    )
    extra = sorted(files - rows)
    yield Finding(
        "images without a row",
        len(extra),
        verdict(len(extra), "note"),
        list_first(extra, FIRST) if extra else "",
    )


def check_corrupt(df: pd.DataFrame, images: Images, config: DataConfig) -> Iterator[Finding]:
    """Name the images that can't be read: a problem unless they are to be skipped."""
    named = [f"{Path(df['path'].iloc[i]).name}: {why}" for i, why in sorted(images.bad.items())]
    how = "note" if config.skip_bad else "problem"
    hint = "" if config.skip_bad else ". Replace them, or type --skip-bad"
    detail = "; ".join(named) + hint if named else ""
    yield Finding("corrupt images", len(named), verdict(len(named), how), detail)


def check_exact(df: pd.DataFrame, sets: list[list[int]]) -> Iterator[Finding]:
    """Count sets of identical images: in one lesion, in several, and with different labels."""
    groups, targets = df["group"].to_numpy(), df["target"].to_numpy()
    lesions = [len(set(groups[each])) for each in sets]
    labels = [len(set(targets[each])) for each in sets]
    kinds = {
        "identical images in one lesion": (np.equal(lesions, 1), "note", ""),
        "identical images under different lesion ids": (
            np.greater(lesions, 1) & np.equal(labels, 1),
            "problem",
            ". Keep one of each, or type --join-duplicates",
        ),
        "identical images with different labels": (
            np.greater(labels, 1),
            "problem",
            ". Correct the labels",
        ),
    }
    for check, (chosen, bad, hint) in kinds.items():
        found = [" = ".join(df["image_id"].iloc[sets[i]]) for i in np.flatnonzero(chosen)]
        detail = list_first(found, FIRST) + hint if found else ""
        yield Finding(check, len(found), verdict(len(found), bad), detail)


def check_near(pairs: pd.DataFrame) -> Finding:
    """Count the pairs under different lesion ids, which leak from training into the test."""
    named = [f"{a} ~ {b}" for a, b in zip(pairs["image_a"], pairs["image_b"], strict=True)]
    torn = int((pairs["target_a"] != pairs["target_b"]).sum())
    labels = f" {torn} of them have different labels: look at those." if torn else ""
    detail = (
        f"{list_first(named, FIRST)}.{labels} Keep them together with --join-duplicates"
        if named
        else ""
    )
    check = "near-duplicates under different lesion ids"
    return Finding(check, len(named), verdict(len(named), "problem"), detail)


VERDICTS = {"ok": "green", "note": "yellow", "problem": "bold red"}


def audit_table(report: "Audit") -> list["Table"]:
    """Return the checks of a dataset, and its near-duplicates if there are any."""
    from rich.text import Text

    table = new_table("Dataset check")
    add_columns(table, "check", "count", "verdict", "detail")
    table.columns[2].justify = table.columns[3].justify = "left"
    table.columns[3].overflow = "fold"
    for row in report.table().itertuples():
        verdict = Text(row.verdict, style=VERDICTS.get(row.verdict, ""))
        table.add_row(row.check, str(row.count), verdict, row.detail)
    pairs = report.near_duplicates
    return [table] if pairs is None or pairs.empty else [table, duplicates_table(pairs)]


def duplicates_table(pairs: "pd.DataFrame") -> "Table":
    """Return the pairs of images that look like one lesion but have different lesion ids."""
    more = f"{MOST_ROWS} of {len(pairs)} pairs; all: --json" if len(pairs) > MOST_ROWS else ""
    table = new_table("Near-duplicates under different lesion ids", more)
    add_columns(table, *pairs.columns)
    for column in table.columns:
        column.no_wrap = True  # half an image id is of no use
    for row in pairs.head(MOST_ROWS).itertuples(index=False):
        table.add_row(*map(plain, row))
    return table
