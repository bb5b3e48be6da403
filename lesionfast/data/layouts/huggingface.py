"""Parquet files with the bytes of images, as the Hugging Face Hub has them.

Columns of text are read whole, and the bytes of the images a few rows at a time.
"""

import logging
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.formats.containers import open_container
from lesionfast.data.formats.records import MOST_TEXT, allow, check_chunks, find_texts, list_texts
from lesionfast.data.layouts import tables
from lesionfast.data.layouts.base import NO_LESIONS, Dataset, Folder, layouts
from lesionfast.data.layouts.copies import (
    count_crossing,
    find_content,
    keep_one_of_copies,
    settle_parts,
)
from lesionfast.data.layouts.places import PART_NAMES, WORDS, read_part, relative_names
from lesionfast.data.sources import image_stem
from lesionfast.data.table import EMPTY
from lesionfast.diagnoses import split_names
from lesionfast.errors import LesionfastError, import_extra, list_first, pluralize
from lesionfast.files import parse_json

logger = logging.getLogger("lesionfast")

SHARD = re.compile(r"(.*?)-?(\d+)-of-(\d+)$")
OWN_IDS = tuple(name for name in tables.IDS if name not in ("image", "img"))  # those hold pictures


@layouts.register("huggingface")
def huggingface(folder: Folder, config: DataConfig) -> Dataset | None:
    """Parquet files with the bytes of images in them, as datasets of Hugging Face."""
    paths = folder.find(".parquet")
    if not paths or (not folder.only and tables.find_usable(folder, config)):
        return None
    files = [path for path in paths if find_pictures(path)]
    if not files:
        return None
    check_shards(files)
    rows = pd.concat([read_shard(path, folder) for path in files], ignore_index=True)
    rows = rows.fillna("").astype("str")
    target = find_target(rows, files, config)
    unlabelled = rows.loc[rows[target].str.lower().isin(EMPTY), "path"]
    rows, notes = drop_unlabelled(rows, target, files)
    rows, image, shared = keep_one_of_each(rows, target, folder)
    groups = tables.find_groups(rows)
    split, told = settle_parts(rows, target, () if config.group else groups, shared)
    return Dataset(
        name="a Hugging Face dataset",
        table=files[0],
        rows=rows.drop(columns=["file", *([] if split else ["part"])]),
        image=image,
        target=target,
        groups=groups,
        split=split,
        notes=(*notes, *told, *([] if groups else [NO_LESIONS])),
        source=folder.name,
        unlabelled=tuple(unlabelled),
    )


def open_parquet(path: Path) -> Any:
    """Open a Parquet file; raises `LesionfastError` if it is damaged."""
    pyarrow = import_extra("pyarrow", "parquet", f"{path} can't be read")
    parquet = import_extra("pyarrow.parquet", "parquet", f"{path} can't be read")
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise LesionfastError(
            f"{path} is not a complete Parquet file ({why[:200].rstrip('.')}). Download it again."
        ) from None


def find_pictures(path: Path) -> list[str]:
    """Return the columns of a Parquet file that hold bytes, [] if it is a table without any."""
    types = import_extra("pyarrow.types", "parquet", f"{path} can't be read")

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            fields = [kind.field(i) for i in range(kind.num_fields)]
            empty = any(field.name == "bytes" and types.is_null(field.type) for field in fields)
            return empty or any(holds_bytes(field.type) for field in fields)
        return types.is_binary(kind) or types.is_large_binary(kind)

    with open_parquet(path) as file:
        return [column.name for column in file.schema_arrow if holds_bytes(column.type)]


def check_shards(files: Sequence[Path]) -> None:
    """Raise `LesionfastError` if a file such as train-00001-of-00002.parquet is missing."""
    found: dict[tuple[Path, str, str], set[str]] = {}
    for path in files:
        if match := SHARD.match(path.stem):
            found.setdefault((path.parent, match[1], match[3]), set()).add(match[2])
    for (folder, start, total), numbers in found.items():
        wanted = (str(number).zfill(len(total)) for number in range(int(total)))
        lost = (
            f"{start}-{number}-of-{total}.parquet" for number in wanted if number not in numbers
        )
        if first := [*islice(lost, 3)]:  # of what may be a billion, if a name says so
            more = " and others" if next(lost, None) else ""
            raise LesionfastError(
                f"{folder} has {len(numbers)} of {int(total):,} files of the part '{start}'; "
                f"missing: {', '.join(first)}{more}. Download them too."
            )


