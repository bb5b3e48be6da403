"""The model card of an exported model, as Markdown that Hugging Face understands."""

from typing import Any

import pandas as pd

from lesionfast.evaluation.cards import data_card, model_card
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.page import Table
from lesionfast.serving.bundle import Bundle

FRONT = """---
library_name: lesionfast
pipeline_tag: image-classification
tags:
- dermoscopy
- skin-lesion
- medical
---
"""
TOLD = {
    ("balanced_accuracy", "all"): "balanced accuracy",
    ("macro_auc", "all"): "macro AUC",
    ("sensitivity", "melanoma"): "melanoma sensitivity",
    ("specificity", "melanoma"): "melanoma specificity",
    ("auc", "melanoma"): "melanoma AUC",
    ("sensitivity", "cancer"): "malignant sensitivity",
    ("accuracy", "all"): "plain accuracy",
}
USE = """## Use it

```
pip install lesionfast
lesionfast predict THIS_FOLDER image.jpg --set age=55 --set sex=female
```

```python
from lesionfast.serving.predictor import Predictor

Predictor("THIS_FOLDER")("image.jpg", age=55, sex="female")
```

No file here is a pickle. `model.json` has the SHA-256 of each, which is checked.
"""


def card_of(
    findings: Findings, bundle: Bundle, files: list[str], int8: dict[str, Any] | None = None
) -> str:
    """Return the README.md of an exported model: use, estimates with intervals, data, limits.

    `int8` is what 8-bit numbers do to the test images, where there is such a file.
    """
    read = findings.interpretation
    words, tables = data_card(findings)
    parts = [
        FRONT,
        f"# {bundle.name}: {bundle.model['arch']}, {bundle.size} pixels\n",
        "**Not a medical device: for research, not for diagnosis.**\n",
        USE.replace(
            "No file here", f"The model is {', '.join(['model.json', *files])}. No file here"
        ),
        f"## Estimates on {len(read.rows):,} {read.split} images, rule {read.rule}\n",
        f"With 95 % intervals. Split SHA-256 {bundle.split_sha256}.\n",
        estimates(findings),
        *([eight_bits(int8)] if int8 else []),
        "## Data\n",
        *(f"{each}\n" for each in words),
        *(markdown(each) for each in tables),
        "## What it is for, and its limits\n",
        *(f"{each}\n" for each in model_card(findings.run)),
    ]
    return "\n".join(parts)


def estimates(findings: Findings) -> str:
    """Return a Markdown table of the metrics that matter, each with its interval."""
    classes, rows = findings.interpretation.classes, []
    roles = {"melanoma": classes.melanoma, "cancer": classes.cancer}
    for (metric, of), name in TOLD.items():
        found = findings.measure(metric, roles.get(of, of))
        if found is not None and not pd.isna(found["value"]):
            ends = f"[{found['low']:.3f}, {found['high']:.3f}]"
            rows.append(f"| {name} | {found['value']:.3f} | {ends} |")
    return "\n".join(["| | value | 95 % interval |", "|---|---|---|", *rows, ""])


def eight_bits(change: dict[str, Any]) -> str:
    """Return what 8-bit numbers do to the decisions."""
    before, after = change["float32"], change["int8"]
    told = f"balanced accuracy {before['balanced_accuracy']:.3f} in float32"
    told += f", in 8-bit numbers {after['balanced_accuracy']:.3f}"
    if "sensitivity_mel" in after:
        told += f"; melanoma sensitivity {before['sensitivity_mel']:.3f}"
        told += f" and {after['sensitivity_mel']:.3f}"
    return f"On {change['images']:,} test images: {told}.\n"


def markdown(table: Table) -> str:
    """Return a table of the report as Markdown."""
    lines = [" | ".join(cell.text for cell in row) for row in table.rows]
    head = [" | ".join(table.columns), "|".join(["---"] * len(table.columns))]
    return "\n".join([f"{table.caption}:\n", *(f"| {line} |" for line in [*head, *lines]), ""])
