"""The local page: its form, and what it says of an image, with the pictures in the HTML."""

import base64
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lesionfast.data.decoding import FORMATS, known_formats
from lesionfast.diagnoses import full_name
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.grids import patient, per_cent, read_pixels
from lesionfast.evaluation.page import Picture, render
from lesionfast.serving.assessment import flag_name
from lesionfast.serving.bundle import Bundle
from lesionfast.serving.service import MOST_BYTES, MOST_PIXELS, Answer

RULES = {
    "argmax": "the most probable class",
    "balanced": "the largest probability after division by the class shares of the training",
}
SHARE = 0.45  # of the heat map in the picture


def page_html(bundle: Bundle) -> str:
    """Return the page: a form for an image and what is known of the person, and no answer yet."""
    return render(
        "app.html",
        columns=bundle.encoder.learned,
        formats=known_formats(),
        types=",".join(f"image/{name.lower()}" for name in FORMATS),
        most_bytes=MOST_BYTES,
        most=f"{MOST_BYTES // 10**6} MB and {MOST_PIXELS // 10**6} megapixels",
        about=f"Model {bundle.name}, split {bundle.split_sha256[:12]}.",
    )


def answer_html(bundle: Bundle, answer: Answer) -> str:
    """Return the answer as a section of HTML."""
    row, classes = answer.row, bundle.classes
    prefix = "calibrated" if bundle.calibrator else "p"
    told = "calibrated on validation" if bundle.calibrator else "of the model, not calibrated"
    values = {name: row[f"{prefix}_{name}"] for name in classes}
    bars = [
        {
            "name": full_name(name),
            "width": f"{100 * value:.1f}",
            "text": per_cent(value),
            "grave": name == classes.melanoma,
        }
        for name, value in values.items()
    ]
    return render(
        "answer.html",
        outlier=bool(row.get("outlier")),
        decision=f"Decision: {full_name(row['decision'])}",
        rule=f"By the rule {row['rule']}: {RULES[row['rule']]}.",
        caption=f"Probabilities, {told}",
        bars=bars,
        words=words_of(bundle, row),
        caution=sentence(answer.caution),
        pictures=pictures_of(answer),
        left_out=answer.left_out,
    )


def words_of(bundle: Bundle, row: dict[str, Any]) -> list[str]:
    """Return flags, prediction set, referral and what was not known, a sentence each."""
    found = []
    for point in bundle.points:
        what = "melanoma" if point.of == bundle.classes.melanoma else "malignant"
        flagged = "Flagged" if row[flag_name(point)] else "Not flagged"
        found.append(
            f"{flagged} as {what} at the threshold for a {point.goal} of {point.level:.0%}."
        )
    if bundle.conformal:
        names = [full_name(name) for name in row["prediction_set"]]
        listed = " or ".join(names) if names else "no class fits"
        found.append(f"With a coverage of {bundle.conformal.coverage:.0%} in each class: {listed}.")
    if bundle.referral:
        least = f"the least certain {bundle.referral.share:.0%} of images"
        refer = f"Among {least}: let a dermatologist look."
        found.append(refer if row["refer"] else f"Not among {least}.")
    if row["not_known"]:
        found.append(f"Predicted without: {', '.join(row['not_known'])}.")
    return found


def sentence(words: str) -> str:
    """Return words with a capital letter first."""
    return words[:1].upper() + words[1:]


def pictures_of(answer: Answer) -> list[Picture]:
    """Return what the model saw, the heat over it, and similar training lesions."""
    found = [Picture("what the model saw", source_of(answer.seen))]
    if answer.heat is not None:
        told = "what speaks for the decision (Grad-CAM): what the model reacts to, not why"
        found.append(Picture(told, source_of(with_heat(answer.seen, answer.heat))))
    if answer.similar is not None:
        found += [picture for _, row in answer.similar.iterrows() if (picture := similar(row))]
    return found


def similar(row: pd.Series) -> Picture | None:
    """Return a training lesion, None if its image is gone."""
    told = ", ".join(filter(None, [full_name(row["target"]), patient(row)]))
    try:
        pixels = read_pixels(row["path"])
    except (LesionfastError, OSError):
        return None
    return Picture(f"similar in training: {told}", source_of(pixels))


def with_heat(seen: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return pixels uint8 (H, W, 3) with a heat map of 0..1 (H, W) laid over."""
    from matplotlib import colormaps

    colours = colormaps["inferno"](heat)[..., :3] * 255
    return ((1 - SHARE) * seen + SHARE * colours).round().astype(np.uint8)


def source_of(pixels: np.ndarray) -> str:
    """Return pixels as the address of a picture that is in it."""
    with BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=88)
        return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
