"""Both pages under load: guessed tokens, strange requests, and answers that must not be lost."""

import json
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from PIL import Image
from starlette.responses import PlainTextResponse

from lesionfast.data.corrections.answers import read_answers
from lesionfast.serving.labelling.page import MOST_BYTES, build_label_app
from lesionfast.serving.labelling.queue import Item, Queue
from lesionfast.serving.web import guard as door
from lesionfast.serving.web import server as web
from lesionfast.serving.web import uploads
from lesionfast.serving.web.api import Service
from lesionfast.serving.web.app import build_app
from lesionfast.serving.web.guard import Guard, name_client

TOKEN = "correct-horse-battery"
WRONG = {"Authorization": "Bearer melanoma2026"}
RIGHT = {"Authorization": f"Bearer {TOKEN}"}
JSON = {"Content_Type": "application/json"}
ASK = b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def items(trained, photos) -> list[Item]:
    """Images to label, as a list of them has them."""
    return [Item(Path(path).stem, path, "", "", {}) for path in photos]


@pytest.fixture
def queue(trained, items, tmp_path) -> Queue:
    return Queue(trained, items, tmp_path / "corrections.csv")


@pytest.fixture(scope="module")
def service(exported) -> Service:
    return Service(exported)


@pytest.fixture
def page(service, running, caplog):
    """The port of the page that predicts, likewise; what clients send is not logged either."""
    with running(build_app(service)) as port:
        yield port
        assert port.ask("GET", "/")[0] == 200
    assert not [record for record in caplog.records if record.name.startswith(("uvicorn", "async"))]


@pytest.fixture
def locked(service, running):
    """The port of a page with a token."""
    with running(build_app(service, token=TOKEN)) as port:
        yield port


def say(port, path: str = "/answer", **asked: str) -> tuple[int, str]:
    """Send what the page of labels would; return status and text."""
    status, _, answer = port.ask("POST", path, json.dumps(asked).encode(), **JSON)
    return status, answer.decode()


def test_a_client_that_guesses_has_to_wait(locked, monkeypatch, caplog):
    monkeypatch.setattr(door, "SECONDS_A_TOKEN", 1000.0)
    cookie = locked.ask("POST", "/login", **RIGHT)[1]["set-cookie"].partition(";")[0]
    for number in range(door.WRONG_TOKENS):
        assert locked.ask("GET", "/model", **bearer(f"guess {number}"))[0] == 401
    for path in ("/model", "/", "/login", "/no"):
        for given in (WRONG, RIGHT):  # else the answer would tell which is right
            status, headers, body = locked.ask("POST", path, **given)
            assert (status, headers["retry-after"]) == (429, "1000")
            assert "wrong tokens came from your address" in json.loads(body)["error"]
            assert b"melanoma2026" not in body and TOKEN.encode() not in body
    assert locked.ask("GET", "/model", Cookie=cookie)[0] == 200  # who is in stays in
    assert locked.ask("GET", "/model", Cookie=cookie, **WRONG)[0] == 200
    assert locked.ask("GET", "/")[0] == 401  # and the page that asks for it is shown
    assert TOKEN not in caplog.text and "melanoma2026" not in caplog.text


def test_who_mistypes_waits_for_a_moment_only(locked, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(door.time, "monotonic", lambda: now)
    for number in range(door.WRONG_TOKENS - 1):
        assert locked.ask("POST", "/login", **bearer(f"guess {number}"))[0] == 401
    assert locked.ask("POST", "/login", **RIGHT)[0] == 204
    assert locked.ask("POST", "/login", **WRONG)[0] == 401
    assert locked.ask("POST", "/login", **RIGHT)[0] == 429
    now += door.SECONDS_A_TOKEN
    assert locked.ask("POST", "/login", **RIGHT)[0] == 204


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def ask_guard(guard: Guard, client: str, token: str) -> bool:
    """Return whether a guard lets a client with a token in."""
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())]
    scope = {"type": "http", "path": "/model", "method": "GET", "headers": headers}
    asked = guard.choose_response(scope | {"client": (client, 1), "server": ("", 7860)})
    return asked is guard.app


