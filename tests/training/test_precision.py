import torch
from fastai.callback.fp16 import MixedPrecision

from lesionfast.training.callbacks.inference import Autocast
from lesionfast.training.learner import precision_callbacks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_each_precision_has_its_callback():
    assert precision_callbacks("float32", CPU) == []
    assert isinstance(precision_callbacks("bfloat16", CPU)[0], Autocast)
    assert isinstance(precision_callbacks("float16", CUDA)[0], MixedPrecision)
