"""Refuse metadata columns that give the label away."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy.special import bdtrc, chdtri, entr

from lesionfast.config import DataConfig
from lesionfast.errors import LesionfastError

ENOUGH_LESIONS = 5  # a value of fewer lesions can be of one class by chance
LESIONS_A_BIN = 25
MOST_FLAGS = 10  # a column of numbers with more values than that is measured, not coded
MOST_FEW = 20  # so many values are no ids, however few the lesions
TELLING = 0.5  # share of the bits: age and site of HAM10000 tell up to 0.21, age of the sample 0.36
CHANCE = 1e-3  # how often chance alone may do so
KEYS = ("image_id", "path", "target", "group")  # columns that every table of images has
RESERVED = (*KEYS, "split", "row")  # columns that lesionfast adds
TELLING_NAMES = ("dx_type", "diagnosis_confirm_type")  # how the diagnosis was made


def check_inputs(csv: Path, df: pd.DataFrame, config: DataConfig) -> None:
    """Raise `LesionfastError` for an input column that gives the label away.

    Refused are ids, the target, `dx_type` (how the diagnosis was made) and what `find_leak` finds.
    """
    keys = {config.target, config.group, config.image, *RESERVED}
    names = [name for name in config.metadata_columns if name in df]
    kept = df if config.missing == "keep" else df[df[names].notna().all(axis=1)]
    for name in config.metadata_columns:
        if name in keys:
            reason = "it is the label, an id or a split"
        elif name not in df:
            reason = "its name is reserved for predictions"
        else:
            reason = find_leak(kept, name)
        reason = reason or ("it is named twice" if config.metadata_columns.count(name) > 1 else "")
        if reason:
            raise LesionfastError(
                f"column '{name}' of {csv.name} can't be an input: {reason}. "
                f"Remove it from --metadata {config.metadata}."
            )


def find_leak(df: pd.DataFrame, name: str) -> str:
    """Return how the column `name` gives the class away, or '' if it does not.

    It does so if it removes more than half of the uncertainty, in bits, whether a lesion is of some
    class or group of classes, or if one of its values is almost certainly of one class and covers
    a fifth of it. A missing value counts as a value. What chance alone would remove is subtracted
    first, so a few lesions prove nothing.
    """
    lesions = df.loc[~df["group"].duplicated(), [name, "target"]]
    column, known = lesions[name], lesions[name].notna().to_numpy()
    distinct = column.nunique()
    if not is_numeric_dtype(column) and distinct > MOST_FEW and 2 * distinct > known.sum():
        return f"it is an id: it has {distinct} different values in {known.sum()} lesions"
    codes, values = bin_values(column)
    count = partial(count_lesions, lesions["target"])
    tables = {
        "value": count(np.where(known, codes, -1), values),
        "value or missing": count(np.where(known, codes, len(values)), [*values, "missing"]),
        "known or missing": count(known.astype(int), ["missing", "known"]),
    }
    is_measured = is_numeric_dtype(column) and distinct > MOST_FLAGS
    for kind, table in tables.items():
        share = share_explained(table.to_numpy())
        if share > TELLING:
            reason = f"on its own it removes {share:.0%} of the uncertainty about some classes"
            return f"it gives the label away: {reason}{list_surest_values(table)}"
        is_coded = not is_measured or kind == "known or missing"
        if name in TELLING_NAMES or (is_coded and len(table) and has_sure_value(table)):
            return f"it gives the label away{list_surest_values(table)}"
    return ""


def bin_values(column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return the number of each row's value (n,), and the values: quantiles, rare texts as one.

    What is missing has the number -1.
    """
    codes, values = pd.factorize(column)
    most = int(np.clip((codes >= 0).sum() // LESIONS_A_BIN, 5, 50))
    if not is_numeric_dtype(column):
        rare = np.bincount(codes[codes >= 0], minlength=len(values)) < ENOUGH_LESIONS
        return np.where(rare[codes] & (codes >= 0), len(values), codes), [*values, "rare values"]
    if len(values) > most:
        binned = pd.qcut(column, most, duplicates="drop")
        codes, values = binned.cat.codes.to_numpy(int), binned.cat.categories
    return codes, [str(value) for value in values]


def count_lesions(target: pd.Series, codes: np.ndarray, values: list[str]) -> pd.DataFrame:
    """Return the lesions of each value that occurs (rows) and class (columns); -1 is left out."""
    targets, classes = pd.factorize(target, sort=True)
    pairs = (codes * len(classes) + targets)[codes >= 0]
    table = np.bincount(pairs, minlength=len(values) * len(classes))
    table = table.reshape(len(values), len(classes))
    return pd.DataFrame(table, values, classes)[table.any(axis=1)]


def share_explained(table: np.ndarray) -> float:
    """Return the share of the bits between some classes and the others that values (rows) explain.

    The largest over the groups of classes, of up to eight classes, else over the single classes
    (the uncertainty coefficient, Theil 1970, doi:10.1086/224909), less what one table of a thousand
    has by chance (the G-test's chi-square).
    """
    n, k = table.sum(), table.shape[1]
    if len(table) < 2 or k < 2:
        return 0.0
    groups = np.arange(1, 2 ** (k - 1)) if k <= 8 else 2 ** np.arange(k, dtype=object)
    chosen = np.array([[int(group) >> i & 1 for i in range(k)] for group in groups], float)
    inside = table @ chosen.T  # (values, groups)
    of_value = table.sum(axis=1, keepdims=True)
    before = bits(inside.sum(axis=0) / n)
    after = (of_value / n * bits(inside / np.maximum(of_value, 1))).sum(axis=0)
    by_chance = chdtri(len(table) - 1, CHANCE) / (2 * n * np.log(2))
    return float(((before - after - by_chance) / np.maximum(before, 1e-9)).max())


def bits(share: np.ndarray) -> np.ndarray:
    """Return the entropy of shares and their complements, in bits."""
    return (entr(share) + entr(1 - share)) / np.log(2)


def has_sure_value(counted: pd.DataFrame) -> bool:
    """Whether a value (row) is almost certainly of one class (column), and covers a fifth of it.

    Almost certain: a tenth of the errors, or fewer, that the class's share of all lesions leaves.
    """
    table = counted.to_numpy(float)
    of_class, of_value = table.sum(axis=0), table.sum(axis=1, keepdims=True)
    share = of_class / of_class.sum()
    sure = (1 - table / of_value <= (1 - share) / 10) & (table >= of_class / 5) & (share < 1)
    luck = bdtrc(table - 1, of_value, share)  # as many of the class, or more
    return bool((sure & (luck * table.size < CHANCE)).any())


def list_surest_values(table: pd.DataFrame) -> str:
    """Return the surest values: " (follow_up is always nv, yes is mel in 95% of 120 lesions)"."""
    lesions, sentences = table.sum(axis=1), []
    surest = pd.DataFrame({"share": table.max(axis=1) / lesions, "lesions": lesions})
    common = surest[(surest["lesions"] >= ENOUGH_LESIONS) & (surest["share"] >= 0.9)]
    for value, row in common.nlargest(3, ["share", "lesions"]).iterrows():
        how = "always " if row["share"] == 1 else ""
        often = "" if how else f" in {row['share']:.0%} of {row['lesions']:.0f} lesions"
        sentences.append(f"{value} is {how}{table.loc[value].idxmax()}{often}")
    return f" ({', '.join(sentences)})" if sentences else ""
