"""Names that are scripts, escapes or formulas, in one run throughout, and all that shows them."""

import ast
import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from PIL import Image, ImageOps

import lesionfast as lf
from lesionfast.console import printable
from lesionfast.data.corrections.answers import read_answers
from lesionfast.data.loaders import draw_pictures
from lesionfast.data.split import format_split, load_dataset
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import compare
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.labelling.exports import write_fiftyone, write_label_studio
from lesionfast.files import csv_text, disarm, disarm_texts, rearm, write_sheet
from lesionfast.reporting.comparison import draw_comparison
from lesionfast.reporting.errors import draw_confusion
from lesionfast.reporting.figures.words import describe_figure
from lesionfast.reporting.overview import write_report
from lesionfast.reporting.page import new_figure, save
from lesionfast.serving.export import export
from lesionfast.serving.joining import Part, read_columns
from lesionfast.serving.labelling.page import build_label_app, item_html, shell_html
from lesionfast.serving.labelling.queue import Item, Queue, read_list
from lesionfast.serving.outputs import (
    TextWriter,
    csv_head,
    find_first_row,
    predict_inputs,
    read_rows,
    to_csv,
)
from lesionfast.serving.web.api import Service
from lesionfast.serving.web.app import answer_html, build_app, page_html
from lesionfast.serving.web.server import build_server
from lesionfast.training.trackers.services import markdown_table, results_table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a pty and any file name")

ESCAPES = "\r\x1b]0;owned\x07\x1b]8;;http:~~evil\x07\x1b[3A\x1b[2J\x1b[8m\x9b31m\u202e\u200b"
MARKUP = "[bold red]$a^{$[/][link=http:~~evil]b[/link]`c`{{7*7}}{%raw%}{0.__class__}\"'"
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
    found: dict[str, str] = {}
    for name, _, text in (part.partition("\r\n") for part in parts):
        found[name] = found.get(name, "") + text
    return found


