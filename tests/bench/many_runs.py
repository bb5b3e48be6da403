"""`lesionfast runs` on a folder of many runs: the seconds of the whole command, beside `--help`.

    python tests/bench/many_runs.py --runs 500

One tiny model is trained on the built-in sample; the other runs are copies of it with other
metrics and options, whose large files are links. The commands take turns, each in a process of its
own. Reported are the medians of the seconds on the clock and of the processor (other work on the
machine adds less to these), and of how often the processor time of `--help` in the same round that
is. The files were read just before, so the disk is not measured.
"""

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from lesionfast.run import Run

ROUNDS = 7
ALONE = "runs --help"
FILTERED = [
    "--where",
    "balanced_accuracy>0.7",
    "--where",
    "arch=densenet121",
    "--sort",
    "macro_auc",
]
COMMANDS = {
    ALONE: ["--help"],
    "runs": [],
    "runs --json": ["--json"],
    "runs --where … --sort …": FILTERED,
}


def main() -> None:
    """Make the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=500, help="runs in the folder")
    parser.add_argument("--folder", help="keep the runs here, or list those that are here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(given.folder or made)
        if not any(folder.glob("*/config.json")):
            make_runs(folder, given.runs)
        n = len(list(folder.glob("*/config.json")))
        rounds = [measure(folder) for _ in range(ROUNDS + 1)][1:]  # the first only warms up
    print(f"{n} runs, {ROUNDS} rounds, median (least to most)")
    for name in COMMANDS:
        clock, used = zip(*(times[name] for times in rounds), strict=True)
        factor = statistics.median(times[name][1] / times[ALONE][1] for times in rounds)
        print(f"{name:24} {spread(clock)} s; of processor {spread(used)} s, {factor:.1f} x --help")


def spread(values: tuple[float, ...]) -> str:
    """Return the median, the least and the most of some values."""
    return f"{statistics.median(values):5.2f} ({min(values):.2f} to {max(values):.2f})"


def make_runs(folder: Path, n: int) -> None:
    """Train one run and make n of it, with metrics and options that are drawn."""
    import lesionfast as lf

    tiny = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "unfreeze": "none"}
    first = lf.train(lf.load_data(), **tiny, out=folder, name="run-000")
    draw = random.Random(0)
    for number in range(1, n):
        copy_run(first, folder / f"run-{number:03}", draw)


def copy_run(first: Run, path: Path, draw: random.Random) -> None:
    """Make a run with the files of the first one, but other metrics and options."""
    path.mkdir(parents=True)
    for file in first.path.iterdir():
        if file.is_file():
            os.link(file, path / file.name)  # what is written anew gets a file of its own
    run = Run(path)
    metrics = first.metrics
    for part in ("valid", "test"):
        rules = {
            name: rule | {"balanced_accuracy": draw.uniform(0.4, 0.9)}
            for name, rule in metrics[part]["rules"].items()
        }
        metrics |= {part: metrics[part] | {"rules": rules, "macro_auc": draw.uniform(0.7, 1)}}
    run.write_json("metrics.json", metrics)
    arch = draw.choice(["densenet121", "resnet50", "tf_efficientnet_lite0"])
    config = replace(
        first.config, arch=arch, size=draw.choice([64, 112, 224]), seed=draw.getrandbits(16)
    )
    run.write_text("config.json", config.to_json())


def measure(folder: Path) -> dict[str, tuple[float, float]]:
    """Return the seconds of each command on the clock and of the processor, by its name."""
    seconds = {}
    for name, words in COMMANDS.items():
        where = [] if name == ALONE else ["--out", str(folder)]
        command = [sys.executable, "-m", "lesionfast", "runs", *words, *where]
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        seconds[name] = clock, used
    return seconds


if __name__ == "__main__":
    main()
