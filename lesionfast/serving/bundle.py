"""Bundle: all that a model needs besides its weights, of a run or an exported folder. No torch."""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lesionfast.data.encoder import SHAPE as ENCODER_SHAPE
from lesionfast.data.encoder import JointEncoder, MetadataEncoder
from lesionfast.data.images import open_images
from lesionfast.data.split import load_dataset
from lesionfast.diagnoses import Classes, move_prior, prior_factors, probability_columns
from lesionfast.errors import DamageError, LesionfastError
from lesionfast.evaluation.decisions import (
    CALIBRATION,
    OOD,
    POINTS,
    REFERRAL,
    SETS,
    SHOWN,
    Decisions,
)
from lesionfast.evaluation.outliers import load_ood
from lesionfast.files import check_shape, load_json, sha256, write_json
from lesionfast.reporting.advice.limits import SHAPE as LIMITS
from lesionfast.reporting.advice.limits import Limits, find_limits
from lesionfast.reporting.advice.sentences import describe_advice
from lesionfast.run import SHAPES as RUN_SHAPES
from lesionfast.run import Run, installed_version, list_leaves, list_looks, list_runs_of
from lesionfast.stats.advice.advice import NO_DECISION, Advice, advise
from lesionfast.stats.advice.costs import Costs
from lesionfast.stats.advice.prevalence import ESTIMATE, read_prior, write_prior
from lesionfast.stats.calibration import Calibrator, clipped_log
from lesionfast.stats.conformal import Conformal
from lesionfast.stats.metrics import json_safe
from lesionfast.stats.ood import Scorer
from lesionfast.stats.pooling import MEANS
from lesionfast.stats.rules import DecisionRule, as_prior
from lesionfast.stats.selective import Referral
from lesionfast.stats.thresholds import OperatingPoint, positive_and_score

logger = logging.getLogger("lesionfast")

SCHEMA = 3  # until 2 flags, sets and referral were of uncalibrated probabilities
FILE, CARD = "model.json", "README.md"
KEY = "key"  # of `stats.advice`: a column of `assess` that is written nowhere
WEIGHTS, ONNX, INT8 = "model.safetensors", "model.onnx", "model-int8.onnx"
FILES = (WEIGHTS, OOD.file, ONNX, INT8)  # all that an export may hold besides model.json and card
DIGEST = re.compile(r"[0-9a-f]{64}\Z")
EXPORT_AGAIN = "Export the run again: lesionfast export RUN --to DIR"
COPY_AGAIN = "Copy the whole folder again."
MODEL = {
    **RUN_SHAPES["model.json"],
    **{name: RUN_SHAPES["model.json"][f"{name}?"] for name in ("size", "tta", "resize")},
    **{"melanoma?": (str, None), "malignant?": ([str], None), "members?": [{str: object}]},
}
OF_ONE = {  # what one model is built by
    **dict.fromkeys(("arch", "pool", "fusion"), str),
    **{"dropout": float, "n_metadata": int},
}
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
IN_ENSEMBLE = {"precision": PRECISIONS, **OF_ONE}
ENSEMBLE = {"weights": [float], "mean": MEANS}
SHAPE = {
    **dict.fromkeys(("name", "image_column", "split_sha256"), str),
    "precision": PRECISIONS,
    "model": MODEL,
    "encoder": (ENCODER_SHAPE, [ENCODER_SHAPE]),
    "operating_points": POINTS.shape["points"],
    "calibration": (None, *CALIBRATION.shape),
    "conformal": (None, SETS.shape),
    "referral": (None, REFERRAL.shape),
    "versions": {str: str},
    "of?": str,
    "costs?": dict.fromkeys(asdict(Costs()), float),
    "prevalence?": [float],
    "clinic?": ([float], None),
    "limits?": (None, LIMITS),
}
AS_THEY_ARE = ("name", "model", "image_column", "precision", "split_sha256", "versions")
CHOSEN = {  # on validation: an attribute of `Decisions` and of `Bundle`, and its name in a warning
    "points": "flags at operating points",
    "calibrator": "calibrated probabilities",
    "conformal": "prediction sets",
    "referral": "referral",
    "ood": "OOD scores",
}
PACKAGES = ("lesionfast", "torch", "timm", "torchvision")
NOT_DECIDING = ("name", "versions", "limits")  # of model.json: no prediction depends on them
UNLIKE = "unlike the training images"  # why there is no decision
WHOLE = 0.01  # what shares that add up to 1 may differ by
MOST_CLASSES = 2_000
MOST_SHOWN = 7  # classes whose probability a row has unless all columns are asked for


