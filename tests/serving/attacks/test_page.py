"""What a foreign web page, or a client that means harm, tries with the local page; by raw bytes."""

import hmac
import json
import re
import select
import socket
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import pytest

from lesionfast.errors import LesionfastError
from lesionfast.serving.web import guard, uploads
from lesionfast.serving.web.api import Service
from lesionfast.serving.web.app import build_app
from lesionfast.serving.web.guard import PAGE_PATHS, Guard, check_token
from lesionfast.serving.web.uploads import MOST_BYTES


@pytest.fixture(scope="module")
def service(exported) -> Service:
    return Service(exported)


@pytest.fixture(scope="module")
def port(service, running) -> int:
    """The port of a page without a token."""
    with running(build_app(service)) as port:
        yield port


TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def locked(service, running) -> int:
    """The port of a page that asks for a token, however often a wrong one is sent."""
    with pytest.MonkeyPatch.context() as patch, running(build_app(service, token=TOKEN)) as port:
        patch.setattr(guard, "WRONG_TOKENS", 10**6)
        yield port


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file of the user's that no request has anything to do with."""
    file = tmp_path / "secret.jpg"
    file.write_bytes(b"TOP SECRET")
    return file


@pytest.fixture
def photo(photos) -> bytes:
    return Path(photos[0]).read_bytes()


@pytest.fixture(autouse=True)
def lives(port, caplog):
    """After each attack the page answers, and no attack ended in a traceback."""
    yield
    assert port.ask("GET", "/model")[0] == 200
    assert not [record for record in caplog.records if record.exc_info]


def form(*parts: tuple[str, bytes]) -> tuple[bytes, dict]:
    """Return a form of parts, each what stands after "form-data; " and its content."""
    body = b"".join(
        b"--x\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (head.encode(), data)
        for head, data in parts
    )
    return body + b"--x--\r\n", {"Content_Type": "multipart/form-data; boundary=x"}


def image(data: bytes, name: str = "a.jpg") -> tuple[str, bytes]:
    return f'name="image"; filename="{name}"', data


def post(port, *parts, path="/predict", **headers):
    body, kind = form(*parts)
    return port.ask("POST", path, body, **kind, **headers)


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def head_of(*lines: str, path: str = "/predict") -> bytes:
    kind = "Content-Type: multipart/form-data; boundary=x"
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", kind, *lines, "", ""]).encode()


def file_data(path: Path) -> bytes:
    told = {"path": str(path), "is_stream": True, "meta": {"_type": "gradio.FileData"}}
    return json.dumps({"data": [told, "55", "male"], "session_hash": "a"}).encode()


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/gradio_api/run/predict",
            "/gradio_api/queue/join",
            "/gradio_api/upload",
            "/run/predict",
        ),
        *("/api/predict", "/queue/join", "/upload", "/answer", "/predict"),
    ],
)
def test_a_path_in_a_request_is_never_followed(port, secret, path):
    status, _, body = port.ask("POST", path, file_data(secret), Content_Type="application/json")
    assert status == (422 if path in ("/answer", "/predict") else 404)
    assert secret.read_bytes() == b"TOP SECRET" and b"SECRET" not in body


@pytest.mark.parametrize("path", ["/answer", "/predict"])
def test_a_path_in_place_of_an_image_is_refused(port, secret, path):
    for value in (str(secret), f"file://{secret}", json.dumps({"path": str(secret)})):
        status, _, body = post(port, ('name="image"', value.encode()), path=path)
        assert status == 422 and b"the form has no image" in body
        status, _, body = post(port, image(value.encode()), path=path)
        assert status == 415 and b"not a picture" in body
    assert secret.read_bytes() == b"TOP SECRET"


def test_no_file_is_served_by_its_path(port, secret):
    for start in ("/file=", "/gradio_api/file=", "/app.css/../..", "/..", "//", "/%2e%2e/..", ""):
        for path in (str(secret), "/etc/passwd", "/etc/passwd%00.css"):
            status, _, body = port.ask("GET", f"{start}{path}")
            assert status == 404 and b"SECRET" not in body and b"root:" not in body
    for path in ("/config", "/docs", "/redoc", "/app_id", "/theme.css", "/gradio_api/info"):
        assert port.ask("GET", path)[0] == 404


