"""What every objective has its minimum at, found over a population whose posteriors are known."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from scipy.optimize import minimize
from torch import nn

from lesionfast.config import TrainConfig
from lesionfast.diagnoses import read_class_weights, read_costs
from lesionfast.errors import LesionfastError
from lesionfast.models.posterior import Posterior
from lesionfast.stats.rules import DecisionRule
from lesionfast.training.balancing import balances
from lesionfast.training.losses import UserLoss, losses
from lesionfast.training.objective import (
    OHEM,
    ApplyObjective,
    build_objective,
    shifting_options,
)

CLASSES = ["bkl", "df", "mel", "nv"]
ROWS = np.array(  # one a kind of picture that can't be told apart, one column a class
    [
        [2, 1, 3, 900],
        [40, 1, 60, 400],
        [90, 3, 30, 45],
        [12, 6, 25, 80],
        [5, 2, 90, 30],
        [30, 14, 3, 25],
        [20, 3, 40, 700],
    ]
)
LIKELIHOOD = ROWS / ROWS.sum(axis=0)  # P(x | y)
COST = "mel:nv=4"
WHOLE, PARTS = list(range(4)), [0, 1, 2, 3, 2, 2]  # melanoma as one output, or as three
SHIFTING = {"asymmetric"}  # losses whose minimum is shifted on purpose


def rows_of_outputs(parents):
    """The rows of each kind (x, S); the parts of melanoma look different."""
    if parents is WHOLE:
        return ROWS
    share = np.array([[8, 1, 1], [1, 8, 1], [1, 1, 8], [2, 4, 4], [5, 3, 2], [1, 2, 7], [4, 5, 1]])
    parts = share / 10 * ROWS[:, [2]]
    return np.concatenate([ROWS[:, :2], parts[:, :1], ROWS[:, 3:], parts[:, 1:]], axis=1)


def objective(config, parents=WHOLE):
    codes = np.repeat(np.arange(4), ROWS.sum(axis=0))
    sizes = rows_of_outputs(parents).sum(axis=0).round().astype(int)
    outputs = np.repeat(np.arange(len(parents)), sizes)
    return build_objective(config, codes, outputs, CLASSES, parents)


def minimum(found, parents=WHOLE, hardest=1.0):
    """Return the outputs (x, S) at which the loss over all that an epoch draws is least."""
    drawn = found.drawn / found.counts
    amount = torch.tensor(rows_of_outputs(parents) * drawn[parents]).flatten()
    x, y = np.divmod(np.arange(len(amount)), len(parents))
    loss, target = found.loss, torch.tensor(y)
    loss.reduction = "none"

    def value(flat):
        outputs = torch.tensor(flat).reshape(len(ROWS), -1).requires_grad_()
        each = loss(outputs[x], target)
        kept = hardest_of(each, amount, hardest)
        total = (kept * each).sum() / kept.sum() + 1e-9 * (outputs.mean(dim=1) ** 2).sum()
        total.backward()
        return total.item(), outputs.grad.numpy().ravel()

    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 0, "gtol": 1e-10, "maxcor": 40}
    start = np.zeros(len(ROWS) * len(parents))
    result = minimize(value, start, jac=True, method="L-BFGS-B", options=options)
    return torch.tensor(result.x.reshape(len(ROWS), -1))


def hardest_of(each, amount, share):
    """Return how much of each row counts if a share of them does, the hardest first."""
    order = each.detach().argsort(descending=True)
    before = amount[order].cumsum(0) - amount[order]
    kept = torch.empty_like(amount)
    kept[order] = (share * amount.sum() - before).clamp(min=0).minimum(amount[order])
    return kept


def posteriors(found, outputs, parents=WHOLE):
    undone = Posterior(parents, found.loss.undo())(outputs)
    return undone.softmax(dim=1).numpy()


def expected(prior, emphasis=1.0):
    """Return the posteriors (x, K) under a prior, the classes weighing as `emphasis` (K,) says."""
    joint = LIKELIHOOD * prior * emphasis
    return joint / joint.sum(axis=1, keepdims=True)


def near(truth, found):
    """Return how near the posteriors must be: smoothing leaves noise of the smallest ones."""
    return {"desired": truth, "atol": 5e-3 if found.loss.label_smoothing else 5e-4, "rtol": 0}


def options_of(loss):
    """Return what can be typed with a loss, and the outputs."""
    changes = [{}]
    if losses[loss].smooths:
        changes.append({"label_smoothing": 0.1})
    if loss == "logit_adjusted":
        changes += [{"tau": 0.5}, {"tau": 1.5, "label_smoothing": 0.2}]
    return product(changes, (WHOLE, PARTS))


def config_of(loss, **changes):
    return TrainConfig(loss=loss, **changes, cost=COST if loss == "asymmetric" else None)


def test_every_loss_is_checked_here():
    assert set(losses) >= SHIFTING
    for name in losses:
        assert isinstance(objective(config_of(name)).loss.undo(), dict)


@pytest.mark.parametrize("balance", balances)
@pytest.mark.parametrize("loss", sorted(set(losses) - SHIFTING))
def test_at_the_minimum_the_posteriors_and_the_balanced_decisions_are_those_of_bayes(loss, balance):
    for changes, parents in options_of(loss):
        found = objective(config_of(loss, balance=balance, **changes), parents)
        got = posteriors(found, minimum(found, parents), parents)
        told = f"{changes}, {len(parents)} outputs"
        np.testing.assert_allclose(got, **near(expected(found.prior), found), err_msg=told)
        best = LIKELIHOOD.argmax(axis=1)
        np.testing.assert_array_equal(DecisionRule("balanced", found.prior).decide(got), best, told)
        if balance == "none" and loss not in ("logit_adjusted", "balanced_softmax"):
            np.testing.assert_array_equal(
                DecisionRule("argmax").decide(got), ROWS.argmax(axis=1), told
            )


@pytest.mark.parametrize(
    ("loss", "changes"),
    [("cross_entropy", {"label_smoothing": 0.1}), ("focal", {}), ("ldam", {})],
)
def test_without_undoing_them_these_losses_have_other_probabilities(loss, changes):
    found = objective(config_of(loss, **changes))
    raw = minimum(found).softmax(dim=1).numpy()
    assert np.abs(raw - expected(found.prior)).max() > 0.02
    if changes:  # the rare class takes what is another's
        decided = DecisionRule("balanced", found.prior).decide(raw)
        assert (decided == 1).sum() > (LIKELIHOOD.argmax(axis=1) == 1).sum()


@pytest.mark.parametrize("balance", ["weights", "effective", "author"])
@pytest.mark.parametrize("loss", ["cross_entropy", "logit_adjusted", "focal"])
def test_before_deferred_weights_come_on_the_prior_is_that_without_them(loss, balance):
    smoothing = 0.1 if losses[loss].smooths else 0.0
    config = config_of(loss, balance=balance, defer_weights=0.5, label_smoothing=smoothing)
    found = objective(config)
    (states,) = (each for each in found.callbacks if isinstance(each, ApplyObjective))
    found.loss.weight = None
    got, prior = posteriors(found, minimum(found)), states.priors[0]
    np.testing.assert_allclose(got, **near(expected(prior), found))
    np.testing.assert_array_equal(
        DecisionRule("balanced", prior).decide(got), LIKELIHOOD.argmax(axis=1)
    )
    assert np.abs(states.priors[1] - prior).max() > 0.01


@pytest.mark.parametrize("balance", ["none", "weights", "sampler"])
@pytest.mark.parametrize("loss", sorted(set(losses) - SHIFTING))
def test_class_weight_multiplies_the_odds_of_its_class_and_no_more(loss, balance):
    smoothing = 0.1 if losses[loss].smooths else 0.0
    config = config_of(
        loss, balance=balance, class_weight="mel=5,bkl=0.5", label_smoothing=smoothing
    )
    emphasis = read_class_weights(config.class_weight, CLASSES)
    for parents in (WHOLE, PARTS):
        found = objective(config, parents)
        got = posteriors(found, minimum(found, parents), parents)
        np.testing.assert_allclose(got, **near(expected(found.prior, emphasis), found))
        shifted = (emphasis * LIKELIHOOD).argmax(axis=1)
        assert (shifted != LIKELIHOOD.argmax(axis=1)).any()
        np.testing.assert_array_equal(DecisionRule("balanced", found.prior).decide(got), shifted)
    assert shifting_options(config) == ["--class-weight mel=5,bkl=0.5"]


@pytest.mark.parametrize("balance", balances)
def test_costs_of_the_loss_move_probability_from_what_is_dear(balance):
    """At the minimum p (1 + cost - p @ cost) is the posterior, cost being that of each decision."""
    config = config_of("asymmetric", balance=balance)
    found = objective(config)
    p = posteriors(found, minimum(found))
    truth = expected(found.prior)
    cost = truth @ read_costs(COST, CLASSES)
    right = p * (1 + cost - (p * cost).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(right, truth, atol=5e-4)
    assert (p[:, 3] < truth[:, 3]).all() and (p[:, 2] > truth[:, 2]).all()
    assert shifting_options(config) == [f"--cost {COST}"]


def test_hardest_is_listed_as_not_undone_for_its_minimum_has_lost_the_posteriors():
    found = objective(TrainConfig())
    got = posteriors(found, minimum(found, hardest=0.5))
    assert np.abs(got - expected(found.prior)).max() > 0.05
    assert shifting_options(TrainConfig(hardest=0.5)) == ["--hardest 0.5"]
    assert shifting_options(TrainConfig(label_smoothing=0.1, loss="focal", mix="mixup")) == []
    assert shifting_options(TrainConfig(loss="asymmetric")) == ["--cost by default"]


def test_a_class_without_training_rows_changes_nothing_for_the_others():
    """Its weight is 0 where there are weights; smoothing gives it a share where there are none."""
    codes = np.repeat([0, 2, 3], ROWS.sum(axis=0)[[0, 2, 3]])
    for loss, balance in product(("cross_entropy", "logit_adjusted"), ("none", "weights")):
        config = config_of(loss, balance=balance, label_smoothing=0.1)
        found = build_objective(config, codes, codes, CLASSES, WHOLE)
        got = posteriors(found, minimum(replace(found, counts=np.maximum(found.counts, 1))))
        truth = expected(found.prior)
        np.testing.assert_allclose(got, **near(truth, found), err_msg=f"{loss} {balance}")


def test_smoothed_probabilities_too_small_to_be_undone_keep_their_order():
    smoothing = Posterior(WHOLE, {"shift": [0.0] * 4, "level": [0.025] * 4, "floor": [1e-3] * 4})
    logits = torch.zeros(200, 4, requires_grad=True)
    with torch.no_grad():
        logits[:, 0] = torch.linspace(-30, 30, 200)
    p = smoothing(logits).softmax(dim=1)
    assert (p[:, 0].diff() >= 0).all() and (p[:, 0].diff()[80:110] > 0).all()
    assert 0 < p[90, 0] < 1e-3
    smoothing(logits).logsumexp(dim=1).sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "ldam"])
def test_posteriors_in_float32_are_those_in_float64(loss):
    found = objective(config_of(loss, label_smoothing=0.1 if losses[loss].smooths else 0.0))
    posterior = Posterior(WHOLE, found.loss.undo())
    outputs = 8 * torch.randn(500, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    exact = posterior(outputs).softmax(dim=1)
    for dtype, atol in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        single = posterior(outputs.to(dtype))
        assert single.dtype == torch.float32 and single.isfinite().all()
        torch.testing.assert_close(single.softmax(dim=1).double(), exact, atol=atol, rtol=0)
    extreme = 1000 * torch.randn(50, 4, generator=torch.manual_seed(0))
    assert posterior(extreme).softmax(dim=1).isfinite().all()


class Watch(Callback):
    """Keep inputs, targets, predictions and loss of every training step."""

    order = 90

    def __init__(self) -> None:
        self.steps = []

    def after_loss(self) -> None:
        if self.training:
            self.steps.append((self.xb, self.yb, self.pred.detach(), self.loss_grad.item()))


def test_only_the_hardest_rows_count(two_input_learner):
    watch = Watch()
    two_input_learner.fit(1, cbs=[OHEM(0.25), watch])
    _, (target,), predicted, loss = watch.steps[0]
    each = F.cross_entropy(predicted, target, reduction="none")
    assert loss == pytest.approx(np.sort(each.numpy())[-2:].mean(), rel=1e-6)
    assert two_input_learner.loss_func.reduction == "mean"


def test_deferred_weights_come_on_in_the_last_epochs(two_input_learner):
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    loss, watch = losses["cross_entropy"](weight), Watch()
    two_input_learner.model.posterior = Posterior(WHOLE)
    two_input_learner.fit(4, cbs=[ApplyObjective(loss, loss.for_validation(), (0, 1), 0.5), watch])
    assert loss.weight is weight and two_input_learner.prior == 1
    for epoch, (_, (target,), predicted, loss) in enumerate(watch.steps):
        used = weight if epoch >= 2 else None
        assert loss == pytest.approx(F.cross_entropy(predicted, target, used).item(), rel=1e-6)


@pytest.fixture
def weighted_loss(monkeypatch):
    """The name of PyTorch's cross entropy, registered as a user's loss."""
    monkeypatch.setattr(losses, "_builders", {**losses._builders, "mine": nn.CrossEntropyLoss})
    return "mine"


def test_the_weights_of_a_registered_loss_are_deferred_as_well(weighted_loss, two_input_learner):
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    loss, watch = UserLoss(losses[weighted_loss], weight), Watch()
    two_input_learner.model.posterior = Posterior(WHOLE)
    two_input_learner.fit(4, cbs=[ApplyObjective(loss, loss.for_validation(), (0, 1), 0.5), watch])
    for epoch, (_, (target,), predicted, value) in enumerate(watch.steps):
        used = weight if epoch >= 2 else None
        assert value == pytest.approx(F.cross_entropy(predicted, target, used).item(), rel=1e-6)


def test_an_object_keeps_weights_of_its_own():
    logits, target, weight = torch.randn(8, 4), torch.arange(8) % 4, torch.tensor([1.0, 2, 3, 4])
    own = UserLoss(nn.CrossEntropyLoss(weight))(logits, target)
    assert own == F.cross_entropy(logits, target, weight)


def test_weights_that_a_registered_loss_hides_can_t_be_deferred(weighted_loss, monkeypatch):
    class Hidden(nn.Module):
        def __init__(self, weight=None):
            super().__init__()
            self.hidden = weight

    monkeypatch.setitem(losses._builders, weighted_loss, Hidden)
    config = TrainConfig(loss=weighted_loss, balance="weights", defer_weights=0.5)
    with pytest.raises(LesionfastError, match="Keep them as self.weight in it"):
        objective(config)
