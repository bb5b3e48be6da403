import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from lesionfast.errors import LesionfastError
from lesionfast.manifest import Manifest


@pytest.fixture
def manifest(tmp_path):
    """That of a complete folder of two files."""
    made = Manifest.start(tmp_path)
    for name in ("a.csv", "metrics.json"):
        made.write(name, lambda aside: aside.write_text("one"))
    return made


def test_what_was_written_is_whole_and_what_was_changed_is_not(manifest):
    assert manifest.problem("a.csv") is None
    path = manifest.folder / "a.csv"
    path.write_text("two")
    assert manifest.problem("a.csv") == "its content is not what was written"
    path.write_text("longer")
    assert manifest.problem("a.csv") == "it has 6 bytes, but 3 were written"
    path.unlink()
    assert manifest.problem("a.csv") == "it is missing"
    (manifest.folder / "b.csv").write_text("of another run")
    assert "another run" in manifest.problem("b.csv")


@pytest.mark.parametrize("schema", [1, 2])
def test_a_file_is_listed_with_the_schema_that_it_has(manifest, schema):
    """So an earlier version refuses only what it can't read."""
    manifest.write("model.json", lambda aside: aside.write_text(json.dumps({"schema": schema})))
    manifest.write("a.csv", lambda aside: aside.write_text("two"))
    listed = json.loads(manifest.path.read_text())["files"]
    assert (listed["model.json"]["schema"], listed["a.csv"]["schema"]) == (schema, 1)
    manifest.write("model.json", lambda aside: aside.write_text("[1"))
    assert manifest.problem("model.json") is None


def test_what_was_removed_is_not_missed(manifest):
    manifest.remove("a.csv", "was never there")
    assert manifest.problem("a.csv") is None
    assert not manifest.lists("a.csv")


@pytest.mark.parametrize("dies_at", ["_announce", "_settle"])
@pytest.mark.parametrize("action", ["write", "remove"])
def test_a_write_that_was_killed_is_no_damage(manifest, monkeypatch, dies_at, action):
    """Whether it died before the file had its name or after that."""
    real = getattr(Manifest, dies_at)

    def die(self, *told):
        if dies_at == "_announce":
            real(self, *told)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, dies_at, die)
        with pytest.raises(KeyboardInterrupt):
            if action == "write":
                manifest.write("a.csv", lambda aside: aside.write_text("new"))
            else:
                manifest.remove("a.csv")
    assert manifest.problem("a.csv") is None
    manifest.write("a.csv", lambda aside: aside.write_text("newer"))
    assert manifest.problem("a.csv") is None
    assert json.loads(manifest.path.read_text())["pending"] == {}


def test_two_writers_lose_nothing(manifest):
    names = [f"{i}.json" for i in range(12)]

    def write(name):
        Manifest(manifest.folder).write(name, lambda aside: aside.write_text(name))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, names))
    assert all(manifest.lists(name) and manifest.problem(name) is None for name in names)


def test_a_folder_of_an_earlier_version_gets_no_manifest(tmp_path):
    earlier = Manifest(tmp_path)
    earlier.write("a.csv", lambda aside: aside.write_text("one"))
    assert earlier.problem("a.csv") is None
    assert not earlier.exists


@pytest.mark.parametrize("change", [("one", "two"), ('"bytes": 3', '"bytes": 4'), ("{", "")])
def test_a_changed_manifest_vouches_for_nothing(manifest, change):
    text = manifest.path.read_text().replace("a.csv", "one.csv")
    manifest.path.write_text(text.replace(*change))
    with pytest.raises(LesionfastError, match=r"manifest.json is damaged.*Copy it again.*--seal"):
        manifest.problem("metrics.json")


def test_a_manifest_of_a_newer_version_says_to_upgrade(manifest):
    told = json.loads(manifest.path.read_text()) | {"schema": 2}
    manifest.path.write_text(json.dumps(told))
    with pytest.raises(LesionfastError, match="newer lesionfast. Upgrade it"):
        manifest.problem("a.csv")
