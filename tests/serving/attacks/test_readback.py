"""What lesionfast wrote and reads back, after a stranger changed it."""

import json
import os
import shutil
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.lib import format as npy
from PIL import Image

from lesionfast.cache import (
    MOST_NOTE,
    Entry,
    checksum,
    kept_array,
    open_array,
    read_note,
    write_note,
)
from lesionfast.config import TrainConfig
from lesionfast.data.corrections.answers import read_answers
from lesionfast.data.formats.containers import open_container
from lesionfast.data.images import find_note, open_images
from lesionfast.data.sample import is_whole
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.files import sha256
from lesionfast.run import Run
from lesionfast.serving.joining import join_parts
from lesionfast.serving.monitoring.display import drift_to_dict
from lesionfast.serving.monitoring.drift import measure_drift
from lesionfast.serving.monitoring.log import read_log
from lesionfast.serving.outputs import note_path, predict_inputs
from lesionfast.serving.predictor import Predictor
from lesionfast.training.search.space import Dimension, Settings
from lesionfast.training.study import read_toml

PHOTO = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def sign(file: Path, header: dict[str, object], data: bytes) -> None:
    """Write an array of the cache whose checksum is right: a stranger can compute it too."""
    with file.open("wb") as out:
        npy.write_array_header_1_0(out, header)
        out.write(data)
    with file.open("ab") as out:
        out.write(checksum(file, file.stat().st_size))


ARRAYS = {  # descr, shape and bytes of a file that is no array of 4 x 3 numbers
    "objects": ("|O", (4,), bytes(32)),
    "objects within": ([("a", "|O"), ("b", "<f4")], (4,), bytes(48)),
    "texts": ("<U3", (4,), bytes(48)),
    "of no bytes": ("|V0", (4,), b""),
    "longer than the file": ("<f4", (4, 10**9), bytes(48)),
    "shorter than the file": ("<f4", (4, 1), bytes(48)),
    "negative": ("<f4", (-4, -3), bytes(48)),
    "of other rows": ("<f4", (3, 4), bytes(48)),
    "a number": ("<f4", (), bytes(4)),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_of_the_cache_that_holds_no_such_numbers_is_made_again(kind, tmp_path, caplog):
    descr, shape, data = ARRAYS[kind]
    file = tmp_path / "a.npy"
    sign(file, {"descr": descr, "fortran_order": False, "shape": shape}, data)
    assert (kept_array(file, 4, lambda append: append(ROWS)) == ROWS).all()
    assert "is damaged. It will be rebuilt" in caplog.text
    assert (open_array(file) == ROWS).all()


def headed(text: str) -> bytes:
    """An array file whose header is some Python."""
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode()


HEADERS = ("(" * 2000, "[" * 2000, "-" * 5000 + "1", "{{}}", "{1: 2, 'a': 3}")


@pytest.mark.parametrize("text", HEADERS)
def test_a_header_of_any_python_is_damage_in_cache_and_npz(text, tmp_path):
    data = headed(text)
    file = tmp_path / "images" / "a.npy"
    file.parent.mkdir()
    file.write_bytes(data)
    with file.open("ab") as out:
        out.write(checksum(file, len(data)))
    assert open_array(file) is None
    assert Entry(file, len(data), 0.0).describe() == "a damaged file"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", data)
    with pytest.raises(LesionfastError, match="is not a complete .npz file"):
        open_container(str(tmp_path / "a.npz"))


def test_a_note_of_the_cache_is_parsed_only_if_it_is_as_large_as_what_it_is_about(tmp_path, memory):
    file, names = tmp_path / "a.json", [f"{i:064}" for i in range(60_000)]
    write_note(file, names)
    assert file.stat().st_size > MOST_NOTE
    assert read_note(file, [str], len(names)) == names
    file.write_text('{"value": [' + "[]," * 10**7 + '[]], "sha256": ""}')
    with memory(2**24):
        assert read_note(file, object, len(names)) is None


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00", b"\x80\x04cos\nsystem\n."])
def test_what_is_no_array_is_made_again(data, tmp_path):
    file = tmp_path / "a.npy"
    file.write_bytes(data)
    with file.open("ab") as out:
        out.write(checksum(file, len(data)))
    assert open_array(file) is None
    assert (kept_array(file, 4, lambda append: append(ROWS)) == ROWS).all()


def test_a_pipe_in_the_cache_is_not_waited_for(tmp_path):
    for name in ("a.npy", "a.json"):
        os.mkfifo(tmp_path / name)
    assert open_array(tmp_path / "a.npy") is None
    assert read_note(tmp_path / "a.json") is None


NOTES = {
    "places elsewhere": {"digest": "0" * 64, "bad": [10**9]},
    "negative places": {"digest": "0" * 64, "bad": [-1]},
    "a path": {"digest": "../../../../tmp/elsewhere" + "x" * 7, "bad": []},
    "no text": {"digest": 7, "bad": []},
    "nothing": {},
    "a list": [],
    "a number": 10**400,
}


@pytest.mark.parametrize("kind", NOTES)
def test_a_note_of_the_cache_that_says_anything_is_made_again(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    paths = [str(tmp_path / "a.png")]
    before = open_images(paths, 32).pixels[:]
    write_note(find_note(paths), NOTES[kind])
    assert (open_images(paths, 32).pixels[:] == before).all()
    assert not (tmp_path / "tmp").exists()


def test_an_index_of_a_tar_file_that_says_anything_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path / "cache"))
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.png", "a.png")
    paths = [str(tmp_path / "a.tar" / "a.png")]
    before = open_images(paths, 32, cache=False).pixels[:]
    (note,) = (tmp_path / "cache" / "images").glob("*.json")
    for index in (
        {"names": ["a.png"], "starts": [10**400], "sizes": [1]},
        {"names": ["a.png"], "starts": [-7], "sizes": [-1]},
        {"names": ["a.png"], "starts": [], "sizes": []},
        {"names": [7], "starts": [0], "sizes": [0]},
        [],
    ):
        write_note(note, index)
        assert (open_images(paths, 32, cache=False).pixels[:] == before).all()


