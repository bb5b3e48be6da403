"""Classify dermoscopic images of skin lesions, fast and honestly, with fastai.

>>> import lesionfast as lf
>>> df = lf.load_data("HAM10000")  # a checked table; the split is a column  # doctest: +SKIP
>>> run = lf.train(df, arch="densenet121")  # any option of the command  # doctest: +SKIP
>>> lf.Interpretation.from_run(run).most_confused()  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lesionfast.catalog.listing import runs
    from lesionfast.catalog.removal import remove_runs
    from lesionfast.config import TrainConfig
    from lesionfast.data.augment import register_augmentation
    from lesionfast.data.loaders import LesionDataLoaders
    from lesionfast.data.split import load_data
    from lesionfast.evaluation.comparison import compare
    from lesionfast.evaluation.interpretation import Interpretation
    from lesionfast.models.archs import register_backbone
    from lesionfast.models.fusion import register_fusion
    from lesionfast.reporting.comparison import report
    from lesionfast.run import Run
    from lesionfast.serving.predictor import Predictor
    from lesionfast.training.experiment import train
    from lesionfast.training.learner import lesion_learner
    from lesionfast.training.losses import register_loss
    from lesionfast.training.search.workers import search
    from lesionfast.training.trackers.base import Tracker, register_tracker

    __version__: str

__all__ = [
    "Interpretation",
    "LesionDataLoaders",
    "Predictor",
    "Run",
    "Tracker",
    "TrainConfig",
    "__version__",
    "compare",
    "lesion_learner",
    "load_data",
    "register_augmentation",
    "register_backbone",
    "register_fusion",
    "register_loss",
    "register_tracker",
    "remove_runs",
    "report",
    "runs",
    "search",
    "train",
]
WHERE = {  # the module of each public name, imported when it is first used
    "__version__": "run:installed_version",
    "Interpretation": "evaluation.interpretation",
    "LesionDataLoaders": "data.loaders",
    "Predictor": "serving.predictor",
    "Run": "run",
    "Tracker": "training.trackers.base",
    "TrainConfig": "config",
    "compare": "evaluation.comparison",
    "lesion_learner": "training.learner",
    "load_data": "data.split",
    "register_augmentation": "data.augment",
    "register_backbone": "models.archs",
    "register_fusion": "models.fusion",
    "register_loss": "training.losses",
    "register_tracker": "training.trackers.base",
    "remove_runs": "catalog.removal",
    "report": "reporting.comparison",
    "runs": "catalog.listing",
    "search": "training.search.workers",
    "train": "training.experiment",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing lesionfast costs nothing."""
    if name not in WHERE:
        raise AttributeError(f"module 'lesionfast' has no attribute '{name}'")
    module, _, other = WHERE[name].partition(":")
    value = getattr(import_module("lesionfast." + module), other or name)
    value = value() if name == "__version__" else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
