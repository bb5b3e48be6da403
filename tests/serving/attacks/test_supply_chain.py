"""What the code itself may not do: run text, unpickle, start a shell: its syntax trees."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = [*sorted((ROOT / "lesionfast").rglob("*.py")), ROOT / "cli.py"]
UNPICKLES = {  # modules that run what a file says
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "copyreg"),
    *("yaml", "jsonpickle", "code", "codeop", "runpy", "imp", "xmlrpc"),
}
EXCEPTIONS = {("lesionfast/models/weights.py", "pickle")}  # the name of an error of torch.load
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
CALLS = {  # what a call has to say, or may not say, by the end of its name
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "np.lib.format.read_array": ("allow_pickle", False),
}
NEVER = {  # ends of names that are not called at all
    *("os.system", "os.popen", "read_pickle", "to_pickle", "joblib.load", "load_learner"),
    *("torch.hub.load", "yaml.load", "yaml.unsafe_load", "getoutput", "getstatusoutput"),
    *("np.fromregex", "load_model_from_pickle", "tarfile.extractall", "tar.extractall"),
    *("archive.extractall", "torch.jit.load", "torch.package.PackageImporter", "mktemp"),
}
IMPORTS_BY_NAME = {  # where a module is imported by a name, and where that comes from
    "lesionfast/__init__.py": "the public names",
    "lesionfast/errors.py": "an optional package that the code names",
    "lesionfast/cli/base.py": "--import, which only the command line has",
    "lesionfast/training/trackers/child.py": "a module that registered a tracker",
    "lesionfast/models/weights.py": "the module of a class of timm",
    "lesionfast/data/duplicates.py": "an installed package of weights",
}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call, by the name that is called, as far as it is one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node


def imported(tree: ast.AST) -> Iterator[str]:
    """The first part of every module that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def find_harm(path: str, text: str) -> list[str]:
    """What a file does that it may not."""
    tree = ast.parse(text)
    harm = [f"imports {name}" for name in imported(tree) if name in UNPICKLES]
    harm = [one for one in harm if (path, one.removeprefix("imports ")) not in EXCEPTIONS]
    for name, call in calls(tree):
        given = {word.arg: word.value for word in call.keywords}
        values = {key: getattr(value, "value", "?") for key, value in given.items()}
        if name in RUNS_TEXT or any(ends_with(name, end) for end in NEVER):
            harm.append(f"calls {name}")
        for end, (word, right) in CALLS.items():
            if ends_with(name, end) and values.get(word) is not right:
                harm.append(f"calls {name} without {word}={right}")
        if values.get("shell", False) is not False or values.get("trust_remote_code", False):
            harm.append(f"calls {name} with a shell or with foreign code")
        if ends_with(name, "import_module") and path not in IMPORTS_BY_NAME:
            harm.append(f"calls {name}, which imports a module by its name")
        if name.startswith(("pickle.", "_pickle.")):
            harm.append(f"calls {name}")
    return harm


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_code_runs_text_unpickles_or_starts_a_shell(file):
    assert find_harm(str(file.relative_to(ROOT)), file.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        *("import pickle", "from pickle import loads", "import yaml", "import dill as d"),
        *("eval(x)", "exec(x)", "compile(x, '', 'exec')", "__import__(x)", "os.system(x)"),
        *("torch.load(x)", "torch.load(x, weights_only=False)", "torch.load(x, weights_only=y)"),
        *("np.load(x)", "np.load(x, allow_pickle=True)", "subprocess.run(x, shell=True)"),
        *("pd.read_pickle(x)", "joblib.load(x)", "load_learner(x)", "torch.hub.load(x)"),
        *("import_module(x)", "f(x, trust_remote_code=True)", "subprocess.run(x, shell=y)"),
    ],
)
def test_the_walk_sees_what_may_not_be(text):
    assert find_harm("lesionfast/any.py", text)


def test_bad_habits_are_looked_for_and_each_exception_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    lint = tomllib.loads(text)["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    for rule in (one for one in lint["ignore"] if one.startswith("S")):
        line = next(line for line in text.splitlines() if f'"{rule}"' in line)
        assert line.rpartition("#")[2].strip().count(" ") > 5
    assert {name for name, rules in lint["per-file-ignores"].items() if "S" in rules} == {
        "tests/**"
    }


def test_no_line_is_left_out_without_a_reason():
    for file in FILES:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            _, _, reason = line.partition("# noqa: S")
            if reason and not reason.startswith("IM"):
                assert " - " in reason, f"{file.relative_to(ROOT)}:{number} has no reason"


def test_dependencies_have_a_lowest_version_and_come_by_name():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    several = [about["dependencies"], *about["optional-dependencies"].values()]
    for wanted in (one for part in several for one in part):
        assert ">=" in wanted and "@" not in wanted and "://" not in wanted
