"""What can be configured: one frozen field = one CLI option = one line of config.json."""

import json
import math
import os
from collections.abc import Container, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from lesionfast.diagnoses import join_names, split_names
from lesionfast.errors import LesionfastError, did_you_mean
from lesionfast.files import MOST_JSON, format_bytes, parse_json

WHERE = ("data", "csv", "images")  # the options that say where the data is
ALIASES = {"bs": "batch_size", "valid_pct": "val", "pretrained": "weights"}  # of fastai
IN_MEMORY = "(DataFrame)"  # --data of a run on a table from Python
EARLIER = {"metadata_dropout": 0.0}  # defaults of runs from before the option existed
INF = math.inf
MOST_PIXELS = 4096  # a side of the square that a model sees
TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    limits: tuple[float, float] = (-INF, INF),
    many: bool = False,
) -> Any:
    """Return a dataclass field with its default, its help text, and its choices or limits.

    An option with `many` may be typed several times; its values are joined as `join_names` does.
    """
    about = {"help": help, "choices": choices, "limits": limits, "many": many}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns that decide: the image, its class, and what belongs together."""

    image: str | None = option(
        None, "Column with the image id, a file name or a path (default: as the layout has it)."
    )
    target: str | None = option(
        None,
        "Column with the diagnosis, the class to predict; or one-hot columns, such as MEL,NV,BCC "
        "(default: as the layout has it).",
    )
    group: str | None = option(
        None,
        "Columns whose images stay in one split if they share a value, such as "
        "lesion_id,patient_id; 'none': every image on its own (default: lesions and patients, as "
        "far as the table has them).",
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            check_field(setting, getattr(self, setting.name))


@dataclass(frozen=True, kw_only=True)
class DataConfig(Columns):
    """Where the data is and how it is read."""

    data: str | None = option(
        None,
        "Dataset folder as downloaded, or a table (see lesionfast list layouts); several --data "
        "become one dataset.",
        many=True,
    )
    layout: str = option(
        "auto", "How the dataset lies on disk; 'auto' recognises it (see lesionfast list layouts)."
    )
    csv: str | None = option(None, "Metadata CSV file, for other layouts; use it with --images.")
    images: str | None = option(
        None, "Folder, or zip, tar, HDF5, Parquet or .npz file of the images; use it with --csv."
    )
    separator: str | None = option(
        None, "Character between the fields of the table, or 'tab' (default: it is found)."
    )
    images_of: str = option(
        "dermoscopic",
        "Which images to take where a dataset has several kinds.",
        ("dermoscopic", "clinical", "all"),
    )
    metadata: str = option(
        "auto",
        "Columns that the model gets besides the image, separated by commas, or 'none'; 'auto': "
        "age and sex, as far as the dataset has them.",
    )
    allow_leak: str | None = option(
        None, "Metadata column to use although it gives the label away.", many=True
    )
    map: str | None = option(
        None,
        "Rename a class, such as 'Melanoma, NOS=mel', or drop it, such as scc=drop; or a CSV file "
        "with two columns, from and to.",
        many=True,
    )
    drop_class: str | None = option(None, "Leave out the images of a class.", many=True)
    rare: str | None = option(
        None,
        "Classes with fewer than N lesions: N=drop leaves them out, N=other makes one class of "
        "them.",
    )
    missing: str = option(
        "keep",
        "Rows with missing metadata: 'keep' them with an indicator input, or 'drop' them.",
        ("keep", "drop"),
    )
    corrections: str | None = option(
        None,
        "CSV file of answers about labels (image,answer): labels change, "
        "unclear images are left out, lesions are joined; the split stays.",
    )
    skip_bad: bool = option(False, "Skip and count corrupt images instead of stopping.")
    cache: bool = option(True, "Keep decoded images in the user's cache folder (default).")

    @property
    def metadata_columns(self) -> list[str]:
        """The names in `metadata` as a list, empty for 'none'; for 'auto' those it looks for."""
        names = split_names("age,sex" if self.metadata == "auto" else self.metadata)
        return [] if names == ["none"] else names


@dataclass(frozen=True, kw_only=True)
class SplitConfig(DataConfig):
    """How the rows are split into train, valid and test."""

    seed: int = option(
        42,
        "Seed of everything drawn: split, new weights, batches, augmentation.",
        limits=(0, 2**32 - 2),
    )
    split_seed: int | None = option(
        None, "Seed of the split alone (default: --seed).", limits=(0, 2**32 - 2)
    )
    val: float = option(0.15, "Share of the images used for validation, without --folds.")
    test: float = option(0.15, "Share of the images used for testing.")
    folds: int | None = option(
        None, "Cross-validate: divide all images outside the test set into this many folds."
    )
    fold: int = option(0, "Which of the --folds is used for validation, counted from 0.")
    split: str | None = option(
        None,
        "CSV file with an existing split (columns: the image id and 'split'), or 'new' to draw one "
        "although the dataset has its own.",
    )
    test_on: str | None = option(
        None, "Hold out for testing all rows with a value of a column, such as source=bcn20000."
    )
    join_duplicates: bool = option(
        False, "Keep near-duplicate images with different lesion ids in the same split."
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SplitConfig):
    """Every option of a training, with its default: those of `lesionfast train --help`.

    Sizes are in pixels, shares from 0 to 1. `train`, `load_data` and `LesionDataLoaders.from_df`
    take the options by keyword as well. Raises `LesionfastError` for a value that an option can't
    have.

    >>> lf.TrainConfig(arch="densenet121", size=224).lr
    0.001
    """

    arch: str = option(
        "tf_efficientnet_lite0",
        "Backbone: any torchvision or timm name, or an encoder of a hub: hf-hub:OWNER/NAME, "
        "open_clip:NAME, transformers:OWNER/NAME (see lesionfast list archs). Of two joined by +, "
        "the first is trained, the second stays frozen, and their probabilities are blended.",
    )
    all: bool = option(
        False,
        "With --folds: train a model for each fold, in one run. Its out-of-fold predictions are "
        "its validation, and other images are predicted by the mean of the models.",
    )
    distill: bool = option(
        False,
        "With --all: train one more model, the student, on the out-of-fold probabilities of the "
        "others, and say what it loses against their mean.",
    )
    teacher: str | None = option(
        None, "Learn the out-of-fold probabilities of this run of folds beside the labels."
    )
    weights: str = option(
        "auto",
        "Pretrained weights: 'auto', 'none' (from scratch), a weights file or a run; of two "
        "architectures, both with a comma between.",
    )
    size: int = option(
        112, "Side of the square image that the model sees, in pixels.", limits=(1, MOST_PIXELS)
    )
    start_size: int | None = option(
        None,
        "Side of the first training images, in pixels; it grows to --size.",
        limits=(32, MOST_PIXELS),
    )
    resize: str = option(
        "crop", "Make images square: 'crop' the centre or 'squish' all of it.", ("crop", "squish")
    )
    fusion: str = option(
        "concat", "How image and metadata are combined (see lesionfast list fusions)."
    )
    pool: str = option(
        "auto",
        "Global pooling; 'concat': avg and max; 'cls': the CLS token and the mean of the patch "
        "tokens; 'auto': max for this project's own backbones, cls for vision transformers, avg "
        "for all others.",
        ("auto", "avg", "max", "concat", "cls"),
    )
    head: str = option(
        "linear",
        "Last layer: 'linear' (trained with the backbone), or one that is solved in seconds on "
        "frozen features: 'logistic', 'svm' or 'prototype' (see lesionfast list heads).",
    )
    dropout: float = option(0.2, "Dropout before the last layer.", limits=(0, 1))
    metadata_dropout: float = option(
        0.25,
        "Share of training rows whose metadata is withheld, and of rows that lose one column, so "
        "that missing metadata does not reveal the class; 0 turns it off.",
        limits=(0, 0.5),
    )
    epochs: int = option(
        8, "Epochs of training the backbone, over all its phases.", limits=(1, INF)
    )
    head_epochs: int = option(
        12,
        "Epochs of the head-only phase, before --epochs; 0 skips it; unused with --unfreeze none.",
        limits=(0, INF),
    )
    head_lr: float = option(
        1e-2, "Peak learning rate of the head-only phase, unless --lr is auto.", limits=(1e-9, 1e3)
    )
    views: int = option(
        1,
        "Views of each training image in the head-only phase: itself, then augmented ones.",
        limits=(1, INF),
    )
    budget: str | None = option(
        None, "Time for the run, such as 10m; sets --size and --epochs where they are the default."
    )
    batch_size: int = option(32, "Images per batch.", limits=(1, INF))
    lr: float | str = option(
        1e-3, "Peak learning rate of the head, or 'auto' (LR finder).", limits=(1e-9, 1e3)
    )
    lr_decay: float = option(
        1.0, "Factor on the learning rate per stage, head to stem; 1: no decay.", limits=(0, 1)
    )
    ema: float = option(
        0.99,
        "Decay of the exponential moving average (EMA) of the weights, which is validated and "
        "saved; 0 turns it off.",
        limits=(0, 0.99999),
    )
    weight_decay: float = option(0.01, "Decoupled weight decay (AdamW).", limits=(0, INF))
    unfreeze: str = option(
        "auto",
        "Fine-tuning schedule: 'fresh' (head, then all layers with a fresh head), 'fresh:N' (head, "
        "then a fresh head and the last N stages), 'last:N' (the same with the head kept), "
        "'two-step' (head, then all layers), 'gradual' (head, then stage by stage), 'head' (the "
        "head alone for --head-epochs, on features that are kept: seconds), 'none' (all "
        "layers at once); 'auto': fresh:3 if pretrained (fresh for backbones of this project and "
        "of yours), else none.",
    )
    melanoma: str | None = option(
        None,
        "Name of the melanoma class (default: the class whose name says so, such as MEL).",
    )
    malignant: str | None = option(
        None, "Malignant classes, separated by commas (default: those with the usual names)."
    )
    subclass: str | None = option(
        None, "Divide classes into visual subclasses during training, such as mel=3."
    )
    balance: str = option("none", "Class balancing (see lesionfast list balances).")
    beta: float = option(
        0.999, "Beta of --balance effective; near 1, rare classes get more weight.", limits=(0, 1)
    )
    class_weight: str | None = option(
        None, "Extra class weights, such as mel=2; the rule 'balanced' does not undo them."
    )
    defer_weights: float = option(
        0.0, "Fraction of the epochs to train before class weights apply.", limits=(0, 1)
    )
    hardest: float = option(
        1.0,
        "Fraction of each batch to learn from, the hardest images first (OHEM); below 1 it shifts "
        "the probabilities.",
        limits=(0.01, 1),
    )
    loss: str = option("cross_entropy", "Loss function (see lesionfast list losses).")
    cost: str | None = option(
        None, "Cost of errors in --loss asymmetric, such as mel:nv=4 (truth:decision)."
    )
    tau: float = option(1.0, "Strength of --loss logit_adjusted.", limits=(0, 4))
    label_smoothing: float = option(
        0.0, "Label smoothing of the loss, from 0 to 0.9; predictions undo it.", limits=(0, 1)
    )
    augment: str = option("standard", "Augmentation recipe (see lesionfast list augmentations).")
    augment_valid: int | None = option(
        None,
        "Augment validation images during training with this seed, the same way every epoch; "
        "predictions are never augmented.",
        limits=(0, 2**32 - 2),
    )
    mix: str = option("none", "Mixing of images (see lesionfast list mixes).")
    mix_alpha: float = option(
        0.4, "Both parameters of the Beta distribution of --mix.", limits=(0.01, 100)
    )
    rule: str = option(
        "balanced",
        "Decision rule: 'argmax', or 'balanced' (probability divided by the training prior).",
        ("argmax", "balanced"),
    )
    melanoma_sensitivity: float = option(
        0.0,
        "Share of the validation melanomas that the rule has to find: it gets the weight on "
        "melanoma that this takes; 0: none.",
        limits=(0, 1),
    )
    tta: int = option(
        4, "Test-time augmentation (TTA): dihedral views to average, 1 to 8.", limits=(1, 8)
    )
    monitor: str | None = option(
        None,
        "Column of the history whose best epoch is kept, such as macro_auc or valid_loss "
        "(default: keep the last epoch).",
    )
    patience: int = option(
        5,
        "Stop after this many epochs without improvement of the monitored metric; 0: never.",
        limits=(0, INF),
    )
    device: str = option("auto", "Device to compute on.", ("auto", "cpu", "cuda", "mps"))
    precision: str = option(
        "auto",
        "Number format; 'auto' uses bfloat16 where the hardware is fast at it.",
        ("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = option(False, "Compile the model with torch.compile (slow to start).")
    workers: int = option(
        0, "Processes that load batches; 0 loads them in the main process.", limits=(0, INF)
    )
    log: str | None = option(
        None,
        "Record curves and results elsewhere too: tensorboard, mlflow, wandb or trackio, or "
        "several (see lesionfast list trackers).",
        many=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr == "auto":
            return
        try:
            object.__setattr__(self, "lr", float(self.lr))
        except ValueError:
            raise LesionfastError(
                f"--lr is '{self.lr}', which is not a number. Type a number such as 0.002, or auto."
            ) from None
        check_field(self.__dataclass_fields__["lr"], self.lr)

    @property
    def keeps_backbone(self) -> bool:
        """Whether the backbone stays as it comes, so that its features are those of all heads."""
        return self.head != "linear" or self.unfreeze == "head"

    def to_json(self) -> str:
        """Return all fields as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any], *, of_run: bool = False) -> "TrainConfig":
        """Read what `to_json` wrote, or the values of that; `LesionfastError` for anything else.

        With `of_run`, options that are missing get the value that they had before they existed.
        """
        try:
            if isinstance(text, str) and len(text) > MOST_JSON:
                raise ValueError(f"it has {format_bytes(len(text))}")
            given = parse_json(text) if isinstance(text, str) else text
            values = (EARLIER if of_run else {}) | dict(given)
        except (TypeError, ValueError) as error:
            raise LesionfastError(
                f"the config is not a JSON object of options: {error}. Correct the file, or use "
                "the config.json of a run."
            ) from None
        names = [setting.name for setting in fields(cls)]
        for name in values:
            if name not in names:
                raise LesionfastError(
                    f"the config has a field '{name}', which this version does not have."
                    f"{did_you_mean(name, names)} Remove it from the file."
                )
        return cls(**values)


