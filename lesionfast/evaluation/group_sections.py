"""Sections of a report on patients and labels: subgroups, outliers, labels that may be wrong."""

import pandas as pd

from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.contribution import ENDS, WITHHELD, in_words, melanomas_missed
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.labels import disagreeing_duplicates
from lesionfast.evaluation.page import Section, Table, picture_of, table_of
from lesionfast.evaluation.subgroup_figures import draw_subgroups
from lesionfast.evaluation.subgroup_gaps import gap_table
from lesionfast.evaluation.subgroups import FEWEST, subgroup_table

MOST_PAIRS = 12
PAIRED = "The same images; differences over the same resamples of lesions"


def subgroups(findings: Findings) -> Section | None:
    """Return the metrics of each sex, age band and site, and the gaps between them."""
    read = findings.interpretation
    found = subgroup_table(read)
    if found.empty:
        return None
    words = [
        f"Groups with fewer than {FEWEST} lesions to count are marked as few and take no part in "
        "the gaps. A gap is the best group less the worst, which is above 0 even where groups do "
        "not differ: beside it stands the gap to expect then, and p, the share of random groups "
        "with a gap at least as large (not corrected for the number of rows).",
    ]
    picture = picture_of(findings.drawn(draw_subgroups), "Sensitivity and AUC of each group")
    gaps = gap_table(read)
    titles = {read.classes.melanoma: "melanoma"}
    tables = [subgroups_wide(found, titles), gaps_table(gaps[gaps["value"].notna()], found)]
    return Section("Subgroups", words, tables, [picture])


def subgroups_wide(found: pd.DataFrame, titles: dict[str | None, str]) -> Table:
    """Return one row a group, one column a metric; 'few' where its cases are."""
    rows = []
    for (column, group), cells in found.groupby(["column", "group"], sort=False):
        row: dict[str, object] = {"by": column, "group": group}
        row |= {"images": int(cells["images"].iloc[0]), "lesions": int(cells["lesions"].iloc[0])}
        for each in cells.itertuples():
            of = "" if each.of == "all" else f"{titles.get(each.of, each.of)} "
            name = f"{of}{each.metric.replace('_', ' ').replace('auc', 'AUC')}"
            row |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
            if each.of != "all" and each.metric == "sensitivity":
                few = " (few)" if each.few else ""
                row[f"{of}lesions"] = f"{each.positives}{few}"
        rows.append(row)
    return table_of(pd.DataFrame(rows), "Groups of patients")


def gaps_table(gaps: pd.DataFrame, found: pd.DataFrame) -> Table:
    """Return the gaps between the ranked groups of a table, and which it has too few cases of."""
    keys = ["column", "of", "metric"]
    few = found[found["few"].astype(bool)].groupby(keys)["group"].agg(", ".join)
    told = gaps.join(few, on=keys).fillna({"group": ""})
    told["metric"] = gaps["of"].replace("all", "") + " " + gaps["metric"].str.replace("_", " ")
    names = {"column": "by", "metric": "metric", "value": "gap", "best": "best", "worst": "worst"}
    names |= {"expected": "expected by chance", "p": "p", "group": "not in it, too few"}
    return table_of(told, "Gaps", names)


def metadata(findings: Findings) -> Section | None:
    """Return what withholding all metadata at prediction changes, if the run has tried it."""
    found = findings.contribution
    if found is None:
        return None
    columns = findings.run.model["metadata"]
    loses = f"Withholding {' and '.join(columns)} at prediction"
    words = [f"{in_words(found, WITHHELD, loses)}.", melanomas_missed(found, columns)]
    names = {"system": "predicted", "metric": "metric", "of": "of"}
    names |= {"value": "value", "difference": "difference, paired"}
    told = found.replace({"system": {"whole": "with metadata", WITHHELD: "without"}})
    told.loc[found["system"] == "whole", list(ENDS)] = float("nan")
    told["metric"] = told["metric"].str.replace("_", " ").str.replace("auc", "AUC")
    return Section("Without metadata", [w for w in words if w], [table_of(told, PAIRED, names)])


def outliers(findings: Findings) -> Section | None:
    """Return how many images look unlike the training images."""
    if not (findings.on_test and findings.keeps_features):
        return None
    try:
        scorer = findings.outliers
    except LesionfastError as error:
        findings.left_out("outliers", error)
        return None
    rows, features = findings.interpretation.rows, findings.features
    known = rows[rows["image_id"].isin(features.index)]
    scores = pd.Series(scorer.score(features.loc[known["image_id"]]), known.index)
    flagged = known.assign(score=scores)[scores > scorer.threshold]
    words = [
        f"{len(flagged)} of {len(known)} images ({len(flagged) / len(known):.1%}) look less like "
        f"the training images than {scorer.level:.0%} of the validation images do "
        f"({scorer.method} on the image features). On such images trust the model less.",
    ]
    worst = flagged.sort_values("score", ascending=False).head(MOST_PAIRS)
    names = {"image_id": "image", "score": "score", "truth": "truth", "decision": "decision"}
    return Section("Outliers", words, [table_of(worst, "The furthest", names)])


def labels(findings: Findings) -> Section | None:
    """Return images of one lesion that were decided differently."""
    if "group" not in findings.interpretation.rows:
        return None
    found = disagreeing_duplicates(findings.interpretation)
    if found.empty:
        return None
    melanoma = findings.interpretation.classes.melanoma
    grave = (found["truth_a"] == melanoma) | (found["truth_b"] == melanoma)
    ordered = pd.concat([found[grave], found[~grave]])
    words = [
        f"{len(found)} pairs of images of one lesion are decided differently, {int(grave.sum())} "
        "of them of melanomas; those first. The difference is half the sum of what their "
        "probabilities differ by. `lesionfast labels` looks for labels that may be wrong.",
    ]
    names = {
        "image_a": "image",
        "decision_a": "decided",
        "image_b": "other image",
        "decision_b": "decided ",
        "truth_a": "truth",
        "difference": "difference",
    }
    told = ordered.head(MOST_PAIRS).assign(truth_a=lambda d: d["truth_a"].map(full_name))
    return Section("One lesion, two decisions", words, [table_of(told, "Pairs", names)])
