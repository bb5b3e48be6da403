"""What a drift says to a person: a sentence, tables, and a figure with its numbers in words."""

from pathlib import Path
from typing import Any

from lesionfast.console import Cell, Table, percent
from lesionfast.diagnoses import full_name
from lesionfast.errors import list_first
from lesionfast.reporting.page import class_styles, new_axes, new_figure, save, style_axis
from lesionfast.run import Run
from lesionfast.serving.monitoring.drift import (
    ALIKE,
    DIFFERS,
    FEW,
    LITTLE,
    MUCH,
    OUTLIERS,
    SOMEWHAT,
    Drift,
    Period,
    Shift,
)
from lesionfast.stats.metrics import json_safe

LIMITS = (
    "It takes the diagnoses of some of these pictures to tell whether the answers are still right; "
    "pictures like those of validation are no proof of it."
)
NOTE = (
    f"stability index: below {LITTLE:g} alike, {LITTLE:g} to {MUCH:g} a little different, above "
    "different (Siddiqi 2006); outliers: different if surely more than twice as many. "
    "By chance: the most that as many pictures like those of validation show 99 % of the time "
    "(outliers: 97.5 %)."
)
LOOKS = ("-o", "--s", "-.D", ":^", "-P")
MOST_DRAWN = 5  # metadata columns


def describe_drift(drift: Drift) -> list[str]:
    """Return what a person has to know, the verdict first, a sentence each."""
    words = [headline(drift)]
    slightly = [shift for shift in drift.shifts.values() if shift.verdict == SOMEWHAT]
    if slightly:
        words.append(f"A little different: {list_shifts(slightly)}.")
    few = [shift for shift in drift.shifts.values() if shift.verdict == FEW]
    for shift in few:
        needed = shift.needed
        takes = f"it takes about {needed:,}" if needed else "validation itself has too few lesions"
        words.append(f"Too few pictures to tell about {shift.what}: {shift.pictures:,}; {takes}.")
    if drift.left_out:
        words.append(f"The log has {list_first(drift.left_out)}.")
    return [*words, LIMITS]


def headline(drift: Drift) -> str:
    """Return the verdict in one sentence, or two."""
    if drift.alarms:
        return (
            "The pictures differ from those the model was checked on: "
            f"{list_shifts(drift.alarms)}. What was measured on validation may not hold for them."
        )
    told = [shift.what for shift in drift.shifts.values() if shift.verdict in (ALIKE, SOMEWHAT)]
    if not told:
        return f"{drift.pictures:,} pictures are too few to tell anything."
    return (
        f"The {drift.pictures:,} pictures are like those the model was checked on, as far as "
        f"{list_first(told)} can tell."
    )


def list_shifts(shifts: list[Shift]) -> str:
    """Return "age (stability index 0.61; 70-79 39% instead of 9%), outliers (…)"."""
    words = []
    for shift in shifts:
        number = "" if shift.what == OUTLIERS else f"stability index {shift.value:.2f}; "
        words.append(f"{shift.what} ({number}{shift.change})")
    return ", ".join(words)


def show_value(shift: Shift | None, value: float | None = None) -> Cell | None:
    """Return the value of a shift as a cell: an index, or a share of outliers in per cent."""
    if shift is None:
        return None
    number = shift.value if value is None else value
    shown = percent(number) if shift.what == OUTLIERS else Cell(f"{number:.2f}", number)
    return shown


def drift_tables(drift: Drift) -> list[Table]:
    """Return the shifts, the mean probabilities, and what each period shows."""
    table = Table(
        "The log against validation",
        ["what", "pictures", "shift", "by chance", "verdict", "largest change", "pictures needed"],
        note=NOTE,
    )
    for shift in drift.shifts.values():
        cells = [shift.pictures, show_value(shift), show_value(shift, shift.chance)]
        style = "bold" if shift.verdict == DIFFERS else ""
        table.add(shift.what, *cells, shift.verdict, shift.change, shift.needed, style=style)
    means = Table(
        "Mean calibrated probability of each class",
        ["class", "validation", "log", "by chance at most"],
        note="of pictures with a decision; it is moved by the share of a class, and by the model.",
    )
    for name, (before, now, error) in drift.means.items():
        means.add(full_name(name), before, now, Cell(f"±{error:.3f}", error))
    periods = Table("By period", ["period", "pictures", *drift.shifts])
    for period in drift.periods:
        values = [show_value(period.shifts.get(name)) for name in drift.shifts]
        periods.add(period.name, period.pictures, *values)
    return [table, means, periods]


