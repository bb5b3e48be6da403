"""Sections of a report that show images: the worst, the atlas, the feature map, what speaks."""

from pathlib import Path

from lesionfast.errors import LesionfastError
from lesionfast.evaluation.atlas import draw_atlas
from lesionfast.evaluation.feature_map import draw_feature_map
from lesionfast.evaluation.findings import Findings
from lesionfast.evaluation.grids import draw_top_losses
from lesionfast.evaluation.page import Picture, Section, picture_of, table_of

ATLAS = "The most confident cases, each beside the training lesions that the model finds most alike"
MAP = (
    "The images by their features: close is alike, far apart means little; melanomas taken for "
    "nevi are ringed"
)
MAPS = (
    "Grad-CAM: the part of the image that speaks for the decision; below each, what age and sex "
    "add to its log-odds (integrated gradients)"
)
CAUTION = (
    "A map shows what the model reacts to, not that it is right to. Its cells are coarse; compare "
    "with the centred blob below where masks were given, and with the picture beside it."
)


def pictures(findings: Findings) -> Section:
    """Return the pictures that the model is most wrong about, and what it finds alike."""
    file = findings.drawn(draw_top_losses)
    found = [picture_of(file, "The highest losses")]
    return Section("Pictures", pictures=[*found, *atlas(findings), *feature_map(findings)])


def atlas(findings: Findings) -> list[Picture]:
    """Return missed melanomas, false alarms and found melanomas beside their neighbours."""
    if not findings.interpretation.classes.costliest or not findings.keeps_features:
        return []
    try:
        files = draw_atlas(findings.interpretation, findings.folder)
    except LesionfastError as error:
        findings.left_out("the atlas", error)
        return []
    findings.files |= {file.stem: file for file in files}
    return [picture_of(file, f"{ATLAS}: {file.stem.replace('_', ' ')}") for file in files]


def feature_map(findings: Findings) -> list[Picture]:
    """Return the map of the images, if the run keeps their features."""
    if not findings.keeps_features:
        return []
    try:
        return [picture_of(findings.drawn(draw_feature_map), MAP)]
    except LesionfastError as error:
        findings.left_out("the feature map", error)
        return []


def attribution(findings: Findings) -> Section | None:
    """Return what speaks for the decisions in the worst errors; it runs the model, if asked to."""
    if not findings.explain:
        return None
    from lesionfast.evaluation.attribution import explain_images
    from lesionfast.evaluation.attribution_figures import draw_attribution
    from lesionfast.evaluation.masks import compare_with_masks

    files = draw_attribution(findings.interpretation, findings.folder)
    findings.files |= {file.stem: file for file in files}
    tables = []
    if findings.masks:
        rows = findings.interpretation.rows
        explained = explain_images(findings.run, rows["image_id"].tolist(), rows["decision"])
        found = compare_with_masks(explained, Path(findings.masks))
        tables = [table_of(found, "How well the maps lie on the lesions of the masks")]
    shown = [picture_of(file, MAPS) for file in files]
    return Section("What speaks for a decision", [CAUTION], tables, shown)