@pytest.mark.parametrize("path", ["/answer", "/predict"])
@pytest.mark.parametrize(
    "name",
    [
        *("../../../etc/passwd", "/etc/passwd", "..\\..\\boot.ini", "a\0b.jpg", "a\nb.jpg"),
        *(
            'a"; name="age',
            "<script>alert(1)</script>.jpg",
            "{{ 7 * 7 }}.jpg",
            "a" * 5000,
            "\x1b[2J",
        ),
    ],
)
def test_the_name_of_an_upload_changes_nothing(port, photo, path, name):
    status, _, body = post(port, image(photo, name), path=path)
    if status == 200:
        assert body == post(port, image(photo), path=path)[2]
    else:
        assert status == 422 and b"the form " in body
    for told in (name, "<script>alert", "passwd", "{{"):
        assert told.encode() not in body


FOREIGN = (
    *("evil.example", "evil.example:80", "127.0.0.1.evil.example:80", "localhost.evil", "", "*"),
    *("127.0.0.1@evil.example:80", "evil.example@127.0.0.1:80", "[::1].evil", "127.0.0.1#.evil"),
    *("127.0.0.1:80:80", "127.0.0.1/evil", "0.0.0.0", "192.168.1.5", "127.1"),
)


def test_a_name_that_is_not_ours_is_refused(port, photo):
    for name in FOREIGN:
        for method, path in (("GET", "/"), ("GET", "/model"), ("POST", "/answer")):
            status, _, body = port.ask(method, path, Host=name)
            assert (status, name) == (403, name) and b"its own address only" in body
    for name in ("127.0.0.1", f"127.0.0.1:{port}", "localhost", f"LOCALHOST:{port}", "[::1]:80"):
        assert port.ask("GET", "/", Host=name)[0] == 200
    assert status_of(port.exchange(b"GET / HTTP/1.0\r\n\r\n")) == 403


def test_at_every_address_only_addresses_and_the_name_of_the_machine_are_ours():
    every, one = Guard(None, "0.0.0.0"), Guard(None, "Clinic-PC.example")
    for name in ("192.168.1.5:7860", "[fe80::1]:7860", f"{socket.gethostname()}:7860", "localhost"):
        assert every.is_own_host(name.lower())
    for name in ("evil.example:7860", "192.168.1.5.evil.example", "127.1", ""):
        assert not every.is_own_host(name) and not one.is_own_host(name)
    assert one.is_own_host("clinic-pc.example:7860") and not one.is_own_host("192.168.1.5")


@pytest.mark.parametrize("path", ["/answer", "/predict"])
def test_another_site_may_not_post(port, photo, path, service, monkeypatch):
    asked = []
    monkeypatch.setattr(service.predictor, "check", lambda metadata: asked.append(metadata))
    for origin in ("http://evil.example", "null", "", "http://127.0.0.1:1", "file://"):
        status, headers, body = post(port, image(photo), path=path, Origin=origin)
        assert status == 403 and b"another site" in body
        assert not [name for name in headers if name.lower().startswith("access-control")]
    for site in ("cross-site", "same-site", "anything"):
        assert post(port, image(photo), path=path, Sec_Fetch_Site=site)[0] == 403
    assert asked == []
    own = {"Origin": f"http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}
    assert post(port, image(photo), path=path, **own)[0] == 200 and asked


def test_another_site_is_not_told_that_it_may_ask(port):
    wanted = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "a"}
    for origin in ({"Origin": "http://evil.example"}, {"Origin": f"http://127.0.0.1:{port}"}, {}):
        status, headers, _ = port.ask("OPTIONS", "/predict", **wanted, **origin)
        assert status in (403, 405)
        assert not [name for name in headers if name.lower().startswith("access-control")]
    assert port.ask("GET", "/model", Origin="http://evil.example")[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", "/", 200), ("GET", "/model", 200), ("GET", "/app.js", 200), ("GET", "/no", 404)),
        *(("POST", "/predict", 422), ("PUT", "/predict", 405)),
    ],
)
def test_every_response_says_what_the_browser_may_do(port, method, path, status):
    found, headers, _ = port.ask(method, path)
    assert found == status
    policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
    assert "unsafe" not in headers["content-security-policy"]
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
    assert "server" not in headers


