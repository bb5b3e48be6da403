"""What others try with the page of labels: sites, people on this machine, lists and file names."""

import csv
import http.client
import io
import json
import os
import re
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lesionfast as lf
from lesionfast import files
from lesionfast.data.corrections.answers import Answer, Answers, read_answers
from lesionfast.data.sources import image_stem
from lesionfast.errors import LesionfastError
from lesionfast.serving.labelling import page as label_page
from lesionfast.serving.labelling.candidates import write_labelled
from lesionfast.serving.labelling.page import MOST_BYTES, build_label_app
from lesionfast.serving.labelling.queue import Item, Queue, list_doubted, read_list
from lesionfast.serving.outputs import TextWriter
from lesionfast.serving.web import guard

TINY = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 1, "unfreeze": "none"}
TINY |= {"tta": 1, "precision": "float32"}
HEADER = "image,answer,who,when,why\n"
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> lf.Run:
    """A run that knows little, and so doubts many labels."""
    return lf.train(lf.load_data(), out=tmp_path_factory.mktemp("runs"), name="tiny", **TINY)


@pytest.fixture(scope="module")
def doubted(run) -> list[Item]:
    return list_doubted([run])


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "corrections.csv"


@pytest.fixture
def queue(run, doubted, file) -> Queue:
    return Queue(run, doubted, file)


@pytest.fixture
def port(labels):
    return labels


def say(port, path="/answer", *, body=None, kind="application/json", **asked):
    """Send what a page would; return status and text."""
    data = json.dumps(asked).encode() if body is None else body
    status, _, answer = port.ask("POST", path, data, Content_Type=kind)
    return status, answer.decode()


def test_no_other_site_is_answered(port, queue, doubted):
    body = json.dumps({"image": doubted[0].image, "answer": "right"}).encode()
    foreign = [{"Host": name} for name in ("evil.example", "127.0.0.1.evil.example", "", "0.0.0.0")]
    origins = ("http://evil.example", "null", "", "file://", f"http://127.0.0.1:{port + 1}")
    foreign += [{"Origin": origin} for origin in origins]
    foreign += [{"Sec_Fetch_Site": site} for site in ("cross-site", "same-site", "x")]
    for headers in foreign:
        for path in ("/answer", "/undo", "/later", "/item"):
            kind = {"Content_Type": "application/json"}
            status, found, answer = port.ask("POST", path, body, **kind, **headers)
            assert status == 403 and doubted[0].image.encode() not in answer
            assert not [name for name in found if name.lower().startswith("access-control")]
    wanted = {"Access_Control_Request_Method": "POST", "Origin": "http://evil.example"}
    assert port.ask("OPTIONS", "/answer", **wanted)[0] == 403
    assert not queue.file.exists()


@pytest.mark.parametrize(
    "kind",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""),
        *("application/jsonp", "text/plain; application/json", "application/json2"),
    ],
)
def test_what_a_form_of_another_site_can_send_is_no_answer(port, queue, doubted, kind):
    body = json.dumps({"image": doubted[0].image, "answer": "right", "who": "="}).encode()
    status, text = say(port, body=body, kind=kind)
    assert status == 422 and "not application/json" in text and not queue.file.exists()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(
            ("GET", "/", 200),
            ("GET", "/labels.js", 200),
            ("GET", "/no", 404),
            ("GET", "/item", 405),
        ),
        *(
            ("POST", "/answer", 422),
            ("PUT", "/undo", 405),
            ("TRACE", "/", 405),
            ("GET", "/undo", 405),
        ),
    ],
)
def test_every_response_says_what_the_browser_may_do(port, method, path, status):
    found, headers, _ = port.ask(method, path)
    assert found == status
    policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
    assert "unsafe" not in headers["content-security-policy"]
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert headers["x-frame-options"] == "DENY" and headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"