def read_options(config_class: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options given by keyword as `config_class` takes them; paths and lists become text.

    Raises `LesionfastError` for a name that is not an option.
    """
    names = [setting.name for setting in fields(config_class)]
    for name in options:
        if name not in names:
            near = f" Did you mean '{ALIASES[name]}'?" if name in ALIASES else ""
            raise LesionfastError(
                f"there is no option '{name}' here.{near or did_you_mean(name, names)} The options "
                f"are the fields of {config_class.__name__}; lesionfast train --help explains them."
            )
    return {name: read_option(value) for name, value in options.items()}


def read_option(value: Any) -> Any:
    """Return the value of an option from Python: paths, lists and mappings of names as text."""
    if isinstance(value, Mapping):
        value = [f"{name}={other}" for name, other in value.items()]
    if isinstance(value, list | tuple) and all(isinstance(name, str | Path) for name in value):
        return join_names(map(str, value), ",") or "none"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value


def check_field(setting: Field, value: Any) -> None:
    """Raise `LesionfastError` unless `value` has the type, choices and limits of a setting."""
    flag, types = flag_name(setting.name), get_args(setting.type) or (setting.type,)
    fits = isinstance(value, (*types, int) if float in types else types)
    if not fits or (isinstance(value, bool) and bool not in types):
        names = " or ".join("nothing" if t is type(None) else TYPES[t] for t in types)
        raise LesionfastError(f"{flag} is {value!r}; it takes {names}. Correct it.")
    check_choice(setting.name, value, setting.metadata["choices"])
    low, high = setting.metadata["limits"]
    if isinstance(value, int | float) and not low <= value <= high:
        upper = "" if high == INF else f" to {high:g}"
        raise LesionfastError(f"{flag} is {value}; type a number from {low:g}{upper}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `LesionfastError` unless `value` is one of `choices` (or there are none)."""
    if choices and value not in choices:
        raise LesionfastError(
            f"{flag_name(name)} is '{value}', which is not an option."
            f"{did_you_mean(value, choices)} Type one of: {', '.join(choices)}."
        )


def write_options(config: Columns, left_out: Container[str] = ()) -> list[str]:
    """Return the options that are not the defaults as the words that a person types."""
    words = []
    for setting in fields(config):
        name, value = setting.name, getattr(config, setting.name)
        if name in left_out or value == setting.default:
            continue
        flag = flag_name(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
            continue
        several = split_names(value) if setting.metadata["many"] else [str(value)]
        words += [word for one in several for word in (flag, one)]
    return words


def flag_name(name: str) -> str:
    """Return the option of a field: "--batch-size" for "batch_size"."""
    return "--" + name.replace("_", "-")
