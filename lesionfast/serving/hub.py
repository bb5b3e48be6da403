"""Models on the Hugging Face hub: push a run there, fetch a model from there or from its cache."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lesionfast.errors import LesionfastError
from lesionfast.runs import Run
from lesionfast.serving.bundle import CARD, FILE, read_checked, read_description
from lesionfast.serving.export import export

PREFIX = "hf://"
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
OPTIONAL = ".onnx"  # fetched only if it is named
LOGIN = "To log in type: hf auth login, or set HF_TOKEN."


def push(source: Path, name: str, *, public: bool = False, onnx: bool = False) -> str:
    """Upload a run, or a folder that `export` wrote, to the hub as user/name; return hf://user/name.

    The repository is made if there is none, private unless `public`. The user is who logged in
    with `hf auth login`, or whose HF_TOKEN is set. Raises `LesionfastError` for a wrong name,
    without a token or the right to write, and without the network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if not NAME.fullmatch(name):
        raise LesionfastError(
            f"{name!r} is not a name on the hub. Type user/name, such as clinic/lesions."
        )
    with tempfile.TemporaryDirectory() as made, explain_errors(name):
        folder = Path(source)
        if (folder / "config.json").is_file():
            folder = export(Run.open(folder), Path(made) / "model", onnx=onnx)
        paths = list_files_to_share(folder)
        api = HfApi()
        api.create_repo(name, private=not public, exist_ok=True)
        api.create_commit(
            name,
            [CommitOperationAdd(path.name, path) for path in paths],
            commit_message="Upload a model of lesionfast",
        )
    return f"{PREFIX}{name}"


def list_files_to_share(folder: Path) -> list[Path]:
    """Return the files of an exported folder that are uploaded: its own, by name, nothing else.

    Raises `LesionfastError` for one that is not what was exported, or is a link to elsewhere.
    """
    files = read_checked(folder)["files"]
    plain = [folder / name for name in (FILE, CARD) if os.path.lexists(folder / name)]
    for path in plain:
        if path.is_symlink() or not path.is_file():
            raise LesionfastError(
                f"{path} is not an ordinary file, so it is not shared. Export the run again: "
                "lesionfast export RUN --to DIR"
            )
    return [*plain, *(folder / name for name in files)]


def fetch(address: str) -> Path:
    """Return the local folder of hf://user/name, or the file of hf://user/name/model.onnx.

    `@revision` after the name takes another than the newest. What is in the hub's cache is not
    loaded again, and is used without a network or with HF_HUB_OFFLINE=1. Raises `LesionfastError`
    for a repository that does not exist, is not allowed, or holds no model of lesionfast.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    name, file, revision = split_address(address)
    with explain_errors(name):
        folder = Path(hf_hub_download(name, FILE, revision=revision)).parent
    files = read_description(folder)["files"]
    if file and file not in files:
        raise LesionfastError(
            f"{PREFIX}{name} has no {file}; it has: {', '.join(files)}. "
            f"Type {PREFIX}{name}, or one of these after it."
        )
    wanted = [path for path in files if path == file or not path.endswith(OPTIONAL)]
    with explain_errors(name):
        snapshot_download(name, revision=folder.name, allow_patterns=wanted)
    return folder / file if file else folder


def split_address(address: str) -> tuple[str, str, str | None]:
    """Return name, file ('' for the folder) and revision of hf://user/name[@revision][/file]."""
    found = re.fullmatch(
        rf"{PREFIX}(?P<name>{NAME.pattern})(@(?P<revision>[^/]+))?(/(?P<file>[\w.-]+))?/?", address
    )
    if found is None:
        raise LesionfastError(
            f"{address!r} is not an address of a model. Type hf://user/name, with @revision or "
            "/model.onnx after it if you like."
        )
    return found["name"], found["file"] or "", found["revision"]


@contextmanager
def explain_errors(name: str) -> Iterator[None]:
    """Turn the hub's errors into ones that say what to type."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise LesionfastError(f"{PREFIX}{name}: nobody is logged in. {LOGIN}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise LesionfastError(
            f"{PREFIX}{name} is not in the cache, and the hub is not asked (HF_HUB_OFFLINE is set) "
            "or out of reach. Connect once, or copy an exported folder here and name that."
        ) from None
    except errors.RevisionNotFoundError:
        raise LesionfastError(
            f"{PREFIX}{name} has no such revision. Leave it out, or look at the hub's page."
        ) from None
    except errors.EntryNotFoundError:
        raise LesionfastError(
            f"{PREFIX}{name} does not hold a model of lesionfast: it has no {FILE}. "
            "Name one that `lesionfast push` wrote."
        ) from None
    except errors.RepositoryNotFoundError:
        raise LesionfastError(
            f"{PREFIX}{name} does not exist, or you may not read it. Check the name. {LOGIN}"
        ) from None
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        reason = getattr(error, "server_message", None) or str(error).strip().splitlines()[0]
        raise LesionfastError(f"{PREFIX}{name}: the hub says: {reason}. {LOGIN}") from None
    except errors.HTTPError as error:  # of its HTTP client: no connection
        raise LesionfastError(
            f"{PREFIX}{name}: the hub is out of reach ({error}). Try again when you are online."
        ) from None
