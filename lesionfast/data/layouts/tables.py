"""Any table beside images: its columns are recognised by their names and by what they hold."""

import logging
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.formats.pictures import IMAGE_SUFFIXES
from lesionfast.data.formats.records import PARQUET
from lesionfast.data.layouts.base import (
    SAMPLE_ROWS,
    Dataset,
    Folder,
    layouts,
    read_rows,
    read_sample,
)
from lesionfast.data.layouts.copies import settle_parts
from lesionfast.data.layouts.paths import (
    SUFFIX,
    count_matches,
    last_parts,
    match_paths,
    name_by_path,
)
from lesionfast.data.layouts.places import (
    PART_NAMES,
    WORDS,
    leave_out_derived,
    read_part,
    relative_names,
)
from lesionfast.data.sources import image_stem, list_images, name_without_suffix
from lesionfast.data.table import TABLE_SUFFIXES, list_columns, open_table
from lesionfast.diagnoses import split_names
from lesionfast.errors import LesionfastError, did_you_mean, list_first, pluralize, shell_quote

logger = logging.getLogger("lesionfast")

IDS = ("image_id", "isic_id", "image_name", "image", "img_id", "img")
IMAGES = (
    *IDS,
    *("image_path", "img_path", "path", "filepath", "file_path", "filename", "file_name", "file"),
    *("image_file", "image_filename", "images", "id"),
)
TARGETS = (
    *("dx", "diagnosis", "diagnostic", "label", "target", "class", "class_name", "label_name"),
    *("diagnosis_3", "category", "disease", "benign_malignant", "malignant", "is_malignant"),
    *("melanoma", "is_melanoma", "cancer", "is_cancer", "y"),
)
LESIONS = ("lesion_id", "lesion", "lesionid", "lesion_number")
PATIENTS = (
    *("patient_id", "patient", "patientid", "subject_id", "subject", "pat_id", "case_id"),
    "group_id",
)
SPLITS = ("split", "partition", "subset", "set", "fold", "part")
KINDS = {"dermoscopic": ("derm",), "clinical": ("clin", "macro", "photo")}  # in names of columns
MOST_LOOKED_AT = 200  # columns: a table of pixels has thousands


@layouts.register("table")
def table(folder: Folder, config: DataConfig) -> Dataset | None:
    """Any CSV, TSV, Parquet or Excel table beside images, with columns for image and class."""
    usable = find_usable(folder, config)
    if len(usable) > 1 and (parts := find_parts(folder, usable)):
        return read_any_table(parts["train"], config, folder, parts)
    candidates = usable or find_usable(folder, replace(config, image=None, target=None))
    if not candidates:
        candidates = [p for p in folder.headers if find_image_column(p, config, folder)]
    return read_any_table(choose_table(folder, candidates), config, folder) if candidates else None


def read_any_table(
    path: Path,
    config: DataConfig,
    folder: Folder | None = None,
    parts: dict[str, Path] | None = None,
) -> Dataset:
    """Return the dataset of a table and the images of `folder`, else of --images.

    With `parts` it is that of a table for each part. Raises `LesionfastError` if there is no column
    that can be the image or the class.
    """
    opened = open_table(path, config.separator)
    opened.require(required_columns(config))
    root = folder.root if folder else Path(config.images or path.parent).expanduser()
    files = folder.images if folder else leave_out_derived(list_images(root), root)
    chunks = opened.read_chunks()
    first = next(chunks)
    image, target, note = find_columns(path, first.head(SAMPLE_ROWS), files, config)
    rows = read_parts(parts, image, target) if parts else pd.concat([first, *chunks])
    rows, image, placed = place_images(path, drop_repeated(rows, image), image, files, root)
    found = as_dataset(path, rows, image, target, placed, note)
    if not parts:
        return found
    groups = () if config.group else found.groups
    split, told = settle_parts(rows.assign(part=rows["split"]), target, groups)
    found = replace(found, split="split" if split else None, notes=(*found.notes, *told))
    found = found if split else replace(found, rows=rows.drop(columns="split"))
    return replace(found, name=f"tables of parts ({list_first(p.name for p in parts.values())})")