TINY = ["--arch", "test_resnet", "--weights", "none", "--size", "32", "--epochs", "1"]
TINY += ["--head-epochs", "0", "--batch-size", "8", "--precision", "float32", "--tta", "1"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder with data and a run of hostile names, and what the terminal showed meanwhile."""
    folder = tmp_path_factory.mktemp("script")
    data = make_dataset(folder / "data")
    train = ["train", *data, *TINY, "--metadata", f"age,sex,{SITE}", "--name", NAME]
    predict = ["predict", f"runs/{NAME}", str(next((folder / "data" / "images").iterdir()))]
    shown = on_a_terminal(folder, ["data", "check", *data], train, ["runs"], predict)
    return folder, shown


@pytest.fixture(scope="module")
def run(work) -> lf.Run:
    return lf.Run.open(work[0] / "runs" / NAME)


@pytest.fixture(scope="module")
def queue(run, work) -> Queue:
    """The images of the run for the page of labels."""
    rows = run.predictions.to_dict("records")
    items = [Item(row["image_id"], row["path"], row["target"], row["target"], row) for row in rows]
    return Queue(run, items, work[0] / "answers.csv", who=SCRIPT)


class Finder(HTMLParser):
    """Finds what a browser would run or fetch in HTML, and gathers what it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.scripts, self.text = [], 0, ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag in ("iframe", "object", "embed", "base", "form") and dict(attrs).get("id") is None:
            self.found.append(tag)
        for name, value in attrs:
            aims = name in ("src", "href", "action", "formaction", "srcset", "xlink:href")
            ours = (value or "").startswith(("data:", "#", "/app", "/label"))
            if name.startswith("on") or (aims and not ours):
                self.found.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(text: str, scripts: int = 0) -> None:
    """What strangers wrote is text, and none of it is hidden or turned round."""
    page = Finder(text)
    assert page.found == [] and page.scripts == scripts
    assert "<img src=x onerror=owned=1>" in page.text and "{{7*7}}" in page.text
    assert not UNSEEN.findall(page.text)


def test_a_terminal_shows_names_and_does_not_obey_them(work):
    _, shown = work
    for command, text in shown.items():
        assert "<<< " not in text and "Traceback" not in text, text
        assert not UNSEEN.findall(OURS.sub("", text)), command
        for escape in ("\x1b[8m", "\x1b[3A", "\x1b[2J\x1b", "\x1b]"):
            assert escape not in text, command
    assert r"\x1b]0;owned\x07" in shown["train"] and r"\u202e" in shown["data"]
    assert "[bold red]$a^{$[/][link=http:~~evil]b[/link]" in shown["train"]


def test_nothing_is_printed_past_what_spells_names_out():
    """`print` stands in the console alone, and where the page says its own address."""
    root = Path(lf.__file__).parent
    found = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert found == {"console.py", "serving/web/server.py"}


def test_a_run_whose_names_have_a_carriage_return_is_gone_on_with(run):
    text = (run.path / "split.csv").read_bytes()
    assert b"\r" in text and text.count(b"\n") == 49
    assert format_split(load_dataset(run.config)).encode() == text


def test_the_log_of_a_run_can_be_shown_on_a_terminal(work):
    text = (work[0] / "runs" / NAME / "log.txt").read_text("utf-8")
    assert r"\x1b]0;owned" in text and not UNSEEN.findall(text)


def test_a_report_holds_names_as_text_and_lets_one_script_run(run, tmp_path, blank_figures):
    page = write_report(Findings.from_run(run), tmp_path / "report.html")
    text = page.read_text("utf-8")
    assert_harmless(text, scripts=1)
    policy = re.search('http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    allowed = dict(each.split(" ", 1) for each in policy.split("; "))
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    assert allowed["img-src"] == "data:" and "unsafe" not in policy and "http" not in policy
    for tag in ("style", "script"):
        own = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
        assert len(own) == 1 and allowed[f"{tag}-src"] == f"'sha256-{digest}'"


def test_the_page_and_its_answer_hold_names_as_text(run, work):
    service = Service(run.path)
    picture = next((work[0] / "data" / "images").iterdir()).read_bytes()
    assert_harmless(page_html(service.bundle), scripts=1)
    with pytest.raises(LesionfastError):
        answer_html(service, picture, {"age": SCRIPT})
    assert_harmless(answer_html(service, picture, {}))


def test_the_page_of_labels_holds_names_as_text_and_sends_back_what_they_are(queue):
    text = item_html(queue)
    assert_harmless(text)
    assert Finder(shell_html(queue)).found == []
    image = Attributes(text).values["data-image"]
    assert image == [queue.pending[0].image] and UNSEEN.search(image[0])
    assert {f"is {name}" for name in queue.run.classes[1:]} <= set(
        Attributes(text).values["data-answer"]
    ) | {f"is {queue.pending[0].label}"}


class Attributes(HTMLParser):
    """Gathers the values of each attribute in HTML, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.values: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.values.setdefault(name, []).append(value)


def test_a_notebook_shows_names_as_text(run, work):
    shown = [run, lf.Interpretation.from_run(run), compare([run]), lf.runs(work[0] / "runs")]
    for text in (each._repr_html_() for each in shown):
        page = Finder(text)
        assert page.found == [] and page.scripts == 0 and not UNSEEN.findall(text)
        assert "<img src=x onerror=owned=1>" in page.text


def assert_inert(figure: Path) -> None:
    """A figure in SVG is whole, and holds nothing that runs or leads away."""
    tree = ElementTree.parse(figure)  # fails for what no XML may hold
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert not names & {"script", "foreignObject", "a", "iframe", "animate", "set"}
    assert not [name for element in tree.iter() for name in element.attrib if name[:2] == "on"]


def test_a_figure_shows_names_letter_by_letter(run, tmp_path):
    figure = new_figure(4, 3, "[bold red]$a^{$", CLASSES[2])
    pictures = [
        draw_confusion(lf.Interpretation.from_run(run), tmp_path),
        save(figure, tmp_path / "formula.png"),
    ]
    words = []
    for picture in pictures:
        assert_inert(picture.with_suffix(".svg"))
        with Image.open(picture) as image:
            words.append(image.info["Description"])
    assert "<img src=x onerror" in words[0] and "[bold red]$a^{$" in words[1]
    assert not UNSEEN.findall("".join(words))


def test_tables_of_trackers_show_names_letter_by_letter():
    row = {"split": "test", "metric": "auc", "of": f"|{BAD}\n| x", "value": 0.5, "n": 3}
    for text in (results_table([row]), markdown_table({"target": f"a | b\n{SCRIPT}"})):
        assert len(text.splitlines()) == 3 and not UNSEEN.findall(text)
        assert not re.search(r"<\w|(?<!\\)\[link|(?<!\\)`c|(?<!\\)\$a", text)


def test_pictures_of_a_batch_show_names_letter_by_letter():
    draw_pictures(torch.zeros(2, 3, 8, 8), [BAD, SCRIPT])
    figure = pyplot.gcf()
    figure.canvas.draw()  # a formula that is none is an error here
    titles = [axis.get_title() for axis in figure.axes]
    pyplot.close(figure)
    assert titles == [printable(BAD), printable(SCRIPT)]


LONG = ("nv" + " nevus" * 800, "mel" + "anoma" * 1000, "bcc" * 1700)


@contextmanager
def leaving_room() -> Iterator[None]:
    """Fail where a figure has no room left for what it draws."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="constrained_layout not applied")
        yield


def test_names_of_5000_letters_leave_room_for_what_is_drawn(make_run, tmp_path, drawn):
    read = lf.Interpretation.from_run(make_run(LONG, n=60))
    with leaving_room():
        draw_confusion(read, tmp_path)
        words = describe_figure(drawn["confusion"])
        draw_comparison(compare([read.run]), tmp_path)
    assert len(words) < 2000 and "nv nevus nevus" in words and "ccbcc" in words and " … " in words


@pytest.mark.attack
def test_names_of_5000_letters_leave_room_in_a_report(make_run, tmp_path):
    with leaving_room():
        page = write_report(Findings.from_run(make_run(LONG, n=60)), tmp_path / "report.html")
    assert page.stat().st_size < 20_000_000


def test_a_model_card_shows_names_letter_by_letter(run, tmp_path, monkeypatch):
    monkeypatch.setattr("lesionfast.serving.export.check_predictions", lambda *about: None)
    text = (export(run, tmp_path / "model") / "README.md").read_text("utf-8")
    assert not UNSEEN.findall(text) and "\n<" not in text
    assert not re.search(r"<\w|(?<!\\)\[link|(?<!\\)`c|(?<!\\)\$a", text.partition("---\n#")[2])
    assert r"\[link=http:" in text and "&lt;img src=x" in text


def test_exports_of_labels_are_whole_and_name_classes_alike(run, tmp_path):
    cases = [{"path": "a.png", "target": CLASSES[1], "tags": [], "answer": None}]
    cases[0] |= {"suggested": CLASSES[1], "probability": 0.5}
    write_fiftyone(cases, tmp_path / "51", run.classes)
    assert json.loads((tmp_path / "51" / "samples.json").read_text())["samples"]
    tasks, interface = write_label_studio(cases, tmp_path / "tasks.json", run.classes, NAME)
    choices = [each.get("value") for each in ElementTree.parse(interface).iter("Choice")]
    chosen = json.loads(tasks.read_text())[0]["predictions"][0]["result"][0]["value"]["choices"]
    assert choices == [printable(name) for name in run.classes] and chosen[0] in choices


def is_formula(cell: str) -> bool:
    return cell != "" and cell[0] in "=+@\t\r-" and not re.fullmatch(r"[+-]?[\d.e-]*", cell)


def test_a_spreadsheet_runs_no_name_and_a_row_stays_a_row(tmp_path):
    names = [CLASSES[2], "+1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "'=1", "-1", "a\rb"]
    table = pd.DataFrame({"image": names, "share": -0.5})
    head = csv_head(table.columns)
    for text in (head + to_csv(table), write_sheet(tmp_path / "a.csv", table).read_bytes()):
        text = text.decode() if isinstance(text, bytes) else text
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        assert header == ["image", "share"] and {row[1] for row in rows} == {"-0.5"}
        assert not [row[0] for row in rows if is_formula(row[0])]
        assert [rearm(row[0]) for row in rows] == names
    named = pd.DataFrame({name: [1] for name in names[:-2]})
    for text in (csv_head(named.columns), csv_text(disarm_texts(named))):
        header = next(csv.reader(io.StringIO(text, newline="")))
        assert not [*filter(is_formula, header)] and [*map(rearm, header)] == names[:-2]
    assert disarm("-0.5") == "-0.5" and disarm("-") == "-" and disarm("nv") == "nv"
    assert rearm("'tis") == "'tis"


def test_predictions_of_such_names_are_gone_on_with(run, work, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(work[0] / "data" / "images")
    asked = (run.path, sorted(os.listdir()), tmp_path / "p.csv", "csv")
    caplog.clear()
    predict_inputs(*asked, metadata={}, all_columns=True)
    [told] = [line for line in caplog.messages if "an apostrophe was put before" in line]
    whole = asked[2].read_bytes()
    cells = [cell for row in csv.reader(io.StringIO(whole.decode(), newline="")) for cell in row]
    assert not [*filter(is_formula, cells)]
    assert f"before {sum(rearm(cell) != cell for cell in cells)} texts" in told
    lines = whole.split(b"\n")
    assert len(lines) == 50  # a head, 48 rows and what follows the last
    asked[2].write_bytes(b"\n".join([*lines[:20], b""]))
    predict_inputs(*asked, metadata={}, resume=True, all_columns=True)
    assert asked[2].read_bytes() == whole


def test_columns_of_such_names_come_back_as_they_are(tmp_path):
    """Where predictions are resumed or joined, and a list is labelled."""
    columns = ["image", '=HYPERLINK("http://e")_at_specificity_90', "error"]
    out, rows = tmp_path / "p.csv", pd.DataFrame([["a", True, ""], ["=b", False, ""]])
    with closing(TextWriter(out, "csv", columns)) as writer:
        writer.write(rows.set_axis(columns, axis=1))
    assert not is_formula(next(csv.reader(out.open(newline="")))[1])
    start = find_first_row(out, "csv", columns)
    assert start and [row[0] for row in read_rows(out, "csv", columns, start)] == ["a", "=b"]
    assert read_columns(Part(out, {"--format": "csv"}, None)) == columns
    listed = pd.DataFrame([{"image": "a", "path": "a.jpg", "=site": "=arm"}])
    [item] = read_list(write_sheet(tmp_path / "next.csv", listed))
    assert item.row["=site"] == "=arm"


def browsed(browser, address: str, act=lambda page: None) -> None:
    """Open a page, act on it, and see that nothing of a stranger ran, hid or went outside."""
    page, bad = browser.new_page(), []
    page.set_default_timeout(300_000)
    page.on("request", lambda request: request.url.startswith(INSIDE) or bad.append(request.url))
    page.on("console", lambda message: message.type == "error" and bad.append(message.text))
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on("dialog", lambda dialog: bad.append(dialog.message) or dialog.dismiss())
    page.goto(address)
    act(page)
    page.wait_for_timeout(300)
    assert page.evaluate("typeof owned") == "undefined" and bad == []
    assert page.locator("[onerror], [onload], iframe, svg svg, a[href^=javascript]").count() == 0
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=owned=1>')")
    page.evaluate("script = document.createElement('script'); script.text = 'owned=1'")
    page.evaluate("void document.body.append(script)")
    page.evaluate("void setTimeout('owned=1')")  # as eval does
    page.wait_for_timeout(300)
    assert page.evaluate("typeof owned") == "undefined"
    page.close()


INSIDE = ("http://127.0.0.1:", "data:", "file:///")


@contextmanager
def serving(app) -> Iterator[str]:
    """The address of a page in a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = build_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(120)


@pytest.mark.attack
def test_nothing_of_a_stranger_runs_in_the_page(browser, run, work):
    picture = next((work[0] / "data" / "images").iterdir())

    def ask(page) -> None:
        file = {"name": f"{BAD}.png", "mimeType": "image/png", "buffer": picture.read_bytes()}
        page.locator("#image").set_input_files(file)
        chosen = page.locator("select").last
        chosen.select_option(index=1)
        assert UNSEEN.search(chosen.input_value())  # what is sent is what training saw
        page.locator("#predict").click()
        page.locator(".lf-answer").wait_for()

    with serving(build_app(Service(run.path))) as address:
        browsed(browser, address, ask)


@pytest.mark.attack
def test_nothing_of_a_stranger_runs_in_the_page_of_labels(browser, queue):
    def answer(page) -> None:
        page.locator("section.lf-label").wait_for()
        for key in ("u", "z", "n", "r", "u"):
            page.locator("#why").fill(SCRIPT)
            before = page.locator("#progress").inner_text()
            page.locator("h2").click()
            page.keyboard.press(key)
            page.wait_for_function("before => progress.innerText !== before", arg=before)
        assert page.locator("#problem").inner_text() == ""

    with serving(build_label_app(queue)) as address:
        browsed(browser, address, answer)
    kept = read_answers(queue.file).log
    assert [one.kind for one in kept] == ["unclear", "undo", "right", "unclear"]
    assert {one.image for one in kept} <= set(queue.items)


@pytest.mark.attack
def test_nothing_of_a_stranger_runs_in_any_report_or_figure(browser, run, work):
    """All that the commands write: each page opened in a browser, each file looked through."""
    folder, out = work[0], run.path.parent
    other = shutil.copytree(run.path, out / f"{NAME}\x1b[2J=", dirs_exist_ok=True)  # by a stranger
    name, data = f"runs/{NAME}", make_dataset(folder / "more")
    commands = [
        ["interpret", name, "--explain"],
        ["report", name, "--pdf"],
        ["report", name, str(other), "--to", "several.html"],
        ["compare", name, str(other), "--csv", "compared.csv"],
        ["labels", name, "--csv", "labels.csv", "--fiftyone", "51", "--label-studio", "ls.json"],
        ["next", name, "new", "--csv", "next.csv"],
        ["predict", name, "data/images", "--out", "p.csv", "--log-predictions", "log.jsonl"],
        ["runs", "--verify"],
        ["runs", "note", name, SCRIPT],
        ["cache"],
        ["export", name, "--to", "exported"],
        ["search", *data, *TINY, "--trials", "2", "--out", "search<img src=x onerror=owned=1>"],
    ]
    (folder / "new").mkdir()
    for picture in [*(folder / "data" / "images").iterdir()][:3]:
        with Image.open(picture) as image:
            ImageOps.invert(image).save(folder / "new" / f"=new{picture.name}")
    shown = on_a_terminal(folder, *commands)
    assert set(shown) == {command[0] for command in commands}
    for command, text in shown.items():
        assert "<<< " not in text and "Traceback" not in text, text
        assert not UNSEEN.findall(OURS.sub("", text)), command
    for page in folder.rglob("*.html"):
        browsed(browser, page.as_uri())
    for figure in folder.rglob("*.svg"):
        assert_inert(figure)
    assert len([*folder.rglob("*.html")]) >= 3 and len([*folder.rglob("*.svg")]) > 15
    for sheet in ("compared.csv", "labels.csv", "next.csv", "p.csv"):
        with (folder / sheet).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        assert rows and {len(row) for row in rows} == {len(header)}
        assert not [cell for row in rows for cell in row if is_formula(cell)]
