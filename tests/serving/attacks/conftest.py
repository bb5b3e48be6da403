"""The page as a person starts it: `lesionfast app` in a process of its own, whose cost is seen."""

import copy
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

PATIENCE = 600  # seconds that a test waits for a page on a busy machine
PAGE = 1024  # bytes of a kB, as /proc counts


def read_status(process: int | str, name: str) -> int:
    """Return bytes of memory of a process: "VmRSS" now, "VmHWM" the most since `forget_peak`."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * PAGE for line in lines if line.startswith(f"{name}:"))


def forget_peak(process: int | str) -> None:
    """Begin to measure the most memory of a process anew."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


@contextmanager
def use_at_most(most: int) -> Iterator[None]:
    """Assert that what is done inside adds at most so many bytes, at any time, to this process.

    The peak that `getrusage` knows is that of all tests before; this one begins anew.
    """
    if not Path("/proc/self/clear_refs").exists():  # memory is seen on Linux only
        yield
        return
    forget_peak("self")
    before = read_status("self", "VmRSS")
    yield
    assert read_status("self", "VmHWM") - before < most


@pytest.fixture(scope="session")
def memory() -> Callable[[int], AbstractContextManager[None]]:
    """A function: what is done `with memory(most)` adds at most so many bytes."""
    return use_at_most


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path to every part of a JSON value; of a list the first two."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(2, len(value))):
            yield from places(value[index], (*path, index))


def replaced(told: object, path: tuple, value: object) -> object:
    """A copy with another value there."""
    if not path:
        return value
    whole = inner = copy.deepcopy(told)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return whole


@pytest.fixture(scope="session")
def list_parts() -> Callable[[object], list[tuple[tuple, Callable[[object], object]]]]:
    """A function: the path to each part of a JSON value, and what copies it with another there."""
    return lambda told: [(path, partial(replaced, told, path)) for path in places(told)]


