"""The built-in sample: SYNTHETIC lesions drawn from a seed, in the layout of HAM10000.

Nobody's skin and nobody's age: learnable in a minute but not trivial, so that a bug in training
shows. Some lesions look like another class, some melanomas like nevi.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.cache import cache_folder, check_room, only_builder, read_note, write_note
from lesionfast.data.files import stamps
from lesionfast.data.painting import draw_lesion, mix_skin, photograph
from lesionfast.errors import LesionfastError
from lesionfast.files import disk_errors, sha256, workspace

logger = logging.getLogger("lesionfast")

VERSION = 2  # part of the folder's name: raise it when the pictures or the table change
TABLE, CHECKSUMS = "sample_metadata.csv", "checksums.json"
SIZE = 2_000_000  # bytes that it takes on a disk


@dataclass(frozen=True)
class Kind:
    """How many images a class has, and who has it where (a site named twice is twice as likely)."""

    images: int
    age: float
    age_spread: float
    male: float
    sites: str
    confirmed_by: str


ANYWHERE = "back, trunk, abdomen, chest, face, neck, scalp, upper extremity, lower extremity"
KINDS = {
    "nv": Kind(150, 43, 15, 0.49, "trunk, trunk, back, abdomen, lower extremity", "follow_up"),
    "mel": Kind(80, 61, 14, 0.62, "back, back, upper extremity, lower extremity, face", "histo"),
    "bkl": Kind(60, 65, 12, 0.56, "back, face, face, trunk, upper extremity", "consensus"),
    "bcc": Kind(45, 67, 11, 0.62, "face, face, back, chest, neck", "histo"),
    "akiec": Kind(35, 68, 10, 0.69, "face, face, scalp, upper extremity, back", "histo"),
    "vasc": Kind(25, 50, 18, 0.48, "trunk, abdomen, chest, lower extremity", "consensus"),
    "df": Kind(25, 51, 13, 0.45, "lower extremity, lower extremity, upper extremity", "histo"),
}


def make_sample(folder: Path | None = None, seed: int = 0) -> Path:
    """Return the folder of the synthetic sample, drawn first if it is not there yet.

    It holds sample_metadata.csv and images/*.jpg; the same seed gives the same bytes. Without
    `folder` it lies in the user's cache, where it is drawn again if it is damaged. Raises
    `LesionfastError` if `folder` holds other files, or the disk is full.
    """
    if folder is None:
        return kept_sample(cache_folder() / f"synthetic-sample-v{VERSION}-seed{seed}", seed)
    folder = Path(folder)
    if (folder / TABLE).is_file():
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise LesionfastError(
            f"{folder} is not empty and holds no {TABLE}. Name an empty folder for the sample."
        )
    with disk_errors(folder, SIZE):
        draw_sample(folder, seed)
    return folder


def kept_sample(folder: Path, seed: int) -> Path:
    """Return a folder of the cache with the whole sample in it; one process at a time draws."""
    with disk_errors(folder, SIZE, "Set LESIONFAST_CACHE to another folder."):
        if not is_whole(folder):
            with only_builder(folder.with_suffix(".lock")):
                if not is_whole(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    draw_sample(folder, seed)
    return folder


def is_whole(folder: Path) -> bool:
    """Return whether a folder of the cache holds the sample as it was drawn."""
    files = [folder / CHECKSUMS, *folder.rglob("*.*")]
    return has_its_checksums(folder, tuple(stamps([str(file) for file in files])))


@cache
def has_its_checksums(folder: Path, state: tuple[str, ...]) -> bool:
    """Return whether all files of a sample have the checksums in its note; if not, it is logged."""
    kept = read_note(folder / CHECKSUMS)
    if kept is None:
        return False
    damaged = [name for name in kept if not has_checksum(folder / name, kept[name])]
    if damaged:
        logger.warning("%s is damaged. The sample will be drawn again", folder / damaged[0])
    return not damaged


def has_checksum(file: Path, expected: str) -> bool:
    """Return whether a file is there with this SHA-256."""
    return file.is_file() and sha256(file) == expected


def draw_sample(folder: Path, seed: int) -> None:
    """Draw the sample aside, and rename it when it is whole."""
    with workspace(folder.parent) as aside:
        check_room(aside, SIZE)
        made = aside / "sample"
        made.mkdir()
        write_sample(made, seed)
        files = [made / TABLE, *sorted((made / "images").iterdir())]
        checksums = {file.relative_to(made).as_posix(): sha256(file) for file in files}
        write_note(made / CHECKSUMS, checksums)
        try:
            os.replace(made, folder)
        except OSError:
            if not (folder / TABLE).is_file():  # else another process was faster
                raise


def write_sample(folder: Path, seed: int) -> None:
    """Draw all images, and write the table in the order of the image ids."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir()
    lesions = [(name, size) for name in KINDS for size in lesion_sizes(KINDS[name].images, rng)]
    lesions = [lesions[i] for i in rng.permutation(len(lesions))]  # ids shall tell nothing
    numbers = iter(rng.permutation(sum(size for _, size in lesions)) + 1)
    rows = []
    for number, (name, size) in enumerate(lesions):
        patient, skin = invent_patient(name, KINDS[name], rng), mix_skin(rng)
        lesion_id, picture = f"SYNTH_LESION_{number:04d}", draw_lesion(name, rng)
        for _ in range(size):
            image_id = f"SYNTH_{next(numbers):05d}"
            view = photograph(picture, skin, rng)
            view.save(folder / "images" / f"{image_id}.jpg", quality=85, comment="synthetic")
            rows.append({"lesion_id": lesion_id, "image_id": image_id, **patient})
    table = pd.DataFrame(rows).sort_values("image_id")
    table.to_csv(folder / TABLE, index=False, lineterminator="\n")


def lesion_sizes(images: int, rng: np.random.Generator) -> list[int]:
    """Return numbers of images a lesion, 1 to 3, that add up to `images`."""
    sizes: list[int] = []
    while sum(sizes) < images:
        sizes.append(min(int(rng.choice(3, p=[0.55, 0.3, 0.15])) + 1, images - sum(sizes)))
    return sizes


def invent_patient(name: str, kind: Kind, rng: np.random.Generator) -> dict[str, str]:
    """Return dx, dx_type, age, sex and localization as HAM10000 writes them."""
    age = np.clip(5 * round(rng.normal(kind.age, kind.age_spread) / 5), 5, 85)
    sex = ("female", "male")[int(rng.random() < kind.male)]
    sites = kind.sites if rng.random() < 0.5 else ANYWHERE
    return {
        "dx": name,
        "dx_type": kind.confirmed_by if rng.random() < 0.5 else "histo",
        "age": "" if rng.random() < 0.02 else f"{age:.1f}",
        "sex": "unknown" if rng.random() < 0.02 else sex,
        "localization": str(rng.choice(sites.split(", "))),
    }
