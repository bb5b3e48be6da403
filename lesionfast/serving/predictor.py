"""Predictor: a run, an exported folder or an ONNX file, ready for images."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from lesionfast.errors import LesionfastError
from lesionfast.evaluation.contribution import without_metadata
from lesionfast.evaluation.interpretation import (
    Interpretation,
    predictions_of,
    read_features,
    records,
)
from lesionfast.runs import Run
from lesionfast.serving.bundle import ONNX, WEIGHTS, Bundle, assess, columns_of
from lesionfast.serving.inputs import Item, Known


def caution(model: dict[str, Any], run: Run | None = None) -> str:
    """Return what to know before a model predicts without metadata: '' if it has learned to.

    `model` is its model.json; with its `run` it says what that does to the validation images.
    """
    if model.get("metadata_dropout") or model.get("fusion") == "none" or not model.get("metadata"):
        return ""
    columns = " and ".join(model["metadata"])
    measured = effect_on_validation(run) if run is not None else ""
    return (
        f"the model was trained without --metadata-dropout, so unknown {columns} may speak for a "
        f"class{measured}. Say what is known, or train again with --metadata-dropout 0.25."
    )


def effect_on_validation(run: Run) -> str:
    """Return how withholding all metadata moves the validation images, '' if that is not known."""
    try:
        known, unknown = (
            (Interpretation.of(run, "valid"), kept)
            if (kept := without_metadata(run, "valid"))
            else from_features(run)
        )
    except (LesionfastError, OSError, KeyError):  # not all that it takes was kept
        return ""
    means = [read.probabilities.mean(axis=0) for read in (known, unknown)]
    most = int(np.argmax(means[1] - means[0]))
    words = f": on validation {run.classes[most]} has a mean probability of {means[1][most]:.2f}"
    words += f" without, {means[0][most]:.2f} with metadata"
    melanoma = run.classes.melanoma
    if melanoma in set(known.rows["truth"]):
        without, with_it = (
            read.metrics["rules"][read.rule]["sensitivity"][melanoma] for read in (unknown, known)
        )
        words += f"; melanoma sensitivity is {without:.2f} without, {with_it:.2f} with it"
    return words


def from_features(run: Run) -> tuple[Interpretation, Interpretation]:
    """Return the validation predictions with and without metadata, from the kept features.

    They are of one view. Raises `LesionfastError` if no features were kept.
    """
    import torch

    from lesionfast.models.fusion import load_model

    rows = predictions_of(run, "valid")
    features = torch.tensor(read_features(run).loc[rows["image_id"]].to_numpy())
    encoder = MetadataEncoder.from_run(run)
    told = torch.from_numpy(encoder.transform(rows))
    model, found = load_model(run), []
    for metadata in (told, torch.from_numpy(encoder.unknown).expand_as(told)):
        with torch.inference_mode():
            probabilities = model.classify(features, metadata).softmax(dim=1).numpy()
        columns = [f"p_{name}" for name in run.classes]
        scores = pd.DataFrame(probabilities.astype(float), rows.index, columns)
        found.append(Interpretation.of_table(run, rows.assign(**scores), "valid"))
    return found[0], found[1]


CHUNK = 256  # images that are decoded, run and told together: bounds the memory
AHEAD = 2  # chunks that are decoded while a GPU runs one
TASKS = 4  # of a chunk for each thread that decodes
SMALLEST = 8  # pixels a side: less shows no lesion
Picture = str | Path | bytes | Image.Image | np.ndarray


class Engine(Protocol):
    """What runs a model; images are decoded meanwhile if it leaves the processor free."""

    leaves_cpu_free: bool

    def __call__(self, pixels: np.ndarray, metadata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, k) and features (n, F) of pixels uint8 and metadata."""


