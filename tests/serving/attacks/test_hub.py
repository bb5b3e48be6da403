"""What a repository of a stranger on the hub may do: only named files come, checked before use."""

import errno
import gzip
import importlib.util
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from typer.testing import CliRunner

from lesionfast.cli.base import app
from lesionfast.errors import LesionfastError
from lesionfast.models.hub import answers
from lesionfast.models.hub.failures import explain_errors
from lesionfast.models.weights import Wanted, fetch_file
from lesionfast.serving.bundle import hash_description, read_checked
from lesionfast.serving.export import fetch, list_files_to_share, push, split_address

SPEC = importlib.util.spec_from_file_location(
    "stand_in", Path(__file__).parents[1] / "test_export_hub.py"
)
stand_in = importlib.util.module_from_spec(SPEC)  # of the hub's HTTP API
SPEC.loader.exec_module(stand_in)
lesionfast = stand_in.lesionfast  # a fixture
NAME = "stranger/model"


class Liar(stand_in.Handler):
    """Answers as the hub does, but for `lie`, a function of the server that writes the answer."""

    def say(self, status, told=None, data=None, **headers):
        lie = getattr(self.server, "lie", None)
        if lie is None or (self.command == "GET" and self.path.startswith("/api/")):
            return super().say(status, told, data, **headers)
        try:
            return lie(self, status, told, data, headers)
        except OSError:  # nobody listens any more
            self.close_connection = True

    do_GET = do_HEAD = do_POST = stand_in.Handler.handle_any

    def begin(self, headers: dict[str, str], **more: str) -> None:
        self.send_response(200)
        for name, value in (headers | more).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


@pytest.fixture(scope="module")
def hub():
    with stand_in.serving() as running:
        running.private[NAME] = False
        running.RequestHandlerClass = Liar
        yield running


@pytest.fixture
def repository(hub, exported):
    """A function that puts files into the repository, and returns their revision."""

    def put(revision: str = "a" * 40, **changed: bytes | None) -> str:
        files = {path.name: path.read_bytes() for path in exported.iterdir()}
        files |= {name.replace("__", "/"): data for name, data in changed.items()}
        kept = {name: data for name, data in files.items() if data is not None}
        hub.commits.setdefault(NAME, []).append((revision, kept))
        return revision

    yield put
    hub.commits.pop(NAME, None)


@contextmanager
def own_hub(hub, home: Path) -> Iterator[None]:
    """In this process the client of the hub has a server and a cache of its own."""
    of_hub = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_hub.items():
            patch.setattr(huggingface_hub.constants, name, value)
        yield