def test_one_client_keeps_no_other_out(monkeypatch):
    guard = Guard(PlainTextResponse("in"), "127.0.0.1", TOKEN)
    for number in range(100):
        assert not ask_guard(guard, "192.0.2.1", f"guess {number}")
        assert not ask_guard(guard, f"2001:db8::{number}", f"guess {number}")  # one network
    for client in ("192.0.2.1", "2001:db8::ffff"):
        assert not ask_guard(guard, client, TOKEN)
    for client in ("192.0.2.2", "2001:db8:0:1::1", "127.0.0.1", "::1", "fe80::1%eth0", "unix"):
        assert ask_guard(guard, client, TOKEN)
    assert name_client({"client": ("::ffff:192.0.2.1", 1)}) == "192.0.2.1"
    assert name_client({"client": None}) == name_client({}) == ""
    monkeypatch.setattr(door, "MOST_CLIENTS", 5)
    for number in range(50):
        ask_guard(guard, f"198.51.100.{number}", "guess")
    assert len(guard.guesses._clear) == 5 and not ask_guard(guard, "192.0.2.1", TOKEN)


def test_programs_with_old_tokens_behind_a_proxy_keep_none_of_its_clients_out():
    guard = Guard(PlainTextResponse("in"), "127.0.0.1", TOKEN)
    for number in range(1000):
        for program in range(3):
            assert not ask_guard(guard, "192.0.2.1", f"old {program}")
        if number % 200 == 0:  # others mistype, which does not make the old ones new
            assert not ask_guard(guard, "192.0.2.1", f"typed {number}")
        assert ask_guard(guard, "192.0.2.1", TOKEN)
    assert guard.guesses._clear["192.0.2.1"] < time.monotonic() + 8 * door.SECONDS_A_TOKEN


def test_who_repeats_some_guesses_waits_like_any_other():
    guard = Guard(PlainTextResponse("in"), "127.0.0.1", TOKEN)
    for number in range(door.WRONG_TOKENS):
        for _ in range(3):
            assert not ask_guard(guard, "192.0.2.1", f"guess {number}")
    assert not ask_guard(guard, "192.0.2.1", TOKEN)


def test_what_is_remembered_of_wrong_tokens_is_bounded(monkeypatch):
    monkeypatch.setattr(door, "MOST_CLIENTS", 5)
    monkeypatch.setattr(door, "WRONG_TOKENS", 10**6)
    guard = Guard(PlainTextResponse("in"), "127.0.0.1", TOKEN)
    for client in range(10):
        for number in range(50):
            ask_guard(guard, f"198.51.100.{client}", f"guess {number}")
    last = guard.guesses._last
    assert last.keys() == guard.guesses._clear.keys() and len(last) == 5
    assert max(map(len, last.values())) == door.REMEMBERED


def test_requests_without_a_token_are_no_guesses(locked):
    """A browser that has not logged in yet, one with an old cookie, or a proxy's own password."""
    for _ in range(2 * door.WRONG_TOKENS):
        assert locked.ask("GET", "/")[0] == 401
        assert locked.ask("GET", "/", Cookie=f"lesionfast-{locked}={'a' * 43}")[0] == 401
        assert locked.ask("GET", "/", Authorization="Basic YTpi")[0] == 401
        assert locked.ask("GET", "/", Authorization="Bearer ")[0] == 401
    assert locked.ask("POST", "/login", **RIGHT)[0] == 204


def test_a_token_in_the_address_is_not_read(locked, caplog):
    """It would stay in histories, and in the logs of proxies."""
    for query in (f"?token={TOKEN}", f"?access_token={TOKEN}", f"#{TOKEN}", f"?{TOKEN}"):
        for path in ("/", "/model"):
            status, headers, body = locked.ask("GET", f"{path}{query}")
            assert status in (400, 401) and TOKEN.encode() not in body
            assert TOKEN not in str(headers)
    answers = [locked.ask("GET", path, **RIGHT) for path in ("/", "/model", "/openapi.json")]
    assert not [body for _, _, body in answers if TOKEN.encode() in body]
    assert TOKEN not in caplog.text


