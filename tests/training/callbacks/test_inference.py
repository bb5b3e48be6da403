import platform
import subprocess
import sys

import pytest
import torch
from fastai.callback.core import Callback

from lesionfast.data.sources import find_glibc
from lesionfast.training.callbacks.inference import (
    Autocast,
    ChannelsLastWeights,
    FastInference,
    InferenceMode,
    PlainTensors,
    freed_memory_kept,
)


def fit(learn, epochs, *cbs):
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, cbs=[*cbs])


def test_plain_tensors_reach_the_model(plain_learner):
    kinds = []
    plain_learner.model.register_forward_pre_hook(lambda m, x: kinds.append(type(x[0])))
    fit(plain_learner, 1, PlainTensors())
    assert set(kinds) == {torch.Tensor}


def test_only_validation_and_prediction_run_in_inference_mode(plain_learner):
    class Modes(Callback):
        def before_fit(self):
            self.found = {True: set(), False: set()}

        def after_pred(self):
            self.found[self.training].add(torch.is_inference_mode_enabled())

    modes = Modes()
    fit(plain_learner, 1, InferenceMode(), modes)
    assert modes.found == {True: {False}, False: {True}}
    assert not torch.is_inference_mode_enabled()


def test_autocast_computes_in_bfloat16_and_gives_back_float32(plain_learner):
    inside, outside = [], []
    plain_learner.model[2].register_forward_hook(lambda m, x, y: inside.append(y.dtype))
    plain_learner.loss_func = lambda pred, y: (
        outside.append(pred.dtype) or torch.nn.functional.cross_entropy(pred, y)
    )
    fit(plain_learner, 1, Autocast(torch.device("cpu")))
    assert set(inside) == {torch.bfloat16} and set(outside) == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("event", ["before_fit", "before_validate"])
def test_convolutions_become_channels_last(event, plain_learner):
    plain_learner.model = torch.nn.Conv2d(3, 4, 3)
    callback = ChannelsLastWeights()
    callback.learn = plain_learner
    getattr(callback, event)()
    assert plain_learner.model.weight.is_contiguous(memory_format=torch.channels_last)


class NoteModel(Callback):
    """Notes which model each batch is given to."""

    order = 60

    def before_fit(self):
        self.training_models, self.validation_models = set(), set()

    def before_batch(self):
        (self.training_models if self.training else self.validation_models).add(self.model)


def test_validation_runs_on_a_folded_copy_and_training_on_the_model(picture_learner):
    own, seen = picture_learner.model, NoteModel()
    with picture_learner.no_bar(), picture_learner.no_logging():
        picture_learner.fit(1, 1e-3, cbs=[FastInference(), seen])
        plain = picture_learner.get_preds()[0]
        faster = picture_learner.get_preds(cbs=FastInference())[0]
    assert picture_learner.model is own
    assert seen.training_models == {own}
    assert len(seen.validation_models) == 1
    assert seen.validation_models != seen.training_models
    torch.testing.assert_close(faster, plain, rtol=0, atol=1e-5)


def test_the_model_is_back_after_a_broken_validation(picture_learner):
    class Broken(Callback):
        order = 70

        def before_batch(self):
            raise RuntimeError("broken")

    own = picture_learner.model
    picture_learner.add_cbs([FastInference(), Broken()])
    with picture_learner.no_bar(), pytest.raises(RuntimeError, match="broken"):
        picture_learner.validate()
    assert picture_learner.model is own


PAGES = """
import resource
import torch
from lesionfast.training.callbacks.inference import freed_memory_kept

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def least():
    return min(pages() for _ in range(20))

def resident():
    return int(open("/proc/self/statm").read().split()[1])

cpu, before, small = torch.device("cpu"), least(), resident()
with freed_memory_kept(cpu) as kept:
    with freed_memory_kept(cpu):
        pass
    inside, large = least(), resident()
print(kept, before, inside, large - small, resident() - small)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so")
def test_memory_that_is_freed_is_not_asked_for_again_until_it_is_given_back():
    command = [sys.executable, "-c", PAGES]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kept, *numbers = told.split()
    before, inside, held, left = map(int, numbers)
    assert kept == "True" and before > 1000 and inside < 100  # 64 MiB are 16,384 pages
    assert held > 10_000 and left < held / 2  # pages that the process has


def test_memory_is_not_kept_on_a_gpu_or_without_glibc(monkeypatch):
    with freed_memory_kept(torch.device("cuda")) as kept:
        assert kept is False
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    find_glibc.cache_clear()  # it is asked once a process
    with freed_memory_kept(torch.device("cpu")) as kept:
        assert kept is False
    find_glibc.cache_clear()
