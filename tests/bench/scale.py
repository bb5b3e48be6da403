"""How prediction scales over processes, and what 400,000 and 10 million images would take.

    python tests/bench/scale.py MODEL --data HAM10000 --images 4000

MODEL is a run or an exported folder. Its prediction of the first files of the dataset is timed in
one process on one core, and in two with `--shard`, each on a core, joined; then a training that
reads the array of decoded images, and one that has no room for it and decodes what it reads; then
reading, checking and splitting tables of 400,000 and a million rows. From these, and from what one
GPU does (tests/bench/README.md), the plan is computed. `--only` names parts of it.
"""

import argparse
import io
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from lesionfast.training.learner import LesionLearner

PARTS = ("shards", "tables", "sources", "plan")
GPU_STEPS, GPU_FORWARD, GPU_FILES = (
    1378,
    5790,
    1121,
)  # images/s of an H100 at 112 pixels
EPOCHS, VIEWS, TRAIN = 8, 4, 0.7  # of the default recipe
SIZES, COUNTS = (112, 128, 224), (400_000, 10_000_000)
FEATURES = 1280  # of lite0
CORES = 16  # beside the GPU
ROUNDS = 3


def main() -> None:
    """Measure the parts that are asked for, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a run or an exported folder")
    parser.add_argument("--data", required=True, help="a dataset, such as HAM10000 as downloaded")
    parser.add_argument("--images", type=int, default=4000, help="files to predict")
    parser.add_argument("--steps", type=int, default=960, help="images to train on")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    measured: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LESIONFAST_CACHE"] = f"{folder}/cache"
        if "shards" in given.only:
            measure_shards(given, Path(folder))
        if {"tables", "plan"} & {*given.only}:  # first: a child's peak counts its parent's memory
            measured |= measure_tables()
        if {"sources", "plan"} & {*given.only}:
            measured |= measure_sources(given, Path(folder))
    if "plan" in given.only:
        print_plan(measured)


def measure_shards(given: argparse.Namespace, folder: Path) -> None:
    """Print the seconds of predicting files in one process and in two, and their ratio."""
    files = copy_files(given.data, given.images, folder / "files")
    one = copy_files(given.data, 1, folder / "one")
    print_row("predict --shard, a core a process", "1", "2", "ratio", "less start")
    for options in ([], ["--features"]):
        command = [sys.executable, "-m", "lesionfast", "predict", given.model]
        start = run_together([[*command, str(one), "--out", f"{folder}/one.csv", *options]])
        alone = run_together([[*command, str(files), "--out", f"{folder}/all.csv", *options]])
        parts = [f"{folder}/part{number}.csv" for number in (1, 2)]
        shards = [
            [*command, str(files), "--shard", f"{number}/2", "--out", part, *options]
            for number, part in enumerate(parts, 1)
        ]
        both = run_together(shards)
        join = [*command[:-1], "--join", *parts, "--out", f"{folder}/joined.csv"]
        joined = run_together([join])
        same = Path(f"{folder}/all.csv").read_bytes() == Path(f"{folder}/joined.csv").read_bytes()
        name = f"{given.images:,} files{' with features' if options else ''}, s"
        ratio, net = alone / both, (alone - start) / (both - start)
        print_row(name, f"{alone:.1f}", f"{both:.1f}", f"{ratio:.2f}", f"{net:.2f}")
        print_row("  images/s", f"{given.images / alone:.1f}", f"{given.images / both:.1f}")
        print(f"  starting {start:.1f} s, joining {joined:.1f} s, the same rows: {same}")
        for path in (*folder.glob("*.csv*"), *folder.glob(".*")):
            path.unlink(missing_ok=True)


def copy_files(data: str, count: int, to: Path) -> Path:
    """Write the first images of a dataset as files of a new folder."""
    from lesionfast.data.sources import FileReader, list_images

    to.mkdir()
    with FileReader() as reader:
        for path in list_images(data)["path"].head(count):
            (to / Path(path).name).write_bytes(reader.read(path))
    return to


def run_together(commands: list[list[str]]) -> float:
    """Return the seconds that commands take which run at once, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    started, running = time.perf_counter(), []
    for number, command in enumerate(commands):
        pin = partial(os.sched_setaffinity, 0, {cores[number % len(cores)]})
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        one = os.environ | {"OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(command, env=one, preexec_fn=pin, **silent))
    for process in running:
        errors = process.communicate()[1]
        if process.returncode:
            raise SystemExit(errors.decode())
    return time.perf_counter() - started


def measure_sources(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Print images/s of reading batches and of training, with the array and without room for it."""
    from lesionfast.config import TrainConfig
    from lesionfast.data.loaders import LesionDataLoaders
    from lesionfast.data.split import load_dataset
    from lesionfast.training.learner import lesion_learner

    config = TrainConfig(data=given.data, workers=0)
    df = load_dataset(config)
    parts = {"train": given.steps, "valid": 64, "test": 64}
    df = pd.concat([df[df["split"] == part].head(n) for part, n in parts.items()])
    df = df.reset_index(drop=True)
    sources, data = write_shards(df, folder)
    found = {"bytes": float(np.mean(list(map(len, data))))}
    cores = len(os.sched_getaffinity(0))
    print_row(f"\nimages/s on {cores} cores", "batches", "training", "ratio")
    learners = {}
    for name, paths in sources.items():
        with limited(folder, name):
            dls = LesionDataLoaders.from_df(df.assign(path=paths), config)
        found[name] = time_reading(dls.pixels)
        learners[name] = lesion_learner(dls, config.arch)
        learners[name].unfreeze()
        time_epoch(learners[name])  # the first one is slow
    rounds = [{name: time_epoch(learn) for name, learn in learners.items()} for _ in range(ROUNDS)]
    for name in sources:
        step = statistics.median(given.steps / one[name] for one in rounds)
        ratio = statistics.median(one["array"] / one[name] for one in rounds)
        print_row(name, f"{found[name]:.0f}", f"{step:.1f}", f"{ratio:.2f}")
    return found


def write_shards(df: pd.DataFrame, folder: Path) -> tuple[dict[str, list[str]], list[bytes]]:
    """Return the paths of the images as they lie, in a tar file and in Parquet, and their bytes."""
    import pyarrow
    from pyarrow import parquet

    from lesionfast.data.sources import FileReader, list_members

    with FileReader() as reader:
        data = [reader.read(path) for path in df["path"]]
    shard, rows = folder / "shard.tar", folder / "rows.parquet"
    with tarfile.open(shard, "w") as archive:
        for number, held in enumerate(data):
            info = tarfile.TarInfo(f"{number:07d}.jpg")
            info.size = len(held)
            archive.addfile(info, io.BytesIO(held))
    table = pyarrow.table({"image": [{"bytes": held, "path": None} for held in data]})
    parquet.write_table(table, rows, row_group_size=100)
    lying = df["path"].tolist()
    found = {"array": lying, "decoded when read: as downloaded": lying}
    found["decoded when read: tar"] = list_members(shard)
    return found | {"decoded when read: Parquet": list_members(rows)}, data


@contextmanager
def limited(folder: Path, name: str) -> Iterator[None]:
    """Give each source a cache of its own, with room for nothing but that of the array."""
    changed = {"LESIONFAST_CACHE": f"{folder}/{name}"}
    changed |= {} if name == "array" else {"LESIONFAST_CACHE_SIZE": "1K"}
    before = dict(os.environ)
    os.environ |= changed
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def time_epoch(learn: "LesionLearner") -> float:
    """Return the seconds of an epoch of all layers."""
    with learn.no_bar(), learn.no_logging():
        started = time.perf_counter()
        learn.fit(1, 1e-5)
        return time.perf_counter() - started


def time_reading(pixels: np.ndarray, batch: int = 32, seconds: float = 3) -> float:
    """Return the images/s of reading batches of random images."""
    rng, done, started = np.random.default_rng(0), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        pixels[rng.integers(len(pixels), size=batch)].sum(dtype=np.int64)
        done += batch
    return done / (time.perf_counter() - started)


def measure_tables() -> dict[str, float]:
    """Print the seconds and the memory of reading, checking and splitting large tables."""
    print_row("\na table read, checked and split", "s", "GiB")
    found = {}
    for rows in (400_000, 1_000_000):
        script = Path(__file__).with_name("million_rows.py")
        command = [sys.executable, str(script), "--rows", str(rows), "--layout", "isic2024"]
        done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds = float(re.search(r"\(([\d.]+) s of processor\)", done)[1])
        memory = float(re.search(r"peak memory ([\d.]+) GiB", done)[1])
        print_row(f"{rows:,} rows, s of one processor", f"{seconds:.1f}", f"{memory:.2f}")
        found |= {f"{rows} s": seconds, f"{rows} GiB": memory}
    return found


def extrapolate(measured: dict[str, float], rows: int, unit: str) -> float:
    """Return what a table of so many rows takes, on the line through both that were measured."""
    few, many = measured[f"400000 {unit}"], measured[f"1000000 {unit}"]
    return few + (many - few) * (rows - 400_000) / 600_000


def print_plan(measured: dict[str, float]) -> None:
    """Print what so many images would take: disk, memory and hours."""
    core = measured["decoded when read: as downloaded"] / len(os.sched_getaffinity(0))

    def add(name: str, *values: float) -> None:
        texts = (f"{value:,.2f}" if value < 10 else f"{value:,.0f}" for value in values)
        print_row(name, *texts)

    print_row("\non paper, images", *(f"{n:,}" for n in COUNTS))
    add("files like these, GB", *(n * measured["bytes"] / 1e9 for n in COUNTS))
    add("files of 100 kB, GB", *(n * 1e5 / 1e9 for n in COUNTS))
    for size in SIZES:
        add(f"array of {size} pixels, GB", *(n * size**2 * 3 / 1e9 for n in COUNTS))
    add("features of a view, GB", *(n * TRAIN * 4 * (FEATURES + 4) / 1e9 for n in COUNTS))
    add("table and split, minutes", *(extrapolate(measured, n, "s") / 60 for n in COUNTS))
    add("table and split, GiB of memory", *(extrapolate(measured, n, "GiB") for n in COUNTS))
    add(f"decoding once, hours of {CORES} cores", *(n / core / CORES / 3600 for n in COUNTS))
    add("training, hours of one GPU", *(n * TRAIN * EPOCHS / GPU_STEPS / 3600 for n in COUNTS))
    whole = [n * TRAIN * EPOCHS / min(GPU_STEPS, core * CORES) / 3600 for n in COUNTS]
    add(f"… decoding what is read, {CORES} cores", *whole)
    views = [n * (1 - TRAIN) * VIEWS / GPU_FORWARD / 3600 for n in COUNTS]
    add(f"validation and test, {VIEWS} views, hours", *views)
    add("predict on files, hours of one GPU", *(n / GPU_FILES / 3600 for n in COUNTS))


def print_row(name: str, *values: str) -> None:
    """Print a row of a table."""
    print(f"{name:40} " + " ".join(f"{value:>12}" for value in values), flush=True)


if __name__ == "__main__":
    main()
