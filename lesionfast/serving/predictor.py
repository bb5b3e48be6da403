"""Predictor: a run, an exported folder or an ONNX file, ready for images."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from PIL import Image

from lesionfast.data.encoder import BadValue, MetadataEncoder
from lesionfast.data.images import BadImage, fit_square, read_picture
from lesionfast.data.sources import FileReader, count_threads
from lesionfast.diagnoses import probability_columns, read_pairs
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.comparison import without_metadata
from lesionfast.evaluation.features import read_features
from lesionfast.evaluation.interpretation import Interpretation, records
from lesionfast.run import Run
from lesionfast.serving.bundle import FILE, KEY, ONNX, WEIGHTS, Bundle
from lesionfast.serving.inputs import Item, MetadataReader, find_patient
from lesionfast.serving.monitoring.log import PredictionLog, check_log, hash_input
from lesionfast.stats.advice.costs import Costs
from lesionfast.stats.advice.prevalence import ESTIMATE, EXAMPLE, estimate_prior

CHUNK = 256  # images that are decoded and predicted together: bounds the memory
AHEAD = 2  # chunks that are decoded while a GPU runs one
TASKS = 4  # of a chunk for each thread that decodes
SMALLEST = 8  # pixels a side: less shows no lesion
Picture = str | Path | bytes | Image.Image | np.ndarray


class Engine(Protocol):
    """What runs a model; images are decoded meanwhile if it leaves the processor free."""

    leaves_cpu_free: bool

    def __call__(
        self, pixels: Sequence[np.ndarray], metadata: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, k) and features (n, F) of pixels of each look and metadata."""


