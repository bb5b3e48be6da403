"""HAM10000 (Tschandl, Rosendahl, Kittler 2018, doi:10.7910/DVN/DBW86T) as people have it."""

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import Dataset, Folder, layouts, read_rows
from lesionfast.data.layouts.tables import choose_table

COLUMNS = ("lesion_id", "image_id", "dx", "dx_type")


@layouts.register("ham10000")
def ham10000(folder: Folder, config: DataConfig) -> Dataset | None:
    """HAM10000 of Harvard's Dataverse or Kaggle: its table beside folders or zip files."""
    candidates = folder.tables(*COLUMNS, without=["image"])
    if not candidates:
        return None
    table = choose_table(folder, candidates, "image_id")
    rows = read_rows(table, *COLUMNS)
    return Dataset(
        name="HAM10000",
        table=table,
        rows=rows,
        image="image_id",
        target="dx",
        groups=("lesion_id",),
        files=folder.images,
        leaks=("dx_type",),
    )