class Predictor:
    """Says what a trained model makes of images.

    `source` is a Run, the folder of a run or of an exported model, or a model.onnx. `views` is the
    number of dihedral views that are averaged, the run's own unless given. Raises
    `LesionfastError` for anything else, and for files that are broken.
    """

    def __init__(
        self, source: str | Path | Run, *, views: int | None = None, device: str = "auto"
    ) -> None:
        self.bundle, self.engine, self.weights = opened(source, views, device)
        self.views = self.bundle.model["tta"] if views is None else views
        folder = self.weights.parent
        run = Run(folder) if (folder / "config.json").is_file() else None
        self.known = Known(self.bundle.encoder, partial(caution, self.bundle.model, run))
        self.at_once = CHUNK
        self.columns = ["image", *columns_of(self.bundle), "not_known", "error"]

    def __call__(self, image: Picture, **metadata: Any) -> dict[str, Any]:
        """Return what is said of one image: the columns of `assess`, and what was not known.

        `image` is a path, encoded bytes, a PIL image, or uint8 (H, W, 3); `metadata` is what is
        known of the person, such as age=55, sex="female". Raises `LesionfastError` for what is no
        image, and for metadata that the model has no column for or that a column can't have.
        """
        self.check(metadata)
        try:
            with FileReader() as reader:
                pixels = self.pixels(reader, image)
            cleaned = self.known.clean(metadata)
            self.known.warn()
        except BadImage as bad:
            raise LesionfastError(f"the image can't be predicted: {bad}.") from None
        told = self.table([Item("", None)], [(pixels, cleaned)])
        return records(told.drop(columns=["image", "error"]))[0]

    def check(self, metadata: dict[str, Any]) -> None:
        """Raise `LesionfastError` for metadata, said by a person, that the model does not take."""
        self.require_columns(metadata)
        self.known.check(metadata)

    def require_columns(self, metadata: Iterable[str]) -> None:
        """Raise `LesionfastError` for metadata that the model has no column for."""
        unknown = sorted(set(metadata) - set(self.bundle.encoder.columns))
        if unknown:
            takes = ", ".join(self.bundle.encoder.columns) or "no metadata"
            raise LesionfastError(
                f"the model knows nothing of {', '.join(unknown)}; it takes {takes}. "
                "Leave it out, or correct the name."
            )

    def predict(self, df: pd.DataFrame) -> pd.DataFrame:
        """Return one row for each row of a table with `path` and the model's metadata columns.

        Columns: image (image_id where the table has it, else path), those of `assess`, not_known
        (the columns that were missing) and error (why there is no answer), under the same index.
        """
        if "path" not in df:
            raise LesionfastError(
                f"the table has no column 'path'; it has: {', '.join(map(str, df))}. Add the path "
                "of each image."
            )
        names = df["image_id" if "image_id" in df else "path"].astype(str)
        rows = zip(names, df["path"].astype(str), df.to_dict("records"), strict=True)
        tables = list(self.stream(Item(*row) for row in rows))
        found = (
            pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=self.columns)
        )
        return found.set_index(df.index)

    def stream(self, items: Iterable[Item]) -> Iterator[pd.DataFrame]:
        """Yield the rows of many images, a chunk at a time, in order.

        The next images are decoded while a GPU runs the model, and in turns with it on a processor,
        which would only be shared. The memory does not grow with them.
        """
        items, waiting, n = iter(items), deque(), count_threads()
        with FileReader() as reader, ThreadPoolExecutor(n) as threads:

            def begin() -> None:
                chunk = list(islice(items, self.at_once))
                step = max(1, len(chunk) // (TASKS * n))
                if chunk:
                    tasks = [chunk[start : start + step] for start in range(0, len(chunk), step)]
                    submit = partial(threads.submit, self.prepare, reader)
                    waiting.append((chunk, list(map(submit, tasks))))

            for _ in range(1 + AHEAD * self.engine.leaves_cpu_free):
                begin()
            while waiting:
                chunk, futures = waiting.popleft()
                yield self.table(chunk, [each for task in futures for each in task.result()])
                begin()

    def prepare(self, reader: FileReader, items: list[Item]) -> list[Any]:
        """Return the pixels and the cleaned metadata of images, or why there is no answer."""
        return [self.prepare_one(reader, each) for each in items]

    def prepare_one(self, reader: FileReader, item: Item) -> tuple[np.ndarray, dict] | str:
        """Return the pixels and the cleaned metadata of an image, or why there is no answer."""
        if item.path is None:
            return item.why_no_path
        try:
            return self.pixels(reader, item.path), self.known.clean(item.metadata)
        except (BadImage, BadValue) as bad:
            return str(bad)

    def pixels(self, reader: FileReader, image: Picture) -> np.ndarray:
        """Return what the model sees of an image, uint8 (size, size, 3); raises `BadImage`."""
        size = self.bundle.size
        picture = read_picture(str(image) if isinstance(image, Path) else image, size, reader)
        if min(picture.size) < SMALLEST:
            width, height = picture.size
            raise BadImage(f"it has {width} x {height} pixels, too few to show a lesion")
        return np.asarray(fit_square(picture, size, self.bundle.model["resize"]))

    def table(self, items: list[Item], prepared: list[Any]) -> pd.DataFrame:
        """Return the rows of images, some of which are a reason why there is no answer."""
        good = [i for i, each in enumerate(prepared) if not isinstance(each, str)]
        told = pd.DataFrame(columns=self.columns, index=range(len(items)), dtype=object)
        if good:
            pixels = np.stack([prepared[i][0] for i in good])
            cleaned = [prepared[i][1] for i in good]
            found = assess(self.bundle, *self.engine(pixels, self.known.encode(cleaned)))
            found["not_known"] = [tuple(k for k, v in row.items() if pd.isna(v)) for row in cleaned]
            found.index = good
            told = found if len(good) == len(items) else found.astype(object).reindex(told.index)
        told = told.assign(error=[each if isinstance(each, str) else "" for each in prepared])
        return told.assign(image=[each.name for each in items])[self.columns]


def predict(run: str | Path | Run, df: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Return what a model says of the rows of a table; see `Predictor` and `Predictor.predict`."""
    return Predictor(run, **options).predict(df)


def located(source: str | Path | Run) -> Path:
    """Return where a source is on this disk; what is on the hub is fetched."""
    if isinstance(source, str) and source.startswith("hf://"):
        from lesionfast.serving.hub import fetch

        return fetch(source)
    return source.path if isinstance(source, Run) else Path(source).expanduser()


def opened(source: str | Path | Run, views: int | None, device: str) -> tuple[Bundle, Engine, Path]:
    """Return what a source says of its model, what runs it, and the file of its weights."""
    path = located(source)
    if path.suffix == ".onnx":
        from lesionfast.serving.onnx_engine import open_onnx

        return *open_onnx(path, views), path
    if (path / "config.json").is_file():
        run = Run.open(path)
        bundle, weights = Bundle.of(run), run.file("weights.safetensors")
    elif (path / WEIGHTS).is_file() or (path / "model.json").is_file():
        bundle, weights = Bundle.read(path), path / WEIGHTS
    else:
        raise LesionfastError(
            f"{path} is no model: neither a run, nor a folder that `lesionfast export` wrote, nor "
            f"a {ONNX}. `lesionfast runs` lists the runs here."
        )
    from lesionfast.models.inference import TorchEngine

    chosen = bundle.model["tta"] if views is None else views
    engine = TorchEngine.open(
        bundle.model, weights, views=chosen, precision=bundle.precision, device=device
    )
    return bundle, engine, weights
