"""The page that asks for labels, in a browser: answered by keyboard, killed, gone on with."""

import os
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import pytest

import lesionfast as lf
from lesionfast.data.corrections.answers import read_answers
from lesionfast.evaluation.findings import Findings
from lesionfast.reporting.overview import data_card
from lesionfast.serving.labelling.queue import list_doubted

PHONE, WIDE = {"width": 375, "height": 800}, {"width": 1280, "height": 1000}
TINY = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "unfreeze": "none"}
TINY |= {"tta": 1, "precision": "float32"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> lf.Run:
    """A run that knows little, and so doubts many labels."""
    return lf.train(lf.load_data(), out=tmp_path_factory.mktemp("runs"), name="tiny", **TINY)


@dataclass
class Server:
    """The command with its page; `url` is what it printed."""

    process: BaseProcess
    url: str
    log: Path

    def stop(self, how: str = "terminate") -> None:
        getattr(self.process, how)()
        self.process.join(120)
        assert not self.process.is_alive() and "Traceback" not in self.log.read_text()


def words_of(run: lf.Run, file: Path) -> list[str]:
    return ["labels", str(run.path), "--page", "--corrections", str(file)]


@pytest.fixture
def serve(run, start_page):
    """A function that starts the page; all that it started has ended after the test."""
    started = []

    def start(file: Path, *more: str) -> Server:
        started.append(Server(*start_page(*words_of(run, file), *more)))
        return started[-1]

    yield start
    for server in started:
        if server.process.is_alive():
            server.stop()


@pytest.fixture
def open_page(browser):
    """A function that opens a page; nothing went outside and nothing was complained about."""
    bad, opened = [], []

    def show(url: str, viewport=PHONE):
        page = browser.new_page(viewport=viewport)
        page.set_default_timeout(300_000)
        page.on("request", lambda r: r.url.startswith((url, "data:")) or bad.append(r.url))
        page.on("console", lambda m: m.type == "error" and bad.append(m.text))
        page.on("pageerror", lambda error: bad.append(str(error)))
        page.goto(url)
        page.locator("section.lf-label").wait_for(timeout=300_000)
        opened.append(page)
        return page

    yield show
    for page in opened:
        page.close()
    assert bad == []


def post(url: str, **asked) -> httpx.Response:
    return httpx.post(url, timeout=300, **asked)


def image_of(page) -> str:
    return page.locator("section.lf-label").get_attribute("data-image")


def press(page, key: str) -> str:
    """Press a key and wait until the next image is there; return that."""
    before = image_of(page)
    page.keyboard.press(key)
    page.wait_for_function(
        "before => document.querySelector('section.lf-label').dataset.image !== before "
        "&& document.getElementById('item').getAttribute('aria-busy') === 'false'",
        arg=before,
        timeout=300_000,
    )
    return image_of(page)


def wait_for_note(page, text: str) -> None:
    page.locator("#note", has_text=text).wait_for(timeout=300_000)
    page.locator("#item[aria-busy=false]").wait_for(timeout=300_000)


def is_narrow(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def key_of_another_class(page) -> str:
    return page.locator("button[data-answer^='is ']").first.get_attribute("data-key")


class Watched:
    """A page whose states are looked at by axe-core: at its width, in its colours."""

    def __init__(self, browser, folder: Path, **options) -> None:
        self.context = browser.new_context(bypass_csp=True, **options)
        self.page, self.found, self.errors = self.context.new_page(), {}, []
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.name = f"{options['color_scheme']}-{options['viewport']['width']}"
        self.folder = folder

    def look(self, state: str) -> None:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
        self.page.locator("#item[aria-busy=false] section.lf-label").wait_for()
        result = axe.run(self.page)
        if result.violations_count:
            self.found[state] = result.generate_report()
        assert is_narrow(self.page), state
        self.page.screenshot(path=self.folder / f"{state}-{self.name}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_no_barrier_in_any_state(run, serve, browser, tmp_path, scheme, size):
    """The queue, after an answer, after an undo, with an error, and when all is answered."""
    item = list_doubted([run])[0]
    few = tmp_path / "few.csv"
    few.write_text(f"image,path,suggested\n{item.image},{item.path},nv\n", encoding="utf-8")
    watched = Watched(browser, tmp_path, color_scheme=scheme, viewport=size)
    page = watched.page
    page.goto(serve(tmp_path / "long.csv").url)
    watched.look("queue")
    press(page, "r")
    watched.look("answered")
    page.keyboard.press("z")
    wait_for_note(page, "Taken back")
    watched.look("undone")
    page.route("**/answer", lambda route: route.abort())
    page.keyboard.press("u")
    page.locator(".lf-error").wait_for()
    watched.look("error")
    page.unroute("**/answer")
    page.goto(serve(tmp_path / "short.csv", "--list", str(few)).url)
    watched.look("no-label")
    page.keyboard.press("u")
    page.get_by_role("heading", name="All images are answered").wait_for()
    watched.look("empty")
    watched.context.close()
    assert watched.found == {} and watched.errors == []


def test_the_focus_stays_where_a_person_is(run, serve, open_page, tmp_path):
    """Who answers by Tab and Enter goes on at the next image, not at the top of the page."""
    page = open_page(serve(tmp_path / "corrections.csv").url)
    page.locator("button[data-answer='right']").focus()
    press(page, "Enter")
    assert page.evaluate("document.activeElement.tagName") == "H2"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.answer") == "right"


def test_ten_labels_by_keyboard_a_kill_an_undo_and_a_training(run, serve, open_page, tmp_path):
    file = tmp_path / "corrections.csv"
    server = serve(file, "--who", "Dr. A")
    page = open_page(server.url)
    assert is_narrow(page) and page.locator(".lf-views img").count() == 2
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    answered, texts = [], []
    page.keyboard.press("a")
    wait_for_note(page, f"Kept: {image_of(page)}: same lesion as")
    assert page.locator(".lf-said").count() == 1
    for number in range(10):
        answered.append(image_of(page))
        key = ("r", key_of_another_class(page), "u")[number % 3]
        if number == 1:
            page.keyboard.press("w")
            page.keyboard.type("ruler hides it")
            page.keyboard.press("Enter")
        following = press(page, key)
        said = read_answers(file)
        assert said.labels[answered[-1]].who == "Dr. A" and len(said.log) == number + 2
        texts.append(said.labels[answered[-1]].text)
        assert following not in answered
    assert texts[0] == "right" and texts[1].startswith("is ") and texts[2] == "unclear"
    assert said.labels[answered[1]].why == "ruler hides it"
    assert is_narrow(page)
    following = image_of(page)
    server.stop("kill")

    page = open_page(serve(file).url, WIDE)
    assert image_of(page) == following
    assert page.locator("#progress").inner_text().startswith("10 of ")
    assert page.get_by_label("Who answers").input_value() == "Dr. A"
    page.screenshot(path=tmp_path / "wide.png", full_page=True)
    assert press(page, "z") == answered[-1]
    wait_for_note(page, f"Taken back: {answered[-1]}: right")
    assert file.read_text().splitlines()[-1].startswith(f"{answered[-1]},undo,Dr. A,2")
    assert set(read_answers(file).labels) == set(answered[:-1])
    later = press(page, "n")
    assert later == following and len(read_answers(file).log) == 12

    trained = lf.train(lf.load_data(), out=tmp_path, name="fixed", corrections=file, **TINY)
    words = " ".join(data_card(Findings.from_run(trained))[0])
    assert f"Corrections: {file}" in words and "3 unclear images left out" in words
    assert trained.metrics["corrections"]["changed"] == 3
    if folder := os.environ.get("SCREENSHOTS"):
        for name in ("phone.png", "wide.png"):
            (tmp_path / name).replace(Path(folder) / name)


def test_no_other_site_and_no_second_page_writes_answers(run, run_apart, serve, tmp_path):
    file = tmp_path / "corrections.csv"
    server = serve(file)
    image = post(f"{server.url}/item", json={}).text.split('data-image="')[1].split('"')[0]
    asked = {"image": image, "answer": "right"}
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        refused = post(f"{server.url}/answer", json=asked, headers=headers)
        assert refused.status_code == 403 and not file.exists()
    for wrong in ({"image": "x", "answer": "right"}, {"image": image, "answer": "is frog"}):
        problem = post(f"{server.url}/answer", json=wrong)
        assert problem.status_code == 422 and problem.json()["error"] and not file.exists()
    assert post(f"{server.url}/undo", json={}).status_code == 422
    assert post(f"{server.url}/answer", content=b"x" * 20_000).status_code == 422
    assert post(f"{server.url}/answer", content=b"[1]").status_code == 422
    second = run_apart(*words_of(run, file), "--port", "0")
    assert second.returncode == 2 and "another process is writing" in second.stderr
    assert post(f"{server.url}/answer", json=asked).status_code == 200
    assert read_answers(file).labels[image].text == "right"


def test_a_token_keeps_others_out(serve, tmp_path):
    server = serve(tmp_path / "corrections.csv", "--token", "correct-horse")
    assert httpx.get(server.url, timeout=300).status_code == 401
    assert post(f"{server.url}/item", json={}).status_code == 401
    known = {"Authorization": "Bearer correct-horse"}
    assert "data-image" in post(f"{server.url}/item", json={}, headers=known).text
