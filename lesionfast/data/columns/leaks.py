"""Columns that give the label away are refused as inputs, with the evidence.

They do so wholly, as another name of the diagnosis does, or one-sidedly: every cancer has a biopsy,
so a lesion without one is benign. What is missing counts as a value.
"""

import logging
import re
from collections.abc import Collection
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy.special import bdtr, bdtrc, chdtri, entr

from lesionfast.config import DataConfig
from lesionfast.diagnoses import CANCER, Classes, quote, split_names
from lesionfast.errors import LesionfastError, did_you_mean, pluralize, shell_quote

logger = logging.getLogger("lesionfast")

KEYS = ("image_id", "path", "target", "group")  # columns that every table of images has
FORMER = ("original_target", "original_group", "original_split", "correction")
RESERVED = (*KEYS, "split", "row", *FORMER)  # columns that lesionfast adds
ENOUGH_LESIONS = 5  # a value of fewer lesions can be of one class by chance
LESIONS_A_BIN = 25
MOST_FLAGS = 10  # a column of numbers with more values than that is measured, not coded
MOST_FEW = 20  # so many values are no ids, however few the lesions
TELLING = 0.5  # share of the bits: age and site of HAM10000 tell up to 0.21, age of the sample 0.36
CHANCE = 1e-3  # how often chance alone may do so
COVERED = 0.3  # share of a class that a sure value must cover; the trunk has 25 % of HAM10000's nv
COVERED_IF_KNOWN = 0.05  # the same where it is enough that a value is known, or is missing
EXCEPTIONS = 0.05  # share of the errors by chance that a sure value may have
FROM_LAYOUT = "it is known only with the diagnosis in this dataset"
KERATOSIS = re.compile(r"ac?k|akiec|.*\b(actinic|solar)\b.*", re.IGNORECASE)
TELLING_NAMES = {  # in lower case: what a column is that is known only with the diagnosis
    r"dx_type|(diagnosis[_ ])?confirm(ation)?[_ ]type": "it says how the diagnosis was made",
    r"(concomitant_)?biopsy|biops(ed|ied)|excised": "whether a lesion is biopsied depends on the "
    "diagnosis that is suspected",
    r"mel_(thick_mm|mitotic_index|type|class|ulcer)|breslow.*|invasion_.*": "it is measured on the "
    "tumour that was cut out",
    r"iddx_.*|diagnosis(_\d|_full)?|melanocytic|benign_malignant|(histo)?patholog.*": "it says "
    "what was diagnosed",
    r"tbp_lv_dnn_lesion_confidence": "it is the answer of another model that saw the lesion",
    r"management": "it says how the lesion was treated",
}


def check_inputs(
    csv: Path,
    df: pd.DataFrame,
    config: DataConfig,
    keys: Collection[str] = (),
    leaks: Collection[str] = (),
) -> None:
    """Raise `LesionfastError` for an input column that gives the label away.

    Refused are `keys` (ids and the target), `leaks` (what the layout knows to give it away) and
    what `find_leak` finds; of the last two --allow-leak makes a warning.
    """
    inputs, keys = config.metadata_columns, {*keys, *RESERVED}
    allowed = split_names(config.allow_leak or "")
    check_allowed(allowed, config)
    names = [name for name in inputs if name in df]
    kept = df if config.missing == "keep" else df[df[names].notna().all(axis=1)]
    lesions = kept[~kept.duplicated(["group", "target"])]  # a patient has one of each class
    for name in inputs:
        reason = ""
        if name in keys:
            reason = "it is the label, an id or a split"
        elif name not in df:
            reason = "its name is reserved for predictions"
        elif inputs.count(name) > 1:
            reason = "it is named twice"
        elif leak := find_leak(lesions, name) or (FROM_LAYOUT if name in leaks else ""):
            if name not in allowed:
                raise refusal(
                    csv, name, config, leak, f", or add --allow-leak {shell_quote(quote(name))}"
                )
            logger.warning("Column '%s' is an input (--allow-leak), but %s", name, leak)
        if reason:
            raise refusal(csv, name, config, reason)


