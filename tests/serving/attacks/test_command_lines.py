"""Lines that are printed to be pasted: a name in them is a word of the shell, never a command."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lesionfast
from lesionfast.console import printable
from lesionfast.errors import MOST_LETTERS, LesionfastError, shell_quote, shorten
from lesionfast.evaluation.findings import Findings
from lesionfast.reporting.advice.chapter import advice
from lesionfast.run import Run
from lesionfast.training.experiment import check_resumable

NAMES = [
    *("a; touch owned", "$(touch owned)", "`touch owned`", " spaces ", "-rf", "--help", "a\nb"),
    *("a'; touch owned; '", 'a"; touch owned; "', "a\ntouch owned\n", "a\rb", "\x1b[2J'\\", "~"),
    *("a & touch owned", "a | touch owned", "> owned", "#a", "!!", "{a,b}", "\u202eowned", "\\x41"),
    *(os.fsdecode(b"\xff'\n"), "é", "$HOME", "a\\", "\t", "''", "*", "[a]", "a" * 250 + "; b"),
]
ROOT = Path(lesionfast.__file__).parent

# A command line that goes on after this text, or an option of one that is to be typed.
UNFINISHED = re.compile(
    r"\b(?:lesionfast(?: [a-z]+| --)|tensorboard|mlflow|wandb|trackio|pip|train --)[^.;:`]*$"
    r"|DIR=$|\b(?:[Tt]ype|[Aa]dd|with|from|again:)[^.;`]* --[a-z-]+ $"
)
OWN = {  # what this library itself has chosen: numbers, and names of its lists
    *(
        "' or '.join(KINDS[:2])",
        "' or '.join(RESIZES)",
        "Costs()",
        "EXAMPLE",
        "PACKAGES[self.library]",
    ),
    *("PROJECT", "SCHEMA", "command", "config.size", "example", "finest", "folds - 1"),
    *(
        "secrets.token_hex(8)",
        "hub",
        "max(1, config.batch_size // 2)",
        "missing[0]",
        "other",
        "package",
        "parts",
    ),
    *("possible", "read[1]", "self.native", "smallest", "there[-1]", "wanted.package", "yes"),
    "config.arch",  # as it was typed
}


def is_safe(node: ast.expr) -> bool:
    """Whether a value may stand in a command line: it is quoted, or none of a stranger's."""
    if isinstance(node, ast.IfExp):
        return is_safe(node.body) and is_safe(node.orelse)
    quoted = isinstance(node, ast.Call) and ast.unparse(node.func) == "shell_quote"
    return quoted or isinstance(node, ast.Constant) or ast.unparse(node) in OWN


