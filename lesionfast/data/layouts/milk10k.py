"""MILK10k (ISIC 2025, doi:10.34970/648456): a clinical and a dermoscopic picture of each lesion."""

import logging
from pathlib import Path

import pandas as pd

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
    Dataset,
    Folder,
    drop_files,
    from_one_hot,
    join_tables,
    layouts,
    note_pictures,
    read_rows,
)
from lesionfast.data.layouts.tables import choose_table
from lesionfast.errors import LesionfastError, list_first, pluralize

logger = logging.getLogger("lesionfast")

CLASSES = (
    *("AKIEC", "BCC", "BEN_OTH", "BKL", "DF", "INF", "MAL_OTH", "MEL", "NV", "SCCKA", "VASC"),
)
FIELDS = ("age_approx", "sex", "site", "skin_tone_class", "image_manipulation")
LABELS = ("diagnosis", "diagnosis_1", "diagnosis_3", "dx", "target", "label", "benign_malignant")
SUPPLEMENT = ("diagnosis_full", "diagnosis_confirm_type", "invasion_thickness_interval")
KINDS = {"dermoscopic": r"derm(?:at)?oscop", "clinical": r"clinical|close-?up|overview"}


@layouts.register("milk10k")
def milk10k(folder: Folder, config: DataConfig) -> Dataset | None:
    """MILK10k (ISIC 2025): one-hot truth by lesion, a metadata table with two images each."""
    truths = folder.tables("lesion_id", "BCC", "MEL", "NV", without=["image", "isic_id"])
    described = folder.tables("lesion_id", "isic_id", "image_type", without=["MEL", *LABELS])
    if not truths and not is_milk10k(folder, described, config):
        return None
    without = ["image", "isic_id", "image_id", "image_name"]
    truths = truths or folder.tables("BCC", "MEL", "NV", without=without)
    described = described or folder.tables("isic_id", without=["MEL", *LABELS, *SUPPLEMENT])
    if not truths or not described:
        raise missing_table(folder, (truths or described)[0], bool(truths))
    truth = choose_truth(folder, truths)
    lesions = read_rows(truth, "lesion_id", known=CLASSES)
    classes = [name for name in CLASSES if name in lesions]
    lesions = lesions[["lesion_id"]].assign(diagnosis=from_one_hot(lesions, classes, truth))
    table, unlabelled = choose_metadata(folder, described, lesions, truth)
    rows = read_rows(table, "lesion_id", "isic_id", "image_type", known=FIELDS)
    join_tables(lesions, rows.drop_duplicates("lesion_id"), "lesion_id", (truth, table))
    rows = join_tables(rows, lesions, "lesion_id", (table, truth))
    rows = add_supplement(folder, rows)
    kept = choose_pictures(rows, config, table)
    return Dataset(
        name="MILK10k",
        table=table,
        rows=kept,
        image="isic_id",
        target="diagnosis",
        groups=("lesion_id",),
        files=drop_files(folder.images, pd.concat([rows["isic_id"].drop(kept.index), unlabelled])),
        leaks=tuple(name for name in SUPPLEMENT if name in rows),
        renamed={"site": "localization"},
        notes=describe_choice(rows, kept, config, len(unlabelled)),
    )


def is_milk10k(folder: Folder, described: list[Path], config: DataConfig) -> bool:
    """Return whether tables without truth are those of MILK10k, by columns that no other has."""
    names = [name for path in described for name in folder.headers[path]]
    return not config.target and any(
        name.startswith("monet_") or name in ("skin_tone_class", "image_manipulation")
        for name in names
    )


def missing_table(folder: Folder, there: Path, is_truth: bool) -> LesionfastError:
    """Return the error for a folder with one of the two tables."""
    lost = "metadata (lesion_id, image_type, isic_id)"
    lost = lost if is_truth else f"diagnoses (lesion_id, {', '.join(CLASSES[:3])}, …)"
    name = "MILK10k_Training_Metadata.csv" if is_truth else "MILK10k_Training_GroundTruth.csv"
    return LesionfastError(
        f"this looks like MILK10k, but the table of the {lost} is missing. {folder.root} has "
        f"{list_first((path.name for path in folder.headers), 5)}, of which {there.name} names "
        f"the {'lesions' if is_truth else 'images'}. Put {name} beside it."
    )


