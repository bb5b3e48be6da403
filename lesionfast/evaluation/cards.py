"""What a reader must know of a run's data and of what the model is for, in words and tables."""

import pandas as pd

from lesionfast.data.splits import PARTS
from lesionfast.diagnoses import full_name
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.page import Table, table_of
from lesionfast.runs import Run

HAM10000 = ("ISIC_0024306", "ISIC_0034320")  # its first and last image
SOURCE = (
    "The image ids are those of HAM10000 (Tschandl, Rosendahl, Kittler 2018, Scientific Data 5, "
    "180161, doi:10.7910/DVN/DBW86T), which is licensed CC BY-NC 4.0: not for commercial use. Its "
    "patients are from Austria and Australia, most of them with light skin."
)
SAMPLE = "The built-in synthetic sample: drawn pictures, no patients. Its figures mean nothing."


def data_card(findings: Findings) -> tuple[list[str], list[Table]]:
    """Return what the images of a run are: in words, and counted by class and part."""
    run, split = findings.run, findings.run.split
    words = [f"The split has the SHA-256 {run.metrics['split_sha256']}."]
    if run.config.data is None and run.config.csv is None:
        words.insert(0, SAMPLE)
    elif split["image_id"].between(*HAM10000).all():
        words.insert(0, SOURCE)
    if "group" in split:
        words.append("No lesion has images in two parts." if tight(split) else LEAKING)
    try:
        df = findings.dataset
    except DamageError:
        raise
    except LesionfastError as error:
        words.append(f"The data is not here, so classes are not counted: {error}")
        return words, [table_of(counted(split.assign(target="all")), "Images and lesions")]
    return words, [
        table_of(counted(df), "Images and lesions of each class and part"),
        table_of(known(df, run.config.metadata_columns), "Where metadata is not known"),
    ]


LEAKING = "Some lesions have images in two parts: the estimates are too good."


def tight(split: pd.DataFrame) -> bool:
    """Return whether every lesion is in one part alone."""
    return bool((split.groupby("group")["split"].nunique() == 1).all())


def counted(df: pd.DataFrame) -> pd.DataFrame:
    """Return one row a class: images (lesions) of each part."""
    names = sorted(df["target"].unique())
    rows = []
    for name in [*names, "all"] if len(names) > 1 else names:
        chosen = df if name == "all" else df[df["target"] == name]
        row: dict[str, object] = {"class": full_name(name)}
        for part in PARTS:
            of_part = chosen[chosen["split"] == part]
            row[f"{part} images"] = len(of_part)
            if "group" in df:
                row[f"{part} lesions"] = int(of_part["group"].nunique())
        rows.append(row)
    return pd.DataFrame(rows)


def known(df: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return one row a metadata column: rows that have no value, by part."""
    rows = [
        {"column": column}
        | {part: int(df.loc[df["split"] == part, column].isna().sum()) for part in PARTS}
        for column in columns
    ]
    return pd.DataFrame(rows, columns=["column", *PARTS])


def model_card(run: Run) -> list[str]:
    """Return intended use and limits of a run's model, one paragraph each."""
    classes = ", ".join(map(full_name, run.classes))
    inputs = ", ".join(run.model.get("metadata") or [])
    with_inputs = f", with {inputs}" if inputs else ""
    return [
        f"What it does: it gives a dermoscopic image{with_inputs} a probability of each of "
        f"{classes}.",
        "Intended use: research on skin-lesion classification, teaching, and comparing methods.",
        "It is not a medical device. It has no approval of any authority, was tested on stored "
        "images alone, and must not decide on a patient's diagnosis or treatment.",
        "Limits: it knows these classes only and gives one of them to any picture, also of "
        "something else. Skin tones, cameras and clinics that the training images lack may have "
        "other error rates; the subgroups above show what these images can tell. A site that "
        "photographs what is suspicious has other class shares than a screening, and so other "
        "predictive values.",
        f"Decision: the rule {run.model['rule']} ('argmax': the largest probability; 'balanced': "
        "the largest after division by the class shares of the training).",
    ]