def read_shard(path: Path, folder: Folder) -> pd.DataFrame:
    """Return the rows of a file as text, without pictures: path, file, part, then its columns.

    Raises `LesionfastError` if there is no column of pictures, or several to choose from.
    """
    pyarrow = import_extra("pyarrow", "parquet", f"{path} can't be read")
    with open_container(str(path)) as container:
        members = container.list_members()
    pictures = find_pictures(path)
    image = "image" if "image" in pictures else pictures[0]
    with open_parquet(path) as file:
        schema = file.schema_arrow
        plain = [
            column.name
            for column in schema
            if not pyarrow.types.is_nested(column.type)
            and column.name not in pictures
            and not column.name.startswith("__index_")
        ]
        kind = schema.field(image).type
        named = pyarrow.types.is_struct(kind) and kind.get_field_index("path") >= 0
        table = read_columns(path, schema, [*plain, *([f"{image}.path"] if named else [])])
        if lost := set(schema.names) - {*plain, *pictures}:
            count = pluralize(len(lost), "column")
            logger.warning("%s: left out %s of lists: %s", path.name, count, list_first(lost))
    start = Path(os.path.abspath(path)).as_posix()
    rows = {"path": [f"{start}/{member}" for member in members]}
    names = table.column(image).combine_chunks().field("path") if named else None
    rows["file"] = (
        list_texts(names, pyarrow, path, f"{image}.path") if named else [""] * len(members)
    )
    rows["part"] = [find_part(path, folder)] * len(members)
    for name in plain:
        texts = list_texts(table.column(name).combine_chunks(), pyarrow, path, name)
        rows[f"{name}_" if name in rows else name] = name_labels(path, name, texts, schema)
    found = pd.DataFrame(rows)
    column = None if found["part"].iloc[0] else tables.find_split(found)
    return found.assign(part=found[column].str.lower().map(PART_NAMES)) if column else found


def read_columns(path: Path, schema: Any, names: Sequence[str]) -> Any:
    """Return columns of a Parquet file as a table of pyarrow, each text of a column once.

    Raises `LesionfastError` if they would take far more memory than the file.
    """
    pyarrow = import_extra("pyarrow", "parquet", f"{path} can't be read")
    parquet = import_extra("pyarrow.parquet", "parquet", f"{path} can't be read")
    with parquet.ParquetFile(path, read_dictionary=find_texts(schema, pyarrow.types)) as file:
        check_chunks(path, file.metadata, names)
        table = file.read(list(names))
    for column in table.columns:
        if pyarrow.types.is_dictionary(column.type):
            check_text(path, column)
    return table


def check_text(path: Path, column: Any) -> None:
    """Raise `LesionfastError` if the texts of a column are too long, counted as they occur."""
    total = 0
    for chunk in column.chunks:
        lengths = np.array([len(text or "") for text in chunk.dictionary.to_pylist()], np.int64)
        codes = chunk.indices.drop_null().to_numpy()
        total += int(lengths[codes].sum())
    if total > (most := allow(path, MOST_TEXT)):
        raise LesionfastError(
            f"{path} unpacks to more than {most >> 20:,} MB of text, maybe a decompression bomb. "
            "Download it from another place."
        )


def find_part(path: Path, folder: Folder) -> str:
    """Return the part that the name of a file says, or else the nearest folder; "" if none."""
    match = SHARD.match(path.stem)
    places = [match[1] if match else path.stem, *reversed(path.relative_to(folder.root).parts[:-1])]
    words = [[word.lower() for word in WORDS.findall(place)] for place in places]
    found = (read_part([word for word in some if word != "partial"]) for some in words)
    return next(filter(None, found), "")


