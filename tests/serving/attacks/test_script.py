"""Names that are scripts, escapes or formulas, in one run throughout, and all that shows them."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a pty and any file name")

ESCAPES = "\x1b]0;owned\x07\x1b]8;;http:~~evil\x07\x1b[3A\x1b[2J\x1b[8m\x9b31m\u202e\u200b"
MARKUP = "[bold red]a[/][link=http:~~evil]b[/link]`c`{{7*7}}{%raw%}{0.__class__}\"'"
BAD = f"<img src=x onerror=owned=1>{MARKUP}{ESCAPES}"
SCRIPT = f"</style></title></script><script>owned=1</script>{BAD}"
LESION, SITE = "lesion<script>owned=1</script>\x1b[2J", "site=<svg onload=owned=1>[bold]\x1b[2J"
CLASSES = (f"nv{BAD}", f"mel{SCRIPT}", "=cmd|'/C calc'!A0")
NAME = "run<img src=x onerror=owned=1>[bold]{{7*7}}"  # --name refuses controls

# What rich writes to a terminal: colours, and a bar that is drawn and removed.
OURS = re.compile(r"\x1b\[[\d;]*m|\x1b\[\?25[lh]|\r?(\x1b\[1A)?\x1b\[2K|\r\n")
UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e]")
DRIVER = """
import json, sys
from lesionfast.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lesionfast", *arguments]
    print(">>>", arguments[0], flush=True)
    try:
        main()
    except SystemExit as end:
        if end.code:
            print("<<<", end.code, flush=True)
"""


def make_dataset(folder: Path) -> list[str]:
    """Write pictures and a table, all of whose names mean harm; return the options that read it."""
    (folder / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(48):
        kind = number % 3
        name = f"=p{number}{BAD}.png".replace("/", "~")
        noise = rng.integers(0, 40, (32, 32, 3), np.uint8)
        Image.fromarray(noise + np.uint8(60 * kind)).save(folder / "images" / name)
        site = ("+neck", "=arm")[number // 2 % 2] + BAD
        row = {"file": name, LESION: f"=L{number}{SCRIPT}", "diagnosis": CLASSES[kind], SITE: site}
        rows.append(row | {"age": 30 + number, "sex": ("male", "female")[number % 2]})
    with (folder / "cases.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    where = ["--csv", folder / "cases.csv", "--images", folder / "images", "--image", "file"]
    return [*map(str, where), "--target", "diagnosis", "--group", LESION]


def on_a_terminal(folder: Path, *commands: list[str]) -> dict[str, str]:
    """Run commands in one process on a terminal; return what each shows, by its name."""
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(commands)],
        **dict.fromkeys(("stdin", "stdout", "stderr"), follower),
        cwd=folder,
        env=os.environ | {"COLUMNS": "400", "TERM": "xterm-256color"},
    )
    os.close(follower)
    shown = b""
    try:
        while data := os.read(leader, 65536):
            shown += data
    except OSError:  # nobody is left who writes
        pass
    os.close(leader)
    assert process.wait(60) == 0, shown.decode()
    parts = shown.decode("utf-8", "replace").split(">>> ")[1:]
    return {part.split("\r\n", 1)[0]: part for part in parts}


TINY = ["--arch", "test_resnet", "--weights", "none", "--size", "32", "--epochs", "1"]
TINY += ["--head-epochs", "0", "--batch-size", "8", "--precision", "float32", "--tta", "1"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder with data and a run of hostile names, and what the terminal showed meanwhile."""
    folder = tmp_path_factory.mktemp("script")
    data = make_dataset(folder / "data")
    train = ["train", *data, *TINY, "--metadata", f"age,sex,{SITE}", "--name", NAME]
    shown = on_a_terminal(folder, ["data", "check", *data], train, ["runs"])
    return folder, shown


def test_a_terminal_shows_names_and_does_not_obey_them(work):
    _, shown = work
    for command, text in shown.items():
        assert "<<< " not in text and "Traceback" not in text, text
        assert not UNSEEN.findall(OURS.sub("", text)), command
        for escape in ("\x1b[8m", "\x1b[3A", "\x1b[2J\x1b", "\x1b]"):
            assert escape not in text, command
    assert r"\x1b]0;owned\x07" in shown["train"] and r"\u202e" in shown["data"]
    assert "[bold red]a[/][link=http:~~evil]b[/link]" in shown["train"]


def test_the_log_of_a_run_can_be_shown_on_a_terminal(work):
    text = (work[0] / "runs" / NAME / "log.txt").read_text("utf-8")
    assert r"\x1b]0;owned" in text and not UNSEEN.findall(text)
