"""What can be configured: one frozen field = one CLI option = one line of config.json."""

import json
import math
from dataclasses import Field, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

from lesionfast.diagnoses import join_names, quote, split_names, split_unquoted, unquote
from lesionfast.errors import LesionfastError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

WHERE = ("data", "csv", "images")  # the options that say where the data is
EARLIER = {"metadata_dropout": 0.0}  # what runs did before there was the option
TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Any:
    """Return a dataclass field with its default, its help text, and its choices or limits."""
    return field(default=default, metadata={"help": help, "choices": choices, "limits": limits})


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names of the columns that a metadata CSV must have."""

    image: str = option("image_id", "Column with the image id: the file name without its suffix.")
    target: str = option("dx", "Column with the diagnosis, the class to predict.")
    group: str = option(
        "lesion_id", "Column with the lesion id; no lesion crosses a split. 'none': no such column."
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            check_field(each, getattr(self, each.name))


@dataclass(frozen=True, kw_only=True)
class DataConfig(Columns):
    """Where the data is and how it is read."""

    data: str | None = option(
        None, "Folder as downloaded: one metadata CSV beside zip files or folders of images."
    )
    csv: str | None = option(None, "Metadata CSV, for other layouts; goes with --images.")
    images: str | None = option(None, "Folder or zip file of the images; goes with --csv.")
    separator: str = option(",", "Character between the fields of the CSV.")
    metadata: str = option(
        "age,sex", "Columns given to the model beside the image, with commas between; or 'none'."
    )
    missing: str = option(
        "keep",
        "Rows without age, sex, …: 'keep' them with an indicator input, or 'drop' them.",
        ("keep", "drop"),
    )
    skip_bad: bool = option(False, "Leave corrupt images out, counted, instead of stopping.")
    cache: bool = option(True, "Keep decoded images in the user's cache folder (default).")

    @property
    def metadata_columns(self) -> list[str]:
        """The names in `metadata` as a list, empty for 'none'."""
        names = split_names(self.metadata)
        return [] if names == ["none"] else names


@dataclass(frozen=True, kw_only=True)
class SplitConfig(DataConfig):
    """How the rows are split into train, valid and test."""

    seed: int = option(
        42, "Seed of the split, the weights and the order of the batches.", limits=(0, 2**32 - 2)
    )
    val: float = option(0.15, "Share of the images for validation.")
    test: float = option(0.15, "Share of the images for the test.")
    folds: int | None = option(None, "Cross-validate: cut what is not test into this many folds.")
    fold: int = option(0, "Which of the --folds is validation, counted from 0.")
    split: str | None = option(None, "CSV with an existing split (columns image id and 'split').")
    join_duplicates: bool = option(
        False, "Keep near-duplicate images under different lesion ids on one side of the split."
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SplitConfig):
    """Every knob of a training, with its default and its help."""

    arch: str = option(
        "tf_efficientnet_lite0", "Backbone: any torchvision or timm name (lesionfast list archs)."
    )
    weights: str = option(
        "auto", "Pretrained weights: 'auto', 'none' (from scratch), a file or a run."
    )
    size: int = option(
        128, "Side in pixels of the square that the model sees.", limits=(1, math.inf)
    )
    start_size: int | None = option(
        None, "Side of the first training pictures, which grow to --size.", limits=(32, math.inf)
    )
    resize: str = option(
        "crop",
        "How a picture becomes square: 'crop' its centre, or 'squish' all of it.",
        ("crop", "squish"),
    )
    fusion: str = option("concat", "How image and metadata meet (lesionfast list fusions).")
    pool: str = option(
        "auto",
        "Global pooling of the last feature map; 'auto': max for this project's own, else avg.",
        ("auto", "avg", "max", "concat"),
    )
    head: str = option(
        "linear", "Last layer: 'linear' is trained; 'prototype' and 'svm' on frozen features."
    )
    dropout: float = option(0.2, "Dropout before the last layer, between 0 and 1.", limits=(0, 1))
    metadata_dropout: float = option(
        0.25,
        "Share of the training rows whose metadata is all withheld, and of those with one column "
        "withheld, so that missing metadata points to no class; 0: none.",
        limits=(0, 0.5),
    )
    epochs: int = option(
        5, "Epochs through the backbone, in all phases together.", limits=(1, math.inf)
    )
    head_epochs: int = option(
        12,
        "Epochs of the head alone before them, on features computed once; 0: none.",
        limits=(0, math.inf),
    )
    head_lr: float = option(
        1e-2, "Highest learning rate in those, unless --lr is auto.", limits=(1e-9, 1e3)
    )
    views: int = option(
        1,
        "Views of each training image in those: itself, and augmented ones.",
        limits=(1, math.inf),
    )
    budget: str | None = option(
        None, "Time for the whole run, such as 10m, from which size and epochs follow."
    )
    batch_size: int = option(32, "Images per step.", limits=(1, math.inf))
    lr: float | str = option(
        1e-3, "Highest learning rate of the head, or 'auto' (LR finder).", limits=(1e-9, 1e3)
    )
    lr_decay: float = option(
        1.0, "Learning rate of a stage as a share of the stage above it.", limits=(0, 1)
    )
    ema: float = option(
        0.99,
        "Decay of the moving average of the weights, which is validated and kept; 0: none.",
        limits=(0, 0.99999),
    )
    weight_decay: float = option(0.01, "Decoupled weight decay (AdamW).", limits=(0, math.inf))
    unfreeze: str = option(
        "auto",
        "'fresh' (head, then all with a fresh head), 'two-step' (head, then all), 'gradual' (head, "
        "then stage by stage), 'last:N' (head, then the last N stages), 'none' (all at once); "
        "'auto': fresh if pretrained, else none.",
    )
    melanoma: str | None = option(
        None, "Class of melanoma; default: the class named mel or melanoma."
    )
    malignant: str | None = option(
        None, "Malignant classes, separated by commas; default: those with the usual names."
    )
    subclass: str | None = option(
        None, "Cut classes into visual sub-classes while training, such as mel=3."
    )
    balance: str = option("none", "Class balancing (lesionfast list balances).")
    beta: float = option(0.999, "Of --balance effective: the share of new rows.", limits=(0, 1))
    class_weight: str | None = option(
        None, "Weights of classes on top of it, which the rule 'balanced' keeps, such as mel=2."
    )
    defer_weights: float = option(
        0.0, "Share of the epochs without the weights of --balance.", limits=(0, 1)
    )
    hardest: float = option(
        1.0,
        "Share of each batch to learn from, the hardest first; this shifts the probabilities.",
        limits=(0.01, 1),
    )
    loss: str = option("cross_entropy", "Loss (lesionfast list losses).")
    cost: str | None = option(
        None, "Of --loss asymmetric: what errors cost, such as mel:nv=4 (truth:decision)."
    )
    tau: float = option(1.0, "Of --loss logit_adjusted: its strength.", limits=(0, 4))
    label_smoothing: float = option(
        0.0,
        "Label smoothing of the loss, from 0 to 0.9; it is undone in predictions.",
        limits=(0, 1),
    )
    augment: str = option("standard", "Augmentation recipe (lesionfast list augmentations).")
    augment_valid: int | None = option(
        None,
        "Augment validation during training with this seed, the same every epoch; predictions "
        "never are.",
        limits=(0, 2**32 - 2),
    )
    mix: str = option("none", "Mixing of pictures (lesionfast list mixes).")
    mix_alpha: float = option(0.4, "Of --mix: both parameters of its Beta.", limits=(0.01, 100))
    rule: str = option(
        "balanced",
        "Rule that decides: 'argmax', or 'balanced' (probability over training prior).",
        ("argmax", "balanced"),
    )
    tta: int = option(
        8, "Dihedral views of each picture whose mean is predicted, 1 to 8.", limits=(1, 8)
    )
    monitor: str | None = option(
        None,
        "Validation column whose best epoch is kept, such as macro_auc or valid_loss; default: "
        "the last epoch is kept.",
    )
    patience: int = option(
        5,
        "Epochs without improvement of the monitored column before training stops; 0: never.",
        limits=(0, math.inf),
    )
    device: str = option("auto", "Where to compute.", ("auto", "cpu", "cuda", "mps"))
    precision: str = option(
        "auto",
        "'auto' takes bfloat16 where the hardware is fast at it.",
        ("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = option(False, "Compile the model with torch.compile: slow to start.")
    workers: int = option(
        0, "Processes that read batches; 0 reads them in the main process.", limits=(0, math.inf)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr != "auto":
            object.__setattr__(self, "lr", as_learning_rate(self.lr))
            check_field(self.__dataclass_fields__["lr"], self.lr)

    def to_json(self) -> str:
        """Return all fields as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, of_run: bool = False) -> "TrainConfig":
        """Read what `to_json` wrote; raises `LesionfastError` for anything else.

        What the config `of_run` does not name is what runs did before there was the option.
        """
        try:
            values = (EARLIER if of_run else {}) | dict(json.loads(text))
        except (TypeError, ValueError) as error:
            raise LesionfastError(
                f"the config is no JSON object of options: {error}. Correct the file, or take the "
                "config.json of a run."
            ) from None
        known = [each.name for each in fields(cls)]
        for name in values:
            if name not in known:
                raise LesionfastError(
                    f"the config has a field '{name}' that this version does not know."
                    f"{did_you_mean(name, known)} Take it out of the file."
                )
        return cls(**values)