class Port(int):
    """The port of a page on this machine, which can be asked."""

    def connect(self, timeout: float = 600) -> socket.socket:
        """Return a connection; seconds are how long it waits for each part of an answer."""
        return socket.create_connection(("127.0.0.1", int(self)), timeout)

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a request; `Host` may be given."""
        client = http.client.HTTPConnection("127.0.0.1", int(self), timeout=600)
        client.putrequest(method, path, skip_host="Host" in headers)
        if body:
            client.putheader("Content-Length", str(len(body)))
        for name, value in headers.items():
            client.putheader(name.replace("_", "-"), value)
        client.endheaders(body)
        response = client.getresponse()
        found = response.status, dict(response.getheaders()), response.read()
        client.close()
        return found

    def exchange(self, data: bytes) -> bytes:
        """Return what comes back for raw bytes, after which nothing more is sent."""
        with self.connect() as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65536), b""))

    def talk(self, data: bytes, patience: float = 5) -> bytes:
        """Return what comes back for raw bytes, until the page closes or says no more."""
        answer = b""
        with self.connect(patience) as client:
            with suppress(OSError):  # it may close before all is sent
                client.sendall(data)
            with suppress(OSError):
                while part := client.recv(65536):
                    answer += part
        return answer


@contextmanager
def run_page(app: Callable) -> Iterator[Port]:
    """The port of a page in a thread of this process."""
    from lesionfast.serving.web.server import build_server  # which needs what other tests do not

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = build_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield Port(listener.getsockname()[1])
        server.should_exit = True
        thread.join(120)


@pytest.fixture(scope="session")
def running() -> Callable[[Callable], AbstractContextManager[Port]]:
    """A function: the `Port` of an application as long as it runs in this process."""
    return run_page


@dataclass
class Server:
    """A page in a process of its own; `folder` is where it may write temporary files."""

    process: subprocess.Popen
    port: Port
    folder: Path

    @classmethod
    def start(cls, model: Path, folder: Path, *options: str, command: str = "app") -> "Server":
        """Start `lesionfast app`, or another command that opens a page, at a free port."""
        folder.mkdir(exist_ok=True)
        words = [sys.executable, "-m", "lesionfast", command, str(model), "--port", "0", *options]
        environment = os.environ | {"TMPDIR": str(folder)}
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
        )
        late = threading.Timer(PATIENCE, process.kill)
        late.start()
        url = process.stdout.readline().strip()
        late.cancel()
        assert url, f"{command} ended without an address, or was killed after {PATIENCE} s"
        return cls(process, Port(urlsplit(url).port), folder)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the process with a signal."""
        self.process.send_signal(number)
        self.process.wait(60)
        self.process.stdout.close()

    def read_status(self, name: str) -> int:
        """Return bytes of memory: "VmRSS" now, "VmHWM" the most since `forget_peak`."""
        return read_status(self.process.pid, name)

    def forget_peak(self) -> None:
        """Begin to measure the most memory anew."""
        forget_peak(self.process.pid)

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """Assert that it answers as fast as ever after what is done inside, and holds no more."""
        memory, opened = self.read_status("VmRSS"), self.descriptors
        self.forget_peak()
        yield
        assert self.process.poll() is None
        assert self.seconds() < 1
        end = time.monotonic() + 30  # connections are closed a moment after their clients
        while self.descriptors > opened and time.monotonic() < end:
            time.sleep(0.1)
        assert self.descriptors <= opened
        assert self.read_status("VmRSS") < 1.2 * memory + 50 * 2**20
        assert self.find_files() == []

    @property
    def descriptors(self) -> int:
        """How many files and sockets the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def find_files(self) -> list[str]:
        """Return the temporary files, those too that are deleted but open."""
        opened = Path(f"/proc/{self.process.pid}/fd")
        links = [os.readlink(link) for link in opened.iterdir() if link.is_symlink()]
        inside = [link for link in links if link.startswith(f"{self.folder}/")]
        return inside + [str(path) for path in self.folder.rglob("*")]

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Return status and body of a request."""
        status, _, answer = self.port.ask(method, path, body, **headers)
        return status, answer

    def post(self, image: bytes, path: str = "/predict", **fields: str) -> tuple[int, bytes]:
        """Return status and body of a form with an image."""
        parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
        parts.append(b'name="image"; filename="a.jpg"\r\n\r\n' + image)
        start = b"--x\r\nContent-Disposition: form-data; "
        body = b"".join(start + part + b"\r\n" for part in parts) + b"--x--\r\n"
        return self.ask("POST", path, body, Content_Type="multipart/form-data; boundary=x")

    def seconds(self) -> float:
        """Return how long the page takes to answer: the best of three, others use this machine."""
        taken = []
        for _ in range(3):
            start = time.monotonic()
            assert self.ask("GET", "/")[0] == 200
            taken.append(time.monotonic() - start)
        return min(taken)


@pytest.fixture(scope="module")
def server(exported, photos, tmp_path_factory) -> Iterator[Server]:
    """A page that has answered once, so that all is loaded that it needs."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("memory and open files of another process are seen on Linux only")
    started = Server.start(exported, tmp_path_factory.mktemp("server") / "tmp")
    photo = Path(photos[0]).read_bytes()
    assert all(started.post(photo, path)[0] == 200 for path in ("/predict", "/answer"))
    yield started
    started.stop()


@pytest.fixture
def unharmed(server) -> Iterator[Server]:
    """The page; after the test it answers within a second, and holds no more than before it."""
    with server.unharmed():
        yield server


@pytest.fixture(scope="session")
def start_server() -> Callable[..., Server]:
    """A function that starts a page in a process of its own, as `Server.start`."""
    return Server.start


@pytest.fixture
def labels(queue, running, caplog):
    """The port of the page of labels; it answers after each attack, and none made a traceback.

    The `queue` is that of the module.
    """
    from lesionfast.serving.labelling.page import build_label_app  # which needs what others do not

    with running(build_label_app(queue)) as port:
        yield port
        assert port.ask("GET", "/")[0] == 200
    assert not [record for record in caplog.records if record.exc_info]