def test_a_sample_that_lists_a_device_is_drawn_again(tmp_path):
    for checksums in ({}, {"sample_metadata.csv": "0" * 64, "/dev/zero": "0"}, [], {"a": 1}):
        write_note(tmp_path / "checksums.json", checksums)
        assert not is_whole(tmp_path)


VALUES = {
    **{"null": None, "true": True, "minus": -1, "half": 0.5, "10^9": 10**9, "10^400": 10**400},
    **{"NaN": float("nan"), "1e308": 1e308, "text": "x", "nothing": "", "range": "5-x"},
    **{"dots": "1.2.3-4", "far": "999999999-01-01T00:00:00Z", "no zone": "2026-01-01"},
    **{"early": "0001-01-01T00:00:00+14:00", "late": "9999-12-31T23:59:59-14:00", "NUL": "a\0b\n"},
    **{"list": [], "object": {}, "ones": [1] * 7, "huge": [1e308] * 7, "zeros": [0.0] * 7},
    **{"negative": [-1.0] * 7, "many": list(range(5_000)), "deep": json.loads("[" * 90 + "]" * 90)},
}


@pytest.fixture(scope="module")
def served(trained, photos, tmp_path_factory) -> Path:
    """A log of twelve answers."""
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    predictor = Predictor(trained, log=log)
    for number, photo in enumerate(photos[:12]):
        predictor(photo, age=20 + 5 * number, sex="female")
    return log


def measure(run: Run, folder: Path, lines: list[str]) -> None:
    """Read lines as a log, and say all of its drift; `LesionfastError` is as good."""
    (folder / "log.jsonl").write_text("\n".join(lines), "utf-8")
    try:
        with warnings.catch_warnings(action="error"):
            drift = measure_drift(run, read_log(folder / "log.jsonl"))
        json.dumps(drift_to_dict(drift, folder), allow_nan=False)
    except LesionfastError:
        pass


LINES = {  # of what part, and which values
    ("time",): ("no zone", "far", "late"),
    ("metadata", "age"): ("text", "dots", "range"),
    ("prior",): ("huge", "zeros"),
    ("answer", "probabilities", "mel"): ("1e308", "minus"),
}


def test_a_line_of_a_log_of_other_values_harms_nobody(trained, served, tmp_path, list_parts):
    *_, first, second, last = served.read_text("utf-8").splitlines()
    changes = dict(list_parts(json.loads(last)))
    for path, names in LINES.items():
        for name in names:
            measure(trained, tmp_path, [first, second, json.dumps(changes[path](VALUES[name]))])


