"""The advice chapter: what a person is told of these images, and what a flag is worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from lesionfast.console import Table, estimate
from lesionfast.diagnoses import Classes
from lesionfast.errors import shell_quote
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.interpretation import Interpretation
from lesionfast.reporting.advice.limits import list_limits, measure_limits
from lesionfast.reporting.advice.sentences import describe_key, list_classes, say, word
from lesionfast.reporting.decisions import LOOKS
from lesionfast.reporting.page import (
    GREY,
    Section,
    draw_picture,
    new_figure,
    save,
    style_axis,
    subtitle,
)
from lesionfast.stats.advice.advice import (
    EXAMINE,
    NO_CANCER,
    NO_DECISION,
    REASSURING,
    UNSURE,
    Advice,
    advice_table,
    kinds_of_lesion,
)
from lesionfast.stats.advice.costs import Costs
from lesionfast.stats.advice.prevalence import predictive_values
from lesionfast.stats.thresholds import OperatingPoint, positive_and_score

SHARES = np.geomspace(0.002, 0.5, 40)  # of melanomas, that a curve is drawn over
CANCERS = ("melanoma", "other_cancer", "any_cancer")  # sentences where one is most probable
ORDER = (*CANCERS, EXAMINE, UNSURE, NO_DECISION, *REASSURING, NO_CANCER)  # of what is said
NAMES = {"ppv": "flagged lesions that are melanomas", "npv": "other lesions that are not"}


def run_advice(findings: Findings) -> list[str]:
    """Return what the advice on these images comes to, in a sentence, and what that is based on.

    Empty for images that everything was fitted on.
    """
    if not findings.on_test:
        return []
    read = findings.interpretation
    table = run_table(findings).set_index("of")
    found = [kind for kind in ("melanoma", "other cancer") if kind in table.index]
    if not read.classes.malignant:
        return [say("run.no_cancer", classes=list_classes(read.classes))]
    if not found or "benign" not in table.index:
        return [say("run.no_benign" if found else "run.no_images")]
    of = found[0]
    share, needless = table.loc[of], table.loc["benign"]
    key = "run.advice" if of == "melanoma" else "run.without_melanoma"
    return [
        say(key, **per_hundred(share), needless=f"{100 * needless['value']:.0f}"),
        say(
            "run.based",
            images=f"{len(read.rows):,}",
            split=read.split,
            kind=word("share.melanomas" if of == "melanoma" else "share.cancers"),
            found=estimate(share),
            needless=estimate(needless),
        ),
        say("run.no_decision"),
        describe_costs(findings.decisions.costs, read.classes),
        *([say("run.one_answer")] if read.classes.melanoma else []),
        say("run.no_all_clear"),
    ]


def run_limits(findings: Findings) -> list[str]:
    """Return when not to rely on the run's model, a sentence each; empty as `run_advice`."""
    classes = findings.interpretation.classes
    return list_limits(measure_limits(findings), classes) if findings.on_test else []


def per_hundred(row: pd.Series) -> dict[str, int]:
    """Return how many of 100 images are found, missed and withheld, by a row of `advice_table`.

    They are whole and sum to 100; of images that are missed at all at least one is.
    """
    missed, withheld = (100 * row[name] / row["images"] for name in ("left", "no_decision"))
    whole = {"missed": max(round(missed), int(missed > 0)), "withheld": round(withheld)}
    return whole | {"found": 100 - sum(whole.values())}


def describe_costs(costs: Costs, classes: Classes) -> str:
    """Return what the stated costs are, and from which chance on they have a lesion examined."""
    costs = costs.relative()
    melanoma, cancer = costs.missed_melanoma, costs.missed_cancer
    key = "run.costs" if classes.melanoma else "run.costs_without_melanoma"
    chances = {"melanoma_chance": 1 / (1 + melanoma), "cancer_chance": 1 / (1 + cancer)}
    written = {name: f"{chance:.1%}" for name, chance in chances.items()}
    return say(key, melanoma=f"{melanoma:g}", cancer=f"{cancer:g}", **written)


def run_table(findings: Findings) -> pd.DataFrame:
    """Return `advice_table` of these images."""
    read = findings.interpretation
    return advice_table(read.truth, findings.advice.key, read.lesions, read.classes)


def advice(findings: Findings) -> Section | None:
    """Return what people are told of these images, and how often an examination is advised."""
    if not findings.on_test:
        return None
    read, decisions = findings.interpretation, findings.decisions
    names = {"of": "what the lesions were", "images": "images", "examined": "have it examined"}
    names |= {"no_decision": "no decision: have it looked at", "left": "neither"}
    names |= {"value": "share examined"}
    title = "Images whose examination is advised"
    shares = Table.from_frame(run_table(findings), title, names)
    kinds = kinds_of_lesion(read.classes)
    members = {name: chosen[read.truth] for name, chosen in kinds.items() if chosen.any()}
    told = Table("What is said of them, in images", ["advice", *members], note=say("run.examples"))
    keys = list_keys(findings.advice, read.classes)
    for key in dict.fromkeys(sorted(keys, key=ORDER.index)):
        said = keys == key
        told.add(describe_key(key), *(int((said & chosen).sum()) for chosen in members.values()))
    words = [
        say("run.derived", coverage=f"{decisions.conformal.coverage:.0%}"),
        say("run.unsure", share=f"{decisions.referral.share:.0%}"),
        say("run.state", run=shell_quote(findings.run.path), costs=decisions.costs),
    ]
    return Section("Advice", words, [shares, told])


