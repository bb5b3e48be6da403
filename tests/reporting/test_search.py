"""The chapter of a search: which options matter, in the table and in the figure."""

import pytest

from lesionfast.reporting.search import draw_search, find_importance, importance_table

optuna = pytest.importorskip("optuna")


@pytest.fixture
def study():
    """Trials whose value depends on one of two options."""
    made = optuna.create_study(direction="maximize")
    space = dict.fromkeys(("lr", "dropout"), optuna.distributions.FloatDistribution(0, 1))
    for i in range(12):
        params = {"lr": i / 12, "dropout": (5 * i % 12) / 12}
        made.add_trial(
            optuna.create_trial(params=params, distributions=space, value=params["lr"] ** 3)
        )
    return made


def test_the_figure_shows_the_importance_of_the_table(study, tmp_path):
    shares = find_importance(study)
    assert next(iter(shares)) == "lr" and sum(shares.values()) == pytest.approx(1)
    rows = importance_table(shares).rows
    assert [row[0].text for row in rows] == list(shares)
    drawn = draw_search(study, tmp_path, "macro_auc", shares)
    assert sorted(path.stem for path in drawn) == ["history", "importance", "parallel", "slices"]
    assert all(path.stat().st_size > 5_000 for path in drawn)


def test_few_trials_say_nothing_of_an_option(tmp_path):
    few = optuna.create_study()
    assert find_importance(few) == {} and draw_search(few, tmp_path, "macro_auc", {}) == []
