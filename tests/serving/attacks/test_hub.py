"""What a repository of a stranger on the hub may do: only named files come, checked before use."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from typer.testing import CliRunner

from lesionfast.cli.base import app
from lesionfast.errors import LesionfastError
from lesionfast.serving.bundle import hash_description
from lesionfast.serving.export import list_files_to_share, split_address

SPEC = importlib.util.spec_from_file_location(
    "stand_in", Path(__file__).parents[1] / "test_export_hub.py"
)
stand_in = importlib.util.module_from_spec(SPEC)  # of the hub's HTTP API
SPEC.loader.exec_module(stand_in)
NAME = "stranger/model"


@pytest.fixture(scope="module")
def hub():
    with stand_in.serving() as running:
        running.private[NAME] = False
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


def predict(hub, photos, home, address: str = f"hf://{NAME}") -> SimpleNamespace:
    """What `lesionfast predict` says, in this process, with a cache and a hub of its own."""
    of_hub = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in of_hub.items():
            patch.setattr(huggingface_hub.constants, name, value)
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


def test_the_command_ends_with_2(hub, repository, photos, tmp_path):
    repository(**{"model.safetensors": b"another"})
    refused(
        stand_in.lesionfast("predict", f"hf://{NAME}", photos[0], home=tmp_path, hub=hub.url), ""
    )


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


def test_push_shares_no_file_that_lies_beside(hub, exported, tmp_path):
    folder = Path(shutil.copytree(exported, tmp_path / "model"))
    (folder / "id_rsa").write_text("key")
    (folder / ".env").write_text("TOKEN=1")
    (folder / "sub").mkdir()
    (folder / "sub" / "patients.csv").write_text("name")
    (folder / "link.safetensors").symlink_to("/etc/passwd")
    done = stand_in.lesionfast("push", folder, "clinic/mine", home=tmp_path / "home", hub=hub.url)
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