@pytest.mark.attack
def test_a_line_of_a_log_that_says_anything_harms_nobody(trained, served, tmp_path, list_parts):
    *_, first, second, last = served.read_text("utf-8").splitlines()
    for path, change in list_parts(json.loads(last)):
        for name, value in VALUES.items():
            try:
                measure(trained, tmp_path, [first, second, json.dumps(change(value))])
            except Exception as error:
                pytest.fail(f"{'.'.join(map(str, path))} = {name}: {error!r}")


def test_what_is_no_log_is_not_waited_for(tmp_path, memory):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LesionfastError, match="a named pipe"):
        read_log(tmp_path / "pipe")
    with (tmp_path / "bomb").open("wb") as file:
        file.write(b"{")
        file.truncate(300 * 10**6)
    with memory(50 * 2**20):
        assert read_log(tmp_path / "bomb").torn == 1


def test_a_log_of_more_lines_or_periods_than_are_compared_says_what_to_type(
    trained, served, tmp_path, monkeypatch
):
    monkeypatch.setattr("lesionfast.serving.monitoring.drift.MOST_PERIODS", 5)
    log = read_log(served)
    with pytest.raises(LesionfastError, match="12 periods, .* --every 3"):
        measure_drift(trained, log, "1")
    assert len(measure_drift(trained, log, "3").periods) == 4
    monkeypatch.setattr("lesionfast.serving.monitoring.log.MOST_LINES", 11)
    with pytest.raises(LesionfastError, match="tail -n 11"):
        read_log(served)


@pytest.fixture(scope="module")
def predicted(exported, photos, tmp_path_factory) -> Path:
    """A folder of two parts of CSV; the second has no image."""
    folder = tmp_path_factory.mktemp("parts")
    for number in (1, 2):
        given = {"metadata": {}, "shard": f"{number}/2"}
        predict_inputs(exported, photos[:4], folder / f"p{number}.csv", "csv", **given)
    return folder


@pytest.fixture
def shards(predicted, tmp_path) -> list[Path]:
    """Copies of them."""
    folder = Path(shutil.copytree(predicted, tmp_path / "parts"))
    return [folder / "p1.csv", folder / "p2.csv"]


def join(parts: list[Path]) -> str:
    """'joined' or 'refused'; anything else is raised."""
    out = parts[0].with_name("all.csv")
    for file in (out, note_path(out)):
        file.unlink(missing_ok=True)
    try:
        join_parts(list(map(str, parts)), out, "csv")
    except LesionfastError:
        return "refused"
    return "joined"


def change_notes(shards: list[Path], path: tuple, value: object, list_parts: Callable) -> None:
    """Write a value into the notes of all parts."""
    for part in shards:
        told = json.loads(note_path(part).read_text("utf-8"))
        note_path(part).write_text(json.dumps(dict(list_parts(told))[path](value)), "utf-8")


def test_a_note_of_shards_of_other_numbers_is_refused(shards, list_parts):
    for path in (("images at a time",), ("finished", "inputs", "images")):
        for value in (0, 10**9, 10**400, -1):
            change_notes(shards, path, value, list_parts)
            assert join(shards) == "refused" or (path[0] == "images at a time" and value > 0)


@pytest.mark.attack
def test_a_note_of_shards_that_says_anything_is_refused_or_harmless(shards, predicted, list_parts):
    for path, _ in list_parts(json.loads(note_path(shards[0]).read_text("utf-8"))):
        for name, value in VALUES.items():
            shutil.copytree(predicted, shards[0].parent, dirs_exist_ok=True)
            change_notes(shards, path, value, list_parts)
            try:
                join(shards)
            except Exception as error:
                pytest.fail(f"{'.'.join(map(str, path))} = {name}: {error!r}")


ROWS_OF = {
    **{
        "empty": b"",
        "NUL": bytes(1000),
        "pickle": b"\x80\x04cos\nsystem\n.",
        "numbers": b"7\n" * 99,
    },
    **{"not UTF-8": b"\xff\xfe" * 500, "a long line": b"x" * 10**6, "deep": b"[" * 10**5 + b"\n"},
}


@pytest.mark.parametrize("kind", ROWS_OF)
def test_shards_of_what_is_no_row_are_refused(shards, kind):
    shards[0].write_bytes(ROWS_OF[kind])
    note = json.loads(note_path(shards[0]).read_text())
    note["finished"]["sha256"] = sha256(shards[0])
    note_path(shards[0]).write_text(json.dumps(note))
    assert join(shards) == "refused"