def predict(hub, photos, home, address: str = f"hf://{NAME}") -> SimpleNamespace:
    """What `lesionfast predict` says, in this process, with a cache and a hub of its own."""
    with own_hub(hub, home):
        result = CliRunner().invoke(app, ["predict", address, photos[0]])
    error = result.exception
    if isinstance(error, LesionfastError):
        return SimpleNamespace(returncode=2, stdout=result.stdout, stderr=str(error))
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return SimpleNamespace(returncode=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def refused(done, message: str) -> None:
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""


def fetched(hub, home) -> set[str]:
    """The files that were asked for, and those that lie in the cache."""
    asked = {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line}
    there = {path.name for path in home.rglob("snapshots/*/*")}
    assert there <= asked
    return there


def description(exported, change) -> bytes:
    told = json.loads((exported / "model.json").read_text("utf-8"))
    del told["sha256"]
    change(told)
    return json.dumps(told | {"sha256": hash_description(told)}).encode()


def test_only_named_files_are_fetched(hub, repository, photos, tmp_path):
    repository(
        **{
            **{"setup.py": b"raise SystemExit", "model.pkl": b"\x80\x04.", "conftest.py": b"1/0"},
            **{"export.pkl": b"\x80\x04.", "pytorch_model.bin": b"\x80\x04.", "config.json": b"{}"},
            **{"sub__model.safetensors": b"x", "model.safetensors.index.json": b"{}"},
            **{"..__model.json": b"{}", "lesionfast.py": b"raise SystemExit"},
        }
    )
    done = predict(hub, photos, tmp_path)
    assert done.returncode == 0, done.stderr
    assert fetched(hub, tmp_path) == {"model.json", "model.safetensors", "outliers.safetensors"}
    outside = [path for path in tmp_path.iterdir() if path.name not in ("hub", "xet", "assets")]
    assert not [path for path in outside if path.suffix in (".py", ".pkl", ".json")]


def test_the_command_ends_with_2(lesionfast, hub, repository, photos, tmp_path):
    repository(**{"model.safetensors": b"another"})
    refused(lesionfast("predict", f"hf://{NAME}", photos[0], home=tmp_path, hub=hub.url), "")


@pytest.mark.parametrize(
    "name",
    ["*", "../../../evil", "/etc/passwd", "sub/model.onnx", "model.pkl", "config.json", "[a-z]*"],
)
def test_a_list_of_other_files_fetches_none(hub, repository, exported, photos, tmp_path, name):
    def change(told):
        told["files"][name] = "0" * 64

    hub.asked.clear()
    repository(**{"model.json": description(exported, change)})
    refused(predict(hub, photos, tmp_path), "which no export holds")
    assert fetched(hub, tmp_path) == {"model.json"}


@pytest.mark.parametrize("name", ["model.safetensors", "outliers.safetensors"])
@pytest.mark.parametrize("data", [b"../../../etc/passwd", b"\x80\x04cos\nsystem\n.", b""])
def test_a_file_is_checked_before_it_is_opened(hub, repository, photos, tmp_path, name, data):
    """The hub gives a symbolic link of a repository as the text of its target."""
    repository(**{name: data})
    refused(predict(hub, photos, tmp_path), "is not the file that was exported")


def test_a_file_that_is_not_there_is_said(hub, repository, photos, tmp_path):
    repository(**{"model.safetensors": None})
    refused(predict(hub, photos, tmp_path), "model.safetensors is missing")


def test_a_revision_is_pinned_and_another_is_not_taken_for_it(
    hub, repository, exported, photos, tmp_path
):
    first = repository("a" * 40)
    assert predict(hub, photos, tmp_path, f"hf://{NAME}@{first}").returncode == 0
    repository("b" * 40, **{"model.json": b'{"schema": 99}'})
    refused(predict(hub, photos, tmp_path), "has the schema 99")
    asked = len(hub.asked)
    assert predict(hub, photos, tmp_path, f"hf://{NAME}@{first}").returncode == 0
    assert not [line for line in hub.asked[asked:] if "b" * 40 in line or "/main" in line]


def test_the_files_of_a_model_are_of_one_revision(hub, repository, photos, tmp_path):
    """What is fetched after model.json is of its commit, though the branch has moved since."""
    repository("c" * 40)
    hub.asked.clear()
    assert predict(hub, photos, tmp_path).returncode == 0
    later = [line for line in hub.asked if "/resolve/" in line and "model.json" not in line]
    assert later and all("c" * 40 in line for line in later)


def test_a_large_or_deep_description_is_refused(hub, repository, photos, tmp_path):
    repository(**{"model.json": b"[" * 100_000})
    refused(predict(hub, photos, tmp_path / "deep"), "model.json is broken")
    hub.commits.pop(NAME)
    repository(**{"model.json": b"[" + b" " * (40 * 2**20) + b"]"})
    refused(predict(hub, photos, tmp_path / "large"), "and at most 33.6 MB are read")


@pytest.mark.parametrize(
    "address",
    [
        *("hf://../..", "hf://a/..", "hf://a/b/../c", "hf://a/b/c/d", "hf://a/b@../../x"),
        *("hf://a/b@..", "hf://a/b@.", "hf://a/b@", "hf://a/b@x y", "hf://a/b@x\0", "hf://a/b@x\n"),
        *("hf://a/b@%2e%2e", "hf://a\\b/c", "hf://user:pw@host/a/b", "hf:///etc/passwd"),
    ],
)
def test_an_address_that_leads_elsewhere_is_none(address):
    with pytest.raises(LesionfastError, match="is not an address of a model"):
        split_address(address)


def test_push_shares_no_file_that_lies_beside(lesionfast, hub, exported, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    (folder / "id_rsa").write_text("key")
    (folder / ".env").write_text("TOKEN=1")
    (folder / "sub").mkdir()
    (folder / "sub" / "patients.csv").write_text("name")
    (folder / "link.safetensors").symlink_to("/etc/passwd")
    done = lesionfast("push", folder, "clinic/mine", home=tmp_path / "home", hub=hub.url)
    assert done.returncode == 0, done.stderr
    assert set(hub.files("clinic/mine")[1]) == {path.name for path in exported.iterdir()}


@pytest.mark.parametrize("name", ["README.md", "model.json", "model.safetensors"])
def test_push_shares_no_file_behind_a_link(exported, tmp_path, name):
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    shutil.copyfile(folder / name, tmp_path / "elsewhere")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LesionfastError, match=f"{name} is not an ordinary file"):
        list_files_to_share(folder)


@pytest.fixture
def lying(hub, repository, tmp_path, monkeypatch):
    """A function that fetches the model while the hub lies; the error, and no file elsewhere."""
    repository()
    home = tmp_path / "a" / "b" / "home"
    home.mkdir(parents=True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")

    def ask(lie, fetching=lambda: read_checked(fetch(f"hf://{NAME}"))) -> str:
        hub.lie = lie
        hub.asked.clear()
        try:
            with own_hub(hub, home), pytest.raises(LesionfastError) as error:
                fetching()
        finally:
            hub.lie = None
        there = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert all(path.is_relative_to(home / "hub") for path in there), there
        assert sum(path.stat().st_size for path in there) < 40 * 2**20
        return str(error.value)

    return ask


def with_headers(**more: str):
    """An answer with other headers."""
    return lambda handler, status, told, data, headers: stand_in.Handler.say(
        handler, status, told, data, **headers | more
    )


UP = ["../../../../owned", "/tmp/owned/x", "a/b", "..", ".", "", "e" * 5000, "a\\b", "a%00b"]
LEADS = ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "javascript:1"]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        *(({"ETag": f'"{etag}"'}, "has an ETag that is none") for etag in UP),
        *(({"X_Linked_Etag": f'W/"{etag}"'}, "has an ETag that is none") for etag in UP[:2]),
        *(({"X_Repo_Commit": name}, "names a commit that is none") for name in UP),
        ({"X_Linked_Size": str(2**62)}, "is to have 4611686018.4 GB"),
        ({"X_Linked_Size": "40000000000000000"}, "is to have 40000000.0 GB"),
        ({"Content_Encoding": "gzip"}, "is packed, though asked not to be"),
    ],
)
def test_headers_that_lie_are_refused(lying, headers, message):
    """Of an ETag, and of a commit, the hub's client makes a path."""
    assert f"hf://{NAME}: the hub's answer is refused: it {message}" in lying(
        with_headers(**headers)
    )