def test_a_waiting_browser_is_told_how_long(browser, locked, monkeypatch):
    monkeypatch.setattr(door, "SECONDS_A_TOKEN", 1000.0)
    opened = browser.new_context(locale="de-DE").new_page()
    opened.goto(f"http://127.0.0.1:{locked}")
    for number in range(door.WRONG_TOKENS):
        locked.ask("POST", "/login", **bearer(f"guess {number}"))
    opened.get_by_label("Token").fill("melanoma2026")
    opened.get_by_role("button").click()
    opened.get_by_text("Versuchen Sie es in 1000 s noch einmal").wait_for()
    assert "melanoma2026" not in opened.url and opened.evaluate("history.length") <= 2
    opened.context.close()


BROKEN = (
    *(
        b"zz\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"-5\r\n",
        b"5" * 100 + b"\r\n",
        b"\0\r\n",
    ),
)


@pytest.mark.parametrize("rest", BROKEN)
def test_what_is_broken_after_the_answer_ends_the_connection(page, labels, rest):
    """The answer to too long a request goes out before its end."""
    begin = ASK + b"Transfer-Encoding: chunked\r\n\r\n"
    for port, size in ((labels, MOST_BYTES + 1), (page, 10)):
        with port.connect(30) as client:
            client.sendall(begin + b"%x\r\n%s\r\n" % (size, bytes(size)))
            answer = client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 422 ")
            with suppress(ConnectionError):
                client.sendall(rest + rest)
                while part := client.recv(65536):
                    answer += part
        assert answer.count(b"HTTP/1.1 422 ") == 1 and b"HTTP/1.1 200 " not in answer


UPGRADES = (*(b"h2c", b"websocket", b"HTTP/2.0", b"TLS/1.0", b"h2c, websocket", b"a" * 9000),)


@pytest.mark.parametrize("protocol", UPGRADES)
def test_no_other_protocol_is_spoken(page, protocol):
    settings = (
        b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    )
    start = b"GET /model HTTP/1.1\r\nHost: localhost\r\n" + settings
    answer = page.talk(start + b"Upgrade: " + protocol + b"\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and b"split_sha256" in answer
    answer = page.talk(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100))
    assert not answer or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 "))


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PATCH", "LOCK"])
def test_other_methods_change_nothing_and_give_nothing_back(page, labels, queue, method):
    for port in (page, labels):
        for path in ("/", "/answer", "/undo", "/predict", "/metrics", "/docs", "/redoc", "/health"):
            status, headers, body = port.ask(method, path, b"secret", X_Echo="secret", **JSON)
            assert status in (404, 405) or (method, path, status) == ("HEAD", "/", 200)
            assert b"secret" not in body and "secret" not in str(headers)
    assert not queue.file.exists()


@pytest.mark.parametrize(
    "ranges",
    ["bytes=0-1", "bytes=" + ",".join(f"{n}-" for n in range(2000)), "bytes=0-" + ",0-" * 3000],
)
def test_a_range_is_not_cut_out(page, ranges):
    status, headers, body = page.ask("GET", "/app.js", Range=ranges, If_Range="x")
    assert status == 200 and "content-range" not in headers and len(body) > 1000


LONG = (
    *(("Accept-Language", "de;q=" * 2000), ("Accept-Language", ",".join(["de;q=0.1"] * 1500))),
    *(("Cookie", "a=b; " * 2500), ("Cookie", ";" * 12_000), ("Cookie", '"' * 12_000)),
    *(("Accept", "*/*," * 3000), ("Authorization", "Bearer " * 1500), ("Origin", "a" * 12_000)),
    *(("Content-Type", "multipart/form-data; boundary=" + "x" * 12_000),),
    *(("Content-Type", "multipart/form-data" + "; a=b" * 2000), ("Host", "a." * 6000)),
)


@pytest.mark.parametrize(("name", "value"), LONG, ids=range(len(LONG)))
def test_a_long_head_is_read_at_once(page, name, value):
    own = "" if name == "Host" else "Host: localhost\r\n"
    head = f"POST /answer HTTP/1.1\r\n{own}{name}: {value}\r\nConnection: close\r\n"
    head += "Content-Length: 2\r\n\r\n--"
    before = time.process_time()
    assert page.talk(head.encode()).startswith((b"HTTP/1.1 422 ", b"HTTP/1.1 403 "))
    assert time.process_time() - before < 5
    answer = page.talk(head.replace(value, value * 100).encode())
    assert not answer or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))


