"""The checklist chapter: which items of TRIPOD+AI and Model Cards are answered, where, and by whom.

The items are in items.toml: report and model card read the same.
"""

import tomllib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from importlib import resources

from lesionfast.console import Table
from lesionfast.reporting.page import Section
from lesionfast.run import Run

SOURCES = (
    "TRIPOD+AI: Collins et al. 2024, BMJ 385, e078378, doi:10.1136/bmj-2023-078378. "
    "Model Cards: Mitchell et al. 2019, doi:10.1145/3287560.3287596."
)
COLUMNS = ["item", "asks for", "where", "to be written by you"]


@dataclass(frozen=True)
class Item:
    """What a guideline asks for, where it is answered, and what only a person can say.

    `report` are chapters of the report, `card` headings of a model card, `files` those of the run.
    """

    guideline: str
    id: str
    asks: str
    report: tuple[str, ...] = ()
    card: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    write: str = ""


@cache
def read_items() -> list[Item]:
    """Return all items, in the order of their guidelines."""
    folder = resources.files("lesionfast.reporting.checklist")
    guidelines = tomllib.loads((folder / "items.toml").read_text(encoding="utf-8"))
    return [
        Item(name, **{key: tuple(v) if isinstance(v, list) else v for key, v in item.items()})
        for name, items in guidelines.items()
        for item in items
    ]


def checklist(run: Run, sections: Collection[Section]) -> Section:
    """Return the chapter of a report that has these sections."""
    titles = {section.title for section in sections}

    def find_places(item: Item) -> list[str]:
        files = [f"file {name}" for name in item.files if (run.path / name).is_file()]
        return [*(title for title in item.report if title in titles), *files]

    return Section("Checklist", *describe(find_places), folded=True)


def checklist_of_card() -> tuple[list[str], list[Table]]:
    """Return the words and tables of a model card, which has fewer chapters than the report."""

    def find_places(item: Item) -> list[str]:
        more = [f"report.html of the run, {title}" for title in item.report]
        return list(item.card) or more or [f"file {name} of the run" for name in item.files]

    return describe(find_places)


def describe(find_places: Callable[[Item], list[str]]) -> tuple[list[str], list[Table]]:
    """Return how many items are answered and how many not, and a table a guideline."""
    tables: dict[str, Table] = {}
    answered = begun = 0
    for item in read_items():
        table = tables.setdefault(item.guideline, Table(item.guideline, list(COLUMNS)))
        places = find_places(item)
        missing = item.write or ("" if places else "it is not answered for this run")
        answered, begun = answered + (not missing), begun + bool(missing and places)
        table.add(item.id, item.asks, ", ".join(places) or "nowhere", missing)
    total = len(read_items())
    words = [
        f"Of {total} items {answered} are answered here, {begun} in part, and "
        f"{total - answered - begun} are all to be written. What no program can know is in the "
        "last column.",
        SOURCES,
    ]
    return words, list(tables.values())