def test_corrections_of_more_lines_or_bytes_than_people_write_are_refused(tmp_path, monkeypatch):
    file = tmp_path / "corrections.csv"
    file.write_text("image,answer\n" + "a,right\n" * 9)
    assert len(read_answers(file).log) == 9
    monkeypatch.setattr("lesionfast.data.corrections.answers.MOST_LINES", 9)
    with pytest.raises(LesionfastError, match="Keep the latest answer about each image"):
        read_answers(file)
    with file.open("wb") as sparse:
        sparse.truncate(10**9)
    with pytest.raises(LesionfastError, match=r"has 1\.0 GB, and at most 134\.2 MB"):
        read_answers(file)


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"a":' * 5_000, '{"lr": 1, "lr": 2}', " " * (2**25 + 1), "7", "null"]
)
def test_a_config_that_is_no_plain_object_is_refused(text):
    with pytest.raises(LesionfastError, match="is not a JSON object of options") as error:
        TrainConfig.from_json(text)
    assert len(str(error.value)) < 300


def test_a_config_of_any_value_is_refused_or_one(list_parts):
    told = json.loads(TrainConfig().to_json())
    for path, change in list_parts(told):
        for name, value in VALUES.items():
            try:
                TrainConfig.from_json(json.dumps(change(value)))
            except LesionfastError:
                pass
            except Exception as error:
                pytest.fail(f"{'.'.join(map(str, path))} = {name}: {error!r}")


CHOICES = '{"name": "CategoricalDistribution", "attributes": {"choices": [0.001, 0.01]}}'
JOURNAL = (  # of a search that tried one value; the numbers of what each line does are Optuna's
    '{"op_code":0,"worker_id":"w","study_name":"lesionfast-1","directions":[2]}',
    '{"op_code":4,"worker_id":"w","study_id":0,"datetime_start":"2026-01-02T03:04:05.678+00:00"}',
    '{"op_code":8,"worker_id":"w","trial_id":0,"user_attr":{"try":0}}',
    '{"op_code":5,"worker_id":"w","trial_id":0,"param_name":"lr","param_value_internal":1,'
    f'"distribution":{json.dumps(CHOICES)}}}',
    '{"op_code":7,"worker_id":"w","trial_id":0,"step":1,"intermediate_value":0.69}',
    '{"op_code":8,"worker_id":"w","trial_id":0,"user_attr":{"seconds":7.5}}',
    '{"op_code":6,"worker_id":"w","trial_id":0,"state":1,"values":[0.69],'
    '"datetime_complete":"2026-01-02T03:04:15.678+00:00"}',
)


@pytest.fixture
def searched(tmp_path) -> Path:
    """The folder of a search, without the runs of its trials."""
    pytest.importorskip("optuna")
    folder = tmp_path / "search"
    folder.mkdir()
    settings = Settings(TrainConfig(), (Dimension("lr", "choice", (0.001, 0.01)),), {})
    (folder / "search.json").write_text(settings.to_json())
    (folder / "place.json").write_text('{"name": "lesionfast-1", "storage": null}')
    (folder / "journal.log").write_text("".join(f"{line}\n" for line in JOURNAL))
    return folder


def look(folder: Path) -> str:
    """'refused', or 'read' with all that a search says of its trials; anything else is raised."""
    from lesionfast.training.search.trials import Search, trial_table

    try:
        found = Search(folder)
        assert found.describe(20)
        trial_table(found)
        _ = found.best, found.run_of(found.best)
    except LesionfastError as error:
        assert "Traceback" not in str(error)
        return "refused"
    return "read"


def test_a_journal_as_it_was_written_is_read(searched):
    assert look(searched) == "read"


