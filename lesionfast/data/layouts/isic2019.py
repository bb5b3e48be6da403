"""ISIC 2019 (HAM10000, BCN20000 and MSK; challenge.isic-archive.com) as downloaded or on Kaggle."""

from pathlib import Path

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import Dataset, Folder, keep_labelled, layouts, list_candidates
from lesionfast.data.layouts.isic import (
    find_leaks,
    join_each,
    match_downsampled,
    read_truth,
    stack_parts,
)
from lesionfast.errors import LesionfastError

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
METADATA = ("lesion_id", "age_approx", "sex", "anatom_site_general")


@layouts.register("isic2019")
def isic2019(folder: Folder, config: DataConfig) -> Dataset | None:
    """ISIC 2019: one-hot truth of eight classes, with a table of lesions, age, sex and site."""
    truths = folder.tables("image", *CLASSES[:8])
    if not truths:
        return None
    parts = read_truth(folder, truths, CLASSES, config)
    table = parts[0].attrs["table"]
    tables = find_metadata(folder)
    if tables:
        parts = join_each(parts, folder, tables, "image")
    rows, split = stack_parts(parts)
    if "lesion_id" not in rows and config.group is None:
        raise missing_lesions(folder, table)
    found = Dataset(
        name="ISIC 2019",
        table=table,
        rows=rows,
        image="image",
        target="target",
        groups=("lesion_id",) if "lesion_id" in rows else (),
        files=match_downsampled(folder.images, rows["image"]),
        leaks=(*rows.columns.intersection(CLASSES), *find_leaks(rows, "target")),
        split=split,
    )
    return keep_labelled(found, config)


def find_metadata(folder: Folder) -> list[Path]:
    """Return the tables with age, sex, site or lesion of an image, but not its class."""
    found = {
        path: None for name in METADATA for path in folder.tables("image", name, without=["MEL"])
    }
    return list(found)


def missing_lesions(folder: Folder, table: Path) -> LesionfastError:
    """Return the error for truth without the table that says which images show one lesion."""
    return LesionfastError(
        f"no table beside {table.name} has the lesions of ISIC 2019 (columns image, lesion_id, "
        f"age_approx, …); there are {list_candidates(folder)}. Put ISIC_2019_Training_Metadata.csv "
        "there, or type --group none: then every image counts as a lesion of its own."
    )
