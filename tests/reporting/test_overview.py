"""The report says what the run says, and a real browser shows it: on a phone, offline, sorted."""

import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import Executor, Future

import pytest

from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.comparison import write_comparison
from lesionfast.reporting.explanations import pictures
from lesionfast.reporting.metrics import metrics
from lesionfast.reporting.overview import data_card, model_card, report_sections, write_report
from lesionfast.reporting.page import print_pdf
from lesionfast.run import Run


@pytest.fixture
def run(make_run, images):
    run = make_run(n=150)
    images(run.predictions)
    return run


WRITTEN: list[bytes] = []


@pytest.fixture
def report(run):
    """The report of a run, which is the same for every test, and so is written once."""
    if not WRITTEN:
        WRITTEN.append(write_report(Findings.from_run(run)).read_bytes())
    path = run.path / "report.html"
    path.write_bytes(WRITTEN[0])
    return path


def test_the_headline_comes_first_with_interval_n_and_split(run, report):
    text, found = report.read_text(), Findings.from_run(run).measure("balanced_accuracy", "all")
    start = text[text.index("<header>") : text.index("</header>")]
    assert f"{found['value']:.3f}" in start
    assert f"[{found['low']:.3f}, {found['high']:.3f}]" in start
    assert "150 test images of 150 lesions, rule balanced" in start and "0123456789ab" in start


def test_the_parts_are_in_the_order_that_a_reader_needs(report):
    parts = re.findall(r'(?:section|details) id="([\w-]+)"', report.read_text())
    assert parts[:3] == ["advice", "melanoma", "confusion"]
    assert parts[-5:-1] == ["training", "data-card", "model-card", "configuration"]
    assert parts[-1] == "checklist"


def test_nothing_is_fetched(report):
    text = report.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text) and "@import" not in text
    assert "url(" not in text


def test_estimates_have_intervals(run):
    measures = Findings.from_run(run).interpretation.measures
    estimated = measures[measures["value"].notna()]
    assert estimated[["low", "high"]].notna().all().all()


@pytest.mark.usefixtures("blank_figures")
def test_an_ensemble_or_an_old_run_has_no_history_and_no_environment(run):
    (run.path / "history.csv").unlink()
    assert 'id="training"' not in write_report(Findings.from_run(Run(run.path))).read_text()


@pytest.mark.usefixtures("blank_figures")
def test_classes_that_are_not_those_of_ham10000(make_run, images):
    run = make_run(classes=("benign", "malign"), n=60)
    images(run.predictions)
    text = write_report(Findings.from_run(run)).read_text()
    assert 'id="melanoma"' not in text and "malign" in text


def test_the_data_card_says_where_the_data_is_not(run):
    words, tables = data_card(Findings.from_run(run))
    assert any("The data is not here" in each for each in words)
    assert any("No lesion has images in two parts" in each for each in words)
    assert tables[0].rows[-1][0].text == "all"


def test_a_split_that_leaks_is_said(run):
    split = run.split.assign(group="one")
    split.to_csv(run.path / "split.csv", index=False)
    words, _ = data_card(Findings.from_run(Run(run.path)))
    assert any("estimates are too optimistic" in each for each in words)


def test_the_model_card_says_that_it_is_no_medical_device(run):
    assert any("not a medical device" in each for each in model_card(run))


def test_runs_are_compared_in_one_page(run, make_worse, tmp_path):
    worse = make_worse(run, "worse", 2.0)
    text = write_comparison([run, worse], tmp_path / "compare.html").read_text()
    assert run.path.name in text and "worse" in text and text.count("data:image/png") == 2


def test_runs_of_different_splits_are_refused(run, make_run, tmp_path):
    with pytest.raises(LesionfastError, match="different"):
        write_comparison([run, make_run(n=90)], tmp_path / "compare.html")


@pytest.fixture(scope="module")
def chromium():
    """A real browser, or a skip that says which."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next(filter(None, found), None)
    if path is None:
        pytest.skip("needs an installed chromium or google-chrome")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    page = chromium.new_page()
    page.set_default_timeout(300_000)  # a busy machine takes long
    yield page
    page.close()


def test_a_browser_shows_it(report, page):
    page.set_viewport_size({"width": 375, "height": 800})
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda each: said.append(each.url) if each.url.startswith("http") else None)
    page.goto(report.as_uri())
    assert said == []
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 375
    loaded = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(loaded) >= 4 and all(loaded)


@pytest.mark.parametrize("width", [1200, 375])
def test_axe_finds_no_barrier(report, page, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_a_figure_has_its_numbers_in_words(run, report):
    text = report.read_text()
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) >= 4 and all("This figure in words" in figure for figure in figures)
    confusion = next(figure for figure in figures if "Truth by decision" in figure)
    counts = Interpretation.from_run(run).confusion()
    full = [full_name(name) for name in counts]
    assert all(f"{name}" in confusion for name in full)
    melanoma = int(counts.loc["mel", "mel"])
    assert re.search(rf"mel[^;]* as mel: [^;]*\b{melanoma}\b", confusion)


def test_a_report_is_printed(report, chromium):
    data = print_pdf(report).read_bytes()
    assert data.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page[^s]", data)) >= 5


def test_without_a_browser_it_says_what_to_install(report, monkeypatch):
    for name in ("BROWSERS", "PLACES", "PLAYWRIGHT"):
        monkeypatch.setattr(f"lesionfast.reporting.page.{name}", ())
    with pytest.raises(LesionfastError, match="apt install chromium"):
        print_pdf(report)


def test_a_browser_sorts_a_table(report, page):
    page.goto(report.as_uri())
    table = page.locator("#metrics table").nth(1)

    def column(place: int) -> list[str]:
        cells = table.locator(f"tbody tr td:nth-child({place})").all_inner_texts()
        return [cell.split()[0] for cell in cells]

    table.get_by_role("button", name="sensitivity").click()
    rising = [float(value) for value in column(3)]
    assert rising == sorted(rising) and len(set(rising)) > 1
    table.get_by_role("button", name="sensitivity").click()
    assert [float(value) for value in column(3)] == rising[::-1]
    table.get_by_role("button", name="class").click()
    assert column(1) == sorted(column(1))


def test_what_the_second_process_is_sent_does_not_change_meanwhile(run, monkeypatch):
    sent = []

    class Idle(Executor):
        def submit(self, function, /, build, findings):
            sent.append(findings)
            future = Future()
            future.set_result((None, {}, []))
            return future

    monkeypatch.setattr("lesionfast.reporting.overview.second_process", Idle)
    monkeypatch.setattr("lesionfast.reporting.overview.SECTIONS", [metrics, pictures])
    findings = Findings.from_run(run)
    before = set(vars(findings.interpretation))
    assert len(report_sections(findings)) == 1
    assert set(vars(sent[0].interpretation)) == before < set(vars(findings.interpretation))


def test_the_second_process_ends_when_the_first_is_killed():
    code = (
        "import os, time; from lesionfast.reporting.overview import second_process\n"
        "print(second_process().submit(os.getpid).result(), flush=True); time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    second = int(first.stdout.readline())
    assert is_running(second)
    first.kill()
    first.communicate()
    for _ in range(1200):
        if not is_running(second):
            return
        time.sleep(0.1)
    pytest.fail("it runs two minutes after")


def is_running(pid):
    """Whether there is such a process that is no zombie."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip()[:1] not in ("", "Z")