def list_values(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield what stands in command lines: in f-strings, and for %s in messages of the log."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            before = ""
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    if part.format_spec is None and UNFINISHED.search(before):
                        yield part.value
                    before += "VALUE"
                else:
                    before += part.value
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            yield from list_logged(str(node.args[0].value), node.args[1:])


def list_logged(text: str, given: list[ast.expr]) -> Iterator[ast.expr]:
    """Yield the values of a message of the log that stand in a command line."""
    values: list[ast.expr] = []
    for one in given:
        several = isinstance(one, ast.Starred) and isinstance(one.value, ast.Tuple)
        values += one.value.elts if several else [one]
    for place, value in zip(re.finditer("%[a-z.0-9]*[a-z]", text), values, strict=False):
        if place[0] == "%s" and UNFINISHED.search(text[: place.start()]):
            yield value


def find_unquoted(code: str) -> list[str]:
    return [ast.unparse(value) for value in list_values(ast.parse(code)) if not is_safe(value)]


def test_no_command_line_holds_an_unquoted_value():
    files = sorted(ROOT.rglob("*.py"))
    found = {str(file.relative_to(ROOT)): find_unquoted(file.read_text("utf-8")) for file in files}
    assert {name: values for name, values in found.items() if values} == {}


@pytest.mark.parametrize(
    "code",
    [
        'f"Go on: lesionfast train --resume {run.path}"',
        'f"Go on: lesionfast train --config {run.path / file} and see"',
        'f"lesionfast ensemble {shell_quote(a)} {b}"',
        'f"Type --drop-class {name}, or leave it out."',
        'logger.warning("%s is old: lesionfast interpret %s --k 3", "", run.path)',
        'logger.warning("%s. Type --group %s", *(found, name))',
        'f"see tensorboard --logdir {folder}"',
    ],
)
def test_an_unquoted_value_is_found(code):
    assert len(find_unquoted(code)) == 1


def test_every_list_of_values_of_ones_own_is_needed():
    """So that no exception outlives its reason."""
    texts = [file.read_text("utf-8") for file in ROOT.rglob("*.py")]
    values = {ast.unparse(value) for text in texts for value in list_values(ast.parse(text))}
    assert values >= OWN


@pytest.fixture
def shell(tmp_path):
    """A function that pastes a line into bash, where `lesionfast` writes down what it was given."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    program = tmp_path / "bin" / "lesionfast"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" >> '{tmp_path}/given'\n")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"

    def paste(line: str) -> list[str]:
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "given").unlink(missing_ok=True)
        shown = printable(line)  # as a terminal shows it
        about = {"cwd": tmp_path / "here", "env": os.environ | {"PATH": path}}
        done = subprocess.run(["bash", "-c", shown], capture_output=True, check=False, **about)
        assert done.returncode == 0 and done.stdout == done.stderr == b"", done
        assert not any((tmp_path / "here").iterdir())
        return [os.fsdecode(word) for word in (tmp_path / "given").read_bytes().split(b"\0")[:-1]]

    return paste


def test_a_pasted_name_is_one_word(shell):
    line = f"lesionfast predict {shell_quote(*NAMES)} {shell_quote(*map(Path, NAMES))}"
    paths = [f"./{name}" if name[0] == "-" else name for name in NAMES]
    assert shell(line) == ["predict", *NAMES, *paths]
    assert shell_quote(Path("runs/a-1"), "mel,nv=2", 3) == "runs/a-1 mel,nv=2 3"


@pytest.mark.parametrize("name", NAMES)
def test_what_an_unfinished_run_advises_is_pasted(shell, tmp_path, name):
    with pytest.raises(LesionfastError) as error:
        Run(Path(name)).file("metrics.json")
    _, _, line = str(error.value).partition("Continue with: ")
    assert shell(line) == ["train", "--resume", f"./{name}" if name[0] == "-" else name]


def test_what_a_report_advises_is_pasted(shell, make_run):
    run = make_run()
    other = Run(run.path.rename(run.path.with_name("a'; touch owned #`touch owned`$(touch owned)")))
    words = " ".join(advice(Findings.from_run(other)).words)
    line = words[words.index("lesionfast interpret") :].partition(". ")[0]
    assert shell(line)[:3] == ["interpret", str(other.path), "--cost"]


BAIT = "$(touch owned) #`touch owned`; touch owned;"


def test_a_long_message_is_not_cut_to_a_command(tmp_path):
    """The middle is left out, from each letter of a command on and up to each."""
    line = f"lesionfast ensemble {shell_quote(BAIT, 'b')}"
    much, half = "x" * MOST_LETTERS, MOST_LETTERS // 2
    cuts = set()
    for at in range(len(line)):
        cuts.add(shorten(f"{'x' * (half - at)}{line}{much}").lstrip("x"))
        cuts.add(shorten(f"{much}{line}{' ' * (half - at)}").partition(" … ")[2].rstrip())
    assert max(map(len, cuts)) > len(line)
    read = 'while IFS= read -r -d "" line; do (eval "$line") < /dev/null; done'
    about = {"cwd": tmp_path, "capture_output": True, "check": False, "timeout": 60}
    about["env"] = os.environ | {"PATH": os.defpath}
    subprocess.run(
        ["bash", "-c", read], input="".join(f"{cut}\0" for cut in cuts).encode(), **about
    )
    assert not any(tmp_path.iterdir())


def test_an_ensemble_of_many_members_is_no_command(tmp_path, monkeypatch):
    members = [f"{BAIT}{place:02d}{'a' * 60}" for place in range(42)]
    monkeypatch.setattr(Run, "model", {"members": members})
    (tmp_path / "model.json").touch()
    with pytest.raises(LesionfastError, match=r"\(42 names, too long to be printed\)") as error:
        check_resumable(Run(tmp_path))
    here = tmp_path / "here"
    here.mkdir()
    line = str(error.value).partition("again: ")[2]
    subprocess.run(["bash", "-c", line], cwd=here, capture_output=True, check=False)
    assert line.startswith("lesionfast ensemble (") and not any(here.iterdir())


def test_names_on_windows():
    """cmd.exe knows no single quotes, and expands some signs between double ones."""
    line = shell_quote(
        "lesionfast", "a b", "C:\\x\\", "C:\\x y\\", Path("-rf"), "a=1", "", system="nt"
    )
    assert line == r'lesionfast "a b" C:\x\ "C:\x y\\" ./-rf a=1 ""'
    for name in [
        "a&b",
        "a|b",
        "a>b",
        "<",
        "^",
        "%PATH%",
        'a"b',
        "a\nb",
        "$(b)",
        "`b`",
        "!a!",
        "\u201d",
    ]:
        assert shell_quote(name, system="nt").startswith("(a name with signs")
    assert shell_quote("a;b", "(a)", "a,b", "@a", system="nt") == '"a;b" "(a)" "a,b" "@a"'


@pytest.mark.attack
@pytest.mark.parametrize("name", ["a; touch owned", "$(touch owned)`touch owned`\n", "-rf", "' \\"])
def test_the_program_understands_what_it_advises(trained, tmp_path, name):
    """What each command prints is pasted as it is, in a folder of hostile names."""
    program = tmp_path / "bin" / "lesionfast"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lesionfast "$@"\n')
    program.chmod(0o755)
    here = tmp_path / "here"
    run = Path(shutil.copytree(trained.path, here / name / name))
    about = {"cwd": here, "env": os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}}

    def paste(line: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, check=False, **about
        )

    done = paste(f"lesionfast train --resume {shell_quote(Path(name, name))}")
    assert done.returncode == 2 and "is finished: nothing is left to do." in done.stderr
    interpreted = paste(done.stderr.partition("Look at it with: ")[2])
    assert interpreted.returncode == 0 and (run / "report.html").is_file(), interpreted.stderr
    (run / "metrics.json").write_bytes(b"other")
    damaged = paste(f"lesionfast runs --out {shell_quote(Path(name))}")
    again = paste(damaged.stderr.partition("To see all damage, type: ")[2])
    assert "metrics.json" in again.stdout + again.stderr and "Traceback" not in again.stderr
    assert [path.name for path in here.iterdir()] == [name]