def test_the_page_holds_no_script_and_no_style_of_its_own(port, photo):
    page = port.ask("GET", "/")[2].decode()
    answer = post(port, image(photo), path="/answer")[2].decode()
    assert page.count("<script") == page.count('<script src="/app.js" defer></script>') == 1
    for text in (page, answer):
        assert not re.search(r"<style|<[^>]*\s(style|on\w+)=", text)
    assert "<script" not in answer


def test_a_websocket_is_refused(port):
    head = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert status_of(port.exchange(head + key)) != 101


BEGIN = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'


@pytest.mark.parametrize("path", ["/answer", "/predict"])
def test_bytes_are_counted_while_they_arrive(port, path):
    """A body in chunks says nothing of its size: it is refused long before its end."""
    sent = 0
    with port.connect() as client:
        client.sendall(head_of("Transfer-Encoding: chunked", path=path))
        client.sendall(chunk_of(BEGIN))
        client.settimeout(0.001)
        answer = b""
        while sent < 60 * 10**6 and not answer:
            client.settimeout(600)
            client.sendall(chunk_of(bytes(10**6)))
            sent += 10**6
            client.settimeout(0.001)
            try:
                answer = client.recv(65536)
            except TimeoutError:
                continue
    assert status_of(answer) == 413 and MOST_BYTES <= sent < 45 * 10**6


def chunk_of(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("size", "status"),
    [
        *(("20100001", 413), ("2000000000", 413), ("9" * 19, 413), ("9" * 5000, 400)),
        *(("many", 400), ("-5", 400), ("+5", 400), ("1e3", 400), ("\u00b2", 400), ("5, 6", 400)),
    ],
)
def test_a_length_that_is_too_large_or_none_is_refused_before_the_body(port, size, status):
    with port.connect() as client:
        client.sendall(head_of(f"Content-Length: {size}"))
        assert status_of(client.recv(65536)) == status


def test_a_length_that_lies_is_no_harm(port, photo):
    body, _ = form(image(photo))
    longer, shorter = len(body) + 1000, len(body) - 1000
    assert port.exchange(head_of(f"Content-Length: {longer}") + body)[:12] != b"HTTP/1.1 500"
    assert status_of(port.exchange(head_of(f"Content-Length: {shorter}") + body)) == 422
    both = ("Content-Length: 5", "Transfer-Encoding: chunked")
    assert status_of(port.exchange(head_of(*both) + b"zz\r\n")) == 400
    assert status_of(port.exchange(head_of(*both) + chunk_of(body) + b"0\r\n\r\n")) == 400


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([image(b"a"), image(b"b")], "Too many files"),
        ([image(b"a"), ('name="other"; filename="b"', b"b")], "Too many files"),
        ([image(b"a"), ('name="age"', b"1"), ('name="age"', b"90")], "has age more than once"),
        ([image(b"a"), ('name="age"', b"1" * 1001)], "Part exceeded maximum size"),
        ([image(b"a"), *[(f'name="f{i}"', b"1") for i in range(201)]], "Too many fields"),
        ([('name="age"; filename="a.jpg"', b"1")], "the form has no image"),
        ([("filename=a", b"1")], '"name" must be provided'),
        ([], "the form has no image"),
    ],
)
def test_a_form_has_one_image_and_few_short_fields(port, parts, message):
    status, _, body = post(port, *parts)
    assert status == 422 and message in json.loads(body)["error"]


@pytest.mark.parametrize(
    "kind",
    [
        *("text/plain", "application/json", "application/x-www-form-urlencoded", ""),
        *(
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=y",
        ),
        *(
            "multipart/form-data; boundary=x; charset=undefined",
            "multipart/form-data; boundary=\xff",
        ),
    ],
)
def test_what_is_no_form_is_refused(port, photo, kind):
    body, _ = form(image(b"no picture"), ('name="age"', b"55"))
    status, _, answer = port.ask("POST", "/predict", body, Content_Type=kind)
    assert status in (415, 422) and json.loads(answer)["error"]