@dataclass(frozen=True, eq=False)
class Bundle:
    """Architecture, classes, preprocessing, encoder, and all that was chosen on validation.

    `model` is the model.json of a run; in that of an ensemble each member is described. What the
    run has no validation images or features for is None, or an empty list of points. `costs` are
    those that the advice weighs, `prevalence` (k,) the class shares that the calibrated
    probabilities hold for (those of the training unless given), and `clinic` (k,) those of another
    clinic that they are moved to. `of_shown` says that points, sets and referral are of the
    calibrated probabilities; in an export of an earlier version they are of the model's own.
    `limits` say when not to rely on the model, None in an export of an earlier version.
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
    ood: Scorer | None = None
    split_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    prevalence: tuple[float, ...] = ()
    clinic: tuple[float, ...] | None = None
    of_shown: bool = True
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if not self.prevalence:
            object.__setattr__(self, "prevalence", tuple(self.model["prior"]))
        check_width(self.encoder, self.model)

    @property
    def classes(self) -> Classes:
        """Class names, in the order of the probabilities, and what they mean."""
        return Classes.of_model(self.model)

    @property
    def decision_rule(self) -> DecisionRule:
        """How it decides, with the weight on melanoma of the run."""
        return DecisionRule.of_model(self.model)

    @property
    def size(self) -> int:
        """Height and width in pixels of what the model sees, of an ensemble the largest."""
        return self.model["size"]

    @property
    def looks(self) -> list[tuple[int, str]]:
        """The size and the resize of what the model sees; an ensemble may have several."""
        return list_looks(self.model)

    @classmethod
    def from_run(cls, run: Run) -> "Bundle":
        """Return the bundle of a run; what the run keeps no choice of is chosen on validation.

        Raises `LesionfastError` for a run that did not end, and if members of an ensemble are gone.
        """
        encoders = [MetadataEncoder.from_run(leaf) for leaf in list_runs_of(run)]
        decisions = Decisions(run)
        chosen = {name: choose_or_warn(decisions, name) for name in CHOSEN}
        return cls(
            name=run.path.resolve().name,
            model=run.full_model if run.members else run.model,
            image_column=run.config.image or "image_id",
            precision=run.config.precision,
            encoder=JointEncoder(encoders) if run.members else encoders[0],
            **chosen | {"points": chosen["points"] or []},
            split_sha256=run.metrics["split_sha256"],
            versions={name: installed_version(name) for name in PACKAGES},
            costs=decisions.costs,
            prevalence=find_prevalence(run),
            limits=find_limits(run, answers=False),
        )

    def restated(self, cost: str | None = None, prior: str | None = None) -> "Bundle":
        """Return the bundle with other costs of errors, or for another clinic's class shares.

        `cost` is such as "missed_melanoma=50", `prior` such as "mel=0.02,nv=0.9". Raises
        `LesionfastError` as `Costs.parse` and `read_prior` do.
        """
        costs = Costs.parse(cost, self.costs)
        clinic = self.clinic
        if prior == ESTIMATE:
            raise LesionfastError(
                "--prior estimate needs the pictures to estimate from: type it with predict and a "
                "folder, and the shares that it prints here."
            )
        if prior is not None:
            clinic = tuple(read_prior(prior, self.classes, self.prevalence).tolist())
        unchanged = (costs, clinic) == (self.costs, self.clinic)
        return replace(self if unchanged else self.unmeasured(), costs=costs, clinic=clinic)

    def unmeasured(self) -> "Bundle":
        """Return the bundle of a model that answers otherwise than the one that was tested."""
        return replace(self, limits=self.limits and self.limits.unmeasured())

    @property
    def clinic_in_words(self) -> str:
        """The class shares that probabilities were moved to, as a person types them; '' if none."""
        return write_prior(self.clinic, self.classes) if self.clinic else ""

    @classmethod
    def read(cls, folder: Path) -> "Bundle":
        """Return the bundle of an exported folder, every file checked against its SHA-256.

        Raises `LesionfastError` for a folder that is not whole, was changed, or has a newer schema.
        """
        described = read_checked(folder)
        ood = load_ood(folder / OOD.file) if described.get("outliers") else None
        return cls.from_dict(described, ood)

    def write(self, folder: Path) -> None:
        """Write model.json, with the SHA-256 of itself and of the files that are in the folder."""
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        described = self.to_dict() | {"files": files}
        write_json(folder / FILE, described | {"sha256": hash_description(described)})

    @classmethod
    def from_dict(cls, described: dict[str, Any], ood: Scorer | None) -> "Bundle":
        """Return the bundle that `to_dict` described; raises `LesionfastError` if it can't be."""
        check_schema(described)
        try:
            check_shape(described, SHAPE)
            model = described["model"]
            check_members(model)
            Classes.of_model(model)
            calibration, conformal = described["calibration"], described["conformal"]
            referral = described["referral"]
            return cls(
                **{name: described[name] for name in AS_THEY_ARE},
                encoder=read_encoder(described["encoder"], model),
                points=POINTS.from_json({"points": described["operating_points"]}),
                calibrator=calibration and CALIBRATION.from_json(calibration),
                conformal=conformal and SETS.from_json(conformal),
                referral=referral and REFERRAL.from_json(referral),
                ood=ood,
                **read_stated(described),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise LesionfastError(
                f"the description of the model can't be used: {kind}{error}. {EXPORT_AGAIN}"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-safe values, without the arrays of the OOD score."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "model": self.model,
            "image_column": self.image_column,
            "precision": self.precision,
            "encoder": json.loads(self.encoder.to_json()),
            "operating_points": [asdict(point) for point in self.points],
            "calibration": self.calibrator and json_safe(asdict(self.calibrator)),
            "conformal": self.conformal and json_safe(asdict(self.conformal)),
            "referral": self.referral and json_safe(asdict(self.referral)),
            "outliers": self.ood is not None,
            **(SHOWN if self.of_shown else {}),
            "costs": asdict(self.costs),
            "prevalence": list(self.prevalence),
            "clinic": self.clinic and list(self.clinic),
            "limits": self.limits and self.limits.to_dict(),
            "split_sha256": self.split_sha256,
            "versions": self.versions,
        }

    def digest(self) -> str:
        """Return the SHA-256 of all that a prediction depends on, besides the weights."""
        kept = {k: v for k, v in self.to_dict().items() if k not in NOT_DECIDING}
        found = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
        if self.ood:
            found.update(repr(self.ood.threshold).encode())
            for name, array in self.ood.tensors.items():
                found.update(name.encode() + array.tobytes())
        return found.hexdigest()

    def draw_images(
        self, run: Run, split: str, most: int | None = None
    ) -> tuple[pd.DataFrame, list[np.ndarray], np.ndarray]:
        """Return rows, pixels uint8 of each look and metadata of images of one split, at random.

        Raises `LesionfastError` if the run's data is not found.
        """
        df = load_dataset(run.config, split=run.file("split.csv"))
        df = df[df["split"] == split]
        df = df.sample(min(most or len(df), len(df)), random_state=0)
        paths, options = df["path"].tolist(), {"cache": False, "skip_bad": run.config.skip_bad}
        looks = [
            open_images(paths, size, resize=resize, **options, report=False)
            for size, resize in self.looks
        ]
        good = np.setdiff1d(np.arange(len(df)), [row for images in looks for row in images.bad])
        df = df.iloc[good]
        return df, [images.pixels[good] for images in looks], self.encoder.transform(df)

    def reproduced(self, run: Run) -> str | None:
        """Return the split whose predictions in a run are those of this model, None if none are.

        Validation of a run of folds was predicted by one of its models at a time.
        """
        if not run.is_out_of_fold:
            return "valid"
        return "test" if "test" in set(run.predictions["split"]) else None

    @property
    def featured_look(self) -> int:
        """Which of the looks has the image features: that of the first model that sees images."""
        leaves = [leaf for leaf, _ in list_leaves(self.model)]
        seeing = [leaf for leaf in leaves if leaf.get("fusion") not in (None, "metadata")]
        first = (seeing or leaves)[0]
        return self.looks.index((first["size"], first["resize"]))

    def calibrate(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the probabilities (n, k) as validation calibrates them, if it does."""
        return self.calibrator.apply(probabilities) if self.calibrator else probabilities

    def move(self, chances: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (n, k) for the clinic's class shares, if there are any.

        (Saerens et al. 2002, doi:10.1162/089976602753284446, eq. 2.4.)
        """
        return chances if self.clinic is None else move_prior(chances, self.prevalence, self.clinic)

    def calibration_matrix(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return weight (k, k) and bias (k,) that make log-probabilities those people see.

        None if they are the model's own.
        """
        k = len(self.classes)
        plain = self.calibrator is None or self.calibrator.method == "none"
        if plain and self.clinic is None:
            return None
        weight, bias = (np.eye(k), np.zeros(k)) if plain else self.calibrator.matrix()
        if self.clinic is not None:
            bias = bias + clipped_log(prior_factors(self.prevalence, self.clinic))
        return weight, bias

    def assess(
        self, probabilities: np.ndarray, features: np.ndarray, pixels: Sequence[np.ndarray]
    ) -> pd.DataFrame:
        """Return one row an image, from probabilities (n, k), image features (n, F) and pixels.

        The pixels are uint8 (n, size, size, 3) of each look; only the OOD score takes them.

        Columns that people get: advice, a sentence (`KEY` names it); refer, whether to have the
        lesion examined; prediction_set, the classes that can't be ruled out (a tuple, most probable
        first); and p_<class>, calibrated and moved to the clinic's class shares. The others are
        likely, the most probable class; decision and rule, those of the metrics, of the model's own
        probabilities; no_decision (why there is none, else ''); uncalibrated_<class>, the model's
        own probabilities; and as far as the model has them a flag an operating point
        (`flag_column`), outlier_score and outlier. What is unlike the training images has no likely
        class, no decision, no flag, and NaN for p_<class>.

        Flags, sets and referral are of calibrated probabilities that are not moved: what they
        promise is about the lesions of a class, however many there are.
        """
        chances = self.calibrate(probabilities)
        seen = self.move(chances)
        scored = chances if self.of_shown else probabilities
        scores = self.ood.score(features, pixels[self.featured_look]) if self.ood else None
        outlier = scores > self.ood.threshold if self.ood else np.zeros(len(seen), bool)
        sets = self.conformal.sets(scored) if self.conformal else None
        unsure = self._find_unsure(probabilities, scored)
        advice = advise(seen, self.classes, self.costs, sets, unsure, outlier)
        decision = self.decision_rule.decide(probabilities)
        columns = self._describe(advice, seen) | {
            "decision": self._name(decision, outlier),
            "rule": self.decision_rule.name,
            "no_decision": np.where(outlier, UNLIKE, ""),
            **dict(zip(own_columns(self.classes), probabilities.T, strict=True)),
        }
        for point in self.points:
            _, score = positive_and_score(point.of, decision, scored, self.classes)
            flags = (score >= point.threshold).astype(object)
            columns[flag_column(point)] = np.where(outlier, None, flags)
        if self.ood:
            columns |= {"outlier_score": scores, "outlier": outlier}
        return pd.DataFrame(columns, index=range(len(probabilities)))

    def _find_unsure(self, probabilities: np.ndarray, scored: np.ndarray) -> np.ndarray | None:
        """Return which images are among the least certain, None if the model has no threshold."""
        if self.referral is None:
            return None
        rule = self.decision_rule
        confidence = scored.max(axis=1) if self.of_shown else rule.confidence(probabilities)
        return self.referral.referred(confidence)

    def _describe(self, advice: Advice, seen: np.ndarray) -> dict[str, Any]:
        """Return the columns that people get, from the probabilities that they see (n, k)."""
        classes, withheld = np.asarray(self.classes, object), advice.key == NO_DECISION
        given = np.where(withheld[:, None], np.nan, seen)
        order = np.argsort(-given, axis=1, kind="stable")  # NaN as it is: says nothing either
        rows = zip(order, advice.open, strict=True)
        sets = [tuple(classes[row[chosen[row]]]) for row, chosen in rows]
        told = zip(advice.key, classes[advice.likely], sets, strict=True)
        return {
            "advice": [describe_advice(*row, self.classes) for row in told],
            KEY: advice.key,
            "refer": advice.refer,
            "prediction_set": sets,
            **dict(zip(probability_columns(classes), given.T.astype(np.float32), strict=True)),
            "likely": self._name(advice.likely, withheld),
        }

    def _name(self, numbers: np.ndarray, withheld: np.ndarray) -> np.ndarray:
        """Return the names of class numbers (n,), None where they are `withheld`."""
        return np.where(withheld, None, np.asarray(self.classes, object)[numbers])

    @property
    def columns(self) -> list[str]:
        """The columns of `assess` that files have."""
        k, width = len(self.classes), self.ood.width if self.ood else 0
        pixels = [np.zeros((1, size, size, 3), np.uint8) for size, _ in self.looks]
        found = self.assess(np.full((1, k), 1 / k), np.ones((1, width)), pixels)
        return [name for name in found if name != KEY]

    @property
    def main_columns(self) -> list[str]:
        """The columns that people get unless they ask for all.

        Of more than 7 classes only the gravest have a probability there, and the most frequent.
        """
        classes = self.classes
        shares = dict(zip(classes, self.prevalence, strict=True))
        first = sorted(classes, key=lambda name: (classes.gravity(name), -shares[name]))
        shown = [name for name in classes if name in first[:MOST_SHOWN]]
        return ["advice", "refer", "prediction_set", *probability_columns(shown)]


def own_columns(classes: Sequence[str]) -> list[str]:
    """Return the columns of `Bundle.assess` that hold the model's own probabilities."""
    return [f"uncalibrated_{name}" for name in classes]


def find_prevalence(run: Run) -> tuple[float, ...]:
    """Return the class shares (k,) that a run's calibrated probabilities hold for.

    They are those of the validation images, which calibrated them; one image more, of the shares
    seen in training, keeps a class that validation lacks possible.
    """
    prior = as_prior(run.model["prior"], len(run.classes))
    valid = run.predictions[run.predictions["split"] == "valid"]["target"]
    counts = np.array([(valid == name).sum() for name in run.classes]) + prior / prior.sum()
    return tuple((counts / counts.sum()).tolist())


def read_stated(described: dict[str, Any]) -> dict[str, Any]:
    """Return what model.json says of costs, class shares, limits; earlier versions say nothing.

    Raises `ValueError` for shares that are not one a class.
    """
    model = described["model"]
    prevalence, clinic = described.get("prevalence", model["prior"]), described.get("clinic")
    for shares in (prevalence, clinic):
        if shares is not None and len(shares) != len(model["classes"]):
            raise ValueError(f"it has {len(model['classes'])} classes and {len(shares)} shares")
        if shares is not None and (min(shares) < 0 or abs(sum(shares) - 1) > WHOLE):
            raise ValueError(f"its class shares add up to {sum(shares):g}, not to 1")
    limits = described.get("limits")
    return {
        "limits": limits and Limits.from_dict(limits),
        "costs": Costs(**described.get("costs", {})),
        "prevalence": tuple(prevalence),
        "clinic": clinic and tuple(clinic),
        "of_shown": SHOWN.items() <= described.items(),
    }


def check_members(model: dict[str, Any]) -> None:
    """Raise `ValueError` unless a model, or each member of an ensemble, can be built from this."""
    if len(model["prior"]) != len(model["classes"]):
        raise ValueError(f"it has {len(model['classes'])} classes and {len(model['prior'])} priors")
    as_prior(model["prior"], len(model["classes"]))
    if len(model["classes"]) > MOST_CLASSES or len({*model["classes"]}) < len(model["classes"]):
        raise ValueError(f"its {len(model['classes'])} classes are too many or have one name twice")
    members = model.get("members")
    if members is None:
        check_shape(model, OF_ONE, "the model")
        return
    check_shape(model, ENSEMBLE, "the ensemble")
    if not members or len(members) != len(model["weights"]):
        raise ValueError(f"it has {len(members)} members and {len(model['weights'])} weights")
    if min(model["weights"]) < 0 or abs(sum(model["weights"]) - 1) > WHOLE:
        raise ValueError(f"the weights of its members add up to {sum(model['weights']):g}, not 1")
    for member in members:
        check_shape(member, MODEL, "a member")
        if member["classes"] != model["classes"]:
            raise ValueError("a member has other classes")
        if "members" not in member:
            check_shape(member, IN_ENSEMBLE, "a member")
        check_members(member)


def read_encoder(learned: list[Any], model: dict[str, Any]) -> MetadataEncoder:
    """Return the encoder of a model, or of the models of an ensemble; `ValueError` for too few."""
    if "members" in model:
        if len(learned) != len(leaves := list_leaves(model)):
            raise ValueError(f"it has {len(leaves)} models and {len(learned)} encoders")
        return JointEncoder(MetadataEncoder.from_learned(one) for one in learned)
    return MetadataEncoder.from_learned(learned)


def check_width(encoder: MetadataEncoder, model: dict[str, Any]) -> None:
    """Raise `DamageError` unless each model takes as many numbers as its encoder makes of a row."""
    encoders = encoder.encoders if isinstance(encoder, JointEncoder) else [encoder]
    takes = [leaf.get("n_metadata") for leaf, _ in list_leaves(model)]
    widths = [one.width for one in encoders]
    if takes != widths and None not in takes:  # the oldest runs do not say it
        raise DamageError(
            f"the description of the model is damaged: it takes {takes} numbers of metadata, and "
            f"its encoder makes {widths} of them. Copy it again."
        )


def choose_or_warn(decisions: Decisions, name: str) -> Any:
    """Return what validation chose, or None and a warning where the run lacks what it takes."""
    try:
        return getattr(decisions, name)
    except DamageError:
        raise
    except LesionfastError as error:
        logger.warning("predictions will have no %s: %s", CHOSEN[name], error)
        return None


def flag_column(point: OperatingPoint) -> str:
    """Return the column of an operating point, such as "mel_at_specificity_90"."""
    return f"{point.of}_at_{point.goal}_{point.level * 100:.0f}"


def read_checked(folder: Path) -> dict[str, Any]:
    """Return the model.json of an exported folder, all of whose files are those of the export."""
    described = read_description(folder)
    for name, expected in described["files"].items():
        check_file(folder / name, expected)
    return described


def read_description(folder: Path) -> dict[str, Any]:
    """Return the model.json of an exported folder.

    Raises `LesionfastError` unless it is whole, unchanged, and lists the SHA-256 of its files.
    """
    path = folder / FILE
    try:
        described = load_json(path)
    except FileNotFoundError:
        raise LesionfastError(
            f"{folder} is not an exported model: it has no {FILE}. "
            "Make one: lesionfast export RUN --to DIR"
        ) from None
    except (OSError, ValueError) as error:
        raise LesionfastError(f"{path} is broken: {error}. {EXPORT_AGAIN}") from None
    if not isinstance(described, dict) or "schema" not in described:
        raise LesionfastError(f"{path} does not describe a model of lesionfast. {EXPORT_AGAIN}")
    check_schema(described)
    if "files" not in described:
        raise LesionfastError(
            f"{path} belongs to an unfinished or incomplete run. Name a finished run, or a "
            "folder that `lesionfast export` wrote."
        )
    check_list(path, described)
    if described.get("sha256", "") not in ("", hash_description(described)):  # old ones have none
        raise LesionfastError(
            f"{path} is not the file that was exported: its content does not match its SHA-256. "
            f"{COPY_AGAIN}"
        )
    return described


def check_schema(described: dict[str, Any]) -> None:
    """Raise `LesionfastError` for a schema that this version can't read."""
    found = described.get("schema")
    if type(found) is not int or not 1 <= found <= SCHEMA:
        raise LesionfastError(
            f"the model has the schema {found}, and this lesionfast reads up to {SCHEMA}. "
            "Upgrade it: pip install --upgrade lesionfast"
        )


def check_list(path: Path, described: dict[str, Any]) -> None:
    """Raise `LesionfastError` unless model.json has a SHA-256 of each file that is read, only such.

    So nothing is opened unchecked, and nothing else that lies in the folder is shared or fetched.
    """
    files = described["files"] if isinstance(described["files"], dict) else {}
    needed = dict.fromkeys([WEIGHTS, *([OOD.file] if described.get("outliers") else []), *files])
    foreign = [name for name in files if name not in FILES]
    hashed = [name for name, value in files.items() if DIGEST.match(str(value))]
    unsigned = [name for name in needed if name not in hashed or type(files[name]) is not str]
    if foreign or unsigned:
        problem = f"lists {foreign[0]!r}, which no export holds" if foreign else ""
        raise LesionfastError(
            f"{path} {problem or f'has no SHA-256 of {unsigned[0]}'}, so the folder can't be "
            f"trusted. {COPY_AGAIN} Or export the run again: lesionfast export RUN --to DIR"
        )


def hash_description(described: dict[str, Any]) -> str:
    """Return the SHA-256 of model.json as values, without the line for it."""
    rest = {name: value for name, value in described.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_file(path: Path, expected: str) -> None:
    """Raise `LesionfastError` unless a file has the SHA-256 that the model names."""
    if not path.is_file():
        raise LesionfastError(f"{path} is missing. {COPY_AGAIN}")
    found = sha256(path)
    if found != expected:
        raise LesionfastError(
            f"{path} is not the file that was exported: its SHA-256 is {found[:12]}…, not "
            f"{expected[:12]}…. {COPY_AGAIN}"
        )
