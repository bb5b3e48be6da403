"""Options that do something only beside another: typed without it they are refused, not ignored."""

from collections.abc import Callable
from dataclasses import dataclass, fields

from lesionfast.config import SplitConfig, TrainConfig
from lesionfast.errors import LesionfastError
from lesionfast.training.heads import heads


@dataclass(frozen=True)
class GoesWith:
    """What else must be typed, in words, for an option to do something, and whether it is."""

    other: str
    holds: Callable[[TrainConfig], object]


GOES_WITH = {
    "augment_valid": GoesWith("--augment other than none", lambda c: c.augment != "none"),
    "beta": GoesWith("--balance effective", lambda c: c.balance == "effective"),
    "cost": GoesWith("--loss asymmetric", lambda c: c.loss == "asymmetric"),
    "head_lr": GoesWith("an --lr other than auto", lambda c: c.lr != "auto"),
    "metadata_dropout": GoesWith(
        "--metadata, and a --fusion other than none",
        lambda c: (c.fusion != "none" and c.metadata_columns) or not c.metadata_dropout,
    ),
    "mix_alpha": GoesWith("--mix mixup or cutmix", lambda c: c.mix != "none"),
    "patience": GoesWith("--monitor", lambda c: c.monitor is not None or not c.patience),
    "tau": GoesWith("--loss logit_adjusted", lambda c: c.loss == "logit_adjusted"),
    "views": GoesWith("--augment other than none", lambda c: c.augment != "none"),
}
MOST_SMOOTHING = 0.9
SOLVED = {  # what a head that is solved looks at; anything else is of gradient descent
    *(each.name for each in fields(SplitConfig)),
    *("arch", "weights", "size", "resize", "fusion", "pool", "head", "rule", "tta"),
    *("metadata_dropout", "melanoma", "malignant", "device", "precision", "compile", "workers"),
}


def check_options(config: TrainConfig) -> None:
    """Raise `LesionfastError` for an option that would do nothing, or can't go with another."""
    heads[config.head]
    if config.head != "linear":
        check_solved(config)
    for name, rule in GOES_WITH.items():
        if name in typed_options(config) and not rule.holds(config):
            raise LesionfastError(
                f"{flag(name)} goes with {rule.other}. Type both, or leave {flag(name)} out."
            )
    check_together(config)


def check_solved(config: TrainConfig) -> None:
    """Raise `LesionfastError` for options that a solved head can't heed."""
    idle = [flag(name) for name in typed_options(config) if name not in SOLVED]
    if idle:
        raise LesionfastError(
            f"--head {config.head} is solved on frozen features, where {', '.join(idle)} can do "
            f"nothing. Leave {', '.join(idle)} out, or type --head linear."
        )


def check_together(config: TrainConfig) -> None:
    """Raise `LesionfastError` for options that can't be had together."""
    if config.hardest < 1 and config.mix != "none":
        raise LesionfastError(
            "--hardest and --mix do not go together: a mixed row is as hard as two. Leave one out."
        )
    if config.label_smoothing > MOST_SMOOTHING:
        raise LesionfastError(
            f"--label-smoothing {config.label_smoothing:g} leaves too little of the labels to undo "
            f"it in predictions. Type at most {MOST_SMOOTHING}, such as --label-smoothing 0.1."
        )
    if config.defer_weights and config.monitor == "valid_loss":
        raise LesionfastError(
            "--monitor valid_loss can't compare epochs with and without class weights, which "
            "--defer-weights asks for. Type --monitor balanced_accuracy."
        )


def typed_options(config: TrainConfig) -> list[str]:
    """Return the names of the options whose value is not the default."""
    plain = TrainConfig()
    names = (each.name for each in fields(TrainConfig))
    return [name for name in names if getattr(config, name) != getattr(plain, name)]


def flag(name: str) -> str:
    """Return a field as it is typed."""
    return "--" + name.replace("_", "-")
