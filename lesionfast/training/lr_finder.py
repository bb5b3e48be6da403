"""The learning rate that fastai's LR finder suggests (Smith 2017, arXiv:1506.01186)."""

import logging
from pathlib import Path

from matplotlib.figure import Figure

from lesionfast.files import temporary_folder, write_atomically
from lesionfast.training.learner import FusionLearner

logger = logging.getLogger("lesionfast")


def find_lr(learn: FusionLearner, freeze: bool) -> float:
    """Return fastai's "valley" suggestion, for the head alone if the rest is to be frozen.

    The weights, and what learns, are as before afterwards, also after an error; fastai's own files
    go to a temporary folder.
    """
    before = {name: each.clone() for name, each in learn.model.state_dict().items()}
    learns = {each: each.requires_grad for each in learn.model.parameters()}
    path = learn.path
    try:
        if freeze:
            learn.freeze()
        with temporary_folder() as folder, learn.no_bar():
            learn.path = folder
            lr = float(learn.lr_find(show_plot=False).valley)
    finally:
        learn.path = path
        learn.model.load_state_dict(before)
        for parameter, learned in learns.items():
            parameter.requires_grad_(learned)
    logger.info("learning rate found: %.2g", lr)
    return lr


def draw_lr_curve(learn: FusionLearner, lr: float, path: Path) -> Path:
    """Draw what the LR finder has just tried, with its suggestion, as PNG; return the path."""
    axis = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    axis.plot(learn.recorder.lrs, [float(each) for each in learn.recorder.losses], color="black")
    axis.axvline(lr, color="tab:orange", linestyle="--", label=f"suggested: {lr:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss")
    axis.set_title("Learning-rate finder")
    axis.legend()
    return write_atomically(path, lambda aside: figure.savefig(aside, dpi=120))
