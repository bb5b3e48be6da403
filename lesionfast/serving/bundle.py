"""Bundle: what a model needs besides its weights, from a run or an exported folder. No torch."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.encoder import SHAPE as ENCODER_SHAPE
from lesionfast.data.encoder import MetadataEncoder
from lesionfast.diagnoses import Classes
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.decisions import (
    CALIBRATION,
    OOD,
    POINTS,
    REFERRAL,
    SETS,
    Decisions,
    load_ood,
)
from lesionfast.files import check_shape, sha256
from lesionfast.runs import SHAPES as RUN_SHAPES
from lesionfast.runs import Run
from lesionfast.stats.calibration import Calibrator
from lesionfast.stats.conformal import Conformal
from lesionfast.stats.metrics import decide, json_safe
from lesionfast.stats.ood import OODScorer
from lesionfast.stats.selective import Referral, rule_confidence
from lesionfast.stats.thresholds import OperatingPoint, positive_and_score

logger = logging.getLogger("lesionfast")

SCHEMA = 1
CARD = "README.md"
DIGEST = re.compile(r"[0-9a-f]{64}\Z")
FILE, WEIGHTS, ONNX, INT8 = "model.json", "model.safetensors", "model.onnx", "model-int8.onnx"
FILES = (WEIGHTS, OOD.file, ONNX, INT8)  # all that an export may hold besides model.json and card
SHAPE = {
    **dict.fromkeys(("name", "image_column", "precision", "split_sha256"), str),
    "model": {
        **RUN_SHAPES["model.json"],
        **{"size": int, "tta": tuple(range(1, 9)), "resize": str},
        **{"melanoma?": (str, None), "malignant?": ([str], None)},
    },
    "encoder": ENCODER_SHAPE,
    "operating_points": POINTS.shape["points"],
    "calibration": (None, *CALIBRATION.shape),
    "conformal": (None, SETS.shape),
    "referral": (None, REFERRAL.shape),
    "versions": {str: str},
}
PACKAGES = ("lesionfast", "torch", "timm", "torchvision")


@dataclass(frozen=True, eq=False)
class Bundle:
    """Architecture, classes, preprocessing, encoder, and all that was chosen on validation.

    `model` is the model.json of a run. What the run had no validation images or features for is
    None, or an empty list of points.
    """

    name: str
    model: dict[str, Any]
    image_column: str
    precision: str
    encoder: MetadataEncoder
    points: list[OperatingPoint] = field(default_factory=list)
    calibrator: Calibrator | None = None
    conformal: Conformal | None = None
    referral: Referral | None = None
    ood: OODScorer | None = None
    split_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> Classes:
        """Class names, in the order of the probabilities, and what they mean."""
        return Classes.of_model(self.model)

    @property
    def size(self) -> int:
        """Height and width in pixels of what the model sees."""
        return self.model["size"]

    @classmethod
    def of(cls, run: Run) -> "Bundle":
        """Return that of a run; what it keeps no choice of yet is chosen on its validation.

        Raises `LesionfastError` for a run that did not end, and for an ensemble.
        """
        if "members" in run.model:
            raise LesionfastError(
                f"{run.path} is an ensemble and has no weights of its own. Name one of its "
                f"members: {', '.join(run.model['members'])}"
            )
        decisions = Decisions(run)
        wanted = {
            "calibrator": lambda: decisions.calibrator,
            "conformal": lambda: decisions.conformal,
            "referral": lambda: decisions.referral,
            "ood": lambda: decisions.ood,
        }
        return cls(
            name=run.path.resolve().name,
            model=run.model,
            image_column=run.config.image,
            precision=run.config.precision,
            encoder=MetadataEncoder.from_run(run),
            points=optional("operating points", lambda: decisions.points) or [],
            **{name: optional(name, find) for name, find in wanted.items()},
            split_sha256=run.metrics["split_sha256"],
            versions=installed(),
        )

    @classmethod
    def read(cls, folder: Path) -> "Bundle":
        """Return that of an exported folder, every file checked against its SHA-256.

        Raises `LesionfastError` for one that is not whole, was changed, or is of a newer schema.
        """
        told = read_json(folder / FILE)
        for name, expected in told["files"].items():
            check_file(folder / name, expected)
        return cls.from_dict(told, load_ood(folder / OOD.file) if told.get("outliers") else None)

    @classmethod
    def from_dict(cls, told: dict[str, Any], ood: OODScorer | None) -> "Bundle":
        """Return what `to_dict` told; raises `LesionfastError` for a newer schema, and for less."""
        check_schema(told)
        try:
            check_contents(told)
            return cls._built(told, ood)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise LesionfastError(
                f"what the model says of itself can't be used: {kind}{error}. "
                "Export the run again: lesionfast export RUN --to DIR"
            ) from None

    @classmethod
    def _built(cls, told: dict[str, Any], ood: OODScorer | None) -> "Bundle":
        return cls(
            name=told["name"],
            model=told["model"],
            image_column=told["image_column"],
            precision=told["precision"],
            encoder=MetadataEncoder.from_learned(told["encoder"]),
            points=POINTS.from_json({"points": told["operating_points"]}),
            calibrator=built(CALIBRATION.from_json, told["calibration"]),
            conformal=built(SETS.from_json, told["conformal"]),
            referral=built(REFERRAL.from_json, told["referral"]),
            ood=ood,
            split_sha256=told["split_sha256"],
            versions=told["versions"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-safe values, without the features that the OOD score keeps."""
        parts = {"calibration": self.calibrator, "conformal": self.conformal}
        parts["referral"] = self.referral
        kept = {name: part and json_safe(asdict(part)) for name, part in parts.items()}
        return {
            "schema": SCHEMA,
            "name": self.name,
            "model": self.model,
            "image_column": self.image_column,
            "precision": self.precision,
            "encoder": json.loads(self.encoder.to_json()),
            "operating_points": [asdict(each) for each in self.points],
            **kept,
            "outliers": self.ood is not None,
            "split_sha256": self.split_sha256,
            "versions": self.versions,
        }

    def digest(self) -> str:
        """Return the SHA-256 of all that decides what is said of an image, besides the weights."""
        kept = {k: v for k, v in self.to_dict().items() if k not in ("name", "versions")}
        found = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
        if self.ood:
            found.update(b"train" + self.ood.train.tobytes())
        return found.hexdigest()