class Predictor:
    """Predicts images with a trained model.

    `source` is a Run, the folder of a run or of an exported model, a model.onnx, or an address
    such as hf://user/name. `views` is the number of dihedral views that are averaged, the run's
    own unless given; with `features` a row also has the image features of the first view, feature_0
    and so on (of an ensemble, those of its first model). `cost` replaces the costs that the advice
    weighs, such as "missed_melanoma=50", and `prior` moves the probabilities to the class shares of
    another clinic, such as "mel=0.02,nv=0.9". `all_columns=False` leaves the columns that the
    command writes without --all. With `log`, a file, each answer is kept there before it is given.
    Raises `LesionfastError` for anything else, for files that are broken, and for a log that can't
    be written.

    Call it with one image, a path, a PIL image or uint8 (H, W, 3), and what is known of the person,
    age in years; `predict` takes a table with the column `path`.

    >>> prediction = lf.Predictor(run)(df["path"].iloc[0], age=55, sex="female")
    >>> prediction["advice"], prediction["refer"]  # doctest: +SKIP
    ('Melanoma can\'t be ruled out: have it examined.', True)
    >>> lf.Predictor(run).predict(df.head(3)).shape[0]
    3
    """

    def __init__(
        self,
        source: str | Path | Run,
        *,
        views: int | None = None,
        device: str = "auto",
        features: bool = False,
        log: str | Path | None = None,
        cost: str | None = None,
        prior: str | None = None,
        all_columns: bool = True,
    ) -> None:
        check_stated(cost, prior, views)
        if log is not None:
            check_log(log)
        bundle, self.engine, self.weights = open_model(source, views, device)
        self.bundle = bundle.restated(cost, prior)
        self.views = self.bundle.model["tta"] if views is None else views
        if self.views != self.bundle.model["tta"]:
            self.bundle = self.bundle.unmeasured()
        folder = self.weights.parent
        run = Run(folder) if (folder / "config.json").is_file() else None
        self.metadata = MetadataReader(
            self.bundle.encoder, partial(find_caution, self.bundle.model, run)
        )
        self.log = PredictionLog.open(log, self.bundle, self.weights) if log is not None else None
        self.chunk = CHUNK
        self.features = self._name_features() if features else []
        columns = [*bundle.columns, "not_known"] if all_columns else bundle.main_columns
        self.columns = ["image", *columns, *self.features, "error"]

    def __call__(self, image: Picture, **metadata: Any) -> dict[str, Any]:
        """Return the prediction of one image: advice, refer and the others of `Bundle.assess`.

        `image` is a path, encoded bytes, a PIL image, or uint8 (H, W, 3); `metadata` is what is
        known of the person, such as age=55, sex="female"; a DICOM file may know it too. Raises
        `LesionfastError` for an image that can't be read, and for metadata that `check` refuses.
        """
        row = self.predict_one(image, **metadata)
        return {name: value for name, value in row.items() if name != KEY}

    def predict_one(self, image: Picture, **metadata: Any) -> dict[str, Any]:
        """Return what a call does, and as `KEY` that of `stats.advice`, which no file has."""
        self.check(metadata)
        try:
            with FileReader() as reader:
                pixels = self.pixels(reader, image)
                if isinstance(image, str | Path):
                    metadata = {**find_patient(str(image), reader), **metadata}
                key = self._hash(reader, image)
            values = self.metadata.read(metadata)
            self.metadata.warn()
        except BadImage as bad:
            raise LesionfastError(f"the image can't be predicted: {bad}.") from None
        columns = [*self.columns, KEY]
        row = self._predict_chunk([Item("", None)], [Prepared(pixels, values, key)], columns)
        return records(row.drop(columns=["image", "error"]))[0]

    def check(self, metadata: dict[str, Any]) -> None:
        """Raise `LesionfastError` for a column or a value that the model does not take."""
        self.bundle.encoder.check(metadata)

    def predict(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return one row for each row of a table with `path` and the model's metadata columns.

        Columns: image (image_id where the table has it, else path), those of `Bundle.assess`,
        not_known (the metadata that was missing) and error (why there is no prediction), under the
        same index.
        """
        if not isinstance(df, pd.DataFrame):
            raise LesionfastError(
                f"predict takes a table, not {type(df).__name__}. Pass a DataFrame with a column "
                "'path', or call the predictor with one image: predictor(path)."
            )
        if "path" not in df:
            raise LesionfastError(
                f"the table has no column 'path'; it has: {', '.join(map(str, df))}. Add the path "
                "of each image."
            )
        names = df["image_id" if "image_id" in df else "path"].astype(str)
        rows = zip(names, df["path"].astype(str), df.to_dict("records"), strict=True)
        tables = list(self.stream(Item(*row) for row in rows))
        empty = pd.DataFrame(columns=self.columns)
        return pd.concat(tables or [empty], ignore_index=True).set_index(df.index)

    def stream(self, items: Iterable[Item]) -> Iterator[pd.DataFrame]:
        """Yield the rows of many images, a chunk at a time, in order.

        The next images are decoded while a GPU runs the model, and in turns with it on a processor,
        which would only be shared. The memory does not grow with them.
        """
        items, waiting, n = iter(items), deque(), count_threads()
        with FileReader() as reader, ThreadPoolExecutor(n) as threads:

            def prepare(part: list[Item]) -> list[Any]:
                return [self._prepare(reader, item) for item in part]

            def begin() -> None:
                chunk = list(islice(items, self.chunk))
                step = max(1, len(chunk) // (TASKS * n))
                if chunk:
                    parts = [chunk[start : start + step] for start in range(0, len(chunk), step)]
                    waiting.append((chunk, [threads.submit(prepare, part) for part in parts]))

            for _ in range(1 + AHEAD * self.engine.leaves_cpu_free):
                begin()
            while waiting:
                chunk, tasks = waiting.popleft()
                yield self._predict_chunk(chunk, [image for t in tasks for image in t.result()])
                begin()

    def estimate_prior(
        self, items: Iterable[Item], progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Return the class shares (k,) among unlabelled images, as `stats.advice.prevalence` does.

        Left out are images that can't be read, or are unlike the training images. Raises
        `LesionfastError` if none is left.
        """
        whole, names = copy(self), probability_columns(self.bundle.classes)
        whole.bundle, whole.features = replace(self.bundle, clinic=None), []
        whole.metadata = MetadataReader(self.bundle.encoder)  # which counts for itself
        whole.log = None
        whole.columns = ["image", *whole.bundle.columns, "error"]
        found, count = [], 0
        for table in whole.stream(items):
            good = (table["error"] == "") & table["likely"].notna()
            found.append(table.loc[good, names].to_numpy(np.float64))
            count += len(table)
            if progress:
                progress(count)
        if not sum(map(len, found)):
            raise LesionfastError(
                "--prior estimate found no image that the model can judge. Type the class shares, "
                "such as --prior mel=0.02, or leave it out."
            )
        return estimate_prior(np.concatenate(found), self.bundle.prevalence)

    def pixels(self, reader: FileReader, image: Picture) -> list[np.ndarray]:
        """Return what the model sees of an image, uint8 (size, size, 3) for each of its looks.

        Raises `BadImage`.
        """
        source, seen = str(image) if isinstance(image, Path) else image, []
        for size, resize in self.bundle.looks:
            picture = read_picture(source, size, reader)
            if min(picture.size) < SMALLEST:
                width, height = picture.size
                raise BadImage(f"it has {width} x {height} pixels, too few to show a lesion")
            seen.append(np.asarray(fit_square(picture, size, resize)))
        return seen

    def _name_features(self) -> list[str]:
        """Return the columns of the features, as many as an empty image has.

        Raises `LesionfastError` if there is none.
        """
        pixels = [np.zeros((1, size, size, 3), np.uint8) for size, _ in self.bundle.looks]
        _, features = self.engine(pixels, self.metadata.encode([{}]))
        if not features.shape[1]:
            raise LesionfastError(
                "the model has no image features, as it sees only metadata. Leave out --features."
            )
        return [f"feature_{number}" for number in range(features.shape[1])]

    def _prepare(self, reader: FileReader, item: Item) -> "Prepared":
        """Return the pixels and the metadata of an image, or why there is no prediction."""
        if item.path is None:
            return Prepared(error=item.problem or f"there is no image '{item.name}'")
        key = self._hash(reader, item.path)
        try:
            pixels, values = self.pixels(reader, item.path), self.metadata.read(item.metadata)
        except (BadImage, BadValue) as bad:
            return Prepared(key=key, error=str(bad))
        return Prepared(pixels, values, key)

    def _hash(self, reader: FileReader, image: Picture) -> str:
        """Return the SHA-256 of an image for the log; '' without one, or for a missing file."""
        if self.log is None:
            return ""
        try:
            is_path = isinstance(image, str | Path)
            return hash_input(reader.read(str(image)) if is_path else image)
        except Exception:  # decoding says what is wrong with it
            return ""

    def _predict_chunk(
        self, items: list[Item], prepared: list["Prepared"], columns: list[str] | None = None
    ) -> pd.DataFrame:
        """Return the rows of images, of which some are only a reason why there is none."""
        columns = columns or self.columns
        errors = [image.error for image in prepared]
        good = [i for i, error in enumerate(errors) if not error]
        rows = pd.DataFrame(columns=columns, index=range(len(items)), dtype=object)
        answers: dict[int, dict[str, Any]] = {}
        if good:
            looks = zip(*(prepared[i].pixels for i in good), strict=True)
            pixels = [np.stack(look) for look in looks]
            values = [prepared[i].metadata for i in good]
            probabilities, features = self.engine(pixels, self.metadata.encode(values))
            found = self.bundle.assess(probabilities, features, pixels)
            found["not_known"] = [
                tuple(name for name, value in row.items() if pd.isna(value)) for row in values
            ]
            if self.log:
                answers = dict(zip(good, records(found), strict=True))
            if self.features:
                found = found.join(pd.DataFrame(features, found.index, self.features))
            found.index = good
            rows = found if len(good) == len(items) else found.astype(object).reindex(rows.index)
        if self.log:
            about = [(image.key, image.metadata) for image in prepared]
            self.log.append(*zip(*about, strict=True), list(map(answers.get, range(len(items)))))
        return rows.assign(error=errors, image=[item.name for item in items])[columns]


@dataclass
class Prepared:
    """What the model sees of an image, its metadata, its SHA-256 for a log, and what is wrong."""

    pixels: list[np.ndarray] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    error: str = ""


def locate(source: str | Path | Run) -> Path:
    """Return where a source is on this disk; what is on the hub is fetched."""
    if isinstance(source, str) and source.startswith("hf://"):
        from lesionfast.serving.export import fetch

        return fetch(source)
    return source.path if isinstance(source, Run) else Path(source).expanduser()


def check_stated(cost: str | None, prior: str | None, views: int | None = None) -> None:
    """Raise `LesionfastError` for options that are wrong whatever the model and the images are."""
    Costs.parse(cost)
    if prior not in (None, ESTIMATE):
        read_pairs("--prior", prior, EXAMPLE)
    if views is not None and not 1 <= views <= 8:
        raise LesionfastError(f"--tta is {views}; type 1 to 8 views.")


def open_model(
    source: str | Path | Run, views: int | None, device: str
) -> tuple[Bundle, Engine, Path]:
    """Return the bundle of a model, what runs it, and the file that says what its weights are."""
    path = locate(source)
    if path.suffix == ".onnx":
        from lesionfast.serving.onnx import open_onnx

        return *open_onnx(path, views), path
    if (path / "config.json").is_file():
        run = Run.open(path)
        bundle, model = Bundle.from_run(run), run
        weights = run.file("model.json" if run.members else "weights.safetensors")
    elif (path / WEIGHTS).is_file() or (path / FILE).is_file():
        bundle, weights = Bundle.read(path), path / WEIGHTS
        model = weights
    else:
        raise LesionfastError(
            f"{path} is not a model: neither a run, nor a folder that `lesionfast export` wrote, "
            f"nor a {ONNX}. `lesionfast runs` lists the runs here."
        )
    from lesionfast.models.ensemble import open_engine

    options = {"views": views, "precision": bundle.precision, "device": device}
    return bundle, open_engine(model, bundle.model, **options), weights


def find_caution(model: dict[str, Any], run: Run | None = None) -> str:
    """Return a caution about predicting without metadata; '' if the model was trained for it.

    `model` is its model.json; with its `run` the caution has the effect on the validation images.
    """
    if model.get("metadata_dropout") or model.get("fusion") == "none" or not model.get("metadata"):
        return ""
    effect = describe_effect(run) if run is not None else ""
    return (
        f"the model was trained without --metadata-dropout, so a missing "
        f"{' or '.join(model['metadata'])} may favour one class{effect}. Give the metadata, or "
        "train again with --metadata-dropout 0.25."
    )


def describe_effect(run: Run) -> str:
    """Return how withholding all metadata changes the validation predictions; '' if unknown."""
    try:
        kept = without_metadata(run, "valid")
        given, withheld = (
            (Interpretation.from_run(run, "valid"), kept) if kept else from_features(run)
        )
    except (LesionfastError, OSError, KeyError):  # the run lacks what it takes
        return ""
    with_it, without = (read.probabilities.mean(axis=0) for read in (given, withheld))
    most = int(np.argmax(without - with_it))
    words = (
        f": on validation the mean probability of {run.classes[most]} is {without[most]:.2f} "
        f"without metadata and {with_it[most]:.2f} with it"
    )
    melanoma = run.classes.melanoma
    if melanoma in set(given.rows["truth"]):
        without, with_it = (
            read.metrics["rules"][read.rule]["sensitivity"][melanoma] for read in (withheld, given)
        )
        words += f"; melanoma sensitivity is {without:.2f} without and {with_it:.2f} with it"
    return words


def from_features(run: Run) -> tuple[Interpretation, Interpretation]:
    """Return the validation predictions with and without metadata, of one view.

    They are computed from the image features that the run keeps. Raises `LesionfastError` if it
    keeps none.
    """
    import torch

    from lesionfast.models.fusion import load_model

    rows = run.predictions_of("valid")
    features = torch.tensor(read_features(run).loc[rows["image_id"]].to_numpy())
    encoder, model = MetadataEncoder.from_run(run), load_model(run)
    given = torch.from_numpy(encoder.transform(rows))
    withheld = torch.from_numpy(encoder.unknown).expand_as(given)
    columns = probability_columns(run.classes)

    def predict(metadata: torch.Tensor) -> Interpretation:
        with torch.inference_mode():
            probabilities = model.classify(features, metadata).softmax(dim=1).numpy()
        scores = pd.DataFrame(probabilities.astype(float), rows.index, columns)
        return Interpretation.from_table(run, rows.assign(**scores), "valid")

    return predict(given), predict(withheld)
