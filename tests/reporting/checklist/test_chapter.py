"""The checklist: every item of both guidelines once, and every place that it names exists."""

import re

from lesionfast.evaluation.findings import Findings
from lesionfast.reporting.checklist.chapter import checklist, checklist_of_card, read_items
from lesionfast.reporting.overview import SECTIONS, about_sections
from lesionfast.reporting.page import Section
from lesionfast.run import FITTED, GIVEN, LEARNED


def test_tripod_ai_has_its_27_items_in_order():
    ids = [item.id for item in read_items() if item.guideline == "TRIPOD+AI"]
    assert list(dict.fromkeys(int(re.match(r"\d+", name)[0]) for name in ids)) == [*range(1, 28)]
    assert len(ids) == len(set(ids)) == 52
    assert len([item for item in read_items() if item.guideline == "Model Cards"]) == 9


def test_every_item_says_where_it_is_answered_or_what_to_write():
    for item in read_items():
        assert item.report or item.card or item.files or item.write, item


def test_every_place_exists(make_run):
    from pathlib import Path

    import lesionfast.reporting as reporting

    sources = "".join(p.read_text("utf-8") for p in Path(reporting.__file__).parent.rglob("*.py"))
    export = (Path(reporting.__file__).parents[1] / "serving" / "export.py").read_text("utf-8")
    for item in read_items():
        for title in item.report:
            assert f'"{title}"' in sources, title
        for heading in item.card:
            assert f"## {heading}" in export, heading
        assert set(item.files) <= {*GIVEN, *LEARNED, *FITTED, "log.txt"}, item.files


def test_what_a_run_lacks_is_nowhere(make_run):
    run = make_run()
    sections = about_sections(Findings.from_run(run))
    few, more = (checklist(run, some) for some in (sections, [*sections, Section("Calibration")]))
    rows = {row[0].text: [cell.text for cell in row] for row in few.tables[0].rows}
    assert rows["24"][2:] == ["nowhere", "it is not answered for this run"]
    assert rows["17"][2:] == ["nowhere", "the ethics committee, and consent or its waiver"]
    assert rows["12a"][2] == "Data card, file split.csv"
    found = {row[0].text: row[2].text for row in more.tables[0].rows}
    assert found["24"] == "Calibration"
    assert few.words[0].startswith("Of 61 items ")
    assert SECTIONS


def test_the_card_has_the_same_items():
    _, tables = checklist_of_card()
    assert sum(len(table.rows) for table in tables) == len(read_items())