def read_parts(parts: dict[str, Path], image: str, target: str) -> pd.DataFrame:
    """Return the labelled rows of a table for each part, with a column `split`.

    Raises `LesionfastError` if an image is in several.
    """
    rows = pd.concat([read_rows(path).assign(split=part) for part, path in parts.items()])
    empty = rows[target] == ""
    if lost := int(empty.sum()):
        logger.warning("Left out %s without a label ('%s')", pluralize(lost, "row"), target)
    rows = rows[~empty].set_axis(pd.RangeIndex(2, len(rows) - lost + 2))
    count = rows.groupby(image)["split"].nunique()
    if len(torn := count.index[count > 1]):
        tables = [parts[part].name for part in rows.loc[rows[image] == torn[0], "split"].unique()]
        raise LesionfastError(
            f"{' and '.join(tables)} both name '{torn[0]}' ({pluralize(len(torn), 'such image')}). "
            "Remove it from all but one of them."
        )
    return rows


def find_parts(folder: Folder, usable: list[Path]) -> dict[str, Path] | None:
    """Return train.csv, val.csv and test.csv as {part: path}; None if the tables are no such."""
    parts = {}
    for path in usable:
        words = [word.lower() for word in WORDS.findall(path.stem)]
        parts[read_part(words)] = path
    headers = {frozenset(folder.headers[path]) for path in usable}
    whole = len(parts) == len(usable) and "" not in parts and "train" in parts
    return parts if whole and len(headers) == 1 else None


def from_frame(rows: pd.DataFrame, config: DataConfig) -> Dataset:
    """Return the dataset of a table of text from Python; its images lie under --images.

    Without --images they are in its column `path`.
    """
    path = Path("the table")
    config = replace(config, image=None) if config.image == "path" else config
    for typed, option in [(config.image, "--image"), (config.target, "--target")]:
        check_named(path, list(rows), split_names(typed or ""), option)
    if config.images is None and not (config.image or first_of(IDS, list(rows))):
        rows = rows.assign(image_id=name_by_path(rows["path"]))
    files = None if config.images is None else list_images(config.images)
    sample = rows.head(SAMPLE_ROWS)
    image, target, note = find_columns(path, sample, files, config)
    if files is not None:
        rows, image, files = place_images(
            path, rows, image, files, Path(config.images).expanduser()
        )
    found = as_dataset(path, rows, image, target, files, note)
    return replace(found, split="split" if "split" in rows else None)


def as_dataset(
    path: Path,
    rows: pd.DataFrame,
    image: str,
    target: str,
    files: pd.DataFrame | None,
    note: str = "",
) -> Dataset:
    """Return the dataset of a table; its images are `files`, else in its column `path`."""
    return Dataset(
        name=f"a table ({path.name})",
        table=path,
        rows=rows,
        image=image,
        target=target,
        groups=find_groups(rows),
        files=files,
        split=find_split(rows),
        notes=(note,) if note else (),
    )