def draw_drift(run: Run, drift: Drift, folder: Path) -> Path:
    """Draw stability, outliers and mean probabilities by period; return the path of the PNG."""
    figure = new_figure(9, 8.4, "Drift against validation", f"{drift.pictures:,} pictures")
    above, middle, below = new_axes(figure, 3, 1)
    if OUTLIERS not in drift.shifts:
        middle.set_visible(False)
    places, names = range(len(drift.periods)), [period.name for period in drift.periods]
    columns = [name for name in drift.shifts if name != OUTLIERS][: MOST_DRAWN + 1]
    for number, name in enumerate(columns):
        values = [value_of(period, name) for period in drift.periods]
        above.plot(places, values, LOOKS[number % len(LOOKS)], label=name)
    for bound in (LITTLE, MUCH):
        above.axhline(bound, color="0.5", linestyle=":", linewidth=1)
    middle.plot(places, [value_of(period, OUTLIERS) for period in drift.periods], "-o", color="0.2")
    if drift.expected_outliers is not None:
        middle.axhline(drift.expected_outliers, color="0.5", linestyle=":", label="validation")
    for name, look in class_styles(drift.means).items():
        values = [period.means.get(name, float("nan")) for period in drift.periods]
        below.plot(places, values, **look, label=full_name(name))
        below.axhline(drift.means[name][0], color=look["color"], linestyle=":", linewidth=1)
    style_axis(above, "right", ylabel="stability index")
    style_axis(middle, "right", ylabel="share of outliers", ylim=(-0.02, 1.02))
    style_axis(below, "right", ylabel="mean probability", xlabel="dotted: validation")
    for axis in (above, middle, below):
        axis.set_xticks(list(places), names, rotation=30 if len(names) > 6 else 0)
    return save(figure, folder / "drift.png", f"run {run.path.name}")


def value_of(period: Period, name: str) -> float:
    """Return the value of a shift in a period, NaN if there is none."""
    return period.shifts[name].value if name in period.shifts else float("nan")


def describe_figure(drift: Drift) -> str:
    """Return what the figure shows, with its numbers, for those who can't see it."""
    parts = []
    for period in drift.periods:
        shifts = [f"{name} {show_value(shift).text}" for name, shift in period.shifts.items()]
        means = [f"{full_name(name)} {value:.3f}" for name, value in period.means.items()]
        told = f"shift of {', '.join(shifts)}; mean probability of {', '.join(means) or 'none'}"
        parts.append(f"{period.name}, {period.pictures:,} pictures: {told}")
    return f"By period: {'. '.join(parts)}."


def drift_to_dict(drift: Drift, figure: Path) -> dict[str, Any]:
    """Return a drift as JSON-safe values, with its words and the path of its figure."""
    shifts = {name: vars(shift) for name, shift in drift.shifts.items()}
    periods = [
        vars(period) | {"shifts": {name: vars(shift) for name, shift in period.shifts.items()}}
        for period in drift.periods
    ]
    names = ("validation", "log", "by_chance")
    return json_safe(
        {
            "alarm": bool(drift.alarms),
            "alarms": [shift.what for shift in drift.alarms],
            "words": describe_drift(drift),
            "pictures": drift.pictures,
            "shifts": shifts,
            "means": {k: dict(zip(names, v, strict=True)) for k, v in drift.means.items()},
            "periods": periods,
            "left_out": drift.left_out,
            "figure": str(figure),
            "figure_in_words": describe_figure(drift),
        }
    )
