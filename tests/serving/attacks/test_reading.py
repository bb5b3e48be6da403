"""What files and tables of a stranger make this machine read, open or write."""

import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import lesionfast as lf
from lesionfast import files
from lesionfast.errors import LesionfastError
from lesionfast.serving.monitoring.log import PredictionLog, check_log, read_log
from lesionfast.serving.outputs import predict_inputs
from lesionfast.serving.predictor import Predictor
from lesionfast.serving.web.api import Service
from lesionfast.serving.web.server import listen, serve_page

OUTSIDE = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
STARTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
recorded: list[tuple[str, str]] | None = None


def record(event: str, given: tuple) -> None:
    """Note what goes to a network, starts a program or opens a file, while it is asked for."""
    if recorded is not None and event in (*OUTSIDE, *STARTED, "open"):
        recorded.append((event, str(given[0] if event == "open" else given)))


sys.addaudithook(record)


@pytest.fixture
def traces() -> Iterator[list[tuple[str, str]]]:
    """What went out, was started and was opened during the test."""
    global recorded
    recorded = []
    yield recorded
    recorded = None


def gone_out(traces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return what went to a network, or started a program other than Python's search for one."""
    found = [trace for trace in traces if trace[0] in (*OUTSIDE, *STARTED)]
    return [trace for trace in found if "ldconfig" not in trace[1]]


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a listener, to which nobody came when the test ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()


@pytest.fixture
def photo(photos) -> bytes:
    return Path(photos[0]).read_bytes()


@pytest.fixture
def secret(tmp_path, photo) -> Path:
    """A picture of the user's in another folder."""
    path = tmp_path / "private" / "secret.jpg"
    path.parent.mkdir()
    path.write_bytes(photo)
    return path


@pytest.fixture
def theirs(tmp_path, photo) -> Path:
    """The folder of a stranger, with one picture."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "own.jpg").write_bytes(photo)
    return folder


@pytest.fixture
def predicted(exported, tmp_path):
    """A function that predicts, and returns the error of each image by the end of its name."""

    def predict(*inputs: Path | str, **choices) -> dict[str, str]:
        out = tmp_path / "out.csv"
        predict_inputs(exported, list(map(str, inputs)), out, "csv", metadata={}, **choices)
        with out.open(newline="") as file:
            return {row["image"].rpartition("/")[2]: row["error"] for row in csv.DictReader(file)}

    return predict


def test_an_address_in_a_table_is_not_fetched(predicted, theirs, secret, address, traces):
    names = [
        f"http://{address}/a.jpg",
        f"https://{address}/b.jpg",
        f"file://{secret}",
        "s3://b/c.jpg",
    ]
    names += [f"ftp://{address}/d.jpg", f"//{address}/e.jpg", f"\\\\{address}\\f.jpg", "data:,g"]
    names += ["/etc/passwd", "~/.ssh/id_rsa", "$HOME/h.jpg", "`id`.jpg", "$(id).jpg", "|id", "-"]
    table = theirs / "table.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["image_id"], *([name] for name in ("own.jpg", *names))])
    errors = predicted(table)
    assert errors.pop("own.jpg") == "" and len(errors) == len(names)
    assert all(error.startswith("there is no image") for error in errors.values())
    assert not gone_out(traces) and not [t for t in traces if "secret" in t[1] or "id_rsa" in t[1]]


def test_an_address_is_no_input_and_no_model(exported, predicted, address, traces, tmp_path):
    for kind in ("http", "https", "ftp", "s3", "file"):
        for name in ("a.jpg", "table.csv", "table.parquet", "images.zip", "table.xlsx", "*.jpg"):
            with pytest.raises(LesionfastError, match="there is no file, folder or pattern"):
                predicted(f"{kind}://{address}/{name}")
        with pytest.raises(LesionfastError):
            Predictor(f"{kind}://{address}/model")
        with pytest.raises(LesionfastError):
            lf.load_data(f"{kind}://{address}/table.csv")
        with pytest.raises(LesionfastError):
            lf.Run.open(Path(f"{kind}://{address}/run"))
    assert not gone_out(traces)


@pytest.mark.parametrize(
    "change",
    [
        lambda told, url: told["model"].update(arch=f"hf-hub:{url}"),
        lambda told, url: told["model"].update(arch="hf-hub:evil/model"),
        lambda told, url: told["model"].update(arch="transformers:evil/model"),
        lambda told, url: told["model"].update(arch="open_clip:hf-hub:evil/model"),
        lambda told, url: told["model"].update(arch=url),
        lambda told, url: told["model"].update(weights=url, pretrained=True, url=url),
        lambda told, url: told["model"].update(backbone={"url": url}, encoder={"url": url}),
        lambda told, url: told.update(name=url, weights=url, image_column=url),
        lambda told, url: told.update(files={url: "0" * 64}),
    ],
)
def test_addresses_in_a_model_are_not_followed(
    exported, tmp_path, change_description, address, traces, change, photos, monkeypatch
):
    for name in ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{address}")
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    change_description(folder, lambda told: change(told, f"http://{address}/x"))
    try:
        Predictor(folder)(photos[0])
    except LesionfastError as error:
        assert str(error)
    assert not gone_out(traces)


PROGRAMS = (
    b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://ADDRESS/a.jpg"/></svg>',
    b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    b"%PDF-1.4\n1 0 obj <</Type /Catalog /OpenAction <</S /URI /URI (http://ADDRESS/)>>>>\n",
    b"push graphic-context\nviewbox 0 0 9 9\nfill 'url(http://ADDRESS/a.jpg)'\npop graphic-context",
    b"\xd7\xcd\xc6\x9a\0\0", b"#EXTM3U\nhttp://ADDRESS/a\n", b"[InternetShortcut]\nURL=http://ADDRESS/",
    b"<html><img src=http://ADDRESS/a.jpg></html>", b"http://ADDRESS/a.jpg", b"file:///etc/passwd",
    b"import os; os.system('id')", b"\x80\x04cos\nsystem\n(S'id'\ntR.", b"P6 9 9 255\n", b"8BPS\0",
)  # fmt: skip


@pytest.mark.parametrize("data", PROGRAMS)
def test_a_picture_that_is_a_program_or_an_address_is_not_run(
    exported, predicted, theirs, address, traces, data
):
    data = data.replace(b"ADDRESS", address.encode())
    for suffix in ("jpg", "png", "tif", "webp"):
        (theirs / f"evil.{suffix}").write_bytes(data)
    errors = predicted(theirs)
    assert errors.pop("own.jpg") == "" and len(errors) == 4 and all(errors.values())
    with pytest.raises(LesionfastError, match="not a picture"):
        Service(exported).row(data, {})
    assert not gone_out(traces) and not [trace for trace in traces if "passwd" in trace[1]]


def test_entities_and_links_of_a_workbook_are_not_followed(predicted, theirs, address, traces):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["image_id", "age"])
    book.active.append(["own.jpg", f'=WEBSERVICE("http://{address}/x")'])
    book.active.append([f'=HYPERLINK("http://{address}/y","own.jpg")', 50])
    plain, evil = theirs / "plain.xlsx", theirs / "evil.xlsx"
    book.save(plain)
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "http://{address}/e"><!ENTITY f SYSTEM "file:///etc/passwd">]>'
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            text = source.read(name).decode()
            if name.endswith("sheet1.xml"):
                start, end, rest = text.partition("?>") if "?>" in text else ("", "", text)
                text = start + end + entity + rest.replace("image_id", "&e;&f;image_id")
            target.writestr(name, text)
    for table in (plain, evil):
        try:
            predicted(table)
        except LesionfastError as error:
            assert "root:" not in str(error)
        (theirs.parent / "out.csv").unlink(missing_ok=True)
    assert not gone_out(traces) and not [trace for trace in traces if "/etc/passwd" in trace[1]]


def test_members_of_an_archive_lie_in_it(predicted, theirs, secret, photo, traces):
    with zipfile.ZipFile(theirs / "a.zip", "w") as archive:
        for name in ("ok.jpg", "../../private/up.jpg", "/etc/root.jpg"):
            archive.writestr(name, photo)
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(secret))
    with tarfile.open(theirs / "a.tar", "w") as archive:
        for name in ("fine.jpg", "../../private/above.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(photo)
            archive.addfile(info, io.BytesIO(photo))
        for name, kind in (("s.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("p.jpg", b"6")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
    errors = predicted(theirs)
    assert {name for name, error in errors.items() if not error} >= {
        "own.jpg",
        "ok.jpg",
        "fine.jpg",
    }
    assert "not a picture" in errors["link.jpg"] and not {*errors} & {"s.jpg", "h.jpg", "p.jpg"}
    assert not [trace for trace in traces if trace[0] == "open" and "secret" in trace[1]]
    assert [path.name for path in secret.parent.iterdir()] == ["secret.jpg"]


def test_a_store_gives_no_other_file(predicted, theirs, secret, photo):
    h5py = pytest.importorskip("h5py")
    import numpy as np

    data = np.frombuffer(photo, np.uint8)
    other, pipe = secret.with_name("other.h5"), secret.with_name("pipe.h5")
    os.mkfifo(pipe)
    with h5py.File(other, "w") as file:
        file["x/y"] = data
    with h5py.File(theirs / "store.h5", "w") as file:
        file["own"] = data
        file["kept/own2"] = h5py.SoftLink("/own")
        file.create_dataset("raw", data.shape, np.uint8, external=[(str(secret), 0, len(data))])
        file["link"] = h5py.ExternalLink(str(other), "x/y")
        file["through"] = h5py.SoftLink("/group/y")
        file["group"] = h5py.ExternalLink(str(other), "x")
        file["hangs"] = h5py.ExternalLink(str(pipe), "x")
        file["loop"] = h5py.SoftLink("/loop")
        layout = h5py.VirtualLayout(data.shape, np.uint8)
        layout[:] = h5py.VirtualSource(str(other), "x/y", shape=data.shape)
        file.create_virtual_dataset("virtual", layout)
    errors = predicted(theirs / "store.h5")
    assert errors.pop("own") == "" and errors.pop("own2", "") == ""
    assert "maybe in a circle" in errors.pop("loop")
    assert {*errors} >= {"raw", "link", "through", "group", "hangs", "virtual"}
    assert all("lies in another file" in error for error in errors.values())


def test_pipes_and_devices_in_a_folder_stop_nothing(predicted, theirs, exported):
    for name in (
        "pipe.jpg",
        "bare",
        "pipe.zip",
        "pipe.tar",
        "pipe.csv",
        "pipe.parquet",
        "pipe.xlsx",
    ):
        os.mkfifo(theirs / name)
    for name in ("pipe.dcm", "pipe.h5", "pipe.npz", "pipe.json"):
        os.mkfifo(theirs / name)
    for name in ("zero.jpg", "zero.csv", "zero.zip", "zero"):
        (theirs / name).symlink_to("/dev/zero")
    (theirs / "loop").symlink_to(theirs)
    (theirs / "gone.jpg").symlink_to(theirs / "nothing")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(theirs / "socket.jpg"))
        errors = predicted(theirs)
    assert errors.pop("own.jpg") == "" and {*errors} >= {"pipe.jpg", "zero.jpg", "gone.jpg"}
    assert all(errors.values())
    for name in ("pipe.zip", "pipe.tar", "pipe.h5", "pipe.npz", "pipe.csv", "zero.zip", "zero.csv"):
        (theirs.parent / "out.csv").unlink(missing_ok=True)
        with pytest.raises(LesionfastError, match="not a regular file|there is no file"):
            predicted(theirs / name)


BEGUN = {
    "another format.csv": b"image,age\na,5\n",
    "config.json": b'{\n  "arch": "resnet18"\n}\n',
    "one line.json": b'{"image": "a", "advice": "x"}\n',
    "array.jsonl": b"[1]\n",
    "picture.jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "weights.safetensors": b"\x10\0\0\0\0\0\0\0{}",
    "blank.txt": b"\n\n  hello\n",
    "number.txt": b"5\n",
    "deep.jsonl": b"[" * 100_000,
    "deep object.jsonl": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("name", BEGUN)
def test_a_file_that_is_no_log_is_not_appended_to(tmp_path, exported, name):
    path = tmp_path / name
    path.write_bytes(BEGUN[name])
    with pytest.raises(LesionfastError, match="not a log of predictions.* Name another file"):
        Predictor(exported, log=path)
    assert path.read_bytes() == BEGUN[name]


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "device", "socket"])
def test_a_log_is_a_regular_file(tmp_path, kind):
    target, path = tmp_path / "target", tmp_path / "log.jsonl"
    target.write_text("theirs")
    with socket.socket(socket.AF_UNIX) as listener:
        make = {
            "link": lambda: path.symlink_to(target),
            "dangling": lambda: path.symlink_to(tmp_path / "nothing"),
            "pipe": lambda: os.mkfifo(path),
            "folder": path.mkdir,
            "device": lambda: path.symlink_to("/dev/full"),
            "socket": lambda: listener.bind(str(path)),
        }
        make[kind]()
        with pytest.raises(LesionfastError, match="Without its log nothing is predicted"):
            check_log(path)
    assert target.read_text() == "theirs" and not (tmp_path / "nothing").exists()
    for device in ("/dev/full", "/dev/null", "/dev/stdout"):
        with pytest.raises(LesionfastError):
            check_log(device)


def test_nothing_is_told_when_the_log_became_another_file(exported, photo, tmp_path):
    log, target = tmp_path / "log.jsonl", tmp_path / "target"
    target.write_text("theirs")
    service = Service(exported, log=log)
    service.row(photo, {})
    log.unlink()
    for make in (lambda: log.symlink_to(target), lambda: os.mkfifo(log), log.mkdir):
        make()
        with pytest.raises(LesionfastError, match="nothing is written there|can't be written"):
            service.row(photo, {})
        log.rmdir() if log.is_dir() and not log.is_symlink() else log.unlink()
    lock = tmp_path / f"{files.LOCKED}log.jsonl"
    lock.symlink_to(target)
    with pytest.raises(LesionfastError):
        service.row(photo, {})
    assert target.read_text() == "theirs"
    lock.unlink()
    service.row(photo, {})
    assert len(read_log(log).lines) == 1


def test_a_log_that_can_not_be_written_is_no_log(tmp_path, read_only):
    folder = tmp_path / "closed"
    folder.mkdir()
    read_only(folder)
    with pytest.raises(LesionfastError, match="Without its log nothing is predicted"):
        check_log(folder / "log.jsonl")
    for path in (tmp_path / ("a" * 300), folder / "deeper" / "log"):
        with pytest.raises(LesionfastError):
            check_log(path)


def test_log_and_output_are_two_files(exported, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    (tmp_path / "same").symlink_to(tmp_path)
    logs = [out, tmp_path / "same" / "out.jsonl", tmp_path / "." / "out.jsonl"]
    for log in logs:
        with pytest.raises(LesionfastError, match="--log-predictions and --out both write"):
            predict_inputs(exported, photos[:1], out, "jsonl", metadata={}, log=log)
    assert not out.exists()


def test_a_line_has_no_more_than_the_line(exported, photo, tmp_path):
    """What a client sends as metadata reaches the log as a known class alone."""
    log = tmp_path / "log.jsonl"
    service = Service(exported, log=log)
    for value in ('male"}\n{"time": "x', "\x1b[2J", "Frau Muster", "a" * 900):
        with pytest.raises(LesionfastError):
            service.row(photo, {"sex": value})
    service.row(photo, {"sex": "male", "age": "57"})
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["metadata"] == {"age": "55-59", "sex": "male"}
    assert isinstance(service.predictor.log, PredictionLog)


EVERYBODY = ("0.0.0.0", "::", "0", "00.0.0.0")


@pytest.mark.parametrize("host", EVERYBODY)
def test_a_page_for_other_machines_needs_a_token(host, caplog, monkeypatch):
    try:
        listen(host, 0).close()
    except LesionfastError:
        pytest.skip(f"this machine has no address {host}")
    with pytest.raises(LesionfastError, match=f"--host {re.escape(host)} opens .* Type --token"):
        serve_page(lambda: pytest.fail("was built"), host, 0)
    for token in ("", "short"):
        with pytest.raises(LesionfastError, match="--token has"):
            serve_page(lambda: pytest.fail("was built"), host, 0, token)

    def stop():
        raise KeyError("built")

    with pytest.raises(KeyError, match="built"):
        serve_page(stop, host, 0, "correct-horse-battery")
    assert f"--host {host} opens the page to every machine" in caplog.text
    for own in ("127.0.0.1", "localhost"):
        with pytest.raises(KeyError, match="built"):
            serve_page(stop, own, 0)


@pytest.mark.parametrize(
    "host",
    ["", " ", "127.0.0.1 ", "a\0b", "a" * 300, "localhost:80", "[::1]", "http://localhost", "é"],
)
def test_what_is_no_address_is_told(host):
    with pytest.raises(LesionfastError, match="Name another --port or --host"):
        serve_page(lambda: pytest.fail("was built"), host, 0)


@pytest.mark.parametrize("words", [["app", "MODEL"], ["labels", "MODEL", "--page"]])
def test_the_commands_ask_for_a_token(words, trained, tmp_path):
    words = [str(trained.path) if word == "MODEL" else word for word in words]
    if words[0] == "labels":
        words += ["--corrections", str(tmp_path / "corrections.csv")]
    command = [sys.executable, "-m", "lesionfast", *words, "--host", "0.0.0.0", "--port", "0"]
    environment = {name: text for name, text in os.environ.items() if name != "LESIONFAST_TOKEN"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "opens the page to every machine" in done.stderr and re.search(
        r"--token [0-9a-f]{16}", done.stderr
    )
    assert not list(tmp_path.iterdir())
