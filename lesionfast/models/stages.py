"""The stages of any backbone, from the sizes of its blocks' outputs: no table of names."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import nn


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a body: what is no row of modules, nor holds most of the parameters."""
    total = sum(p.numel() for p in module.parameters())
    found: list[nn.Module] = []

    def visit(each: nn.Module) -> None:
        size = sum(p.numel() for p in each.parameters())
        rows = isinstance(each, nn.Sequential | nn.ModuleList)
        if list(each.children()) and (rows or size > total / 2):
            for child in each.children():
                visit(child)
        elif size:
            found.append(each)

    visit(module)
    return found


def side_of(output: Any) -> float:
    """Return the side of a feature map in either memory order, or of a square of tokens."""
    output = output[0] if isinstance(output, list | tuple) else output
    return output.shape[2] if output.ndim == 4 else math.sqrt(output.shape[1])


def drop_unused(body: nn.Module, used: dict[nn.Module, float]) -> None:
    """Replace the parts of a timm model that its features do not run through, such as its head."""
    net = getattr(body, "net", None)
    for name, child in net.named_children() if net is not None else ():
        parts = set(child.modules())
        if any(True for _ in child.parameters()) and not any(unit in parts for unit in used):
            setattr(net, name, nn.Identity())


def group_blocks(units: list[tuple[nn.Module, float]]) -> list[list[nn.Module]]:
    """Return the blocks by stage, stem first, from the blocks in order and their strides."""
    runs: list[list[nn.Module]] = []
    deepest = -1
    for unit, stride in units:
        depth = max(deepest, round(math.log2(max(stride, 1))))
        if depth > deepest or not runs:
            runs.append([])
        runs[-1].append(unit)
        deepest = depth
    if len(runs) < 4:
        cuts = np.array_split(np.arange(len(units)), min(4, len(units)))
        runs = [[units[i][0] for i in part] for part in cuts]
    return runs


def parameters_of(backbone: nn.Module, runs: list[list[nn.Module]]) -> list[list[nn.Parameter]]:
    """Return the parameters of blocks by stage; what is in no block is the stem's."""
    stages = [unique(p for unit in run for p in unit.parameters()) for run in runs]
    grouped = {id(p) for stage in stages for p in stage}
    stages[0] += [p for p in backbone.parameters() if id(p) not in grouped]
    return stages


def unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return each parameter once, in order."""
    return list({id(p): p for p in parameters}.values())
