"""DDI, Diverse Dermatology Images (Daneshjou et al. 2022, doi:10.1126/sciadv.abq6147)."""

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import (
    Dataset,
    Folder,
    keep_labelled,
    layouts,
    name_classes,
    read_rows,
)
from lesionfast.data.layouts.tables import choose_table
from lesionfast.data.sources import name_without_suffix


@layouts.register("ddi")
def ddi(folder: Folder, config: DataConfig) -> Dataset | None:
    """DDI: ddi_metadata.csv (DDI_file, skin_tone, malignant, disease) beside clinical images."""
    tables = folder.tables("DDI_file")
    if not tables:
        return None
    table = choose_table(folder, folder.tables("DDI_file", "malignant") or tables, "DDI_file")
    required = [] if config.target else ["malignant"]
    rows = read_rows(
        table, "DDI_file", *required, known=("DDI_ID", "malignant", "skin_tone", "disease")
    )
    rows = rows.assign(DDI_file=[name_without_suffix(name) for name in rows["DDI_file"]])
    if "malignant" in rows:
        rows = rows.assign(malignant=name_classes(rows, "malignant", table))
    found = Dataset(
        name="DDI",
        table=table,
        rows=rows,
        image="DDI_file",
        target="malignant",
        files=folder.images,
        leaks=("disease",),
    )
    return keep_labelled(found, config)