def find_groups(rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the columns of the lesion and of the patient, as far as a table has them."""
    found = (first_of(names, list(rows)) for names in (LESIONS, PATIENTS))
    return tuple(name for name in found if name)


def drop_repeated(rows: pd.DataFrame, image: str) -> pd.DataFrame:
    """Return the rows without those that repeat another in every column; counted in the log."""
    if not rows[image].duplicated().any():
        return rows
    repeated = rows.duplicated()
    if count := int(repeated.sum()):
        lost = pluralize(count, "row")
        logger.warning(
            "Left out %s equal to another, such as row %s", lost, rows.index[repeated][0]
        )
    return rows[~repeated]


def place_images(
    path: Path, rows: pd.DataFrame, image: str, files: pd.DataFrame, root: Path
) -> tuple[pd.DataFrame, str, pd.DataFrame | None]:
    """Return rows, the column of their image ids, and `files` if these are found by their stems.

    Else, as for paths or names in another case, the rows have a column `path`; there paths in the
    column become image ids.
    """
    values = rows[image]
    are_paths = bool(values.str.contains(r"[/\\]", regex=True).any())
    if not are_paths and image != "path":
        unknown = ~values.map(name_without_suffix).isin(files["stem"])
        if not unknown.any() or (match_paths(values[unknown], files, root, path) == "").all():
            return rows, image, files
    paths = match_paths(values, files, root, path)
    unused = files[~files["stem"].isin(paths[paths != ""].map(image_stem))]
    if len(unused):
        lost = pluralize(len(unused), "image")
        logger.warning("Left out %s without a row: %s", lost, list_first(unused["stem"]))
    ids = values
    if are_paths:
        there = paths != ""
        ids = values.str.replace(r"[/\\]+|\.{2,}", "-", regex=True)
        ids = ids.mask(there, name_by_path(relative_names(paths[there], root)))
    column = "image_id" if image == "path" else image
    return rows.assign(**{column: ids, "path": paths}), column, None


def find_columns(
    path: Path, sample: pd.DataFrame, files: pd.DataFrame | None, config: DataConfig
) -> tuple[str, str, str]:
    """Return the columns of the image and of the class, and a note about other images.

    Raises `LesionfastError`, with the columns and their number of values, if one is unknown.
    """
    stems = set() if files is None else set(files["stem"].str.lower())
    image, others = choose_image(sample, stems, config)
    check_header(image, stems)
    target = split_names(config.target)[0] if config.target else first_of(TARGETS, list(sample))
    for column, what, option in [
        (image, "image ids", "--image"),
        (target, "the diagnosis", "--target"),
    ]:
        if column is None:
            raise LesionfastError(
                f"no column of {path.name} is known to hold {what}; it has: "
                f"{list_values(sample)}. Name yours with {option}."
            )
    note = f"The images are those of column '{image}'; for others type --image " + "".join(
        others[:1]
    )
    return str(image), str(target), f"{note}." if others else ""


def choose_image(
    sample: pd.DataFrame, stems: set[str], config: DataConfig
) -> tuple[str | None, list[str]]:
    """Return the column of the images, and columns that name other images.

    It is --image, or one of a usual name if it names half as many of the images as any column does,
    or the one that names the most.
    """
    if config.image:
        return split_names(config.image)[0], []
    usual = [name for names in IMAGES if (name := first_of((names,), list(sample)))]
    counts = {name: count_matches(sample[name], stems) for name in list(sample)[:MOST_LOOKED_AT]}
    best = max(counts.values(), default=0)
    good = [name for name in counts if best and 2 * counts[name] >= best]
    files = [name for name in good if sample[name].str.lower().str.endswith(IMAGE_SUFFIXES).any()]
    if files:  # beside names of files, numbers such as those of rows are not the images
        good = [name for name in good if name in files or not are_numbers(sample[name])]
    words = KINDS.get(config.images_of, ())
    wanted = [name for name in good if any(word in name.lower() for word in words)]
    ranked = (
        [name for name in usual if name in good]
        + wanted
        + sorted(good, key=lambda name: -counts[name])
    )
    if not ranked:
        return (usual[0] if usual else None), []
    named = set(last_parts(sample[ranked[0]]).str.replace(SUFFIX, "", regex=True))
    others = [
        name
        for name in good
        if not named & set(last_parts(sample[name]).str.replace(SUFFIX, "", regex=True))
    ]
    return ranked[0], others


def check_named(path: Path, header: list[str], columns: Iterable[str], option: str) -> None:
    """Raise `LesionfastError` for a column that an option names and the table does not have."""
    for name in columns:
        if name not in header:
            raise LesionfastError(
                f"column '{name}' is not in {path.name}; it has: {list_columns(header)}."
                f"{did_you_mean(name, header)} Name yours with {option}."
            )


def check_header(column: str | None, stems: Collection[str]) -> None:
    """Raise `LesionfastError` if the column of the images is named like one: no header is there."""
    if column and image_stem(column).lower() in stems:
        raise LesionfastError(
            f"the first line of the table should name the columns, but it has '{column}', which is "
            "an image. Write a line such as image_id,dx,age,sex above it."
        )


def are_numbers(column: pd.Series) -> bool:
    """Return whether all values of a column are digits."""
    return bool(column.str.fullmatch(r"\d*").all())


def required_columns(config: DataConfig) -> dict[str, str]:
    """Return the columns that the options name, each with the option that does."""
    named: dict[str, str] = {}
    if config.image:
        named[config.image] = "--image"
    for name in split_names(config.target or ""):
        named[name] = "--target"
    if config.group not in (None, "none"):
        advice = "--group, or type --group none if every image is a lesion of its own"
        named |= dict.fromkeys(split_names(config.group), advice)
    return named


def first_of(names: tuple[str, ...], header: list[str]) -> str | None:
    """Return the column of a header that comes first in `names`, in any case and spelling."""
    known = {re.sub(r"[\s_-]+", "_", name.strip().lower()): name for name in reversed(header)}
    return next((known[name] for name in names if name in known), None)


def find_split(rows: pd.DataFrame) -> str | None:
    """Return the column that says train, validation or test for every row, None if none does."""
    column = first_of(SPLITS, list(rows))
    if column and set(rows[column].str.lower()) <= set(PART_NAMES):
        return column
    return None


def find_image_column(path: Path, config: DataConfig, folder: Folder) -> str | None:
    """Return the column of a table whose values are images of a folder, None if there is none."""
    header = folder.headers[path]
    wanted = config.image.lower() if config.image else first_of(IMAGES, header)
    return wanted if wanted in header else None


def find_usable(folder: Folder, config: DataConfig) -> list[Path]:
    """Return the tables of a folder with a column of classes and one that names images of it."""
    stems = set(folder.images["stem"].str.lower())
    return [
        path
        for path, sample in folder.samples.items()
        if (config.target or first_of(TARGETS, list(sample)))
        and count_named(path, config.image, stems, sample)
    ]


def choose_table(folder: Folder, candidates: list[Path], column: str | None = None) -> Path:
    """Return the table that names the most images of a folder.

    Of several that name as many, it is the one whose name the others extend, as a copy does.
    Raises `LesionfastError`, with the candidates, if none stands out.
    """
    if len(candidates) == 1:
        return candidates[0]
    stems = set(folder.images["stem"].str.lower())
    found = {path: count_named(path, column, stems) for path in candidates}
    best = [path for path in candidates if found[path] == max(found.values())]
    shortest = min(best, key=lambda path: len(path.stem))
    if all(path.stem.lower().startswith(shortest.stem.lower()) for path in best):
        for path in candidates:
            if path != shortest:
                logger.warning(
                    "Ignored %s beside %s. To use it instead, type --csv and --images",
                    path.name, shortest.name,
                )  # fmt: skip
        return shortest
    lines = list_first((f"{path.name} ({pluralize(found[path], 'image')})" for path in best), 5)
    raise LesionfastError(
        f"{folder.root} holds {len(best)} tables that may be the metadata: {lines}. "
        "Type --csv FILE --images DIR instead of --data."
    )


def count_named(
    path: Path, column: str | None, stems: set[str], sample: pd.DataFrame | None = None
) -> int:
    """Return how many images of these stems, in lower case, a table names in a column.

    By default it is the one that names the most. With a `sample` the rest of the table is read only
    if the sample names none.
    """
    rows = read_sample(path) if sample is None else sample
    if rows.empty or not stems:
        return 0
    name = first_of((column.lower(),), list(rows)) if column else None
    name = name or (None if column else choose_image(rows, stems, DataConfig())[0])
    if name is None:
        return 0
    count = count_matches(rows[name], stems)
    if len(rows) < SAMPLE_ROWS or (count and sample is not None):
        return count
    return count_matches(read_rows(path)[name], stems)


def list_values(rows: pd.DataFrame) -> str:
    """Return the columns of a table with their number of values, for an error; few values first."""
    counts = {name: rows[name][rows[name] != ""].nunique() for name in rows}
    ranked = sorted(counts, key=lambda name: (counts[name] < 2, counts[name]))
    return list_first((f"{name} ({pluralize(counts[name], 'value')})" for name in ranked), 15)


def explain_table(folder: Folder) -> LesionfastError | None:
    """Return what is wrong with the first table of a folder that can't be read, None if none is."""
    for path in folder.find(*TABLE_SUFFIXES):
        if path.suffix.lower() not in (".txt", *PARQUET):
            try:
                open_table(path)
            except LesionfastError as error:
                return error
    return None


def unknown_layout(folder: Folder) -> LesionfastError:
    """Return the error for a folder that no layout fits."""
    if folder.only:
        return LesionfastError(
            f"--data {folder.only} is a file with {pluralize(len(folder.images), 'image')}, but "
            "without their classes. Type the folder that holds the metadata CSV too, or --csv FILE "
            f"--images {shell_quote(folder.only)}"
        )
    if not folder.headers and (error := explain_table(folder)):
        return error
    if folder.images.empty:
        return LesionfastError(
            f"there are no images in {folder.root}. Type --data with the folder that holds them."
        )
    if not folder.headers:
        images = pluralize(len(folder.images), "image")
        return LesionfastError(
            f"there is no CSV file in {folder.root}, which holds {images}, and no folders "
            "named like classes. Type --csv FILE --images DIR instead of --data."
        )
    stems, images = set(folder.images["stem"].str.lower()), len(folder.images)
    counts = {path: count_named(path, None, stems) for path in list(folder.headers)[:5]}
    tables = list_first(
        (f"{path.relative_to(folder.root)} names {count:,}" for path, count in counts.items()), 5
    )
    return LesionfastError(
        f"{folder.root} is not laid out as any dataset that is known. Of its "
        f"{pluralize(images, 'image')} {tables}. "
        "Type --csv FILE --images DIR --image COLUMN --target COLUMN instead of --data."
    )
