"""Train as one or several processes and print what each step and validation saw, as JSON.

`torchrun --nproc-per-node 2 distributed_losses.py`; test_processes.py compares the answers.
"""

import json
import sys

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch import nn

from lesionfast.config import TrainConfig
from lesionfast.data.split import load_data
from lesionfast.models.archs import register_backbone
from lesionfast.training.callbacks.distribution import batch_norm
from lesionfast.training.experiment import train_once
from lesionfast.training.processes import gather, join_processes, only_first_writes, process

SMALL = {"arch": "test_resnet", "weights": "none", "size": 32, "epochs": 2, "tta": 1}
EXACT = {"dropout": 0.0, "metadata_dropout": 0.0, "precision": "float32", "device": "cpu"}
CASES = {
    "weights": {"balance": "weights", "batch_size": 64, "unfreeze": "none", "fusion": "film"},
    "uneven": {"loss": "focal", "batch_size": 33, "unfreeze": "none", "lr": 1e-4},
    "unused": {"arch": "half_used", "batch_size": 50, "unfreeze": "none"},
    "frozen": {"head_epochs": 1, "unfreeze": "fresh:2", "batch_size": 64},
}


@register_backbone("half_used")
class HalfUsed(nn.Module):
    """A backbone of which one layer is never run."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(2, 2)

    def forward(self, image):
        return self.used(image)


class WhatItSaw(Callback):
    """The loss of each step, how many validation rows were seen, and their losses."""

    order = 59

    def __init__(self):
        self.losses, self.rows, self.valid, self.own = [], [], [], 0  # own: rows of its steps

    def after_loss(self):
        if self.training:
            self.losses.append(float(self.loss.detach()))
            self.own += len(self.yb[0])

    def after_validate(self):
        metric = self.recorder.metrics[0]
        self.rows.append([int(self.recorder.loss.count), torch.cat(list(metric.targs)).tolist()])
        self.valid.append(float(self.recorder.loss.value))


def train_all(root):
    """Train each case and return what it saw."""
    df, answers = load_data(), {}
    for name, options in CASES.items():
        with only_first_writes(root) as folder:
            config = TrainConfig(**SMALL | EXACT | options)
            train_once(df, config, folder, name, cbs=[one := WhatItSaw()])
        answers[name] = {key: getattr(one, key) for key in ("losses", "rows", "valid", "own")}
    return {"processes": process.size, **answers}


NORMS = {
    "images": ((6, 5, 7, 7), torch.float32, True),
    "channels last": ((7, 16, 5, 5), torch.float32, True),
    "rows": ((9, 6), torch.float64, True),
    "bfloat16": ((6, 8, 7, 7), torch.bfloat16, True),
    "not affine": ((6, 5, 7, 7), torch.float32, False),
}


def norm_error(case):
    """Return how far batch norm by shares is from that of all rows: output, moments, gradients."""
    shape, dtype, affine = NORMS[case]
    draw = torch.Generator().manual_seed(0)
    whole = torch.randn(*shape, generator=draw).mul(3).add(5).to(dtype)
    target = torch.randn(*shape[:2], generator=draw).to(dtype)
    if case == "channels last":
        whole = whole.contiguous(memory_format=torch.channels_last)
    values = torch.rand(2, shape[1], generator=draw).to(torch.promote_types(dtype, torch.float32))
    rows, seen = process.share("rows").part(len(whole)), []
    for norm, part, mine in ((F.batch_norm, slice(None), rows), (batch_norm, rows, slice(None))):
        x = whole[part].clone().requires_grad_()
        weights = values.clone().unbind() if affine else (None, None)
        moments = (torch.zeros_like(values[0]), torch.ones_like(values[0]))
        learned = [weight.requires_grad_() for weight in weights if affine]
        y = norm(x, *moments, *weights, True, 0.1, 1e-5)
        pooled = y.flatten(2).mean(2) if y.ndim > 2 else y
        (pooled * target[part]).sum().backward()
        of_learned = [weight.grad for weight in learned]
        if norm is batch_norm:
            of_learned = [sum(gather(gradient)) for gradient in of_learned]
        seen.append([y[mine], x.grad[mine], *of_learned, *moments])
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*seen, strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    join_processes("cpu")
    norms = {case: gather(norm_error(case)) for case in NORMS}
    found = train_all(sys.argv[1]) | {"norms": norms}
    if process.rank == 0:
        print(json.dumps(found))
