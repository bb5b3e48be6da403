"""The page in a browser and the API beside it, of one server, with the network watched."""

import io
import json
import os
import re
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import httpx
import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image
from starlette.testclient import TestClient

from lesionfast.errors import LesionfastError
from lesionfast.reporting.advice.limits import find_limits, list_misses
from lesionfast.reporting.advice.sentences import read_language, speaking
from lesionfast.serving.predictor import Predictor
from lesionfast.serving.reasons import list_row_limits
from lesionfast.serving.web import app
from lesionfast.serving.web.api import Service, to_prediction
from lesionfast.serving.web.app import answer_html, build_app
from lesionfast.serving.web.server import listen
from lesionfast.serving.web.uploads import MOST_BYTES, NoImage, Refusal, TooLarge, check_limits
from lesionfast.stats.advice.costs import Costs

WIDE, PHONE = {"width": 1280, "height": 1000}, {"width": 375, "height": 800}
PDF = b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
REFUSED = "Failed to load resource: the server responded with a status of 4"


@pytest.fixture(scope="module")
def server(start_page, trained, tmp_path_factory):
    """The address of a page, the folder of temporary files, which stays empty, and its process."""
    folder = tmp_path_factory.mktemp("app")
    environment = os.environ | {"TMPDIR": str(folder)}
    process, url, log = start_page("app", trained.path, env=environment)
    yield url, folder, process
    if process.is_alive():
        process.terminate()
        process.join(120)
        assert process.exitcode == 0
    assert files_in(folder) == [] and "Traceback" not in log.read_text()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]  # PyTorch makes a folder


def open_page(browser, **options):
    """An empty page that waits for minutes where it has to wait, as on a busy machine."""
    page = browser.new_page(**options)
    page.set_default_timeout(300_000)
    return page


def test_a_page_with_a_token_opens_with_the_token_alone(browser, start_page, exported):
    environment = os.environ | {"LESIONFAST_TOKEN": "correct-horse"}
    process, url, _ = start_page("app", exported, env=environment)
    try:
        opened = open_page(browser)
        opened.goto(url)
        for text, expected in (
            ("wrong", "This is not the token"),
            ("correct-horse", "Image of a lesion"),
        ):
            opened.get_by_label("Token").fill(text)
            opened.get_by_role("button", name="Open").click()
            opened.get_by_text(expected).wait_for()
        opened.close()
    finally:
        process.terminate()
        process.join(120)


@pytest.fixture
def page(browser, server):
    """An open page; at the end nothing went outside and nothing was complained about."""
    opened, bad = open_page(browser, viewport=WIDE), []
    opened.on("request", lambda r: inside(r.url) or bad.append(r.url))
    opened.on("console", lambda m: is_complaint(m) and bad.append(m.text))
    opened.on("pageerror", lambda error: bad.append(str(error)))
    opened.goto(server[0])
    yield opened
    opened.close()
    assert bad == []