def check_field(each: Field, value: Any) -> None:
    """Raise `LesionfastError` unless `value` has the type, choices and limits of a field."""
    flag, kinds = f"--{each.name.replace('_', '-')}", get_args(each.type) or (each.type,)
    fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
    if not fits or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("nothing" if k is type(None) else TYPES[k] for k in kinds)
        raise LesionfastError(f"{flag} is {value!r}; it takes {names}. Correct it.")
    check_choice(each.name, value, each.metadata["choices"])
    low, high = each.metadata["limits"]
    if isinstance(value, int | float) and not low <= value <= high:
        upper = "" if high == math.inf else f" to {high:g}"
        raise LesionfastError(f"{flag} is {value}; type a number from {low:g}{upper}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `LesionfastError` unless `value` is one of `choices` (or there are none)."""
    if choices and value not in choices:
        raise LesionfastError(
            f"--{name.replace('_', '-')} is '{value}', which it does not know."
            f"{did_you_mean(value, choices)} Type one of: {', '.join(choices)}."
        )


def as_learning_rate(value: float | str) -> float:
    """Return a learning rate as a float; raises `LesionfastError` for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise LesionfastError(
            f"--lr is '{value}', which is no number. Type a number such as 0.002, or auto."
        ) from None


def read_weights_of(text: str | None, classes: list[str]) -> "np.ndarray":
    """Return the weight of each class (K,) from "mel=2,bcc=1.5"; 1 where nothing is said."""
    import numpy as np

    weights = np.ones(len(classes))
    for name, value in parse_weights(text).items():
        weights[find_class("--class-weight", name, classes)] = value
    return weights


def parse_weights(text: str | None) -> dict[str, float]:
    """Return the weights that "mel=2,bcc=1.5" says, by class name."""
    return {name: value for (name,), value in read_pairs("--class-weight", text, "mel=2")}


def write_weights(weights: dict[str, float]) -> str:
    """Return weights as `parse_weights` reads them."""
    return ",".join(f"{quote(name)}={value:g}" for name, value in weights.items())


def read_costs(text: str | None, classes: list[str]) -> "np.ndarray":
    """Return what calling row (truth) column (decision) costs (K, K) from "mel:nv=4,bcc:nv=2".

    Raises `LesionfastError` for names that are no classes, and a cost of a right decision.
    """
    import numpy as np

    costs = np.zeros((len(classes), len(classes)))
    for names, value in read_pairs("--cost", text, "mel:nv=4"):
        if len(names) != 2 or names[0] == names[1]:
            raise LesionfastError(
                f"--cost has '{':'.join(names)}', which is no pair of truth and another decision. "
                f"{what_to_type('--cost', 'mel:nv=4')}"
            )
        pair = (find_class("--cost", name, classes) for name in names)
        costs[tuple(pair)] = value
    return costs


def read_subclasses(text: str | None, classes: list[str]) -> dict[str, int]:
    """Return the number of sub-classes by class name from "mel=3,nv=2"; each is 2 or more."""
    counts = {}
    for (name,), value in read_pairs("--subclass", text, "mel=3"):
        if value < 2 or value != int(value):
            raise LesionfastError(
                f"--subclass has {name}={value:g}; type a whole number from 2, such as "
                f"{quote(name)}=3."
            )
        counts[classes[find_class("--subclass", name, classes)]] = int(value)
    return counts


def read_pairs(option: str, text: str | None, example: str) -> list[tuple[tuple[str, ...], float]]:
    """Return names and positive numbers from "name=number,name=number", each once.

    Names are one, or as many as have colons between them if `example` has one. A name with a mark
    of its own is in double quotes.
    """
    pairs = []
    for part in split_unquoted(text, ",") if text else []:
        *left, value = split_unquoted(part, "=")
        name, number = "=".join(left), as_number(value)
        if not (name.strip() and number > 0):
            raise LesionfastError(
                f"{option} has '{part.strip()}', which is no name=number above 0. "
                f"{what_to_type(option, example)}"
            )
        names = split_unquoted(name, ":") if ":" in example else [name]
        pairs.append((tuple(map(unquote, names)), number))
    if len({names for names, _ in pairs}) < len(pairs):
        raise LesionfastError(f"{option} {text} names a class twice. Name each once.")
    return pairs


def what_to_type(option: str, example: str) -> str:
    """Return an example of what an option takes, with how a name with marks in it is typed."""
    name, number = example.split("=")
    quoted = name.replace("mel", '"a, b"')
    return (
        f"Type such as {option} {example}. A name with a comma, = or : goes in double quotes: "
        f"{option} '{quoted}={number}'."
    )


def as_number(text: str) -> float:
    """Return the finite number that a text says, NaN if it says none."""
    try:
        value = float(text)
    except ValueError:
        return float("nan")
    return value if math.isfinite(value) else float("nan")


def find_class(option: str, name: str, classes: list[str]) -> int:
    """Return the number of a class; raises `LesionfastError` if there is none of that name."""
    if name not in classes:
        raise LesionfastError(
            f"{option} names '{name}', which is no class.{did_you_mean(name, classes)} "
            f"The data has: {join_names(classes)}."
        )
    return classes.index(name)