def test_a_websocket_is_refused(port):
    client = http.client.HTTPConnection("127.0.0.1", int(port), timeout=600)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    client.request("GET", "/", headers=upgrade | {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
    assert client.getresponse().status != 101
    client.close()


def test_no_file_and_no_other_address_is_served(port, queue):
    secret = queue.file.with_name("secret.jpg")
    secret.write_bytes(b"TOP SECRET")
    starts = ("/file=", "/labels.js/../..", "/..", "//", "/%2e%2e/..", "/static/..", "", "/images")
    for start in starts:
        for path in (str(secret), "/etc/passwd", "/etc/passwd%00.css"):
            status, headers, body = port.ask("GET", f"{start}{path}")
            assert status == 404 and b"SECRET" not in body and b"root:" not in body
    for path in (
        "/config",
        "/docs",
        "/openapi.json",
        "/model",
        "/labels.js/",
        "/answer/",
        "//item",
    ):
        status, headers, _ = port.ask("GET", path)
        assert status == 404 and "location" not in headers
    for path in ("/corrections.csv", f"/{queue.file}", "/predictions.csv", "/config.json"):
        assert port.ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"",
            b"[1]",
            b"null",
            b'"x"',
            b"{",
            b'{"image": 1}',
            b'{"image": null, "answer": "right"}',
        ),
        *(b'{"image": ["x"]}', b'{"image": NaN}', b"[" * 9000, b'{"a":' * 1900, b"\xff\xfe", b"\0"),
        *(b'{"image": "\\ud800"}', b'{"answer": "\\udfff"}', b'{"who": "\\ud800", "image": "x"}'),
        *(b"x" * (MOST_BYTES + 1), b"1" * 5000),
    ],
)
def test_what_is_no_object_of_texts_is_refused(port, queue, body):
    for path in ("/answer", "/undo", "/later", "/item"):
        status, text = say(port, path, body=body)
        assert status == 422 and json.loads(text)["error"]
    assert not queue.file.exists()