def part(head: str, data: bytes = b"1") -> bytes:
    return f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"


FILE = 'name="image"; filename="a.jpg"'
INNER = b"--x\r\nContent-Disposition: attachment; filename=a\r\n\r\n1\r\n--x--\r\n"
FORMS = {
    "no end": part(FILE),
    "no end of a head": b"--x\r\nContent-Disposition: form-data; " + FILE.encode(),
    "another end": part(FILE) + b"--y--\r\n",
    "after the end": b"--x--\r\n" + part(FILE),
    "nested": part(FILE + "\r\nContent-Type: multipart/mixed; boundary=x", INNER) + b"--x--\r\n",
    "only line ends": b"\r\n" * 10_000,
    "only dashes": b"-" * 100_000,
    "ten thousand parts": part('name="age"') * 10_000 + b"--x--\r\n",
    "a head of 1 MB": part(FILE + "\r\nX: " + "a" * 10**6) + b"--x--\r\n",
    "two dispositions": part(FILE + '\r\nContent-Disposition: form-data; name="age"')
    + b"--x--\r\n",
    "a charset": part('name="_charset_"', b"utf-7") + part(FILE) + b"--x--\r\n",
    "an encoded name": part("name*=utf-8''image; filename=a") + b"--x--\r\n",
    "a name in parts": part('name*0="im"; name*1="age"; filename=a') + b"--x--\r\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_a_strange_form_is_refused(page, name, memory):
    kind = {"Content_Type": "multipart/form-data; boundary=x"}
    with memory(100 * 10**6):
        for path in ("/predict", "/answer"):
            status, _, body = page.ask("POST", path, FORMS[name], **kind)
            assert status in (415, 422) and len(body) < 1000 and json.loads(body)["error"]


NAMES = (
    *("filename*=utf-8''%2e%2e%2fpasswd", "filename=\"=?utf-8?Q?a?=\"; filename*=x''%zz"),
    *('filename="a"; filename="b"', "filename=''", 'filename="\\"a"', "filename*0=a; filename*1=b"),
)


@pytest.mark.parametrize("name", NAMES)
def test_however_a_file_is_named_it_is_only_read(page, photos, name):
    """Nor is what it says of an encoding believed: the bytes are the picture."""
    kind = {"Content_Type": "multipart/form-data; boundary=x"}
    extra = "\r\nContent-Transfer-Encoding: quoted-printable\r\nContent-Encoding: gzip"
    body = part(f'name="image"; {name}{extra}', Path(photos[0]).read_bytes()) + b"--x--\r\n"
    status, _, answer = page.ask("POST", "/predict", body, **kind)
    assert b"passwd" not in answer and (status == 200 or json.loads(answer)["error"])


def test_a_connection_serves_very_many_requests(page):
    """Those that come together are answered in their order."""
    one = b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n"
    two = one.replace(b"/model", b"/no")
    with page.connect(60) as client:
        for _ in range(10):
            client.sendall((one + two) * 10)
            answer = b""
            while answer.count(b'{"detail"') < 10:
                answer += client.recv(65536)
            assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"404"] * 10


def test_a_client_that_waits_is_asked_for_the_rest_only_if_it_may_come(page, labels):
    for port in (page, labels):
        head = ASK + b"Content-Length: 20\r\nExpect: 100-continue\r\n\r\n"
        with port.connect(30) as client:
            client.sendall(head.replace(b"localhost", b"evil.example"))
            assert client.recv(65536).startswith(b"HTTP/1.1 403 ")
    with labels.connect(30) as client:
        client.sendall(head)
        assert client.recv(65536).startswith(b"HTTP/1.1 100 ")


def test_more_questions_than_can_wait_are_refused_at_once(labels, queue, items, monkeypatch):
    """Those too whose clients have gone: else they would keep a person waiting for minutes."""
    monkeypatch.setattr(uploads, "MOST_WAITING", 2)
    body = json.dumps({"image": items[0].image, "answer": "unclear"}).encode()
    asked = ASK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with queue._lock:
        for _ in range(2):
            with labels.connect() as client:
                client.sendall(asked)
        end = time.monotonic() + 30
        while (found := labels.ask("POST", "/answer", body, **JSON))[0] != 503:
            assert time.monotonic() < end
        _, headers, text = found
        assert "retry-after" in headers and "Try again" in json.loads(text)["error"]
        assert labels.ask("GET", "/")[0] == 200
    assert wait_for(lambda: say(labels, image=items[1].image, answer="unclear")[0] == 200)
    assert len(read_answers(queue.file).log) in (2, 3)


