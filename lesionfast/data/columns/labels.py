"""The class names of a table: one spelling each, renamed, merged or left out as the options say."""

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.columns.values import TRUTH_OF
from lesionfast.data.table import EMPTY, open_table
from lesionfast.diagnoses import (
    NAMES,
    find_class,
    is_malignant,
    is_melanoma,
    is_nevus,
    join_names,
    plain,
    quote,
    split_names,
    split_unquoted,
    unquote,
)
from lesionfast.errors import LesionfastError, list_first, pluralize

logger = logging.getLogger("lesionfast")

DROP, OTHER = "drop", "other"
RARE = "rare"  # in the attrs of a table: what --rare made of classes, by their names
MALIGNANCY = ("malignant", "malignancy", "benign malignant", "cancer", "skin cancer", "malign")


def settle_labels(
    df: pd.DataFrame, config: DataConfig, column: str, gone: Collection[str] = ()
) -> pd.DataFrame:
    """Return a table whose classes, in `target`, have one spelling and the names of --map.

    What --map drops gets the class 'drop', for `drop_classes`; missing labels stay as they are.
    `column` is the name of the target in the user's table: it says what 0 and 1 mean. --map may
    name the classes that are `gone`, too. Each change is logged with its number of images. Raises
    `LesionfastError` for a name that is not a class.
    """
    codes, names = pd.factorize(df["target"])
    images = dict(
        zip(names, pd.Series(codes).value_counts().reindex(range(len(names))), strict=True)
    )
    images = {name: int(images[name]) for name in names if name.lower() not in EMPTY}
    renamed = merge_spellings(images)
    pairs = read_map(config.map) if config.map else {}
    if not {*map(fold, pairs)} & {*map(fold, images)}:
        renamed |= name_binary(renamed, column)
    if pairs:
        count: dict[str, int] = {}
        for old, new in renamed.items():
            count[new] = count.get(new, 0) + images[old]
        count |= {name: 0 for name in gone if name not in count}
        mapped = apply_map(pairs, count)
        renamed = {old: mapped.get(new, new) for old, new in renamed.items()}
    if all(old == new for old, new in renamed.items()):
        return df
    settled = pd.Index([renamed.get(name, name) for name in names], dtype=object)
    return df.assign(target=pd.Series(settled.to_numpy()[codes], df.index, dtype="str"))


