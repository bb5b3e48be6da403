"""The page in a browser and the API beside it, of one server, with the network watched."""

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from lesionfast.errors import LesionfastError
from lesionfast.serving.app import answer_of, require_gradio
from lesionfast.serving.service import MOST_BYTES, NoImage, Service, TooLarge, check_limits

WIDE, PHONE = {"width": 1280, "height": 1000}, {"width": 375, "height": 800}
PDF = b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"


def start(model, folder: Path):
    """Start the command; return it and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lesionfast.cli", "app", str(model), "--port", str(port)]
    log = (folder / "app.log").open("w")
    environment = os.environ | {"TMPDIR": str(folder)}
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    url = f"http://127.0.0.1:{port}"
    for _ in range(2400):  # a loaded machine takes long to import it all
        try:
            urllib.request.urlopen(f"{url}/model", timeout=1)
            return server, url
        except OSError:
            assert server.poll() is None, (folder / "app.log").read_text()
            time.sleep(0.1)
    server.kill()
    raise AssertionError((folder / "app.log").read_text())


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """The address of a page, and the folder that its temporary files are in."""
    folder = tmp_path_factory.mktemp("app")
    process, url = start(trained.path, folder)
    yield url, folder
    process.terminate()
    process.wait(20)
    assert not list(folder.glob("lesionfast-*"))


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, or a skip that says how to have it."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        system = Path("/usr/bin/chromium")
        path = {"executable_path": str(system)} if system.is_file() else {}
        try:
            opened = playwright.chromium.launch(args=["--no-sandbox"], **path)
        except Error:
            pytest.skip("no Chromium here; type: playwright install chromium")
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server):
    """An open page; at the end nothing went outside and nothing was complained about."""
    opened, bad = browser.new_page(viewport=WIDE), []
    opened.on("request", lambda r: inside(r.url) or bad.append(r.url))
    opened.on("console", lambda m: m.type == "error" and bad.append(m.text))
    opened.on("pageerror", lambda error: bad.append(str(error)))
    opened.goto(server[0])
    opened.get_by_role("button", name="Predict").wait_for()
    yield opened
    opened.close()
    assert bad == []


def inside(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def choose(page, photo, name="photo.jpg"):
    data = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
    file = {"name": name, "mimeType": "image/jpeg", "buffer": data}
    page.set_input_files("input[type=file]", file)
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.wait_for()


def bytes_kept(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("lesionfast-*/**/*") if path.is_file())


def test_an_image_gets_its_answer_and_is_not_kept(page, server, photos, trained):
    choose(page, photos[0])
    page.get_by_label("age").fill("55")
    page.get_by_role("button", name="Predict").click()
    page.locator(".lf-decision").wait_for(timeout=60_000)
    text = page.locator(".lf-answer").inner_text()
    for words in ("Decision: ", "By the rule balanced", "mel (melanoma)", "calibrated on valid"):
        assert words in text
    for words in ("With a coverage of 90% in each class", "Predicted without: sex", "medical dev"):
        assert words in text
    assert page.locator(".lf-bars tr").count() == len(trained.classes)
    loaded = "images => images.every(each => each.naturalWidth > 0)"
    pictures = page.locator(".lf-pictures img")
    assert pictures.count() == 6 and pictures.evaluate_all(loaded)
    assert "Grad-CAM" in text and text.count("similar in training") == 4
    assert bytes_kept(server[1]) == 0


def test_a_document_named_jpg_is_refused(page, server):
    choose(page, PDF, "report.jpg")
    page.get_by_role("button", name="Predict").click()
    page.locator(".lf-error").wait_for(timeout=30_000)
    assert "This is no picture in a format that is read" in page.locator(".lf-error").inner_text()
    assert page.locator(".lf-decision").count() == 0 and bytes_kept(server[1]) == 0


def test_what_is_wrong_is_said(page, photos):
    page.get_by_role("button", name="Predict").click()
    page.locator(".lf-error").wait_for()
    assert "Choose an image first" in page.locator(".lf-error").inner_text()
    choose(page, photos[0])
    page.get_by_label("age").fill("old")
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("age is 'old', which is not an age").wait_for()


def test_it_looks_unlike_a_lesion(page):
    black = io.BytesIO()
    Image.new("RGB", (200, 150), (0, 255, 0)).save(black, "JPEG")
    choose(page, black.getvalue())
    page.get_by_role("button", name="Predict").click()
    page.locator(".lf-decision").wait_for(timeout=60_000)
    assert page.get_by_text("This does not look like a dermoscopic image").count() == 1


def test_by_keyboard_alone(page, photos):
    page.locator("body").press("Tab")
    with page.expect_file_chooser() as chooser:
        for _ in range(6):
            if page.evaluate("document.activeElement.tagName") == "BUTTON":
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    chooser.value.set_files(photos[0])
    page.get_by_label("Clear").or_(page.get_by_label("Remove this file")).first.wait_for()
    page.get_by_label("age").focus()
    page.keyboard.type("70")
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Predict":
            break
    page.keyboard.press("Enter")
    page.locator(".lf-decision").wait_for(timeout=60_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_to_the_side(page, photos, scheme):
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=scheme)
    choose(page, photos[0])
    page.get_by_role("button", name="Predict").click()
    page.locator(".lf-decision").wait_for(timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def post(url, photo, **form):
    data = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
    return httpx.post(f"{url}/predict", files={"image": ("a.jpg", data)}, data=form, timeout=60)


def test_fifty_requests_of_eight_clients_are_those_one_by_one(server, photos):
    asked = [(photos[i % len(photos)], {"age": str(20 + i), "sex": "male"}) for i in range(50)]
    alone = [post(server[0], photo, **form).json() for photo, form in asked]
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(lambda each: post(server[0], each[0], **each[1]).json(), asked))
    for one, other in zip(alone, together, strict=True):
        numbers = [list(each["probabilities"].values()) for each in (one, other)]
        np.testing.assert_allclose(*numbers, rtol=0, atol=1e-6)
        assert one["decision"] == other["decision"]
    assert len({json.dumps(each["probabilities"]) for each in alone}) > 10


def test_the_answer_fits_its_schema(server, photos, trained):
    schema = httpx.get(f"{server[0]}/openapi.json").json()
    form = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert {"image", "age", "sex"} <= set(form["schema"]["properties"])
    told = schema["components"]["schemas"]["Prediction"]
    answer = post(server[0], photos[0]).json()
    assert set(told["required"]) <= set(answer) <= set(told["properties"])
    assert list(answer["probabilities"]) == trained.classes
    assert answer["not_known"] == ["age", "sex"] and "Not a medical device" in answer["note"]
    about = httpx.get(f"{server[0]}/model").json()
    assert about["metadata"] == ["age", "sex"] and about["classes"] == trained.classes


@pytest.mark.parametrize(
    ("data", "form", "status", "message"),
    [
        (PDF, {}, 415, "no picture in a format that is read"),
        (b"x" * (MOST_BYTES + 1), {}, 413, "at most 20 MB"),
        (b"x" * (MOST_BYTES + 200_000), {}, 413, "at most 20 MB"),
        (None, {"age": "old"}, 422, "age is 'old', which is not an age"),
        (None, {"age": "999"}, 422, "age is '999', which is not an age in years (0 to 120)"),
        (None, {"age": "1e308"}, 422, "which is not an age"),
        (None, {"age": "-40"}, 422, "which is not an age"),
        (None, {"sex": "Frau"}, 422, "the model never saw sex 'Frau'. Type one of: female, male"),
        (None, {"height": "180"}, 422, "the model knows nothing of height"),
    ],
)
def test_what_can_not_be_answered_has_its_status(server, photos, data, form, status, message):
    answer = post(server[0], data or photos[0], **form)
    assert answer.status_code == status and message in answer.json()["error"]


def test_an_image_of_too_many_pixels_is_refused_by_its_header():
    large = io.BytesIO()
    Image.new("1", (10_000, 6_000)).save(large, "PNG")
    with pytest.raises(TooLarge, match="more than 50 megapixels. Save it smaller"):
        check_limits(large.getvalue())
    with pytest.raises(NoImage, match="no picture"):
        check_limits(PDF)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_only_the_loopback_address_is_listened_to(server):
    port = int(server[0].rsplit(":", 1)[1])
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):  # a page at 0.0.0.0 would answer there
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_an_exported_model_and_onnx_say_what_is_left_out(exported, photos, tmp_path):
    upload = tmp_path / "upload.jpg"
    upload.write_bytes(Path(photos[0]).read_bytes())
    text = answer_of(Service(exported), str(upload), {"age": "", "sex": "not known"})
    assert "No similar lesions: an exported model has no training images" in text
    assert "Grad-CAM" in text and not upload.exists()


def test_without_gradio_it_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(LesionfastError, match=r"pip install 'lesionfast\[app\]'"):
        require_gradio()
