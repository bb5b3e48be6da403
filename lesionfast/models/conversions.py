"""How each library fits the names and sizes in a weights file to its own model."""

import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module

import timm
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

Tensors = dict[str, Tensor]
Conversion = Callable[[Tensors], Tensors]
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")


def conversions(net: nn.Module, library: str, name: str, size: int) -> Iterator[Conversion]:
    """Yield the ways to try, the library's own first, as it is last."""
    if library == "timm":
        for function in timm_filters(net, name):
            arguments = {"model": net} if "model" in parameters(function) else {}
            yield partial(attempt, partial(function, **arguments))
    elif name.startswith("vit"):
        yield partial(attempt, partial(resize_positions, net.patch_size, size))
    else:
        yield modernize
    yield dict


def timm_filters(net: nn.Module, name: str) -> Iterator[Callable[..., Tensors]]:
    """Yield timm's functions from a state dict to one for the model, from its modules."""
    origins = (type(net), timm.model_entrypoint(name.partition(".")[0]))
    for module in dict.fromkeys(import_module(each.__module__) for each in origins):
        for key, function in vars(module).items():
            named_so = "filter" in key and inspect.isfunction(function)
            if named_so and "state_dict" in parameters(function):
                yield function


def parameters(function: Callable[..., Tensors]) -> list[str]:
    """Return the names of a function's parameters."""
    return list(inspect.signature(function).parameters)


def attempt(function: Conversion, tensors: Tensors) -> Tensors:
    """Return what a conversion makes of the tensors, or they as they are where it stumbles."""
    try:
        return dict(function(dict(tensors)))
    except Exception:  # over the tensors of another model it stumbles anywhere
        return tensors


def resize_positions(patch: int, size: int, tensors: Tensors) -> Tensors:
    """Return the tensors of torchvision's vision transformer, positions resized to the image."""
    return interpolate_embeddings(size, patch, OrderedDict(tensors))


def modernize(tensors: Tensors) -> Tensors:
    """Return the tensors with the names that torchvision's DenseNet has had since 2017."""
    return {OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}