def test_an_entry_that_is_missing_makes_no_file_elsewhere(lying):
    def lie(handler, status, told, data, headers):
        about = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": "../../../../owned"}
        stand_in.Handler.say(handler, 404, {}, **about)

    assert "names a commit that is none" in lying(lie)


def test_pretrained_weights_come_with_the_same_care(lying, hub):
    wanted = Wanted("x", "x", repository=NAME)
    message = lying(with_headers(ETag='"../../owned"'), lambda: fetch_file(wanted, "model.json"))
    assert message.startswith(f"{NAME}: the hub's answer is refused: it has an ETag that is none")


@pytest.mark.parametrize("target", LEADS)
def test_a_redirection_leads_to_no_file(lying, target):
    def lie(handler, status, told, data, headers):
        stand_in.Handler.say(handler, 302, data=b"", Location=target, **headers)

    assert "it leads to what is no web address" in lying(lie)


def test_a_loop_of_redirections_ends(lying, hub):
    def lie(handler, status, told, data, headers):
        stand_in.Handler.say(handler, 302, data=b"", Location=handler.path)

    assert "Exceeded 20 redirects" in lying(lie) and len(hub.asked) < 30


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {}, "the hub says: Client error '401"),
        (403, {"X_Error_Message": "no \x1b[2J" * 2000}, "the hub says: no "),
        (403, {"X_Error_Code": "GatedRepo"}, "is gated: its owner asks"),
        (404, {}, "the hub says: Client error '404"),
        (200, {}, "is missing the 'X-Repo-Commit' header"),
    ],
)
def test_a_hub_that_refuses_is_quoted(lying, status, headers, message):
    def lie(handler, *about):
        stand_in.Handler.say(handler, status, {}, **headers)

    found = lying(lie)
    assert message in found and "\n" not in found and len(found) < 600


def test_each_file_is_of_the_commit_of_the_description(lying):
    def lie(handler, status, told, data, headers):
        headers["X_Repo_Commit"] = ("d" if "safetensors" in handler.path else "a") * 40
        stand_in.Handler.say(handler, status, told, data, **headers)

    assert "model.safetensors is missing" in lying(lie)


def test_one_etag_for_all_files_is_seen_by_their_hashes(lying):
    assert "is not the file that was exported" in lying(with_headers(ETag='"abc"'))