def test_what_the_end_of_a_page_cuts_off_is_no_traceback(
    service, running, photos, monkeypatch, caplog
):
    monkeypatch.setattr(web, "SHUTDOWN", 0.2)
    monkeypatch.setattr(Service, "row", lambda *given: time.sleep(1))
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    whole = part(FILE) + b"--x--\r\n"
    with running(build_app(service)) as port:
        opened = [port.connect() for _ in range(4)]
        for client in opened[:2]:
            client.sendall(head % 10**6 + whole)
        for client in opened[2:]:
            client.sendall(head % len(whole) + whole)
        assert port.ask("GET", "/")[0] == 200
    for client in opened:
        client.close()
    assert not [record for record in caplog.records if record.exc_info]


def test_a_page_that_ends_makes_no_more_pictures(queue, items, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(queue, "_make", lambda item: go_on.wait(60))
    waiting = [queue._draw(item) for item in items[:5]]
    assert wait_for(waiting[0].running)
    queue.close()
    go_on.set()
    assert waiting[0].result() and all(picture.cancelled() for picture in waiting[1:])


def wait_for(work) -> bool:
    """Try again for a minute."""
    end = time.monotonic() + 60
    while not (done := work()) and time.monotonic() < end:
        time.sleep(0.05)
    return done


def test_answers_to_a_full_disk_are_refused_and_none_is_lost(trained, items, running, small_disk):
    queue = Queue(trained, items, small_disk / "corrections.csv")
    with running(build_label_app(queue)) as port:
        kept = [item.image for item in items[:3]]
        assert all(say(port, image=image, answer="unclear")[0] == 200 for image in kept)
        before = queue.file.read_bytes()
        with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        why = "ä" * 200  # more than is left of the last block of the file
        statuses = [say(port, image=items[9].image, answer="unclear", why=why) for _ in range(9)]
        assert [status for status, _ in statuses][-1] == 422
        problem = json.loads(statuses[-1][1])["error"]
        assert "the disk is full" in problem and "Free some space" in problem
        said = [status for status, _ in statuses].count(200)
        assert queue.file.read_bytes().startswith(before)
        assert len(read_answers(queue.file).log) == 3 + said
        (small_disk / "filler").unlink()
        assert say(port, image=items[10].image, answer="unclear")[0] == 200
    assert [one.image for one in read_answers(queue.file).log][-1] == items[10].image
    assert read_answers(queue.file).log == queue.answers.log


def spoil(path: Path, how: str) -> None:
    """Put something else in the place of a picture."""
    path.unlink()
    if how == "a pipe":
        os.mkfifo(path)
    elif how == "a folder":
        path.mkdir()
    elif how == "a huge picture":
        Image.new("1", (20_000, 20_000)).save(path, "PNG")
    elif how == "endless":
        path.symlink_to("/dev/zero")
    elif how == "a large file":
        with path.open("wb") as file:
            file.truncate(10 * 2**30)  # of holes
    elif how == "text":
        path.write_text("TOP SECRET")


@pytest.mark.parametrize(
    "how", ["gone", "a pipe", "a folder", "a huge picture", "endless", "a large file", "text"]
)
def test_a_picture_that_is_replaced_keeps_nobody_from_the_next(
    trained, photos, tmp_path, running, how, memory, caplog
):
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path, photo in zip(paths, photos, strict=False):
        path.write_bytes(Path(photo).read_bytes())
    listed = [Item(path.stem, str(path), "", "nv", {}) for path in paths]
    queue = Queue(trained, listed, tmp_path / "corrections.csv")
    with running(build_label_app(queue)) as port:
        assert "Image 0" in say(port, "/item")[1]
        queue._drawn.clear()
        spoil(paths[1], how)
        with memory(300 * 10**6):
            status, text = say(port, image="0", answer="is nv")
        assert status == 200 and "Answer unclear to leave the image out." in text
        assert "SECRET" not in text
        assert "Image 2" in say(port, image="1", answer="unclear")[1]
    assert not [record for record in caplog.records if record.exc_info]


@pytest.fixture(scope="module")
def labelling(trained, items, tmp_path_factory, start_server):
    """`lesionfast labels RUN --page` in a process of its own, which has answered once."""
    folder = tmp_path_factory.mktemp("labelling")
    with start_labels(start_server, trained, items, folder) as started:
        yield started


@contextmanager
def start_labels(start_server, run, items, folder: Path):
    """The page of labels with a list in a folder; it has shown its first image."""
    lines = ["image,path", *(f"{item.image},{item.path}" for item in items)]
    (folder / "next.csv").write_text("\n".join(lines))
    words = ["--page", "--list", str(folder / "next.csv")]
    words += ["--corrections", str(folder / "corrections.csv")]
    started = start_server(run.path, folder / "tmp", *words, command="labels")
    try:
        assert say(started.port, "/item")[0] == 200
        yield started
    finally:
        if started.process.poll() is None:
            started.stop()


@pytest.fixture
def loaded(labelling):
    """That page; after the test it answers within a second, and holds no more than before it."""
    with labelling.unharmed():
        yield labelling


@pytest.mark.attack
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
@pytest.mark.parametrize("size", [21 * 10**6, 2 * 10**9])
@pytest.mark.parametrize("path", ["/answer", "/", "/no"])
def test_a_large_answer_is_refused_before_it_is_kept(loaded, path, size, chunked):
    memory = loaded.read_status("VmRSS")
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    block = b'"' + bytes(10**5)
    frame = b"%x\r\n%s\r\n" % (len(block), block) if chunked else block
    with loaded.port.connect(60) as client:
        client.sendall(ASK.replace(b"/answer", path.encode()) + length + b"\r\n\r\n" + frame)
        assert client.recv(65536).startswith((b"HTTP/1.1 422 ", b"HTTP/1.1 40"))
        with suppress(OSError):  # it may go on: what comes is thrown away
            for _ in range(min(300, size // len(block))):
                client.sendall(frame)
    assert loaded.find_files() == []
    assert loaded.read_status("VmHWM") - memory < 50 * 10**6


@pytest.mark.attack
def test_two_hundred_answers_at_once(loaded, items):
    images = [items[number % len(items)].image for number in range(200)]
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda image: say(loaded.port, "/later", image=image)[0], images))
    assert {200} <= set(found) <= {200, 503}


@pytest.mark.attack
def test_answers_of_clients_that_have_gone_keep_nobody_waiting(loaded, items):
    body = json.dumps({"image": items[0].image}).encode()
    asked = ASK.replace(b"answer", b"later") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for _ in range(3000):
        with loaded.port.connect(60) as client:
            client.sendall(asked)
    start = time.monotonic()
    assert wait_for(lambda: say(loaded.port, "/item")[0] == 200)
    print(f"an image came after {time.monotonic() - start:.1f} s")
    assert time.monotonic() - start < 30  # 16 pictures at most are before it


@pytest.mark.attack
@pytest.mark.parametrize("number", [50, 3000])
@pytest.mark.parametrize(
    "start", [b"", ASK, ASK + b"Content-Length: 9000\r\n\r\n{", ASK + b"X: y"], ids=range(4)
)
def test_slow_browsers_keep_nobody_waiting(loaded, start, number):
    opened = []
    for _ in range(number):
        with suppress(OSError):
            opened.append(loaded.port.connect(60))
            opened[-1].sendall(start)
    assert wait_for(lambda: loaded.descriptors < web.MOST_CONNECTIONS + web.BACKLOG + 50)
    assert wait_for(lambda: try_seconds(loaded) < 1)
    for client in opened:
        client.close()


def try_seconds(server) -> float:
    """Return how long a page takes to answer; for ever if it closes the connection."""
    try:
        return server.seconds()
    except (OSError, HTTPException):
        return float("inf")


@pytest.mark.attack
def test_browsers_that_do_not_read_what_they_asked_for(loaded):
    asked = ASK.replace(b"answer", b"item") + b"Content-Length: 2\r\n\r\n{}"
    opened = [loaded.port.connect(5) for _ in range(50)]
    for client in opened:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        with suppress(OSError):
            client.sendall(asked * 20)
    assert loaded.seconds() < 1
    for client in opened:
        client.close()


BODIES = {
    "tiny chunks": b"1\r\n \r\n" * 9000,
    "deep": b"%x\r\n%s\r\n0\r\n\r\n" % (9000, b"[" * 9000),
    "many keys": b"%x\r\n%s\r\n0\r\n\r\n" % (9000, (b'"a":1,' * 1500)[:9000]),
    "a long number": b"%x\r\n%s\r\n0\r\n\r\n" % (9000, b"9" * 9000),
    "a form": b"%x\r\n%s\r\n0\r\n\r\n" % (9000, (b"image=a&" * 1500)[:9000]),
}


@pytest.mark.attack
@pytest.mark.parametrize("name", BODIES)
def test_floods_of_small_bodies(loaded, name):
    def flood(_) -> None:
        for _ in range(3):
            with suppress(OSError), loaded.port.connect(10) as client:
                client.sendall(ASK + b"Transfer-Encoding: chunked\r\n\r\n" + BODIES[name])
                client.recv(100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(flood, range(8)))


@pytest.mark.attack
def test_a_page_that_is_killed_while_it_writes_loses_no_answer(
    trained, items, tmp_path, start_server
):
    said: set[str] = set()
    for kill in range(4):
        with start_labels(start_server, trained, items, tmp_path) as started:
            answered = read_why(tmp_path)
            assert len(answered) == len(set(answered)) and said <= set(answered)

            def answer(tab: int, port=started.port, kill=kill) -> None:
                for number in range(10_000):
                    why = f"{kill}-{tab}-{number}"
                    image = items[(number + tab) % len(items)].image
                    try:
                        status = say(port, image=image, answer="unclear", why=why)[0]
                    except (OSError, HTTPException):
                        return
                    if status == 200:
                        said.add(why)

            tabs = [threading.Thread(target=answer, args=(tab,)) for tab in range(4)]
            for tab in tabs:
                tab.start()
            time.sleep(2 + kill / 7)
            started.stop(signal.SIGKILL)
            for tab in tabs:
                tab.join()
    answered = read_why(tmp_path)
    assert len(answered) == len(set(answered)) and said <= set(answered) and said
    with start_labels(start_server, trained, items, tmp_path):
        assert (tmp_path / ".lesionfast-lock-corrections.csv").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"next.csv", "corrections.csv", "tmp"}