FORGED = {
    "another number": (2, '"try":0', '"try":"../../x"'),
    "a long number": (2, '"try":0', f'"try":{"9" * 300}'),
    "another option": (3, '"lr"', '"weights"'),
    "another value": (3, "0.001, 0.01", "0.001, 999"),
    "another kind": (3, "CategoricalDistribution", "os.system"),
    "no seconds": (5, "7.5", '"x"'),
    "an error": (5, '"seconds":7.5', '"error":[1]'),
    "again": (5, '"seconds":7.5', '"again":{"data":"/etc"}'),
    "no line": (1, "{", "\x80\x04cos"),
    "no operation": (1, '"op_code":4', '"op_code":99'),
    "no state": (6, '"state":1', '"state":77'),
    "no time": (1, "2026-01-02", "9" * 9),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_journal_that_was_forged_is_refused(kind, searched):
    number, before, after = FORGED[kind]
    lines = list(JOURNAL)
    assert before in lines[number]
    lines[number] = lines[number].replace(before, after)
    (searched / "journal.log").write_text("".join(f"{line}\n" for line in lines))
    assert look(searched) == "refused"


@pytest.mark.attack
def test_a_journal_that_says_anything_is_refused_or_harmless(searched, list_parts):
    outcomes = Counter()
    for number, line in enumerate(JOURNAL):
        for path, change in list_parts(json.loads(line)):
            for name, value in VALUES.items():
                lines = [*JOURNAL[:number], json.dumps(change(value)), *JOURNAL[number + 1 :]]
                (searched / "journal.log").write_text("".join(f"{line}\n" for line in lines))
                try:
                    outcomes[look(searched)] += 1
                except Exception as error:
                    pytest.fail(f"line {number} {path} = {name}: {error!r}")
    print(dict(outcomes))
    assert outcomes["refused"] > 100


def test_a_lock_that_leads_nowhere_stops_no_search(searched):
    (searched / "journal.log.lock").symlink_to("nowhere")
    from lesionfast.training.search.trials import Search

    Search(searched).study.enqueue_trial({"lr": 0.001})  # which writes a line
    assert not (searched / "journal.log.lock").is_symlink()


def test_a_journal_that_is_no_file_or_too_large_is_not_read(searched):
    journal = searched / "journal.log"
    with journal.open("r+b") as file:
        file.truncate(10**9)
    with pytest.raises(LesionfastError, match=r"has 1\.0 GB, and at most"):
        look_at(searched)
    journal.unlink()
    os.mkfifo(journal)
    with pytest.raises(LesionfastError, match="a named pipe"):
        look_at(searched)


def look_at(folder: Path) -> None:
    """Open a search."""
    from lesionfast.training.search.trials import Search

    Search(folder)


def test_a_server_that_keeps_pickles_keeps_no_search(searched):
    from lesionfast.training.search.trials import Search

    (searched / "place.json").write_text('{"name": "lesionfast-1", "storage": "redis://a/0"}')
    with pytest.raises(LesionfastError, match="keeps pickles"):
        Search(searched, "redis://a/0")


PLACES = [
    *(None, True, 0, -1, 10**400, float("nan"), 1e308, "", "x", "a\0b", "../../../etc/passwd"),
    *("\x1b[31m", "<script>", "redis://a", "[::", "x" * 10**5, [], {}, ["a"], {"a": 1}, [[[]]]),
]


def test_a_place_of_a_search_that_says_anything_is_refused_or_harmless(searched, list_parts):
    file = searched / "place.json"
    before = {path.name for path in searched.iterdir()}
    for path, change in list_parts(json.loads(file.read_text())):
        for value in PLACES:
            file.write_text(json.dumps(change(value)))
            outcome = look(searched)
            assert outcome == "refused" or path == ("name",) or value is None
    assert {path.name for path in searched.iterdir()} == before


HISTORIES = {
    "no epochs": "epoch,phase,lr,train_loss\n",
    "no number of an epoch": "epoch,phase,lr\nx,head,1\n",
    "an epoch with an underscore": "epoch,phase,lr\n1_000,head,1\n",
    "an infinite epoch": "epoch,phase,lr\ninf,head,1\n",
    "an epoch below zero": "epoch,phase,lr\n-1,head,1\n",
    "a loss of a text": "epoch,phase,train_loss\n1,head,=1+1\n",
    "a loss that overflows": "epoch,phase,train_loss\n1,head,1e308\n2,head,-1e308\n",
    "a number of 400 digits": f"epoch,phase,train_loss\n1,head,{'9' * 400}\n",
}


@pytest.fixture
def unsigned(trained, tmp_path) -> Path:
    """A run of an early version, which has no manifest."""
    skip = shutil.ignore_patterns("*.safetensors", "*manifest*")
    folder = Path(shutil.copytree(trained.path, tmp_path / "run", ignore=skip))
    about = json.loads((folder / "environment.json").read_text("utf-8"))
    about.pop("manifest")
    (folder / "environment.json").write_text(json.dumps(about), "utf-8")
    return folder


@pytest.mark.parametrize("kind", HISTORIES)
def test_a_history_that_no_training_wrote_is_refused(unsigned, kind):
    (unsigned / "history.csv").write_text(HISTORIES[kind])
    with pytest.raises(DamageError, match=r"history\.csv is damaged: .* Copy "):
        _ = Run(unsigned).history


def test_a_history_with_a_loss_that_is_infinite_or_missing_is_read(unsigned):
    (unsigned / "history.csv").write_text(
        "epoch,phase,lr,train_loss,valid_loss\n1,head,,2,inf\n2,all,0.1,1,nan\n3,all,,1,\n"
    )
    assert len(Run(unsigned).history) == 3


@pytest.mark.parametrize("value", ["0_1", "0x1", "nan", "inf", "1e308", "-0.5", "", "True", "=1"])
def test_predictions_that_are_no_probabilities_are_refused(unsigned, value):
    table = pd.read_csv(unsigned / "predictions.csv", dtype=str)
    for rows in (slice(None), slice(3, 4)):
        flooded = table.copy()
        flooded.loc[flooded.index[rows], "p_mel"] = value
        flooded.to_csv(unsigned / "predictions.csv", index=False)
        with pytest.raises(DamageError, match=r"predictions\.csv is damaged: "):
            _ = Run(unsigned).predictions


def test_keys_of_toml_that_are_thousands_deep_are_not_read(tmp_path, memory):
    file = tmp_path / "a.toml"
    for text in (f"x{'.x' * 20_000} = 1", f"a = {{x{'.x' * 20_000} = 1}}", f"[x{'.x' * 20_000}]"):
        file.write_text(text)
        with (
            memory(50 * 2**20),
            pytest.raises(LesionfastError, match=r"is nested too deep\. Write one"),
        ):
            read_toml(file, "Write one.")
    file.write_text(f"# {'.' * 90}\nlr = [{'0.001, ' * 500}]\n[a.b.c]\nx = 'a.b'")
    assert len(read_toml(file, "Write one.")["lr"]) == 500


@pytest.mark.parametrize(
    ("shape", "kind"), [((4, 5), "<f4"), ((4, 0), "<f4"), ((4,), "<f4"), ((4, 516), "<f8")]
)
def test_features_of_another_width_in_the_cache_are_made_again(shape, kind, tmp_path, monkeypatch):
    from lesionfast.models.features import DIGEST, Features
    from lesionfast.models.fusion import build_model

    monkeypatch.setenv("LESIONFAST_CACHE", str(tmp_path))
    config = TrainConfig(arch="test_resnet", weights="none", size=32, fusion="none")
    model, rows = build_model(config, 0, 3), np.arange(4)
    noise = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)
    pixels = kept_array(tmp_path / "images" / "a.npy", 4, lambda append: append(noise))
    right = np.array(Features(model, pixels).kept(rows))
    file = Features(model, pixels).file(rows)
    if len(shape) == 2 and shape[1] == 516:  # of the right width, in other numbers
        shape = (4, model.n_features + DIGEST)
    other = file.with_name(f"{file.name.partition('-')[0]}-{'0' * 16}.npy")
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    for forged in (file, other):
        sign(forged, header, bytes(int(np.prod(shape)) * int(kind[-1])))
    found = Features(model, pixels).kept(rows)
    assert found.dtype == np.float32 and found.shape == right.shape
    if shape != (4, model.n_features + DIGEST):
        np.testing.assert_array_equal(found, right)
    assert Features(model, pixels).kept(rows[:3]).shape == (3, model.n_features)


@pytest.mark.parametrize("rows", [0, 500_000])
def test_a_parquet_shard_of_another_number_of_rows_is_refused(exported, photos, tmp_path, rows):
    parquet = pytest.importorskip("pyarrow.parquet")
    parts = [tmp_path / f"part{number}.parquet" for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        given = {"metadata": {}, "shard": f"{number}/2"}
        predict_inputs(exported, photos[:4], part, "parquet", **given)
    table = parquet.read_table(parts[0])
    parquet.write_table(table.take(np.zeros(rows, int)), parts[0])
    note = json.loads(note_path(parts[0]).read_text())
    note["finished"]["sha256"] = sha256(parts[0])
    note_path(parts[0]).write_text(json.dumps(note))
    with pytest.raises(LesionfastError, match="but its note says .* Predict this shard again"):
        join_parts([*map(str, parts)], tmp_path / "all.parquet", "parquet")
