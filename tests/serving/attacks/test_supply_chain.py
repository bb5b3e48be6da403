"""What the code itself may not do: run text, unpickle, start a shell: its syntax trees."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

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
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
}
USUAL = {"np": {"numpy"}, "pd": {"pandas"}}  # what a name stands for, imported or not
NEVER = {  # ends of names that are not called at all
    *("os.system", "os.popen", "read_pickle", "to_pickle", "joblib.load", "load_learner"),
    *("torch.hub.load", "yaml.load", "yaml.unsafe_load", "getoutput", "getstatusoutput"),
    *("numpy.fromregex", "load_model_from_pickle", "extractall", "pandas.eval"),
    *("torch.jit.load", "torch.package.PackageImporter", "mktemp"),
}
IMPORTS_BY_NAME = {  # where a module is imported by a name, and where that comes from
    "lesionfast/__init__.py": "the public names",
    "lesionfast/errors.py": "an optional package that the code names",
    "lesionfast/cli/base.py": "--import, which only the command line has",
    "lesionfast/training/trackers/child.py": "a module that registered a tracker",
    "lesionfast/models/weights.py": "the module of a class of timm",
    "lesionfast/data/duplicates.py": "an installed package of weights",
}


def meanings(tree: ast.AST) -> dict[str, set[str]]:
    """What each imported name stands for: `g` after `from subprocess import getoutput as g`."""
    found = {name: set(values) for name, values in USUAL.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            pairs = [(one.asname, one.name) for one in node.names if one.asname]
        elif isinstance(node, ast.ImportFrom):
            pairs = [(one.asname or one.name, f"{node.module}.{one.name}") for one in node.names]
        else:
            continue
        for name, meaning in pairs:
            found.setdefault(name, set()).add(meaning)
    return found


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call, by what is called in full: `numpy.load` of `np.load`, as far as it has a name."""
    names = meanings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            first, dot, rest = ast.unparse(node.func).partition(".")
            for meaning in sorted(names.get(first, {first})):
                yield f"{meaning}{dot}{rest}".removeprefix("builtins."), node


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
        runs = name in RUNS_TEXT or (ends_with(name, "eval") and (call.args or given))
        if runs or any(ends_with(name, end) for end in NEVER):
            harm.append(f"calls {name}")
        for end, (word, right) in CALLS.items():
            other = name.startswith("safetensors.")  # which has no pickles
            if ends_with(name, end) and not other and values.get(word) is not right:
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


@pytest.mark.parametrize(
    "text",
    [
        *("opened.extractall(y)", "tarfile.open(x).extractall(y)", "self.tar.extractall()"),
        "import numpy; numpy.load(x, allow_pickle=True)",
        *("import numpy as n; n.load(x)", "from numpy import load as l; l(x)"),
        "from numpy.lib import format as npy; npy.read_array(x)",
        *("from torch import load; load(x)", "import torch as t; t.load(x)"),
        *("from torch import hub; hub.load(x)", "import torch.hub as h; h.load(x)"),
        "def f():\n    from torch import load\n    return load(x)",
        *("from subprocess import getoutput as g; g(x)", "import subprocess as s; s.getoutput(x)"),
        *("from os import system; system(x)", "import os as o; o.popen(x)"),
        "from subprocess import run as r; r(x, shell=True)",
        *("import builtins; builtins.exec(x)", "import builtins as b; b.eval(x)"),
        "from builtins import exec as e; e(x)",
        *("pandas.eval(x)", "import pandas as pd; pd.eval(x)", "df.eval('a = b')"),
        *("from pandas import read_pickle as r; r(x)", "from joblib import load; load(x)"),
        "from importlib import import_module as i; i(x)",
        "from safetensors.torch import load; from torch import load; load(x)",
    ],
)
def test_the_walk_sees_it_in_another_spelling(text):
    assert find_harm("lesionfast/any.py", text)


@pytest.mark.parametrize(
    "text",
    [
        *("model.eval()", "re.compile(x)", "import numpy; numpy.load(x, allow_pickle=False)"),
        *("from torch import load; load(x, weights_only=True)", "run(x)", "load(x)"),
        *("from safetensors.torch import load; load(x)", "import json; json.loads(x)"),
    ],
)
def test_the_walk_sees_no_harm_where_there_is_none(text):
    assert find_harm("lesionfast/any.py", text) == []


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


def direct_dependencies() -> list[str]:
    """What pyproject.toml asks for, extras included."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [*about["dependencies"], *chain.from_iterable(about["optional-dependencies"].values())]


def test_dependencies_have_a_lowest_version_and_come_by_name():
    for wanted in direct_dependencies():
        assert ">=" in wanted and "@" not in wanted and "://" not in wanted


def installed(names: Iterator[str]) -> Iterator[str]:
    """`name==version` of each package that is here, as advisories name it: without `+cpu`."""
    for name in sorted(set(names)):
        try:
            yield f"{name}=={version(name).partition('+')[0]}"
        except PackageNotFoundError:
            continue


@pytest.mark.attack
@pytest.mark.skipif(find_spec("pip_audit") is None, reason="pip install pip-audit")
def test_no_direct_dependency_has_a_published_hole(tmp_path):
    locked = tmp_path / "locked.txt"
    locked.write_text("\n".join(installed(Requirement(one).name for one in direct_dependencies())))
    words = ["--requirement", str(locked), "--no-deps", "--disable-pip", "--format", "json"]
    ended = subprocess.run(
        [sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, timeout=300
    )
    packages = json.loads(ended.stdout or '{"dependencies": []}')["dependencies"]
    if not any("vulns" in package for package in packages):
        pytest.skip("no advisory service can be reached from here")
    assert {package["name"]: package.get("vulns", "not audited") for package in packages} == {
        package["name"]: [] for package in packages
    }