def inside(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:"))


def is_complaint(message) -> bool:
    return message.type == "error" and not message.text.startswith(REFUSED)


def choose(page, photo, name="photo.jpg"):
    data = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
    file = {"name": name, "mimeType": "image/jpeg", "buffer": data}
    page.get_by_label("Image of a lesion").set_input_files(file)


def fill_age(page, text):
    page.get_by_label("age", exact=True).fill(text)


def predict(page):
    page.get_by_role("button", name="Predict").click()


def wait_for_advice(page):
    page.locator(".lf-advice").wait_for()


def test_an_image_gets_its_answer(page, photos, trained):
    choose(page, photos[0])
    fill_age(page, "55")
    predict(page)
    wait_for_advice(page)
    text = page.locator(".lf-answer").inner_text()
    advice = page.locator(".lf-advice").inner_text()
    assert text.startswith(advice) and advice.endswith(".")
    for words in (
        "mel (melanoma)",
        "Probabilities: melanoma ",
        "the right class is not among those named",
    ):
        assert words in text
    for words in (
        "For about 10 of 100 lesions of each kind, cancers too, ",
        "Predicted without sex",
        "medical dev",
    ):
        assert words in text
    assert "The rule balanced" not in text  # statistics come after the advice
    page.get_by_text("Details").click()
    assert "The rule balanced of the metrics" in page.locator("details").inner_text()
    assert page.locator(".lf-bars tr").count() == len(trained.classes)
    widths = "bars => bars.map(each => each.getBoundingClientRect().width)"
    assert page.locator(".lf-bars rect").evaluate_all(widths) != [0] * len(trained.classes)
    loaded = "images => images.every(each => each.naturalWidth > 0)"
    pictures = page.locator(".lf-pictures img")
    assert pictures.count() == 6 and pictures.evaluate_all(loaded)
    assert "Grad-CAM" in text and text.count("Similar in training, no proof") == 4


def test_predict_can_be_pressed_again_with_the_same_picture(page, photos):
    choose(page, photos[0])
    texts, statuses = [], []
    page.on("response", lambda response: statuses.append(response.status))
    for _ in range(3):
        predict(page)
        wait_for_advice(page)
        texts.append(page.locator(".lf-answer").inner_text())
    assert texts[0] == texts[1] == texts[2] and statuses == [200, 200, 200]


def test_an_answer_goes_as_soon_as_a_field_changes(page, photos):
    choose(page, photos[0])
    changes = [
        lambda: fill_age(page, "70"),
        lambda: page.get_by_label("sex").select_option("male"),
        lambda: choose(page, photos[1]),
    ]
    for change in changes:
        predict(page)
        wait_for_advice(page)
        change()
        assert page.locator("#answer").inner_text() == ""


def test_an_answer_that_comes_too_late_is_not_shown(page, photos):
    page.route("**/answer", lambda route: None)  # an answer that is awaited for ever
    choose(page, photos[0])
    predict(page)
    page.get_by_text("Predicting …").wait_for()
    assert page.locator("#answer").get_attribute("aria-busy") == "true"
    fill_age(page, "70")
    assert page.locator("#answer").inner_text() == ""
    page.unroute("**/answer")
    predict(page)
    wait_for_advice(page)


def test_an_image_can_be_dropped(page, photos):
    data = list(Path(photos[0]).read_bytes())
    script = """data => {
        const files = new DataTransfer();
        files.items.add(new File([new Uint8Array(data)], "a.jpg", {type: "image/jpeg"}));
        const event = new DragEvent("drop", {dataTransfer: files, bubbles: true});
        document.getElementById("drop").dispatchEvent(event);
    }"""
    page.evaluate(script, data)
    predict(page)
    wait_for_advice(page)


def test_a_document_named_jpg_is_refused(page):
    choose(page, PDF, "report.jpg")
    predict(page)
    page.locator(".lf-error").wait_for()
    assert "This is not a picture in a supported format" in page.locator(".lf-error").inner_text()
    assert page.locator(".lf-advice").count() == 0


def test_what_is_wrong_is_said(page, photos):
    predict(page)
    page.get_by_text("Choose an image first").wait_for()
    choose(page, photos[0])
    most = page.evaluate("image.dataset.mostBytes")
    page.evaluate("image.dataset.mostBytes = 1000")
    predict(page)
    page.get_by_text("MB are taken. Save the image smaller.").wait_for()
    page.evaluate(f"image.dataset.mostBytes = {most}")
    assert int(most) == MOST_BYTES
    fill_age(page, "old")
    predict(page)
    page.get_by_text("Age is 'old', which is not an age").wait_for()
    assert page.get_by_role("alert").count() == 1


def test_it_looks_unlike_a_lesion(page):
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    Image.fromarray(noise).save(picture := io.BytesIO(), "PNG")
    choose(page, picture.getvalue())
    predict(page)
    wait_for_advice(page)
    advice = page.locator(".lf-advice").inner_text()
    assert advice.startswith("This does not look like a dermoscopic picture; no decision is")
    assert page.locator(".lf-bars").count() == 0


def test_by_keyboard_alone(page, photos):
    page.on("filechooser", lambda chooser: None)  # asked for now, it holds before the key
    page.keyboard.press("Tab")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(photos[0])
    page.keyboard.press("Tab")
    page.keyboard.type("70")
    assert page.get_by_label("age", exact=True).input_value() == "70"
    page.keyboard.press("Tab")
    page.keyboard.press("m")
    assert page.get_by_label("sex").input_value() == "male"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wait_for_advice(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_to_the_side(page, photos, scheme):
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=scheme)
    choose(page, photos[0])
    predict(page)
    wait_for_advice(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{p}") for p in COLOURS)
    assert (brightness(ink) > brightness(paper)) == (scheme == "dark")


COLOURS = ("color", "backgroundColor")


def brightness(colour: str) -> int:
    return sum(int(each) for each in colour.strip("rgb()").split(","))


def test_what_is_planted_does_not_run(page):
    choose(page, PDF)
    fill_age(page, "<img src=x onerror='window.planted = 1'>")
    predict(page)
    page.get_by_text("Age is '<img src=x").or_(page.get_by_text("not a picture")).first.wait_for()
    assert page.locator("#answer img").count() == 0 and not page.evaluate("window.planted")


def test_the_page_is_german_for_a_german_browser(browser, server, photos):
    opened = open_page(browser, viewport=PHONE, locale="de-DE")
    opened.goto(server[0])
    assert opened.locator("html").get_attribute("lang") == "de"
    opened.get_by_label("Bild einer Läsion").set_input_files(photos[0])
    opened.get_by_label("Geschlecht").select_option("weiblich")
    opened.get_by_role("button", name="Vorhersagen").click()
    opened.locator(".lf-advice").wait_for()
    told = opened.locator(".lf-answer").inner_text()
    assert "Kein Medizinprodukt" in told and "Melanom" in told and "(melanoma)" not in told
    assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    opened.close()
    english = httpx.get(server[0], headers={"accept-language": "fr"}).text
    assert '<html lang="en">' in english and "Image of a lesion" in english


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_axe_finds_no_barrier(browser, server, photos, scheme, size):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    opened = browser.new_context(bypass_csp=True, color_scheme=scheme, viewport=size).new_page()
    opened.set_default_timeout(300_000)
    opened.goto(server[0])
    found = [axe.run(opened)]
    opened.get_by_label("Image of a lesion").set_input_files(photos[0])
    opened.get_by_role("button", name="Predict").click()
    opened.locator(".lf-advice").wait_for()
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found.append(axe.run(opened))
    opened.context.close()
    assert [each.violations_count for each in found] == [0, 0], found[1].generate_report()


def test_scripts_in_the_page_are_refused(browser, server):
    """Were something planted after all, the browser would not run it."""
    opened = open_page(browser)
    opened.goto(server[0])
    opened.evaluate("answer.innerHTML = '<img src=x onerror=\"window.planted = 1\">'")
    opened.evaluate(
        "answer.append(Object.assign(document.createElement('script'), {text: 'planted = 1'}))"
    )
    opened.evaluate("void setTimeout('window.planted = 1')")  # as eval does
    opened.wait_for_timeout(200)
    assert opened.locator("#answer img").count() == 1 and not opened.evaluate("window.planted")
    opened.close()


def post(url, photo, **form):
    data = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
    return httpx.post(f"{url}/predict", files={"image": ("a.jpg", data)}, data=form, timeout=600)


def test_fifty_requests_of_eight_clients_are_those_one_by_one(server, photos):
    asked = [(photos[i % len(photos)], {"age": str(20 + i), "sex": "male"}) for i in range(50)]
    alone = [post(server[0], photo, **form).json() for photo, form in asked]
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(lambda each: post(server[0], each[0], **each[1]).json(), asked))
    for one, other in zip(alone, together, strict=True):
        numbers = [list((each["probabilities"] or {}).values()) for each in (one, other)]
        np.testing.assert_allclose(*numbers, rtol=0, atol=1e-6)
        assert one["advice"] == other["advice"] and one["likely"] == other["likely"]
    assert len({json.dumps(each["probabilities"]) for each in alone}) > 10


def test_the_answer_fits_its_schema(server, photos, trained):
    schema = httpx.get(f"{server[0]}/openapi.json").json()
    form = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert {"image", "age", "sex"} <= set(form["schema"]["properties"])
    told = schema["components"]["schemas"]["Prediction"]
    answer = post(server[0], photos[0]).json()
    assert set(told["required"]) <= set(answer) <= set(told["properties"])
    assert list(answer["probabilities"]) == trained.classes
    assert list(answer)[:3] == ["advice", "refer", "because"] and len(answer["because"]) > 2
    assert answer["details"]["costs"] == asdict(Costs()) and answer["details"]["prior"] is None
    assert answer["not_known"] == ["age", "sex"] and "Not a medical device" in answer["note"]
    about = httpx.get(f"{server[0]}/model").json()
    assert about["metadata"] == ["age", "sex"] and about["classes"] == trained.classes


@pytest.mark.parametrize(
    ("data", "form", "status", "message"),
    [
        (PDF, {}, 415, "not a picture in a supported format"),
        (b"x" * (MOST_BYTES + 1), {}, 413, "at most 20 MB"),
        (b"x" * (MOST_BYTES + 200_000), {}, 413, "at most 20 MB"),
        (None, {"age": "old"}, 422, "age is 'old', which is not an age"),
        (None, {"age": "999"}, 422, "age is '999', which is not an age in years (0 to 120)"),
        (None, {"age": "1e308"}, 422, "which is not an age"),
        (None, {"age": "-40"}, 422, "which is not an age"),
        (
            None,
            {"sex": "robot"},
            422,
            "which the model never saw in training. Type one of: female, male",
        ),
        (None, {"sex": "Herr Frau"}, 422, "sex is 'Herr Frau', which the model never saw"),
        (None, {"height": "180"}, 422, "the model does not take height"),
    ],
)
def test_what_can_not_be_answered_has_its_status(server, photos, data, form, status, message):
    answer = post(server[0], data or photos[0], **form)
    assert answer.status_code == status and message in answer.json()["error"]


GERMAN = [  # why, the picture, the form
    ("no_picture", PDF, {}),
    ("megabytes", b"x" * (MOST_BYTES + 1), {}),
    ("too_large", b"x" * (MOST_BYTES + 200_000), {}),
    ("age", None, {"age": "999"}),
    ("choice", None, {"sex": "robot"}),
    ("column", None, {"height": "180"}),
]


@pytest.mark.parametrize(("key", "data", "form"), GERMAN)
def test_the_page_refuses_in_its_language_and_the_api_in_english(server, photos, key, data, form):
    files = {"image": ("a.jpg", data or Path(photos[0]).read_bytes())}
    sent = {"files": files, "data": form, "headers": {"accept-language": "de"}, "timeout": 600}
    page, api = (httpx.post(f"{server[0]}{path}", **sent) for path in ("/answer", "/predict"))
    assert page.status_code == api.status_code >= 400
    assert is_of(page.json()["error"], read_language("de")["refusal"][key])
    assert not is_of(api.json()["error"], read_language("de")["refusal"][key])


def is_of(text: str, message: str) -> bool:
    """Whether a text is a message, whatever is filled in."""
    parts = map(re.escape, re.split(r"\{\w+\}", message))
    return re.fullmatch(".*".join(parts), text, re.DOTALL) is not None


def test_a_german_page_refuses_other_hosts_and_wrong_tokens_in_german(server):
    german = {"accept-language": "de"}
    for path, of_page in (("/answer", True), ("/predict", False)):
        other = httpx.post(f"{server[0]}{path}", headers=german | {"origin": "http://evil"})
        host = httpx.post(f"{server[0]}{path}", headers=german | {"host": "evil"})
        for answer, key in ((other, "site"), (host, "host")):
            spoken = read_language("de" if of_page else "en")["refusal"][key]
            assert answer.status_code == 403 and answer.json()["error"] == spoken
    empty = httpx.post(f"{server[0]}/answer", headers=german, data={"age": "5"})
    assert empty.json()["error"] == read_language("de")["refusal"]["no_form"]


def test_what_only_the_predictor_refuses_is_said_in_the_language_of_the_page(exported):
    tiny = io.BytesIO()
    Image.new("RGB", (4, 4)).save(tiny, "PNG")
    with speaking("de"), pytest.raises(Refusal, match="Der Grund, auf Englisch: the image can't"):
        Service(exported).answer(tiny.getvalue(), {})


def test_metadata_in_the_address_is_not_ignored_in_silence(server, photos):
    files = {"image": ("a.jpg", Path(photos[0]).read_bytes())}
    answer = httpx.post(f"{server[0]}/predict?sex=Frau", files=files, timeout=60)
    assert answer.status_code == 422
    assert "the address has sex after the question mark" in answer.json()["error"]


def test_an_image_of_too_many_pixels_is_refused_by_its_header():
    large = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(large, "PNG")
    with pytest.raises(TooLarge, match="more than 50 megapixels. Save it smaller"):
        check_limits(large.getvalue())
    with pytest.raises(NoImage, match="not a picture"):
        check_limits(PDF)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_only_the_loopback_address_is_listened_to(server):
    port = int(server[0].rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):  # a page at 0.0.0.0 would answer there
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_a_port_that_is_taken_is_told(server):
    port = int(server[0].rsplit(":", 1)[1])
    with (
        pytest.raises(LesionfastError, match=f"can't listen at 127.0.0.1, port {port}: .*--port"),
        listen("127.0.0.1", port),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_refused_takes_no_memory(server):
    post(server[0], bytes(MOST_BYTES))
    before = peak_memory(server[2].pid)
    for _ in range(3):
        chunks = (PART if i == 0 else bytes(10**6) for i in range(60))
        head = {"content-type": "multipart/form-data; boundary=x"}
        answer = httpx.post(f"{server[0]}/predict", content=chunks, headers=head, timeout=600)
        assert answer.status_code == 413
    assert peak_memory(server[2].pid) - before < 30 * 10**6


def upload_head(url: str, size: int) -> bytes:
    head = f"POST /answer HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n"
    kind = "Content-Type: multipart/form-data; boundary=x\r\n"
    return f"{head}{kind}Content-Length: {size}\r\n\r\n".encode() + PART


def peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_an_exported_model_says_what_is_left_out(exported, photos):
    text = answer_html(Service(exported), Path(photos[0]).read_bytes(), {"sex": "unknown"})
    assert "No similar lesions: an exported model has no training images" in text
    assert "Grad-CAM" in text


def test_a_picture_without_a_decision_shows_no_probability(exported, photos):
    service, data = Service(exported), Path(photos[0]).read_bytes()
    service.predictor.bundle = service.bundle = replace(
        service.bundle, ood=replace(service.bundle.ood, threshold=-99.0)
    )
    answer = to_prediction(service, service.row(data, {}))
    assert answer.probabilities is None and answer.details.uncalibrated is None
    assert answer.likely is None and answer.refer and answer.details.outlier
    html = answer_html(service, data, {})
    assert "lf-bars" not in html and "lf-limits" not in html  # there is no answer to rely on


def test_an_answer_says_when_not_to_rely_on_it(trained, exported, photos, tmp_path):
    """Of an export as of the run; not how often, where that was not measured."""
    for source in (trained, exported):
        service, data = Service(source), Path(photos[0]).read_bytes()
        answer = to_prediction(service, service.row(data, {}))
        assert service.limits == find_limits(trained) and service.limits.answers
        assert "only these 7 kinds" in " ".join(answer.limits)
        assert html_of(answer.limits[-1]) in answer_html(service, data, {})
        assert Service(source, cost="missed_melanoma=99").limits.answers == {}
    old = replace(service.bundle, limits=None)
    service = Service(exported)
    service.bundle = service.predictor.bundle = old
    [classes] = to_prediction(service, service.row(data, {})).limits
    assert classes.startswith("The model knows only these 7 kinds")


def test_no_count_of_the_test_is_told_of_another_answer(trained, exported, photos):
    service, data = Service(exported), Path(photos[0]).read_bytes()
    row = service.row(data, {"age": "55", "sex": "female"}) | {"key": "benign"}
    counted = list_misses(service.limits, service.bundle.classes, "benign")
    told = list_row_limits(service.limits, service.bundle, row)
    assert counted and told[: len(counted)] == counted
    for missing in (("age",), ("age", "sex")):
        found = list_row_limits(service.limits, service.bundle, row | {"not_known": missing})
        assert not set(counted) & set(found)
    own = Predictor(exported)
    assert own.bundle.limits.answers and Predictor(exported, views=own.views).bundle.limits.answers
    assert Predictor(exported, views=own.views + 1).bundle.limits.answers == {}


def test_the_limits_of_a_run_are_measured_before_the_first_request(trained, monkeypatch):
    built = []

    def build(service, *_):
        built.append("limits" in vars(service))

    monkeypatch.setattr(app, "serve_page", lambda build, *_: build())
    monkeypatch.setattr(app, "build_app", build)
    app.serve(trained.path)
    assert built == [True]


def test_a_log_that_can_not_be_written_is_told_without_its_path(exported, photos, tmp_path, caplog):
    log = tmp_path / "secret" / "log.jsonl"
    service = Service(exported, log=log)
    log.unlink()
    log.mkdir()
    data = Path(photos[0]).read_bytes()
    client = TestClient(build_app(service), base_url="http://localhost")
    for path, language, words in (
        ("/predict", "de", "the log of predictions can't be written, so nothing was predicted"),
        ("/answer", "de", "Das Protokoll der Vorhersagen lässt sich nicht schreiben"),
    ):
        caplog.clear()
        found = client.post(path, files={"image": data}, headers={"Accept-Language": language})
        assert found.status_code == 500 and found.json()["error"].startswith(words)
        assert "secret" not in found.text and str(log) in caplog.text


def html_of(text: str) -> str:
    return str(Markup.escape(text))


def test_a_class_name_of_several_words_stays_whole(wordy, photos):
    service = Service(wordy)
    data = Path(photos[0]).read_bytes()
    answer = to_prediction(service, service.row(data, {}))
    assert {"basal cell, carcinoma", "<b>bkl"} <= set(answer.prediction_set)
    assert set(answer.prediction_set) <= set(service.bundle.classes)
    assert answer.not_known == ["age", "sex at birth"]
    html = answer_html(service, data, {})
    assert "basal cell, carcinoma" in html and "<b>" not in html
    assert "Predicted without age, sex at birth." in html


def test_a_model_of_old_says_what_missing_metadata_does(
    exported, photos, tmp_path, change_description
):
    folder = Path(shutil.copytree(exported, tmp_path / "old"))
    change_description(folder, lambda told: told["model"].pop("metadata_dropout"))
    service, data = Service(folder), Path(photos[0]).read_bytes()
    words = "he model was trained without --metadata-dropout, so a missing age or sex may favour"
    assert words in to_prediction(service, service.row(data, {})).caution
    plain = "where some is missing (age, sex), it may favour one class"
    assert plain in answer_html(service, data, {})
    assert plain not in answer_html(service, data, {"age": "50", "sex": "male"})


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "python_multipart"])
def test_without_its_packages_it_says_what_to_type(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for name in [name for name in sys.modules if name.startswith("lesionfast.serving.web")]:
        monkeypatch.delitem(sys.modules, name)  # as in a process that has not imported them yet
    with pytest.raises(LesionfastError, match=r"needs .*pip install 'lesionfast\[app\]'"):
        import_module("lesionfast.serving.web.app")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_page_leaves_no_upload_on_the_disk(server):
    """The last test: it ends the page that the others share."""
    url, folder, process = server
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as client:
        client.sendall(upload_head(url, 19_000_000) + bytes(15_000_000))
        post(url, PDF)  # by then most of what was sent has been read
        files = []
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed meanwhile
                files.append(os.readlink(descriptor))
        assert files
        assert not [each for each in files if each.startswith(f"{folder}/") or "deleted" in each]
        process.kill()
        process.join(120)
    assert files_in(folder) == []