def body_of(write):
    """An answer whose body a function writes, in chunks or until the connection is closed."""

    def lie(handler, status, told, data, headers):
        if handler.command == "HEAD" or "model.json" in handler.path:
            return stand_in.Handler.say(handler, status, told, data, **headers)
        handler.close_connection = True
        return write(handler, data, headers)

    return lie


def test_a_body_without_an_end_is_not_read_to_it(lying, monkeypatch, memory):
    monkeypatch.setattr(answers, "MOST_UNKNOWN", 20_000_000)
    block = b"%x\r\n" % 2**20 + b"x" * 2**20 + b"\r\n"

    def write(handler, data, headers):
        handler.begin(headers, Transfer_Encoding="chunked")
        for _ in range(2_000):
            handler.wfile.write(block)

    with memory(200 * 2**20):
        assert "goes on after 20.0 MB" in lying(body_of(write))


def test_a_body_of_a_byte_a_second_is_given_up(lying, monkeypatch):
    monkeypatch.setattr(answers, "PATIENCE", 0.5)

    def write(handler, data, headers):
        handler.begin(headers, Content_Length=str(len(data)))
        for at in range(60):
            handler.wfile.write(data[at : at + 1])
            handler.wfile.flush()
            time.sleep(0.1)

    assert "comes with less than 1.0 kB a second" in lying(body_of(write))


def test_a_packed_body_is_not_unpacked(lying, memory):
    packed = gzip.compress(bytes(200 * 2**20), 1)

    def write(handler, data, headers):
        handler.begin(headers, Content_Encoding="gzip", Content_Length=str(len(packed)))
        handler.wfile.write(packed)

    with memory(100 * 2**20):
        assert "is packed" in lying(body_of(write))


@pytest.mark.parametrize(
    "dribble", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-A: "]
)
def test_an_answer_that_never_begins_is_given_up(lying, monkeypatch, dribble):
    """Each byte comes in time, and the answer never: hints without an end, or a header."""
    monkeypatch.setattr(answers, "LONGEST", 0.5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0)
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.1)))

    def lie(handler, status, told, data, headers):
        handler.close_connection = True
        handler.wfile.write(dribble)
        for _ in range(100):
            handler.wfile.write(dribble if dribble.endswith(b"\n") else b"a")
            time.sleep(0.1)

    assert "it does not begin, though it was waited for" in lying(lie)


@pytest.mark.parametrize("etag", ["1B2M2Y8AsgTpgAmY7PhCfg==", "a+b=", "0x8D_1"])
def test_an_etag_of_a_mirror_is_taken(hub, repository, tmp_path, monkeypatch, etag):
    repository()
    monkeypatch.setattr(hub, "lie", with_headers(ETag=f'"{etag}"'), raising=False)
    with own_hub(hub, tmp_path):
        assert fetch_file(Wanted("x", "x", repository=NAME), "model.json").is_file()
    monkeypatch.setattr(hub, "lie", None)


def test_a_file_of_a_mirror_is_no_answer_of_the_api(monkeypatch):
    mirror = "https://host/artifactory/api/huggingfaceml/repo"
    assert answers.is_of_api("/api/models/a/b") and not answers.is_of_api("/a/api/resolve/main/x")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", mirror)
    root = "/artifactory/api/huggingfaceml/repo"
    assert answers.is_of_api(f"{root}/api/models/a/b")
    assert not answers.is_of_api(f"{root}/a/b/resolve/main/model.safetensors")


def test_room_is_asked_for_what_comes_only(hub, repository, tmp_path, monkeypatch):
    """What is in the cache is found again on a full disk."""
    repository()
    with own_hub(hub, tmp_path):
        fetch(f"hf://{NAME}")
        monkeypatch.setattr(answers, "free_bytes", lambda path: 10)
        fetch(f"hf://{NAME}")
        shutil.rmtree(tmp_path / "hub")
        with pytest.raises(LesionfastError, match="needs .* and 10 bytes are free. Free some"):
            fetch(f"hf://{NAME}")


