import torch
from fastai.callback.core import Callback

from lesionfast.training.callbacks.regularization import EMA
from lesionfast.training.callbacks.schedule import OneCycle, ProgressiveUnfreezing


class Notes(Callback):
    """Notes the weights after every step, and those of the model while it validates."""

    order = 100

    def before_fit(self):
        self.trained, self.validated, self.begun = [], [], []

    def before_train(self):
        self.begun.append(copy(self.model))

    def after_batch(self):
        if self.training:
            self.trained.append(copy(self.model))

    def after_validate(self):
        self.validated.append(copy(self.model))


def copy(model):
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    return {name: each.detach().double().clone() for name, each in state.items()}


def fit(learn, epochs, *cbs):
    notes = Notes()
    with learn.no_bar(), learn.no_logging():
        learn.fit(epochs, cbs=[*cbs, notes])
    return notes


def averaged(steps, decay):
    """The average after each step of a phase, in float64."""
    found = []
    for n, weights in enumerate(steps):  # the first step counts wholly
        keep = min(decay, 1 - (1 + n) ** (-2 / 3)) if n else 0.0
        last = found[-1] if found else weights
        found.append({name: keep * last[name] + (1 - keep) * weights[name] for name in weights})
    return found


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_the_average_is_validated_and_the_trained_weights_go_on(plain_learner):
    notes = fit(plain_learner, 3, OneCycle(1e-2), EMA(0.6))
    n = len(notes.trained) // 3
    expected = averaged(notes.trained, 0.6)
    for epoch in range(3):
        assert_close(notes.validated[epoch], expected[(epoch + 1) * n - 1])
    for epoch in (1, 2):
        assert_close(notes.begun[epoch], notes.trained[epoch * n - 1])
    last, own = notes.validated[-1], notes.trained[-1]
    assert any((last[name] - own[name]).abs().max() > 1e-4 for name in own)
    assert_close(copy(plain_learner.model), last)


def test_each_phase_has_an_average_of_its_own(plain_learner):
    cbs = ProgressiveUnfreezing("two-step"), OneCycle(1e-2), EMA(0.9)
    notes = fit(plain_learner, 3, *cbs)
    n = len(notes.trained) // 3
    assert_close(notes.validated[0], averaged(notes.trained[:n], 0.9)[-1])
    assert_close(notes.validated[2], averaged(notes.trained[n:], 0.9)[-1])
