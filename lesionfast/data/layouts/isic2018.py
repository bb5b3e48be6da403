"""ISIC 2018, task 3 (Codella et al. 2019, arXiv:1902.03368): HAM10000 with two more parts."""

from lesionfast.config import DataConfig
from lesionfast.data.layouts.base import Dataset, Folder, keep_labelled, layouts
from lesionfast.data.layouts.isic import find_leaks, join_each, read_truth, stack_parts

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@layouts.register("isic2018")
def isic2018(folder: Folder, config: DataConfig) -> Dataset | None:
    """ISIC 2018 (task 3): one-hot truth of seven classes, lesions in a table beside it."""
    truths = folder.tables("image", *CLASSES)
    if not truths:
        return None
    parts = read_truth(folder, truths, CLASSES, config)
    table = parts[0].attrs["table"]
    lesions = folder.tables("image", "lesion_id", without=CLASSES[:1])
    if lesions:
        parts = join_each(parts, folder, lesions, "image")
    rows, split = stack_parts(parts)
    found = Dataset(
        name="ISIC 2018",
        table=table,
        rows=rows,
        image="image",
        target="target",
        groups=tuple(name for name in ("lesion_id", "patient_id") if name in rows),
        files=folder.images,
        leaks=(*rows.columns.intersection(CLASSES), *find_leaks(rows, "target")),
        split=split,
    )
    if not found.groups:
        found = found.note(
            "Its lesions are in ISIC2018_Task3_Training_LesionGroupings.csv, which is not there: "
            "put it beside the truth."
        )
    return keep_labelled(found, config)