def test_an_upload_that_does_not_end_is_ended(port, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_SECONDS", 0.2)
    with port.connect() as client:
        client.sendall(head_of("Content-Length: 1000") + BEGIN)
        answer = b""
        while b"took longer than" not in answer:
            answer += (more := client.recv(65536))
            assert more, answer
    assert status_of(answer) == 408


@contextmanager
def half_sent(port, number: int, size: int = 0):
    """Uploads that have begun, and do not go on."""
    clients = [port.connect() for _ in range(number)]
    for client in clients:
        client.sendall(head_of("Content-Length: 19000000") + BEGIN + bytes(size))
    yield clients
    for client in clients:
        client.close()


def test_fifty_slow_clients_do_not_keep_others_from_an_answer(port, photo):
    with half_sent(port, 50):
        assert post(port, image(photo))[0] == 200


def test_uploads_hold_no_more_memory_together_than_a_few_of_the_largest(port, photo, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_HELD", 10**6)
    with half_sent(port, 2, 600_000) as clients:
        refused, _, _ = select.select(clients, [], [], 60)
        answer = refused[0].recv(65536)
        assert status_of(answer) == 503 and b"retry-after: " in answer and len(refused) == 1
    assert post(port, image(photo))[0] == 200


def test_more_images_than_can_wait_are_refused_at_once(port, photo, service, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_WAITING", 1)
    with ThreadPoolExecutor(3) as clients:
        with service._lock:
            answers = [clients.submit(post, port, image(photo)) for _ in range(3)]
            refused = [each.result() for _, each in zip("12", as_completed(answers), strict=False)]
            assert [status for status, _, _ in refused] == [503, 503]
            assert all("retry-after" in headers for _, headers, _ in refused)
            assert port.ask("GET", "/")[0] == 200
        assert sorted(each.result()[0] for each in answers) == [200, 503, 503]


def test_two_hundred_requests_at_once_are_answered_or_told_to_wait(port, photo):
    with ThreadPoolExecutor(200) as clients:
        answers = list(clients.map(lambda _: post(port, image(photo)), range(200)))
    statuses = {status for status, _, _ in answers}
    assert 200 in statuses and statuses <= {200, 503}
    assert len({body for status, _, body in answers if status == 200}) == 1


CREDENTIALS = (
    {},
    *({"Authorization": text} for text in ("", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}")),
    *({"Authorization": f"Bearer {text}"} for text in (TOKEN[:-1], f"{TOKEN}x", TOKEN.upper())),
    *({"Authorization": f"Bearer {text}"} for text in (f" {TOKEN}", "\xe9" * 20, "a" * 5000)),
    *({"Cookie": f"lesionfast-PORT={text}"} for text in ("", TOKEN, "a" * 43, "\xe9")),
)


@pytest.mark.parametrize("given", CREDENTIALS)
def test_without_the_token_nothing_is_answered(locked, photo, given, service, monkeypatch):
    monkeypatch.setattr(service.predictor, "check", lambda metadata: pytest.fail("was asked"))
    given = {name: text.replace("PORT", str(locked)) for name, text in given.items()}
    for path in ("/model", "/openapi.json", "/app.js", "/no", "/login", "//", "/app.css/"):
        status, headers, body = locked.ask("GET", path, **given)
        words = b"token is missing" if path in PAGE_PATHS else b"Authorization: Bearer TOKEN"
        assert status == 401 and words in body
        assert headers["www-authenticate"] == "Bearer" and TOKEN.encode() not in body
    for path in ("/predict", "/answer", "/login"):
        status, headers, _ = post(locked, image(photo), path=path, **given)
        assert status == 401 and "set-cookie" not in headers
    status, headers, body = locked.ask("GET", "/", **given)
    assert status == 401 and b'type="password"' in body and service.bundle.name.encode() not in body
    assert (
        headers["content-security-policy"]
        == locked.ask("GET", "/app.css")[1]["content-security-policy"]
    )


def test_an_upload_without_the_token_is_refused_before_its_end(locked):
    with half_sent(locked, 1) as (client,):
        assert status_of(client.recv(65536)) == 401


def test_the_token_opens_page_and_api(locked, photo, monkeypatch):
    compared, compare = [], hmac.compare_digest
    monkeypatch.setattr(
        hmac, "compare_digest", lambda *pair: compared.append(pair) or compare(*pair)
    )
    for scheme in ("Bearer", "bearer"):
        right = {"Authorization": f"{scheme} {TOKEN}"}
        assert locked.ask("GET", "/model", **right)[0] == 200
        assert post(locked, image(photo), **right)[0] == 200
        assert locked.ask("GET", "/login", **right)[0] == 404
    assert (TOKEN.encode(), TOKEN.encode()) in compared


def test_the_cookie_opens_the_page_to_no_other_site(locked, photo):
    status, headers, body = locked.ask("POST", "/login", Authorization=f"Bearer {TOKEN}")
    assert status == 204 and body == b"" and TOKEN not in headers["set-cookie"]
    cookie, *rules = headers["set-cookie"].split("; ")
    assert cookie.startswith(f"lesionfast-{locked}=")
    assert set(rules) == {"Path=/", "HttpOnly", "SameSite=Strict"}
    assert b'id="image"' in locked.ask("GET", "/", Cookie=cookie)[2]
    assert post(locked, image(photo), path="/answer", Cookie=cookie)[0] == 200
    for foreign in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        assert post(locked, image(photo), path="/answer", Cookie=cookie, **foreign)[0] == 403
        assert locked.ask("POST", "/login", Authorization=f"Bearer {TOKEN}", **foreign)[0] == 403
    assert locked.ask("GET", "/", Cookie=cookie, Host="evil.example")[0] == 403


def test_the_page_that_asks_for_the_token_holds_no_script_of_its_own(locked):
    page = locked.ask("GET", "/")[2].decode()
    assert page.count("<script") == page.count('<script src="/login.js" defer></script>') == 1
    assert not re.search(r"<style|<[^>]*\s(style|on\w+)=", page)
    assert locked.ask("GET", "/login.js")[0] == 200


@pytest.mark.parametrize(
    "token",
    [
        *("", "short", "elevenchars", "with some spaces", "übergeheimnis", "a\nbcdefghijklm"),
        *("a" * 30, "abc" * 10, "abcdef" * 200, "correct-horse\0", "correct-horse\x7f"),
    ],
)
def test_a_weak_token_is_refused(token):
    with pytest.raises(LesionfastError, match=r"--token has \d+ characters.* such as") as error:
        check_token(token)
    assert not token or token not in str(error.value)


LINES = (
    *(b"GET http://evil.example/model HTTP/1.1", b"GET //evil.example/model HTTP/1.1"),
    *(b"GET evil.example/model HTTP/1.1", b"GET file:///etc/passwd HTTP/1.1", b"GET * HTTP/1.1"),
    *(b"OPTIONS * HTTP/1.1", b"CONNECT evil.example:80 HTTP/1.1", b"GET /no\\..\\model HTTP/1.1"),
    *(b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", b"GET /..%2f..%2fetc/passwd HTTP/1.1"),
    *(
        b"GET /%c0%ae%c0%ae/etc/passwd HTTP/1.1",
        b"GET /model%00.css HTTP/1.1",
        b"GET /%ff HTTP/1.1",
    ),
    *(
        b"GET /model%0d%0aX-Evil:%201 HTTP/1.1",
        b"GET /static/../model HTTP/1.1",
        b"GET /%zz HTTP/1.1",
    ),
    *(b"TRACE /model HTTP/1.1", b"DELETE /model HTTP/1.1", b"PATCH /answer HTTP/1.1"),
    *(b"PROPFIND / HTTP/1.1", b"get /model HTTP/1.1", b"A" * 5000 + b" / HTTP/1.1", b"GET"),
    *(b"GET /model", b"GET /model HTTP/1.1 x", b""),
    *(b"\x16\x03\x01\x02\0\x01\0", b"PRI * HTTP/2.0", b"GET /" + b"a" * 100_000 + b" HTTP/1.1"),
    *(b"GET /\xff HTTP/1.1", b"GET /a b HTTP/1.1", b"GET /\x00 HTTP/1.1", b" GET / HTTP/1.1"),
)


@pytest.mark.parametrize("line", LINES)
def test_a_strange_request_line_is_refused(port, line):
    answer = port.talk(line + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert not answer or status_of(answer) in (400, 403, 404, 405, 414, 431)
    assert b"root:" not in answer and b"x-evil" not in answer.lower()
    assert b"evil.example" not in answer and b"Internal Server Error" not in answer


HEADS = (
    *(b"Host: evil.example", b"Host: localhost\r\nHost: evil.example", b" Host: x", b"Host : x"),
    *(b"X: " + b"a" * 200_000, b"\r\n".join(b"X-%d: a" % n for n in range(20_000)), b"X\0: a"),
    *(b"X: a\0b", b"X", b": a", b"Host: localhost, evil.example", b"\xff: a"),
    *(b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: xchunked", b"Content-Length: 5;6"),
    *(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"Transfer-Encoding : chunked"),
    *(b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 0x5", b"Content-Length: 5 5"),
    *(b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"Content-Length: "),
)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_of_two_meanings_is_refused(port, head):
    """What another server would read as two requests, or as one to another site."""
    own = b"" if b"Host:" in head else b"Host: localhost\r\n"
    begin = b"POST /answer HTTP/1.1\r\n" + own + head + b"\r\n\r\n"
    answer = port.talk(begin + b"0\r\n\r\nGET /model HTTP/1.1\r\nHost: localhost\r\n\r\n")
    statuses = {int(text) for text in re.findall(rb"HTTP/1\.1 (\d+)", answer)}
    assert statuses <= {400, 403, 431, 501} and b"split_sha256" not in answer


def test_requests_in_one_packet_are_each_looked_at(port):
    """The second is not believed because the first was."""
    own = b"GET /model HTTP/1.1\r\nHost: localhost\r\n\r\n"
    foreign = b"GET /model HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    answer = port.talk(own + foreign)
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", answer)
    assert statuses in ([b"200", b"403"], [b"200"]) and answer.count(b"split_sha256") == 1


def test_http_1_0_is_answered_and_closed(port):
    answer = port.talk(b"GET /model HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert status_of(answer) == 200 and b"split_sha256" in answer


def test_a_client_that_waits_is_refused_before_it_sends(locked):
    """With Expect: 100-continue nothing is asked of a client without the token."""
    head = head_of("Content-Length: 19000000", "Expect: 100-continue")
    with locked.connect() as client:
        client.sendall(head)
        assert status_of(client.recv(65536)) == 401


def test_nothing_of_a_request_comes_back_in_a_head(port, photo):
    evil = "a\r\nX-Evil: 1"
    for headers in ({"Accept_Language": "de\tX-Evil: 1"}, {"Referer": "http://evil.example"}):
        for path in ("/", "/model", "/no", "/app.js"):
            _, found, _ = port.ask("GET", path, **headers)
            assert not [text for text in found.values() if "evil" in text.lower()]
    status, found, body = post(port, image(photo), ('name="sex"', evil.encode()))
    assert status == 422 and not [name for name in found if name.lower() == "x-evil"]
    assert json.loads(body)["error"]


def test_the_description_of_the_api_names_no_file(port, service):
    text = port.ask("GET", "/openapi.json")[2].decode()
    for secret in (str(service.path), str(Path.home()), "/tmp/", "servers", ".jpg"):
        assert secret not in text
    model = port.ask("GET", "/model")[2].decode()
    assert "/" not in json.loads(model)["name"] and str(service.path.parent) not in model


@pytest.mark.parametrize("name", ["age", "sex"])
@pytest.mark.parametrize("value", [b"\xff\xfe", b"\xed\xa0\x80", b"\0", b"\x1b[2J", b"=1+1"])
def test_bytes_that_are_no_text_are_no_metadata(port, photo, name, value):
    for path in ("/predict", "/answer"):
        status, _, body = post(port, image(photo), (f'name="{name}"', value), path=path)
        assert status == 422 and json.loads(body)["error"]