def test_two_threads_ask_without_a_word_to_each_other():
    """Each has limits of its own, and the client that others use is neither closed nor kept."""
    with answers.checked_answers("first"):
        pass
    session, seen = huggingface_hub.get_session(), []
    first, second = answers.checked_answers("a"), answers.checked_answers("b")

    def ask(which, entered, leave):
        with which:
            entered.set()
            leave.wait(10)
            seen.append(answers.ASKED.get().name)

    events = [[threading.Event(), threading.Event()] for _ in range(2)]
    pairs = zip((first, second), events, strict=True)
    threads = [threading.Thread(target=ask, args=(which, *pair)) for which, pair in pairs]
    for thread, (entered, _) in zip(threads, events, strict=True):
        thread.start()
        assert entered.wait(10)
    for thread, (_, leave) in zip(threads, events, strict=True):
        leave.set()
        thread.join(10)
    assert seen == ["a", "b"] and answers.ASKED.get() is None
    assert huggingface_hub.get_session() is session and not session.is_closed
    answers.check_response(None)  # of who did not ask for a check


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOLCK, "No locks available"), "can't be kept in .*: No locks available"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files. .* HF_HOME"),
        (OSError(errno.ENOSPC, "x"), "the disk is full. Free some space, or set HF_HOME"),
        (ValueError("Unknown scheme for proxy URL 'x'"), "the proxy can't be used .* HTTPS_PROXY"),
        (ImportError("Using SOCKS proxy, but no socksio"), "the proxy can't be used .* ALL_PROXY"),
        (ValueError("x"), "the hub's answer makes no sense"),
        (OSError("x"), "the hub's answer makes no sense"),
    ],
)
def test_the_hub_is_not_blamed_for_this_computer(error, message):
    with pytest.raises(LesionfastError, match=message), explain_errors(NAME):
        raise error


@pytest.mark.attack
@pytest.mark.parametrize(
    ("status", "message"),
    [(429, "is asked too often (status 429)"), (500, "has a fault"), (503, "(status 503)")],
)
def test_a_busy_hub_is_asked_some_times_only(lying, hub, status, message):
    """The client asks again for half a minute, whatever the hub says about when to come back."""

    def lie(handler, *about):
        wait = {"Retry_After": "100000", "RateLimit": '"api";r=0;t=100000'}
        stand_in.Handler.say(handler, status, {}, **wait)

    assert message in lying(lie) and len(hub.asked) < 10


@pytest.mark.attack
@pytest.mark.parametrize("part", [0, 100])
def test_a_connection_that_breaks_again_and_again_ends(lying, monkeypatch, part):
    monkeypatch.setattr(answers, "MOST_ANSWERS", 10)

    def write(handler, data, headers):
        handler.begin(headers, Content_Length=str(len(data)))
        handler.wfile.write(data[:part])

    found = lying(body_of(write))
    assert "out of reach" in found or "is one of more than 10 for one model" in found


def test_a_protocol_of_its_own_is_not_spoken(hub, repository, tmp_path, monkeypatch):
    """Xet, whose servers an answer names: the file comes from the hub itself."""
    repository()
    monkeypatch.setattr(hub, "lie", with_headers(X_Xet_Hash="a" * 64, X_Xet_Refresh_Route="/x"))
    with own_hub(hub, tmp_path):
        read_checked(fetch(f"hf://{NAME}"))
    monkeypatch.setattr(hub, "lie", None)
    assert not [line for line in hub.asked if line.endswith("/x")]


@pytest.mark.parametrize("data", [b"[]", b"null", b"<html>", b"[" * 10_000, b'{"url": 5}', b""])
def test_push_to_a_hub_of_wrong_answers_says_so(lying, hub, exported, data):
    def lie(handler, status, told, was, headers):
        stand_in.Handler.say(handler, 200, data=data)

    hub.private.pop("clinic/lies", None)
    assert "hf://clinic/lies: the hub" in lying(lie, lambda: push(exported, "clinic/lies"))


@pytest.mark.parametrize("ref", ["../../../../x", "/etc", "a" * 5000, "\0", ""])
def test_a_cache_that_a_stranger_prepared_leads_nowhere(hub, exported, tmp_path, monkeypatch, ref):
    """References that lie, and snapshots whose files are links to elsewhere."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "hub" / "models--stranger--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(ref)
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "rosebud"}')
    for target in (secret, Path("/dev/zero"), tmp_path / "gone", tmp_path):
        snapshot = cache / "snapshots" / ("e" * 40)
        shutil.rmtree(snapshot, ignore_errors=True)
        snapshot.mkdir(parents=True)
        (snapshot / "model.json").symlink_to(target)
        for address in (f"hf://{NAME}", f"hf://{NAME}@{'e' * 40}"):
            with own_hub(hub, tmp_path), pytest.raises(LesionfastError) as error:
                read_checked(fetch(address))
            assert "rosebud" not in str(error.value)
