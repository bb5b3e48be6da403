"""Read, check and split a table of a million rows: seconds and peak memory.

    python tests/bench/million_rows.py --rows 1000000
    python tests/bench/million_rows.py --rows 1000000 --layout isic2024

The rows are drawn at random in the layout of HAM10000 (1.34 images a lesion) or of ISIC 2024 (50
images a patient, of both classes); the images are empty members of one zip file, for only their
names are looked at.
"""

import argparse
import resource
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_dataset

SHARES = {
    "nv": 0.67,
    "mel": 0.11,
    "bkl": 0.11,
    "bcc": 0.05,
    "akiec": 0.03,
    "vasc": 0.02,
    "df": 0.01,
}


def main() -> None:
    """Make the dataset, read and split it, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--layout", choices=MAKERS, default="ham10000")
    given = parser.parse_args()
    rows = given.rows
    with tempfile.TemporaryDirectory() as folder:
        MAKERS[given.layout](Path(folder), rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, processor = time.perf_counter(), time.process_time()
        df = load_dataset(TrainConfig(data=folder))
        seconds = time.perf_counter() - started
        processor = time.process_time() - processor
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = df["split"].value_counts().to_dict()
    print(
        f"{rows:,} rows read, checked and split in {seconds:.1f} s ({processor:.1f} s of processor)"
    )
    print(counts)
    print(
        f"peak memory {after / 2**20:.2f} GiB, of which {before / 2**20:.2f} GiB to make the data"
    )


def make_ham10000(folder: Path, rows: int) -> None:
    """Write a table of lesions, and a zip file with an empty member for each image."""
    rng = np.random.default_rng(0)
    lesion = rng.integers(int(rows / 1.34), size=rows)
    diagnosis = rng.choice(list(SHARES), p=list(SHARES.values()), size=rows)
    columns = {
        "lesion_id": [f"HAM_{i:07d}" for i in lesion],
        "image_id": name_images(rows),
        "dx": diagnosis[lesion % rows],
        "dx_type": "histo",
        "age": rng.integers(0, 18, rows) * 5.0,
        "sex": rng.choice(["male", "female"], rows),
        "localization": "back",
    }
    pd.DataFrame(columns).to_csv(folder / "HAM10000_metadata.csv", index=False)
    write_images(folder, rows)


def make_isic2024(folder: Path, rows: int) -> None:
    """Write a table of patients, one image in a thousand malignant, and the same zip file."""
    rng = np.random.default_rng(0)
    patient = rng.integers(rows // 50, size=rows)
    malignant = rng.random(rows) < 0.001
    columns = {
        "isic_id": name_images(rows),
        "target": malignant.astype(int),
        "patient_id": [f"IP_{i:07d}" for i in patient],
        "age_approx": (rng.integers(0, 18, rows // 50) * 5.0)[patient],
        "sex": rng.choice(["male", "female"], rows // 50)[patient],
        "anatom_site_general": rng.choice(["posterior torso", "lower extremity", ""], rows),
        "clin_size_long_diam_mm": rng.gamma(4, 1, rows).round(2),
        "image_type": "TBP tile: close-up",
        "tbp_lv_A": rng.normal(20, 4, rows).round(4),
        "tbp_lv_nevi_confidence": rng.random(rows).round(6),
        "lesion_id": np.where(malignant, [f"IL_{i:07d}" for i in range(rows)], ""),
        "iddx_full": np.where(malignant, "Malignant", "Benign"),
        "mel_thick_mm": "",
        "tbp_lv_dnn_lesion_confidence": 97.5,
    }
    pd.DataFrame(columns).to_csv(folder / "train-metadata.csv", index=False)
    write_images(folder, rows)


def name_images(rows: int) -> list[str]:
    """Return as many image ids as there are rows."""
    return [f"ISIC_{i:07d}" for i in range(rows)]


def write_images(folder: Path, rows: int) -> None:
    """Write a zip file with an empty member for each image."""
    with zipfile.ZipFile(folder / "train-image.zip", "w") as archive:
        for name in name_images(rows):
            archive.writestr(f"train-image/{name}.jpg", b"")


MAKERS = {"ham10000": make_ham10000, "isic2024": make_isic2024}

if __name__ == "__main__":
    main()