def drop_classes(df: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Return the rows of a table of `settle_labels` without the classes that are not wanted.

    Those are the ones that --map and --drop-class leave out, and --rare those with few lesions
    (values of `group`), which may become the class 'other' instead. Raises `LesionfastError` for a
    name that is not a class, and if nothing is left.
    """
    before = df
    if config.map:
        dropped = [old for old, new in read_map(config.map).items() if fold(new) == DROP]
        df = leave_out(df, [DROP], f"of class {list_first(dropped, 5)} (--map)")
    if names := [find_spelling(df, name) for name in split_names(config.drop_class or "")]:
        df = leave_out(df, names, f"of class {list_first(names, 5)} (--drop-class)")
    if config.rare:
        df = settle_rare(df, config.rare)
    if len(before) and not len(df):
        raise LesionfastError(
            f"--map, --drop-class and --rare leave none of {pluralize(len(before), 'image')}. Drop "
            "fewer classes."
        )
    return df


def merge_spellings(images: Mapping[str, int]) -> dict[str, str]:
    """Return the commonest spelling of each class: NV, nv and 'nv ' are one."""
    spellings: dict[str, list[str]] = {}
    for name in sorted(images, key=lambda name: (-images[name], name)):
        spellings.setdefault(fold(name), []).append(name)
    chosen = {}
    for first, *others in spellings.values():
        chosen |= dict.fromkeys([first, *others], first.strip())
        if others:
            counted = ", ".join(f"'{name}' ({pluralize(images[name], 'image')})" for name in others)
            logger.warning(
                "%s counted as class '%s' (%s)",
                counted, first.strip(), pluralize(images[first], "image"),
            )  # fmt: skip
    return chosen


def fold(name: str) -> str:
    """Return what two spellings of a class share: all but case and spaces around words."""
    return " ".join(name.casefold().split())


def name_binary(classes: Mapping[str, str], column: str) -> dict[str, str]:
    """Return names for a target of 0 and 1, false and true, or no and yes; {} for any other.

    They are those of the column: benign and malignant, else "not X" and X if it is a diagnosis,
    else negative and positive.
    """
    truth = {name: TRUTH_OF.get(fold(name)) for name in classes}
    if {*truth.values()} != {"true", "false"}:
        return {}
    asked = re.sub(r"^(is|has) ", "", plain(column))
    meant = re.sub(r"^(is|has)[ _]", "", column.strip(), flags=re.IGNORECASE)
    if asked in MALIGNANCY:
        no, yes = "benign", "malignant"
    elif asked == "benign":
        no, yes = "malignant", "benign"
    elif asked in NAMES or is_malignant(asked) or is_melanoma(asked) or is_nevus(asked):
        no, yes = f"not {meant}", meant
    else:
        no, yes = "negative", "positive"
        logger.warning(
            "Column %s has two values that do not say what they mean. If %s is melanoma or "
            "another cancer, type --melanoma %s or --malignant %s, or name the classes with --map",
            column, quote(next(name for name in classes if truth[name] == "true")), yes, yes,
        )  # fmt: skip
    logger.info("Column %s is binary: its classes are called %s and %s", column, no, yes)
    return {name: yes if truth[name] == "true" else no for name in classes}


def read_map(text: str) -> dict[str, str]:
    """Return {"Melanoma, NOS": "mel"} for what --map says: pairs old=new, and files of pairs.

    The last = of a pair counts; names may be in double quotes. Raises `LesionfastError` for what is
    neither, and for a class with two new names.
    """
    pairs: dict[str, str] = {}
    for part in split_map(text):
        path = Path(part).expanduser()
        if path.is_file():
            found = read_map_file(path)
        elif "=" in part:
            old, _, new = part.rpartition("=")
            found = [(unquote(old), unquote(new))]
        else:
            raise LesionfastError(
                f"--map has '{part}', which is neither a pair nor a file. Type old=new, such as "
                "--map 'Melanoma, NOS=mel', or the path of a CSV file with the columns from and to."
            )
        for old, new in found:
            if not (old and new):
                raise LesionfastError(
                    f"--map has '{part if '=' in part else f'{old}={new}'}', where a name is "
                    f"missing. Type old=new, or old={DROP} to leave a class out."
                )
            if pairs.setdefault(old, new) != new:
                raise LesionfastError(
                    f"--map names '{old}' twice, as {pairs[old]} and as {new}. Keep one of them."
                )
    return pairs


def split_map(text: str) -> list[str]:
    """Return the pairs and paths of --map; a name may have a comma in it, several may be in one."""
    parts: list[str] = []
    for part in split_names(text):
        pieces = [piece.strip() for piece in split_unquoted(part, ",")]
        if len(pieces) > 1 and all("=" in piece for piece in pieces):  # 'ak=akiec,scc=drop'
            parts += pieces
        elif parts and "=" not in parts[-1] and not Path(parts[-1]).expanduser().is_file():
            parts[-1] += f", {part}"  # "Melanoma, NOS=mel" from Python
        else:
            parts.append(part)
    return parts


def read_map_file(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of a table with the columns from and to, or with two columns of any name."""
    table = open_table(path, option="--map")
    header = [name.lower() for name in table.header]
    if {"from", "to"} <= {*header}:
        columns = [table.header[header.index(name)] for name in ("from", "to")]
    elif len(header) == 2:
        columns = table.header
    else:
        raise LesionfastError(
            f"{path} has {pluralize(len(header), 'column')} ({list_first(table.header)}), but "
            "--map needs two, from and to. Name them in its first line."
        )
    rows = pd.concat(list(table.read_chunks()))
    return list(zip(rows[columns[0]], rows[columns[1]], strict=True))


def expand_map(text: str | None) -> str | None:
    """Return --map without files, so that a run does not need them: the pairs that they hold."""
    if not text or not any(Path(part).expanduser().is_file() for part in split_map(text)):
        return text
    return join_names((f"{quote(old)}={quote(new)}" for old, new in read_map(text).items()), ",")


def apply_map(pairs: Mapping[str, str], images: Mapping[str, int]) -> dict[str, str]:
    """Return the new names of classes; a class that gets the name of another joins it."""
    old_names = {fold(name): name for name in images}
    mapped: dict[str, str] = {}
    for old, new in pairs.items():
        if fold(old) not in old_names:
            find_class("--map", old, sorted(images))
        mapped[old_names[fold(old)]] = new
    kept = {fold(name): name for name in images if name not in mapped}
    spelling: dict[str, str] = {DROP: DROP}
    for old, new in mapped.items():
        mapped[old] = spelling.setdefault(fold(new), kept.get(fold(new), new))
    for new in dict.fromkeys(mapped.values()):
        if new != DROP:
            olds = [name for name in images if mapped.get(name, name) == new]
            parts = " + ".join(f"{name} ({pluralize(images[name], 'image')})" for name in olds)
            logger.info("--map: class %s is %s", new, parts)
    return mapped


def find_spelling(df: pd.DataFrame, typed: str) -> str:
    """Return the class of --drop-class, in any case; raises `LesionfastError` if there is none."""
    classes = {fold(name): name for name in sorted(df["target"].unique())}
    if fold(typed) not in classes:
        find_class("--drop-class", typed, list(classes.values()))
    return classes[fold(typed)]


def leave_out(df: pd.DataFrame, classes: list[str], what: str) -> pd.DataFrame:
    """Return the rows of the other classes; those left out are counted."""
    lost = df["target"].isin(classes)
    if lost.any():
        logger.warning("Left out %s %s", pluralize(int(lost.sum()), "image"), what)
    return df[~lost]


def settle_rare(df: pd.DataFrame, typed: str) -> pd.DataFrame:
    """Leave out the classes with fewer lesions than --rare says, or make one class of them.

    The attrs of the table say what became of each, for corrections that name them.
    """
    read = re.fullmatch(rf"(\d+)\s*=\s*({DROP}|{OTHER})", typed.strip().lower())
    if read is None:
        raise LesionfastError(
            f"--rare is '{typed}'. Type a number of lesions and what becomes of classes with "
            f"fewer: --rare 3={DROP} leaves them out, --rare 3={OTHER} makes one class of them."
        )
    lesions = df.groupby("target")["group"].nunique()
    few = lesions[lesions < int(read[1])]
    if few.empty:
        return df
    counted = list_first((f"{name} ({pluralize(n, 'lesion')})" for name, n in few.items()), 5)
    if read[2] == DROP:
        df = leave_out(df, list(few.index), f"of class {counted} (--rare {typed})")
        df.attrs[RARE] = dict.fromkeys(few.index, DROP)
        return df
    rare = df["target"].isin(few.index)
    other = next((name for name in lesions.index if fold(name) == OTHER), OTHER)
    logger.warning(
        "Put %s into class %s (--rare %s): %s",
        pluralize(int(rare.sum()), "image"), other, typed, counted,
    )  # fmt: skip
    if cancers := [name for name in few.index if is_malignant(name) and not is_malignant(other)]:
        logger.warning(
            "Class %s counts as benign although it holds malignant classes: %s. Join them to "
            "another class with --map, leave them out with --rare %s=%s, or type --malignant",
            other, list_first(cancers, 5), read[1], DROP,
        )  # fmt: skip
    df = df.assign(target=df["target"].mask(rare, other))
    df.attrs[RARE] = dict.fromkeys(few.index, other)
    return df
