import pytest

from lesionfast.errors import LesionfastError
from lesionfast.training.callbacks.schedule import discriminative, plan_phases


@pytest.mark.parametrize("how", ["fresh", "gradual", "two-step", "last:2", "none"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("n_groups", [3, 6])
def test_phases_cover_every_epoch_once_and_only_thaw(how, epochs, n_groups):
    phases = plan_phases(how, n_groups, epochs)
    covered = [epoch for phase in phases for epoch in range(phase.first, phase.end)]
    assert covered == list(range(epochs))
    groups = [phase.groups for phase in phases]
    assert groups == sorted(set(groups))
    assert groups[-1] == (3 if how == "last:2" else n_groups)


def test_gradual_thaws_one_stage_an_epoch_and_gives_half_to_all():
    phases = plan_phases("gradual", 6, 6)
    assert [(p.groups, p.epochs) for p in phases] == [(1, 1), (2, 1), (3, 1), (6, 3)]
    assert [p.name for p in phases] == [
        "head",
        "head + last 1 stage",
        "head + last 2 stages",
        "all",
    ]


def test_two_step_is_head_then_all():
    assert [(p.groups, p.epochs) for p in plan_phases("two-step", 6, 5)] == [(1, 1), (6, 4)]


@pytest.mark.parametrize("how", ["gradul", "last:0", "last:6", "last:x", ""])
def test_wrong_unfreeze_says_what_to_type(how):
    with pytest.raises(LesionfastError, match=r"two-step, last:N, none.*from 1 to 5"):
        plan_phases(how, 6, 4)


def test_discriminative_rates_fall_towards_the_stem():
    assert discriminative(1e-2, 0.5, 3) == [2.5e-3, 5e-3, 1e-2]
