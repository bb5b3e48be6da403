"""Sharing through the hub, by the command line, against a stand-in of its HTTP API."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lesionfast.errors import LesionfastError
from lesionfast.files import sha256
from lesionfast.serving.export import fetch, push, split_address
from lesionfast.serving.predictor import Predictor

TOKEN = "hf_right"


class Hub(ThreadingHTTPServer):
    """Repositories by name: whether they are private, and the files of each commit."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.private: dict[str, bool] = {}
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, name: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files, None if there is no such revision."""
        commits = self.commits.get(name, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((each for each in commits if each[0] == revision), None)


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def handle_any(self):
        self.server.asked.append(f"{self.command} {self.path}")
        for pattern, answer in ROUTES.items():
            found = re.fullmatch(pattern, f"{self.command} {self.path.partition('?')[0]}")
            if found:
                return answer(self, **found.groupdict())
        return self.say(404, {"error": f"no route {self.command} {self.path}"})

    do_GET = do_HEAD = do_POST = handle_any

    @property
    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def say(self, status, told=None, data=None, **headers):
        data = json.dumps(told).encode() if data is None else data
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self):
        self.say(401, {"error": "Invalid username or password."})

    def create(self):
        asked = json.loads(self.body)
        if not self.allowed():
            return self.refuse()
        name = (
            f"{asked['organization']}/{asked['name']}" if "organization" in asked else asked["name"]
        )
        if name.startswith("other/"):
            return self.say(403, {"error": "You don't have the rights to create a model there"})
        if name in self.server.private:
            return self.say(409, {"error": "You already created this model repo"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.private[name] = bool(private)
        return self.say(200, {"url": f"{self.server.url}/{name}"})

    def validate(self):
        assert self.body
        self.say(200, {"errors": [], "warnings": []})

    def preupload(self, name):
        asked = json.loads(self.body)
        files = [
            {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
            for each in asked["files"]
        ]
        self.say(200, {"files": files})

    def commit(self, name):
        body = self.body
        if not self.allowed():
            return self.refuse()
        files = dict((self.server.files(name) or ("", {}))[1])
        for line in body.splitlines():
            told = json.loads(line)
            if told["key"] == "file":
                files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
        revision = hashlib.sha1(body).hexdigest()
        self.server.commits.setdefault(name, []).append((revision, files))
        url = f"{self.server.url}/{name}/commit/{revision}"
        return self.say(200, {"commitUrl": url, "commitOid": revision, "success": True})

    def info(self, name, revision="main"):
        found = self.server.files(name, revision)
        if name not in self.server.private or (self.server.private[name] and not self.allowed()):
            return self.say(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        told = {"id": name, "private": self.server.private[name], "tags": [], "siblings": []}
        if found:
            told |= {"sha": found[0], "siblings": [{"rfilename": each} for each in found[1]]}
        return self.say(200, told)

    def resolve(self, name, revision, file):
        if name not in self.server.private or (self.server.private[name] and not self.allowed()):
            return self.say(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        found = self.server.files(name, revision)
        if found is None:
            return self.say(404, {"error": "Invalid rev"}, X_Error_Code="RevisionNotFound")
        if file not in found[1]:
            headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": found[0]}
            return self.say(404, {"error": "Entry not found"}, **headers)
        data = found[1][file]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.say(200, data=data, ETag=etag, X_Repo_Commit=found[0])

    def tree(self, name, revision):
        files = self.server.files(name, revision)[1]
        listed = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]
        return self.say(200, listed)


REPOSITORY = r"(?P<name>[\w.-]+/[\w.-]+)"
ROUTES = {
    r"POST /api/repos/create": Handler.create,
    r"POST /api/validate-yaml": Handler.validate,
    rf"POST /api/models/{REPOSITORY}/preupload/main": Handler.preupload,
    rf"POST /api/models/{REPOSITORY}/commit/main": Handler.commit,
    rf"GET /api/models/{REPOSITORY}": Handler.info,
    rf"GET /api/models/{REPOSITORY}/tree/(?P<revision>[\w.-]+)": Handler.tree,
    rf"GET /api/models/{REPOSITORY}/revision/(?P<revision>[\w.-]+)": Handler.info,
    rf"(GET|HEAD) /{REPOSITORY}/resolve/(?P<revision>[\w.-]+)/(?P<file>[\w.-]+)": Handler.resolve,
}


@contextmanager
def serving():
    """A hub that answers while the block runs."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


NAME = "clinic/lesions"


@pytest.fixture(scope="module")
def lesionfast(run_apart):
    """A function that runs the command line with a cache of the hub of its own."""

    def run(*given, home, hub=None, token=TOKEN, **more):
        names = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment = {**names, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **more}
        environment["HF_ENDPOINT"] = hub or "http://127.0.0.1:9"  # nobody answers there
        if token:
            environment["HF_TOKEN"] = token
        return run_apart(*given, env=environment)

    return run


def rows(done):
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


@pytest.fixture(scope="module")
def shared(lesionfast, exported, tmp_path_factory):
    """A hub with the exported model, its answer to the push, and a cache that fetched it."""
    home = tmp_path_factory.mktemp("home")
    with serving() as hub:
        done = lesionfast(
            "push", exported, NAME, home=tmp_path_factory.mktemp("sender"), hub=hub.url
        )
        assert done.returncode == 0, done.stderr
        yield hub, done, home