def read_features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return what Hugging Face notes of each column in the footer of a file."""
    try:
        text = (schema.metadata or {}).get(b"huggingface", b"{}")
        features = parse_json(text)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {k: v for k, v in features.items() if isinstance(v, dict)}


def name_labels(path: Path, column: str, texts: list[str], schema: Any) -> list[str]:
    """Return the names of labels that are numbers, as the footer has them; "" for -1.

    Raises `LesionfastError` for a number that has no name.
    """
    names = read_features(schema).get(column, {}).get("names")
    named = names if isinstance(names, dict) else dict(enumerate(names or ()))
    if not named or set(texts) <= {*named.values(), ""}:
        return texts
    known = {str(number): str(name) for number, name in named.items()} | {"": "", "-1": ""}
    if wrong := {*texts} - {*known}:
        raise LesionfastError(
            f"column '{column}' of {path} has the label {list_first(sorted(wrong), 1)}, but names "
            f"for {len(named)} only: {list_first(named.values(), 10)}. Download the file again, or "
            "write it with all names."
        )
    return [known[text] for text in texts]


def find_target(rows: pd.DataFrame, files: Sequence[Path], config: DataConfig) -> str:
    """Return the column of the class: --target, one of a usual name, or the only ClassLabel.

    Raises `LesionfastError`, with the columns and their number of values, if there is none.
    """
    typed = split_names(config.target)[0] if config.target else None
    if typed is None:
        with open_parquet(files[0]) as file:
            features = read_features(file.schema_arrow)
        labels = [name for name, about in features.items() if about.get("_type") == "ClassLabel"]
        typed = tables.first_of(tables.TARGETS, list(rows)) or (
            labels[0] if len(labels) == 1 else ""
        )
    if typed in rows:
        return typed
    candidates = tables.list_values(rows.drop(columns=["path", "file", "part"]))
    problem = (
        f"column '{typed}' is not in" if config.target else "no column is known to be the class in"
    )
    raise LesionfastError(
        f"{problem} {files[0].name}; it has: {candidates}. Name yours with --target."
    )


def drop_unlabelled(
    rows: pd.DataFrame, target: str, files: Sequence[Path]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the rows with a label, and a note about the others."""
    empty = rows[target].str.lower().isin(EMPTY)
    if empty.all():
        raise LesionfastError(
            f"column '{target}' of {files[0].name} is empty in all {pluralize(len(rows), 'row')}. "
            "Name the column of the diagnosis with --target."
        )
    lost = pluralize(int(empty.sum()), "image")
    note = f"Left out {lost} without a label." if empty.any() else ""
    return rows[~empty], (note,) if note else ()


def keep_one_of_each(
    rows: pd.DataFrame, target: str, folder: Folder
) -> tuple[pd.DataFrame, str, int]:
    """Return the rows without copies, the column of image ids, and how many were in several parts.

    Rows of one image id are one image, and so are those of the same bytes; both are counted.
    """
    content = find_content(rows["path"].tolist()).set_axis(rows.index)
    rows = rows.assign(path=rows["path"].mask(content == rows["path"], ""))  # it has no bytes
    names = relative_names(rows["path"], folder.root).mask(
        rows["path"] == "", "a row without bytes"
    )
    image = tables.first_of(OWN_IDS, list(rows))
    shared = 0
    for what, keys in ([("image id", rows[image])] if image else []) + [("content", content)]:
        keys = keys[rows.index].mask(keys[rows.index] == "", rows["path"])
        shared += count_crossing(rows.assign(key=keys), "key")
        rows = keep_one_of_copies(rows, keys, names[rows.index], what, target)
    if image:
        return rows, image, shared
    return rows.assign(image_id=name_images(rows)), "image_id", shared


def name_images(rows: pd.DataFrame) -> pd.Series:
    """Return the image id of each row: the name of its file if it is unique, else part and name.

    Rows without a name have a number.
    """
    stems = rows["file"].map(image_stem).str.replace(r"[/\\]|\.{2,}", "-", regex=True)
    number = rows.groupby("part").cumcount().astype(str)
    parts = rows["part"].mask(rows["part"] == "", "image") + "-"
    once = (stems != "") & ~stems.duplicated(keep=False)
    ids = stems.where(once, parts + stems.mask(stems == "", number))
    return ids.mask(ids.duplicated(keep=False), parts + number)