def choose_truth(folder: Folder, candidates: list[Path]) -> Path:
    """Return the table of diagnoses: that with a single 1 in most rows, not a submission."""

    def looks_true(path: Path) -> bool:
        rows = read_rows(path, known=CLASSES)
        values = rows[[name for name in CLASSES if name in rows]]
        values = values.apply(pd.to_numeric, errors="coerce")
        is_one_hot = (values.isin([0, 1]).all(axis=1) & (values.sum(axis=1) == 1)).mean() > 0.5
        return is_one_hot and (values == 1).any().sum() > 1

    if len(candidates) > 1:
        candidates = list(filter(looks_true, candidates)) or candidates
    return choose_table(folder, candidates, "lesion_id")


def choose_metadata(
    folder: Folder, candidates: list[Path], lesions: pd.DataFrame, truth: Path
) -> tuple[Path, pd.Series]:
    """Return the table of the lesions that have a diagnosis, and the pictures of the others."""
    named = {path: read_rows(path, "lesion_id", "isic_id", "image_type") for path in candidates}
    wanted = pd.Index(lesions["lesion_id"])
    labelled = [path for path, rows in named.items() if rows["lesion_id"].isin(wanted).any()]
    if not labelled:
        first = named[candidates[0]]["lesion_id"].iloc[0]
        raise LesionfastError(
            f"no lesion of {truth.name} is in {list_first(path.name for path in candidates)}: the "
            f"first are '{wanted[0]}' and '{first}'. Put the metadata of the same lesions beside "
            "the truth, such as MILK10k_Training_Metadata.csv."
        )
    others = [rows["isic_id"] for path, rows in named.items() if path not in labelled]
    return choose_table(folder, labelled, "isic_id"), pd.concat([pd.Series(dtype="str"), *others])


def add_supplement(folder: Folder, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the columns of the supplement, such as the full diagnosis, if it is there.

    Pictures that it leaves out have no values; they are counted.
    """
    candidates = folder.tables("isic_id", "diagnosis_full", without=["image_type"])
    if not candidates:
        return rows
    table = choose_table(folder, candidates, "isic_id")
    beside = read_rows(table, "isic_id", known=SUPPLEMENT).drop_duplicates("isic_id")
    beside = beside.set_index("isic_id").drop(columns=[*rows], errors="ignore")
    if lost := int((~rows["isic_id"].isin(beside.index)).sum()):
        logger.warning("%s has no row for %s", table.name, pluralize(lost, "image"))
    found = beside.reindex(rows["isic_id"]).fillna("")
    return rows.join(found.set_axis(rows.index))


def choose_pictures(rows: pd.DataFrame, config: DataConfig, table: Path) -> pd.DataFrame:
    """Return the rows of the pictures that --images-of names; raises `LesionfastError` if none."""
    if config.images_of == "all":
        return rows
    kept = rows[rows["image_type"].str.contains(KINDS[config.images_of], case=False)]
    if kept.empty:
        types = list_first(f"'{name}'" for name in rows["image_type"].unique())
        raise LesionfastError(
            f"{table.name} has no {config.images_of} image; its column image_type has: {types}. "
            "Type --images-of all, or another kind."
        )
    return kept


def describe_choice(
    rows: pd.DataFrame, kept: pd.DataFrame, config: DataConfig, unlabelled: int
) -> tuple[str, ...]:
    """Return what was left out, in sentences."""
    notes = [*note_pictures(config.images_of, len(rows) - len(kept))]
    if bare := rows["lesion_id"].nunique() - kept["lesion_id"].nunique():
        notes.append(f"Left out {pluralize(bare, 'lesion')} without such an image.")
    if unlabelled:
        notes.append(
            f"Left out {pluralize(unlabelled, 'image')} of lesions without truth (a test set)."
        )
    return tuple(notes)