def list_keys(advice: Advice, classes: Classes) -> np.ndarray:
    """Return which sentence each image gets, a key of the messages (n,).

    They are those of `stats.advice`, but a cancer that is the most probable class has its own.
    """
    kinds, keys = kinds_of_lesion(classes), advice.key.copy()
    other = "other_cancer" if kinds["melanoma"].any() else "any_cancer"
    for kind, name in (("melanoma", "melanoma"), ("other cancer", other)):
        keys[(keys == EXAMINE) & kinds[kind][advice.likely]] = name
    return keys


def predictive(findings: Findings) -> Section | None:
    """Return what a flag of melanoma is worth where melanoma is rarer or more frequent."""
    if not findings.on_test:
        return None
    read = findings.interpretation
    points = [p for p in findings.decisions.points if p.of == read.classes.melanoma]
    positive = np.isin(read.truth, [read.classes.index(p.of) for p in points])
    if not positive.any() or positive.all():
        return None
    tables = [predictive_values(*flags(findings.shown, p), *strata_of(read)) for p in points]
    columns = [f"{name} at {p.goal} {p.level:.0%}" for p in points for name in ("PPV", "NPV")]
    title, note = "Predictive values of the melanoma flag", say("run.predictive_note")
    table = Table(title, ["melanomas", *columns], note=note)
    for rows in zip(*(one.to_dict("records") for one in tables), strict=True):
        cells = [estimate(row, name) for row in rows for name in ("ppv", "npv")]
        table.add(percent_of(rows[0]["prevalence"]), *cells)
    share = float(positive.mean())
    words = [say("run.predictive", share=f"{share:.1%}"), say("run.prior")]
    caption = "Predictive values at each share of melanomas"
    picture = draw_picture(findings, draw_predictive, caption, points, read=findings.shown)
    picture = replace(picture, alternative=f"{caption}. {describe_values(tables, points)}")
    return Section("Predictive values", words, [table], [picture])


def percent_of(share: float) -> str:
    """Return a prevalence as "0.5%" or "10%"."""
    return f"{100 * share:g}%"


def flags(read: Interpretation, point: OperatingPoint) -> tuple[np.ndarray, np.ndarray]:
    """Return which images are positive, and which are flagged, bool (n,) each."""
    positive, score = positive_and_score(point.of, read.truth, read.probabilities, read.classes)
    return positive, score >= point.threshold


def strata_of(read: Interpretation) -> tuple[np.ndarray, np.ndarray]:
    """Return what lesions are resampled by: the class of each image, and its lesion."""
    return read.truth, read.lesions


def describe_values(tables: list[pd.DataFrame], points: list[OperatingPoint]) -> str:
    """Return the numbers of the figure in words, a sentence a threshold."""
    words = []
    for table, point in zip(tables, points, strict=True):
        numbers = "; ".join(
            f"{percent_of(row.prevalence)}: {row.ppv:.1%} and {row.npv:.2%}"
            for row in table.itertuples()
        )
        level = f"{point.goal} of {point.level:.0%}"
        words.append(say("run.predictive_figure", level=level, numbers=numbers))
    return " ".join(words)


def draw_predictive(read: Interpretation, points: list[OperatingPoint], folder: Path) -> Path:
    """Draw positive and negative predictive value of the melanoma flags over the prevalence."""
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    notes = "from sensitivity and specificity on these images", "band: 95 % interval over lesions"
    text = subtitle(read, *notes, rule=False)
    figure = new_figure(11, 5.2, "Predictive values of the melanoma flag", text)
    axes = dict(zip(NAMES, figure.subplots(1, 2), strict=True))
    for point in points:
        positive, flagged = flags(read, point)
        table = predictive_values(positive, flagged, *strata_of(read), SHARES)
        color, _ = LOOKS[point.goal]
        line = "solid" if point.goal == "sensitivity" else (0, (5, 1.5))
        label = f"threshold for a {point.goal} of {point.level:.0%}"
        for name, axis in axes.items():
            look = {"color": color, "linestyle": line, "linewidth": 2, "label": label}
            axis.plot(SHARES, table[name], **look)
            ends = table[f"{name}_low"], table[f"{name}_high"]
            axis.fill_between(SHARES, *ends, color=color, alpha=0.15, linewidth=0)
    for name, axis in axes.items():
        axis.axvline(positive.mean(), color=GREY, linewidth=1, linestyle=(0, (2, 2)), label="here")
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: percent_of(share)))
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        labels = {"xlabel": "prevalence: lesions that are melanomas", "ylabel": NAMES[name]}
        style_axis(axis, "below", **labels, xlim=(SHARES[0], SHARES[-1]), ylim=(None, 1.01))
    axes["ppv"].set_ylim(0, 1.01)
    return save(figure, folder / "predictive_values.png", read)