def test_requests_that_do_not_end_are_ended(port, queue, monkeypatch):
    monkeypatch.setattr(label_page, "MOST_SECONDS", 0.2)
    head = b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 50\r\n\r\n{"
    with port.connect() as client:
        client.sendall(head)
        found = b""
        while b"took longer than" not in found:
            found += (part := client.recv(65536))
            assert part, found
    monkeypatch.setattr(label_page, "MOST_SECONDS", 60)
    for _ in range(5):
        port.connect().sendall(head)  # and goes away


def test_only_images_that_are_asked_for_are_answered(port, queue, doubted, run):
    image = doubted[0].image
    others = sorted(set(run.split["image_id"]) - set(queue.items))  # of the run, but not doubted
    unknown = ("", " ", f"{image} ", f"../{image}", others[0], "=1+1", "a" * 5000, "/etc/passwd")
    for name in unknown:
        for path in ("/answer", "/later"):
            status, text = say(port, path, image=name, answer="right")
            assert status == 422 and "is not in this list" in text
    wrong = (
        "",
        "undo",
        "UNDO",
        "is",
        "is frog",
        "is mel\0",
        "is mel\nundo",
        "right\nundo",
        "delete",
    )
    wrong += (f"same lesion as {image}", "same lesion as x", "same lesion as ../../etc/passwd")
    for answer in wrong:
        status, text = say(port, image=image, answer=answer)
        assert (status, answer) == (422, answer) and json.loads(text)["error"]
    assert say(port, "/undo")[0] == 422 and not queue.file.exists()


HOSTILE = (
    *('=HYPERLINK("http://evil.example","x")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "＝1+1"),
    *("\t=1+1", "\r\n=1+1", "- =1", "' =1", '"=1"', "x;=1+1", "x,=1+1", "x\t=1+1", "x|@a", ";;=1"),
    *(
        "a\nb,undo,,,",
        'a"b',
        '","',
        "a\0b",
        "\x1b]0;x\x07\x1b[2J",
        "\u202egpj",
        "\x85\u2028x",
        "é" * 200,
    ),
    *("a" * 3000, "<script>alert(1)</script>", "{{ 7 * 7 }}", "\ufeff", "'", "=", "\\", "\\N"),
)


@pytest.mark.parametrize("text", HOSTILE)
def test_who_and_why_break_no_line_and_are_no_formula(port, queue, doubted, text):
    image = doubted[0].image
    status, page = say(port, image=image, answer="right", who=text, why=text)
    assert status == 200 and "<script>alert" not in page and ">49<" not in page
    data = queue.file.read_text("utf-8")
    assert data.isprintable() is False and data.replace("\n", "").isprintable()
    (said,) = read_answers(queue.file).log
    assert (said.image, said.text) == (image, "right") and len(said.why) <= 200
    for separator in ",;\t|":
        for row in csv.reader(io.StringIO(data), delimiter=separator):
            assert not [cell for cell in row if re.match(r"""[\s"']*[=+@＝＋－＠-]""", cell)]


@pytest.mark.parametrize(
    "text",
    [
        "größer als 6 mm, -10 % Pigment",
        "می\u200cخواهم",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "rand, +2 mm",
    ],
)
def test_what_is_no_formula_is_kept_as_it_was_written(port, queue, doubted, text):
    status, page = say(port, image=doubted[0].image, answer="right", who="A. B.", why=text)
    (said,) = read_answers(queue.file).log
    assert (status, said.why) == (200, text) and "was changed" not in page


@pytest.mark.parametrize("text", ["=1+1 mm", "x;=1", "\u200d=1", "a\0b", "a" * 3000])
def test_the_page_says_that_a_text_was_changed(port, queue, doubted, text):
    status, page = say(port, image=doubted[0].image, answer="right", who="A. B.", why=text)
    (said,) = read_answers(queue.file).log
    assert status == 200 and f"Why was changed to “{said.why}”." in page and "Who was" not in page


def test_a_picture_that_can_not_be_read_names_what_helps_on_the_page(run, file, tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    queue = Queue(run, [Item("a", str(tmp_path / "a.jpg"), "", "", {})], file)
    reasons = " ".join(queue.view(queue.pending[0]).left_out)
    assert "Answer unclear to leave the image out." in reasons and "--" not in reasons


NAMES = (
    *(
        '=HYPERLINK("http://evil.example","x")',
        "+1",
        "-2+3",
        "-12",
        "@SUM(A1)",
        "'=1",
        "''=1",
        "'a",
    ),
    *(
        "a  b",
        "a\nb",
        "a\r\nb",
        'a"b',
        "a,b;c",
        "a\tb",
        "is mel",
        "undo",
        "same lesion as x",
        "../../x",
    ),
    *("<img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "a" * 200, "\x1b[2J", "ä\u202e", "right"),
)


def test_names_of_pictures_come_back_as_they_are(run, doubted, file, caplog):
    photo, other = doubted[0].path, doubted[1].image
    bad = [" a", "a ", "", "a\0b", "\udc80", "\n"]
    items = [Item(name, photo, "", "", {}) for name in (*NAMES, *bad, other)]
    queue = Queue(run, items, file)
    assert "Left out 6 images with a name" in caplog.text and [*queue.items] == [*NAMES, other]
    for name in NAMES:
        queue.answer(name, "unclear", who="x")
        queue.answer(other, f"same lesion as {name}")
    read = read_answers(file)
    assert set(read.labels) == set(NAMES) and read.same_as(other) == [*NAMES]
    assert [item.image for item in Queue(run, items, file).pending] == [other]
    cells = [row[0] for row in csv.reader(file.open(newline=""))]
    assert not [cell for cell in cells if re.match(r"[=@]|[+-](?!\d+$)", cell)]
    assert Queue(run, items, file).undo().image == other


def test_names_of_pictures_are_no_html(run, doubted, file, running):
    items = [Item(name, doubted[0].path, "", "", {"age": name, "sex": name}) for name in NAMES]
    with running(build_label_app(Queue(run, items, file))) as port:
        for name in NAMES:
            status, text = say(port, image=name, answer="unclear")
            assert status == 200 and "<img src=x" not in text and " 49" not in text
            told = text.split('data-image="', 1)
            assert len(told) == 1 or "<" not in told[1].partition('"')[0]


def change(file: Path, how: str) -> None:
    """Put something else in the place of a file of answers."""
    kept, target = file.with_name("kept.csv"), file.with_name("target")
    file.rename(kept)
    target.write_text("theirs")
    actions = {
        "removed": lambda: None,
        "link": lambda: file.symlink_to(target),
        "link to itself": lambda: file.symlink_to(kept),
        "dangling": lambda: file.symlink_to(file.with_name("nothing")),
        "pipe": lambda: os.mkfifo(file),
        "folder": file.mkdir,
        "device": lambda: file.symlink_to("/dev/full"),
        "semicolons": lambda: file.write_text(kept.read_text().replace(",", ";")),
        "other columns": lambda: file.write_text("answer,image\nright,x\n"),
        "no table": lambda: file.write_bytes(b"\x89PNG\r\n\x1a\n\0"),
        "another encoding": lambda: file.write_bytes(kept.read_text().encode("utf-16")),
        "not UTF-8": lambda: file.write_bytes(kept.read_bytes() + b"x,right,M\xfcller,,\n"),
        "a wrong line": lambda: file.write_text(f"{HEADER}x,undo,,,\n"),
    }
    actions[how]()


def put_back(file: Path) -> None:
    file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
    file.with_name("kept.csv").rename(file)


CHANGES = (
    *("removed", "link", "link to itself", "dangling", "pipe", "folder", "device", "semicolons"),
    *("other columns", "no table", "another encoding", "not UTF-8", "a wrong line"),
)


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_became_another_is_not_written(port, queue, doubted, how):
    first, second = doubted[0].image, doubted[1].image
    assert say(port, image=first, answer="right")[0] == 200
    before = queue.file.read_bytes()
    change(queue.file, how)
    there = queue.file.read_bytes() if queue.file.is_file() else None
    for path, asked in (("/answer", {"image": second, "answer": "right"}), ("/undo", {})):
        status, text = say(port, path, **asked)
        assert status == 422 and str(queue.file) in json.loads(text)["error"]
    assert queue.file.with_name("target").read_text() == "theirs"
    assert (queue.file.read_bytes() if queue.file.is_file() else None) == there
    assert not queue.file.with_name("nothing").exists()
    put_back(queue.file)
    assert say(port, image=second, answer="right")[0] == 200
    assert queue.file.read_bytes().startswith(before)
    assert set(read_answers(queue.file).labels) == {first, second}


@pytest.mark.parametrize("how", [how for how in CHANGES if how not in ("removed", "dangling")])
def test_such_a_file_is_refused_at_the_start(run, doubted, file, how):
    file.write_text(f"{HEADER}{doubted[0].image},right,,,\n")
    change(file, how)
    with pytest.raises(LesionfastError, match=re.escape(str(file))):
        Queue(run, doubted, file)


def test_what_another_program_wrote_counts(port, queue, doubted, caplog):
    first, second, third = (item.image for item in doubted[:3])
    assert say(port, image=first, answer="right")[0] == 200
    queue.file.write_text(f"{HEADER}{second},unclear,,,\n")
    assert say(port, image=third, answer="right")[0] == 200
    assert "was changed by another program; it has 1 line now" in caplog.text
    assert set(read_answers(queue.file).labels) == {second, third} and queue.done == 2
    assert say(port, "/undo")[0] == say(port, "/undo")[0] == 200
    assert say(port, "/undo")[0] == 422  # the answer about the first image is not in the file
    assert read_answers(queue.file).labels == {}


def test_a_file_that_can_not_be_written_keeps_no_answer(queue, doubted, read_only):
    queue.answer(doubted[0].image, "right")
    before = queue.file.read_bytes()
    read_only(queue.file.parent)
    if os.geteuid():
        queue.file.chmod(0o444)
    with pytest.raises(LesionfastError, match="can't be written"):
        queue.answer(doubted[1].image, "right")
    assert queue.file.read_bytes() == before and queue.done == 1


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/full")])
def test_what_is_put_there_after_the_check_is_not_written_either(tmp_path, monkeypatch, make):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("theirs")
    link.symlink_to(target)
    make(tmp_path / "other")
    monkeypatch.setattr(files, "check_target", lambda path: None)  # the check saw a regular file
    for path in (link, tmp_path / "other"):
        with pytest.raises(LesionfastError, match="symbolic link|named pipe"):
            files.append_texts(path, ["mine\n"])
        with pytest.raises((LesionfastError, OSError)):
            TextWriter(path, "csv", ["image", "error"])
    assert target.read_text() == "theirs"


def test_a_lock_that_another_user_planted_empties_no_file(tmp_path):
    target, file = tmp_path / "theirs", tmp_path / "corrections.csv"
    target.write_text("theirs")
    (tmp_path / f"{files.LOCKED}{file.name}").symlink_to(target)
    unfinished = tmp_path / f"{files.UNFINISHED}x"
    unfinished.mkdir()
    (unfinished / files.LOCK).symlink_to(target)
    refused = pytest.raises(LesionfastError, match=f"{re.escape(str(file))} can't be written")
    with refused, files.only_writer(file):
        pass
    files.sweep(tmp_path)
    assert target.read_text() == "theirs"


def test_two_tabs_at_once_write_whole_lines(port, queue, doubted):
    images = [item.image for item in doubted[:20]]
    with ThreadPoolExecutor(8) as tabs:
        asked = [(image, answer) for image in images for answer in ("right", "unclear")]
        told = list(tabs.map(lambda one: say(port, image=one[0], answer=one[1])[0], asked))
        undone = list(tabs.map(lambda _: say(port, "/undo")[0], range(5)))
    assert set(told) == set(undone) == {200}
    read = read_answers(queue.file)
    assert len(read.log) == 45 and read.log == queue.answers.log
    assert len(queue.file.read_text().splitlines()) == 46


def test_without_the_token_nothing_is_shown_or_kept(queue, doubted, running, monkeypatch):
    monkeypatch.setattr(guard, "WRONG_TOKENS", 10**6)
    body = json.dumps({"image": doubted[0].image, "answer": "right"}).encode()
    given = [{}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}]
    with running(build_label_app(queue, token=TOKEN)) as port:
        given += [{"Cookie": f"lesionfast-{port}={text}"} for text in ("", TOKEN, "a" * 43)]
        for headers in given:
            for path in ("/answer", "/undo", "/later", "/item", "/login"):
                kind = {"Content_Type": "application/json"}
                status, _, answer = port.ask("POST", path, body, **kind, **headers)
                assert status == 401 and b"SYNTH" not in answer
            for path in ("/", "/labels.js", "/labels.css", "/no"):
                status, _, answer = port.ask("GET", path, **headers)
                assert status == 401 and str(queue.file).encode() not in answer
        known = {"Authorization": f"Bearer {TOKEN}", "Content_Type": "application/json"}
        assert not queue.file.exists() and port.ask("POST", "/answer", body, **known)[0] == 200


def test_labelled_pictures_stay_in_their_folder(run, doubted, tmp_path):
    """Members of a stranger's archive are copied under their last name, nowhere else."""
    photo, names = (
        Path(doubted[0].path).read_bytes(),
        ("../../../up", "/abs", "in/a b", "..\\back", "…"),
    )
    with zipfile.ZipFile(tmp_path / "theirs.zip", "w") as archive:
        for name in names:
            archive.writestr(f"{name}.jpg", photo)
    kept = [image_stem(name) for name in ("up", "abs", "in/a b", "..\\back", "…")]
    answers = Answers(tuple(Answer.parse(name, "is mel") for name in kept))
    folder = tmp_path / "deep" / "labelled"
    folder.parent.mkdir()
    write_labelled(run, [str(tmp_path / "theirs.zip")], answers, folder)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg")}
    assert written and all(name.startswith("deep/labelled/images/") for name in written)
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.zip", "deep"}


def write_list(folder: Path, **columns: str) -> Path:
    path = folder / "next.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, columns.values()])
    return path


@pytest.mark.parametrize("share", ["abc", "nan", "inf", "2", "-1", "1e999", "0x1", "=1"])
def test_a_list_with_a_wrong_probability_is_refused(tmp_path, share):
    listed = write_list(tmp_path, image="a", path="a.jpg", suggested="mel", probability=share)
    with pytest.raises(LesionfastError, match="the probability of image 'a' in .*next.csv is '"):
        read_list(listed)


def test_a_list_of_another_run_is_refused(tmp_path, run):
    listed = write_list(tmp_path, image="a", path="a.jpg", suggested="frog")
    with pytest.raises(LesionfastError, match="suggests 'frog' .* not a class of .*tiny"):
        Queue(run, read_list(listed), tmp_path / "corrections.csv")


def test_a_list_opens_nothing_but_pictures(run, tmp_path, doubted, caplog, running):
    """Each is shown without a picture, with the reason; nothing is asked of a network."""
    pipe, secret = tmp_path / "pipe.jpg", tmp_path / "secret.jpg"
    os.mkfifo(pipe)
    secret.write_text("TOP SECRET")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.jpg"
        paths = [pipe, secret, "/dev/zero", "/dev/stdin", "/etc/passwd", url, f"file://{secret}"]
        paths += [tmp_path, "a\nb.jpg", "a" * 5000, f"{secret}/a.jpg", "/proc/self/environ"]
        odd = {
            "age": "1e999",
            "sex": "=1",
            "localization": "<b>x",
            "margin": "x",
            "dx_type": "<b>x",
        }
        for number, path in enumerate(map(str, paths)):
            listed = write_list(tmp_path, image="a", path=path, suggested="mel", **odd)
            queue = Queue(run, read_list(listed), tmp_path / f"{number}.csv")
            with running(build_label_app(queue)) as port:
                status, text = say(port, "/item")
            assert status == 200 and text.count("lf-small") > 1 and "<b>x" not in text
            assert "SECRET" not in text and "root:" not in text and "PATH=" not in text
        with pytest.raises(TimeoutError):
            listener.accept()
    assert not [record for record in caplog.records if record.exc_info]
