"""A page carries its pictures in itself, and nothing in a value becomes HTML."""

import base64

from lesionfast.console import Table
from lesionfast.reporting.page import Picture, Section, class_styles, write_page


def test_a_picture_carries_its_file(tmp_path):
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    kind, data = Picture.from_file(tmp_path / "p.png", "words").source.split(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == b"\x89PNG"


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
