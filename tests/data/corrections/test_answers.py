"""The file of corrections: what is appended is read back, and what is wrong has its line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lesionfast.data.corrections.answers import Answer, Answers, append_answer, now, read_answers
from lesionfast.errors import LesionfastError

HEADER = "image,answer,who,when,why\n"


def answer(image: str, text: str, **about: str) -> Answer:
    return Answer.parse(image, text, **about)


def write(path: Path, *lines: str) -> Path:
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(LesionfastError) as error:
        read_answers(path)
    return str(error.value)


def test_what_is_appended_is_read_back(tmp_path):
    file = tmp_path / "new" / "corrections.csv"
    said = [
        answer("a", "right", who="Dr. A", when=now()),
        answer("b", "is Melanoma, NOS", why="streaks,\nblue veil"),
        answer("c", "UNCLEAR"),
        answer("d", "same  lesion as a"),
    ]
    for one in said:
        append_answer(file, one)
    text = file.read_text()
    assert text.startswith(HEADER) and len(text.splitlines()) == 5
    read = read_answers(file)
    assert [one.text for one in read.log] == [
        *("right", "is Melanoma, NOS", "unclear", "same lesion as a"),
    ]
    assert read.log[1].why == "streaks, blue veil" and read.log[0].who == "Dr. A"
    assert read.pairs == [("d", "a")] and set(read.labels) == {"a", "b", "c"}
    assert read.images == {"a", "b", "c", "d"}
    assert read.data == file.read_bytes() and len(read.sha256) == 64


def test_the_latest_answer_counts_and_undo_goes_back_one(tmp_path):
    lines = ["a,is mel", "a,is nv", "b,right", "a,same lesion as b", "a,undo", "a,undo"]
    read = read_answers(write(tmp_path / "c.csv", *lines))
    assert {image: one.text for image, one in read.labels.items()} == {"a": "is mel", "b": "right"}
    assert read.pairs == [] and read.find_latest() == answer("b", "right")
    assert (
        read_answers(write(tmp_path / "c.csv", *lines[:4])).find_latest().text == "same lesion as b"
    )
    assert Answers().find_latest() is None and read.find_latest({"a"}).text == "is mel"
    both = Answers((answer("a", "is mel"), answer("a", "same lesion as b")))
    assert both.labels["a"].value == "mel" and both.same_as("a") == ["b"]


def test_a_file_of_the_header_alone_says_nothing(tmp_path):
    assert read_answers(write(tmp_path / "c.csv")).log == ()


def test_a_spreadsheet_may_have_saved_it(tmp_path):
    file = tmp_path / "c.csv"
    file.write_bytes("\ufeffanswer;image;why\r\nis bösartig;a;=1+1\r\n".encode())
    assert read_answers(file).labels["a"].value == "bösartig"
    append_answer(tmp_path / "d.csv", answer("a", "right", why="=SUM(A1)", who="@x"))
    assert (tmp_path / "d.csv").read_text().splitlines()[1] == "a,right,x,,SUM(A1)"


def test_a_line_without_its_end_is_ended_first(tmp_path):
    file = write(tmp_path / "c.csv", "a,right,,,")
    file.write_text(file.read_text().rstrip("\n"))
    append_answer(file, answer("b", "unclear"))
    assert file.read_text() == f"{HEADER}a,right,,,\nb,unclear,,,\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,rigth", r"line 3 of .*c\.csv: 'rigth' is not an answer. Did you mean 'right'\?"),
        ("a,is", "line 3 .*'is' is not an answer.* Write one of: right, is CLASS, unclear"),
        (",right", "line 3 of .* names no image. Write its id, or remove the line"),
        ("b,undo", "line 3 of .* takes back an answer about 'b', which has none. Remove the line"),
        ("b,same lesion as b", "line 3 of .* joins 'b' with itself. Name another image"),
        ("b,right,,,,,x", "can't be read as CSV: row 3 has 7 fields"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, line, message):
    import re

    assert re.search(message, refusal(write(tmp_path / "c.csv", "a,right", line)))


def test_a_file_without_its_columns_is_refused(tmp_path):
    (tmp_path / "c.csv").write_text("image,label\na,mel\n")
    assert "column 'answer' is not in c.csv; it has: image, label." in refusal(tmp_path / "c.csv")
    assert "Name the CSV with --corrections" in refusal(tmp_path / "none.csv")


def test_a_full_disk_leaves_the_file_as_it_was(small_disk):
    file = small_disk / "c.csv"
    append_answer(file, answer("a", "right"))
    free = os.statvfs(small_disk)
    (small_disk / "rest").write_bytes(b"x" * (free.f_bavail * free.f_bsize))
    before = file.read_bytes()
    with pytest.raises(LesionfastError, match="the disk is full"):
        append_answer(file, answer("b", "right", why="x" * 8192))
    assert file.read_bytes() == before


def test_an_answer_is_in_the_file_when_the_process_is_killed_after_it(tmp_path):
    code = (
        "import os, sys\n"
        "from lesionfast.data.corrections.answers import *\n"
        "append_answer(sys.argv[1], Answer.parse('a', 'is mel'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    file = tmp_path / "c.csv"
    subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert read_answers(file).labels["a"].value == "mel"
