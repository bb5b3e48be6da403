"""Read, check and split a metadata CSV of a million rows: seconds and peak memory.

    python tests/bench/million_rows.py --rows 1000000

The rows are drawn at random in HAM10000's layout, 1.34 images a lesion; the images are empty
members of one zip file, for only their names are looked at.
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
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), rows)
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


def make(folder: Path, rows: int) -> None:
    """Write the CSV and a zip file with an empty member for each image."""
    rng = np.random.default_rng(0)
    lesion = rng.integers(int(rows / 1.34), size=rows)
    diagnosis = rng.choice(list(SHARES), p=list(SHARES.values()), size=rows)
    names = [f"ISIC_{i:07d}" for i in range(rows)]
    columns = {
        "lesion_id": [f"HAM_{i:07d}" for i in lesion],
        "image_id": names,
        "dx": diagnosis[lesion % rows],
        "dx_type": "histo",
        "age": rng.integers(0, 18, rows) * 5.0,
        "sex": rng.choice(["male", "female"], rows),
        "localization": "back",
    }
    pd.DataFrame(columns).to_csv(folder / "HAM10000_metadata.csv", index=False)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name in names:
            archive.writestr(f"{name}.jpg", b"")


if __name__ == "__main__":
    main()