def refusal(
    csv: Path, name: str, config: DataConfig, reason: str, advice: str = ""
) -> LesionfastError:
    """Return the error for a column that can't be an input."""
    return LesionfastError(
        f"column '{name}' of {csv.name} can't be an input: {reason}. "
        f"Remove it from --metadata {shell_quote(config.metadata)}{advice}."
    )


def check_allowed(allowed: Collection[str], config: DataConfig) -> None:
    """Raise `LesionfastError` if --allow-leak names a column that is no input."""
    inputs = config.metadata_columns
    for name in allowed:
        if name not in inputs:
            raise LesionfastError(
                f"--allow-leak names '{name}', which is not one of the inputs: "
                f"{', '.join(inputs) or 'none'}.{did_you_mean(name, inputs)} Add it to --metadata, "
                "or leave it out."
            )


def find_leak(lesions: pd.DataFrame, name: str) -> str:
    """Return how the column `name` gives the class away, or '' if it does not.

    It does so if it removes more than half of the uncertainty, in bits, whether a lesion is of some
    class or group of classes, or if one of its values is almost certainly of one class, or
    malignant, or benign, and covers much of it. A missing value counts as a value. What chance
    alone would do is taken off first, so a few lesions prove nothing.
    """
    column, known = lesions[name], lesions[name].notna().to_numpy()
    distinct = column.nunique()
    if not is_numeric_dtype(column) and distinct > MOST_FEW and 2 * distinct > known.sum():
        return f"it is an id: it has {distinct:,} different values in {known.sum():,} lesions"
    codes, values = bin_values(column)
    count = partial(count_lesions, lesions["target"])
    tables = {
        "value": count(np.where(known, codes, -1), values),
        "value or missing": count(np.where(known, codes, len(values)), [*values, "missing"]),
        "known or missing": count(known.astype(int), ["missing", "known"]),
    }
    is_measured = is_numeric_dtype(column) and distinct > MOST_FLAGS
    for kind, table in tables.items():
        share, classes = share_explained(table)
        if share > TELLING:
            reason = f"it removes {share:.0%} of the uncertainty whether a lesion is {classes}"
            return f"it gives the label away: on its own {reason}{list_surest_values(table)}"
        if kind != "known or missing" and is_measured:
            continue
        least = COVERED_IF_KNOWN if kind == "known or missing" else COVERED
        if len(table) and has_sure_value(table, least):
            return f"it gives the label away{list_surest_values(table)}"
        if kind != "value or missing" and (reason := find_one_sided(name, table, distinct > 1)):
            return f"it gives the label away: {reason}"
    return explain_name(name, tables["value or missing"])


def explain_name(name: str, table: pd.DataFrame) -> str:
    """Return why a column of this name gives the label away whatever it holds, '' if none does."""
    for pattern, reason in TELLING_NAMES.items():
        if re.fullmatch(pattern, name.strip().lower()):
            return reason + list_surest_values(table)
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


def share_explained(counted: pd.DataFrame) -> tuple[float, str]:
    """Return the share of the bits between some classes and the others that values (rows) explain.

    The largest over the groups of classes, of up to eight classes, else over the single classes
    (the uncertainty coefficient, Theil 1970, doi:10.1086/224909), less what one table of a thousand
    has by chance (the G-test's chi-square); and those classes in words.
    """
    table = counted.to_numpy()
    n, k = table.sum(), table.shape[1]
    if len(table) < 2 or k < 2:
        return 0.0, ""
    groups = np.arange(1, 2 ** (k - 1)) if k <= 8 else 2 ** np.arange(k, dtype=object)
    chosen = np.array([[int(group) >> i & 1 for i in range(k)] for group in groups], float)
    inside = table @ chosen.T  # (values, groups)
    of_value = table.sum(axis=1, keepdims=True)
    before = bits(inside.sum(axis=0) / n)
    after = (of_value / n * bits(inside / np.maximum(of_value, 1))).sum(axis=0)
    by_chance = chdtri(len(table) - 1, CHANCE) / (2 * n * np.log(2))
    shares = (before - after - by_chance) / np.maximum(before, 1e-9)
    best = chosen[shares.argmax()].astype(bool)
    names = counted.columns[best if best.sum() <= k / 2 else ~best]
    return float(shares.max()), either(list(names))