def test_push_makes_a_private_repository_of_the_same_bytes(shared, exported):
    hub, done, _ = shared
    assert done.stdout == f"hf://{NAME}\n" and "private" in done.stderr
    assert hub.private[NAME] is True
    files = hub.files(NAME)[1]
    assert sorted(files) == sorted(path.name for path in exported.iterdir())
    assert all(files[path.name] == path.read_bytes() for path in exported.iterdir())


def test_predict_from_the_hub_then_without_it(lesionfast, shared, exported, photos, tmp_path):
    hub, _, home = shared
    expected = rows(lesionfast("predict", f"hf://{NAME}", photos[0], home=home, hub=hub.url))
    here = Predictor(exported)(photos[0])
    assert expected[0]["advice"] == here["advice"]
    assert float(expected[0]["p_mel"]) == pytest.approx(here["p_mel"], abs=1e-6)
    cached = [path for path in home.rglob("snapshots/*/*") if path.is_file()]
    assert {path.name for path in cached} == {
        *("model.json", "model.safetensors", "outliers.safetensors")
    }
    assert all(sha256(path) == sha256(exported / path.name) for path in cached)
    asked = len(hub.asked)
    offline = lesionfast("predict", f"hf://{NAME}", photos[0], home=home, HF_HUB_OFFLINE="1")
    assert rows(offline) == expected and len(hub.asked) == asked
    empty = lesionfast("predict", f"hf://{NAME}", photos[0], home=tmp_path, HF_HUB_OFFLINE="1")
    assert empty.returncode == 2 and f"hf://{NAME} is not in the cache" in empty.stderr


def test_the_cache_is_used_where_there_is_no_network(shared, photos):
    home = shared[2]  # filled by the test above
    code = f"from lesionfast.serving.export import fetch; print(fetch('hf://{NAME}'))"
    names = {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN}
    command = [sys.executable, "-c", code]
    found = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | names, check=False
    )
    assert found.returncode == 0, found.stderr
    assert (Path(found.stdout.strip()) / "model.safetensors").is_file()


def test_a_revision_stays_what_it_was(lesionfast, shared, photos, tmp_path):
    hub, _, _ = shared
    first, files = hub.files(NAME)
    hub.commits[NAME].append(("f" * 40, files | {"model.json": b'{"schema": 99}'}))
    try:
        newest = lesionfast("predict", f"hf://{NAME}", photos[0], home=tmp_path, hub=hub.url)
        assert newest.returncode == 2 and "has the schema 99" in newest.stderr
        address = f"hf://{NAME}@{first}"
        assert len(rows(lesionfast("predict", address, photos[0], home=tmp_path, hub=hub.url))) == 1
    finally:
        hub.commits[NAME].pop()


@pytest.mark.parametrize(
    ("address", "token", "message"),
    [
        (
            "hf://clinic/nothing",
            TOKEN,
            "hf://clinic/nothing does not exist, or you may not read it",
        ),
        (f"hf://{NAME}", None, f"hf://{NAME} does not exist, or you may not read it"),
        (f"hf://{NAME}@gone", TOKEN, f"hf://{NAME} has no such revision"),
        (f"hf://{NAME}/model.onnx", TOKEN, f"hf://{NAME} has no model.onnx; it has: model.safe"),
    ],
)
def test_what_is_not_there_is_told(lesionfast, shared, photos, tmp_path, address, token, message):
    hub, _, _ = shared
    done = lesionfast("predict", address, photos[0], home=tmp_path, hub=hub.url, token=token)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        (NAME, None, "To log in type: hf auth login"),
        (NAME, "hf_wrong", "To log in type: hf auth login"),
        ("other/lesions", TOKEN, "You don't have the rights"),
    ],
)
def test_who_may_not_push_is_told(lesionfast, shared, exported, tmp_path, name, token, message):
    hub, _, _ = shared
    done = lesionfast("push", exported, name, home=tmp_path, hub=hub.url, token=token)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr


def test_push_of_a_run_for_everybody(lesionfast, shared, trained, tmp_path):
    hub, _, _ = shared
    done = lesionfast("push", trained.path, "clinic/open", "--public", home=tmp_path, hub=hub.url)
    assert done.returncode == 0, done.stderr
    assert hub.private["clinic/open"] is False
    assert {"model.json", "model.safetensors", "README.md"} <= set(hub.files("clinic/open")[1])


def test_push_without_a_network_is_told(lesionfast, exported, tmp_path):
    done = lesionfast("push", exported, NAME, home=tmp_path)
    assert done.returncode == 2 and f"hf://{NAME}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["lesions", "a/b/c", "hf://a/b", "a b/c", ""])
def test_a_name_that_is_none_is_refused_before_anything_is_sent(exported, name):
    with pytest.raises(LesionfastError, match="is not a name on the hub. Type user/name"):
        push(exported, name)


def test_addresses():
    assert split_address("hf://a/b") == ("a/b", "", None)
    assert split_address("hf://a/b@v1/model.onnx") == ("a/b", "model.onnx", "v1")
    for wrong in ("hf://a", "hf://a/b/c/d", "hf://a/../b", "hf:/a/b"):
        with pytest.raises(LesionfastError, match="is not an address of a model"):
            fetch(wrong)
