"""A page carries its pictures in itself, and nothing in a value becomes HTML."""

import base64

from lesionfast.console import Table
from lesionfast.reporting.page import (
    Picture,
    Section,
    class_styles,
    new_figure,
    save,
    take_words_literally,
    write_page,
)


def test_a_picture_carries_its_file_and_its_numbers(tmp_path):
    figure = new_figure(3, 2, "Title", "test, 9 images")
    figure.subplots().plot([0, 1], [0.25, 0.5], label="mel")
    file = save(figure, tmp_path / "p.png")
    picture = Picture.from_file(file, "words")
    kind, data = picture.source.split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == file.read_bytes()
    assert picture.numbers == ["Title, test, 9 images", "mel: 0.25 at 0, 0.5 at 1."]


def test_no_value_becomes_html(tmp_path):
    evil = "<script>alert(1)</script>"
    table = Table(evil, [evil], note=evil)
    table.add(evil)
    file = write_page(tmp_path / "page.html", evil, [Section("A part", [evil], [table])])
    text = file.read_text()
    assert evil not in text and text.count("&lt;script&gt;") >= 7


def test_a_section_is_linked_by_its_anchor(tmp_path):
    text = write_page(tmp_path / "page.html", "t", [Section("Data card")]).read_text()
    assert '<a href="#data-card">Data card</a>' in text and 'id="data-card"' in text


def test_classes_keep_their_look_whichever_others_there_are():
    few, many = class_styles(["mel", "nv"]), class_styles(["akiec", "bcc", "mel", "nv", "scc"])
    assert few["mel"] == many["mel"] and few["nv"] == many["nv"]
    looks = [tuple(map(str, each.values())) for each in class_styles(map(str, range(30))).values()]
    assert len(set(looks)) == 30
    assert class_styles(["MEL"])["MEL"] == class_styles(["Melanoma"])["Melanoma"] == few["mel"]
    two = class_styles(["mel", "melanoma"])
    assert two["mel"] != two["melanoma"]


def test_ticks_have_room_for_diagnoses_and_no_two_look_alike():
    names = ["Melanocytic nevus with dermal involvement", "a" * 40 + "b" + "a" * 40]
    names += ["a" * 40 + "c" + "a" * 40, "mel"]
    figure = new_figure(3, 2, "Title")
    axis = figure.subplots()
    axis.set_xticks(range(4), names)
    axis.set_yticks(range(4), [f"{name}\nn 9" for name in names])
    take_words_literally(figure)
    below = [label.get_text() for label in axis.get_xticklabels()]
    beside = [label.get_text() for label in axis.get_yticklabels()]
    assert below[0] == "Melanocytic nevus with dermal\ninvolvement" and below[3] == "mel"
    assert beside[0] == f"{below[0]}\nn 9" and beside[1].endswith("\nn 9")
    assert len(set(below)) == len(set(beside)) == 4 and below[1].startswith("2: a")