def either(names: list[str]) -> str:
    """Return "mel, bcc or scc"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def bits(share: np.ndarray) -> np.ndarray:
    """Return the entropy of shares and their complements, in bits."""
    return (entr(share) + entr(1 - share)) / np.log(2)


def has_sure_value(counted: pd.DataFrame, least: float) -> bool:
    """Whether a value (row) is almost certainly of one class (column), and covers `least` of it.

    Almost certain: a twentieth of the errors, or fewer, that the class's share of all leaves.
    """
    table = counted.to_numpy(float)
    of_class, of_value = table.sum(axis=0), table.sum(axis=1, keepdims=True)
    share = of_class / of_class.sum()
    errors = 1 - table / of_value
    sure = (errors <= EXCEPTIONS * (1 - share)) & (table >= of_class * least) & (share < 1)
    luck = bdtrc(table - 1, of_value, share)  # as many of the class, or more
    return bool((sure & (luck * table.size < CHANCE)).any())


def find_one_sided(name: str, counted: pd.DataFrame, is_varied: bool) -> str:
    """Return which value (row) rules out cancer, melanoma or all that is benign; '' if none does.

    Such a value covers three tenths of the other lesions, with a twentieth of the exceptions that
    chance would make, or fewer (exact binomial test). It is a warning where a missing value rules
    out cancer in a column of several values: patients who get a biopsy are asked more.
    """
    of_value, malignant = counted.sum(axis=1), set(Classes(counted.columns).malignant)
    sides = list_sides(list(counted)) if len(counted) else {}
    for side, members in sides.items():
        inside = counted[members].sum(axis=1)
        expected, others = of_value * inside.sum() / of_value.sum(), of_value - inside
        sure = (inside <= EXCEPTIONS * expected) & (others >= COVERED * others.sum())
        luck = bdtr(inside, of_value, inside.sum() / of_value.sum())  # as many of the side, or less
        for value in counted.index[sure & (luck * len(counted) * len(sides) < CHANCE)]:
            few, total = int(inside[value]), pluralize(int(of_value[value]), "lesion")
            words = (
                f"{f'only {few:,}' if few else 'none'} of the {total} where it is {value} "
                f"{'are' if few > 1 else 'is'} {side} ({expected[value]:.0f} would be by chance); "
                f"they are {others[value] / others.sum():.0%} of the other lesions"
            )
            if value != "missing" or not is_varied or not malignant.issuperset(members):
                return words
            logger.warning(
                "Column '%s': %s. A model can learn that from what is missing: leave these rows "
                "out with --missing drop, or the column out of --metadata",
                name, words,
            )  # fmt: skip
    return ""


def list_sides(classes: list[str]) -> dict[str, list[str]]:
    """Return the classes that are malignant, benign, or melanoma, in words; none if unknown.

    Actinic keratosis may count as either: it is often treated without a biopsy.
    """
    known = Classes(classes)
    sides = {CANCER: known.malignant}
    sides["benign"] = [name for name in classes if name not in known.malignant]
    sure = [name for name in known.malignant if not KERATOSIS.fullmatch(name.strip())]
    if len(sure) < len(known.malignant):
        sides[either(sure)] = sure
        sides[f"anything but {either(sure)}"] = [name for name in classes if name not in sure]
    if known.melanoma and sure != [known.melanoma]:
        sides[known.melanoma] = [known.melanoma]
    return {words: members for words, members in sides.items() if 0 < len(members) < len(classes)}


def list_surest_values(table: pd.DataFrame) -> str:
    """Return the surest values: " (yes is always mel in 30 lesions, no is nv in 95% of 120)"."""
    lesions, sentences = table.sum(axis=1), []
    surest = pd.DataFrame({"share": table.max(axis=1) / lesions, "lesions": lesions})
    common = surest[(surest["lesions"] >= ENOUGH_LESIONS) & (surest["share"] >= 0.9)]
    for value, row in common.nlargest(3, ["share", "lesions"]).iterrows():
        count = pluralize(int(row["lesions"]), "lesion")
        often = f"always {table.loc[value].idxmax()} in {count}"
        if row["share"] < 1:
            often = f"{table.loc[value].idxmax()} in {row['share']:.0%} of {count}"
        sentences.append(f"{value} is {often}")
    return f" ({', '.join(sentences)})" if sentences else ""
