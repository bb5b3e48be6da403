"""HAM10000 (Tschandl, Rosendahl, Kittler 2018, doi:10.7910/DVN/DBW86T) as people have it."""

import logging
from dataclasses import replace

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import Dataset, Folder, layouts, read_rows
from lesionfast.data.layouts.isic import distinct_tables, leave_out_tests
from lesionfast.data.layouts.tables import count_named
from lesionfast.errors import pluralize

logger = logging.getLogger("lesionfast")

COLUMNS = ("lesion_id", "image_id", "dx", "dx_type")
USUAL = ("age", "sex", "localization", "dataset")


@layouts.register("ham10000")
def ham10000(folder: Folder, config: DataConfig) -> Dataset | None:
    """HAM10000 of Harvard's Dataverse or Kaggle: its table beside folders or zip files."""
    candidates = folder.tables(*COLUMNS, without=["image"])
    if not candidates:
        return None
    distinct = distinct_tables(folder, candidates, "image_id")
    table = distinct[0]
    if len(distinct) > 1:
        stems = set(folder.images["stem"].str.lower())
        table = max(
            distinct,
            key=lambda path: (count_named(path, "image_id", stems), path.stat().st_size),
        )
    found = Dataset(
        name="HAM10000",
        table=table,
        rows=read_rows(table, *COLUMNS, known=USUAL),
        image="image_id",
        target="dx",
        groups=("lesion_id",),
        files=folder.images,
        leaks=("dx_type",),
    )
    others = [path for path in distinct if path != table]
    why = "another dataset's table"
    return leave_out_tests(leave_out_masks(found), folder, others, "image_id", why)


def leave_out_masks(found: Dataset) -> Dataset:
    """Return a dataset without the masks of its lesions, which are counted in the log."""
    is_mask = found.files["stem"].str.lower().str.endswith("_segmentation")
    if count := int(is_mask.sum()):
        logger.info("Ignored %s of lesions", pluralize(count, "segmentation mask"))
    return replace(found, files=found.files[~is_mask])