def optional(what: str, find: Callable[[], Any]) -> Any:
    """Return what is found, or None where a run lacks what it takes; that is said."""
    try:
        return find()
    except DamageError:
        raise
    except LesionfastError as error:
        logger.warning("predictions without %s: %s", what, error)
        return None


def built(build: Callable[[dict], Any], told: dict | None) -> Any:
    """Return what is built from a dict, None from none."""
    return None if told is None else build(told)


def installed() -> dict[str, str]:
    """Return the versions of the packages that the probabilities depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "from source"
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the model.json of an exported folder; raises `LesionfastError` if it is none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LesionfastError(
            f"{path.parent} is no exported model: it has no {path.name}. "
            f"Make one: lesionfast export RUN --to DIR"
        ) from None
    except (OSError, ValueError) as error:
        raise LesionfastError(f"{path} is broken: {error}. Export the run again.") from None
    if not isinstance(told, dict) or "schema" not in told:
        raise LesionfastError(f"{path} is no model of lesionfast. Export a run: lesionfast export")
    check_schema(told)
    if "files" not in told:
        raise LesionfastError(
            f"{path} is of a run that did not end, or lost files. Name a finished run, or a folder "
            "that `lesionfast export` wrote."
        )
    check_files(path, told)
    return told


def check_files(path: Path, told: dict[str, Any]) -> None:
    """Raise `LesionfastError` unless model.json has a SHA-256 of each file that is read, only such.

    So nothing is opened unchecked, and nothing else that lies in the folder is shared or fetched.
    """
    files = told["files"]
    listed = files if isinstance(files, dict) else {}
    needed = [WEIGHTS, *([OOD.file] if told.get("outliers") else [])]
    lacks = [name for name in needed if name not in listed]
    strange = [name for name in listed if name not in FILES]
    wrong = [n for n, each in listed.items() if not (isinstance(each, str) and DIGEST.match(each))]
    problem = (
        f"lists {strange[0]!r}, which no export holds"
        if strange
        else f"has no SHA-256 of {(lacks or wrong)[0]}"
        if lacks or wrong
        else ""
    )
    if problem:
        raise LesionfastError(
            f"{path} {problem}, so the folder can't be trusted. Copy the whole folder again, or "
            "export the run again: lesionfast export RUN --to DIR"
        )


def check_listed(path: Path) -> None:
    """Raise `LesionfastError` unless a file of an exported folder is the one that was exported."""
    files = read_json(path.parent / FILE)["files"]
    if path.name not in files:
        raise LesionfastError(
            f"{path.parent / FILE} has no SHA-256 of {path.name}, so it was not exported with it. "
            f"Name one of: {', '.join(files)}; or export the run again with --onnx."
        )
    check_file(path, files[path.name])


def check_contents(told: dict[str, Any]) -> None:
    """Raise `ValueError` unless what a model says has the right form: types, finite numbers."""
    check_shape(told, SHAPE)
    model = told["model"]
    for name in (model.get("melanoma"), *(model.get("malignant") or [])):
        if name is not None and name not in model["classes"]:
            raise ValueError(f"{name!r} is none of its classes")


def check_schema(told: dict[str, Any]) -> None:
    """Raise `LesionfastError` for a schema that this version does not know."""
    found = told.get("schema")
    if not isinstance(found, int) or found > SCHEMA:
        raise LesionfastError(
            f"the model has the schema {found}, and this lesionfast reads up to {SCHEMA}. "
            "Upgrade it: pip install --upgrade lesionfast"
        )


def check_file(path: Path, expected: str) -> None:
    """Raise `LesionfastError` unless a file has the SHA-256 that the model names."""
    if not path.is_file():
        raise LesionfastError(f"{path} is missing. Copy the whole folder again.")
    found = sha256(path)
    if found != expected:
        raise LesionfastError(
            f"{path} is not the file that was exported: its SHA-256 is {found[:12]}…, not "
            f"{expected[:12]}…. Copy the whole folder again."
        )


def assess(bundle: Bundle, probabilities: np.ndarray, features: np.ndarray) -> pd.DataFrame:
    """Return one row an image, from probabilities (n, k) and image features (n, F).

    Columns: decision and rule; p_<class>, the model's probabilities, which the rule, the flags,
    the sets and the referral are of; and as far as the model has them calibrated_<class>, a flag
    an operating point (`flag_name`), prediction_set (a tuple of class names, most probable
    first), refer, outlier_score and outlier.
    """
    classes, rule = bundle.classes, bundle.model["rule"]
    decision = decide(probabilities, rule, bundle.model["prior"])
    told = {"decision": np.asarray(classes, object)[decision], "rule": rule}
    told |= named("p", classes, probabilities)
    if bundle.calibrator:
        told |= named("calibrated", classes, bundle.calibrator.apply(probabilities))
    for point in bundle.points:
        _, score = positive_and_score(point.of, decision, probabilities, classes)
        told[flag_name(point)] = score >= point.threshold
    if bundle.conformal:
        told["prediction_set"] = set_names(
            bundle.conformal.sets(probabilities), probabilities, classes
        )
    if bundle.referral:
        confidence = rule_confidence(probabilities, rule, bundle.model["prior"])
        told["refer"] = bundle.referral.referred(confidence)
    if bundle.ood:
        scores = bundle.ood.score(features)
        told |= {"outlier_score": scores, "outlier": scores > bundle.ood.threshold}
    return pd.DataFrame(told, index=range(len(probabilities)))


def columns_of(bundle: Bundle) -> list[str]:
    """Return the columns of `assess`."""
    k = len(bundle.classes)
    width = 0 if bundle.ood is None else bundle.ood.train.shape[1]
    return list(assess(bundle, np.full((1, k), 1 / k), np.ones((1, width))))


def named(prefix: str, classes: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of an array (n, k)."""
    return {f"{prefix}_{name}": values[:, i] for i, name in enumerate(classes)}


def flag_name(point: OperatingPoint) -> str:
    """Return the column of an operating point, such as "mel_at_specificity_90"."""
    return f"{point.of}_at_{point.goal}_{point.level * 100:.0f}"


def set_names(
    sets: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> list[tuple[str, ...]]:
    """Return the classes of each set, the most probable first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return [
        tuple(classes[i] for i in row if chosen[i]) for row, chosen in zip(order, sets, strict=True)
    ]