def read_why(folder: Path) -> list[str]:
    """Return why each answer of a file was given."""
    file = folder / "corrections.csv"
    return [one.why for one in read_answers(file).log] if file.exists() else []


@pytest.mark.attack
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_page_that_is_stopped_under_load_ends_and_leaves_nothing(
    exported, photos, tmp_path, start_server, number
):
    """The tab of a clinic's shared machine is closed while fifty uploads run."""
    started = start_server(exported, tmp_path / "tmp")
    photo = Path(photos[0]).read_bytes()
    assert started.post(photo)[0] == 200
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 19000000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    opened = [started.port.connect(60) for _ in range(50)]
    for client in opened:
        client.sendall(head + part(FILE, bytes(100_000)))
    threads = [threading.Thread(target=try_post, args=(started, photo)) for _ in range(20)]
    for thread in threads:
        thread.start()
    started.stop(number)
    for thread in threads:
        thread.join()
    for client in opened:
        client.close()
    assert started.process.returncode == 0 and list((tmp_path / "tmp").rglob("*")) == []


@pytest.mark.attack
def test_a_page_of_labels_that_is_stopped_under_load_ends_and_leaves_nothing(
    trained, items, tmp_path, start_server
):
    with start_labels(start_server, trained, items, tmp_path) as started:
        opened = [started.port.connect(60) for _ in range(50)]
        for client, item in zip(opened, items, strict=False):
            body = json.dumps({"image": item.image, "answer": "unclear"}).encode()
            client.sendall(ASK + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.5)
        started.stop()
        for client in opened:
            client.close()
    assert started.process.returncode == 0 and read_why(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"next.csv", "corrections.csv", "tmp"}
    assert list((tmp_path / "tmp").rglob("*")) == []


def try_post(server, photo: bytes) -> None:
    with suppress(OSError, HTTPException):
        server.post(photo)
