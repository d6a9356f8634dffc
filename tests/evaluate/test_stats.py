"""Bootstrap, AUC and the KS test."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualoptim_cli.evaluate.stats import auc, bootstrap, bootstrap_auc, harmonic_mean, interval, ks_p_value, mean

NUMBERS = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12).map(np.array)


def test_a_mean_leaves_out_what_is_missing() -> None:
    assert mean(np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan]])).tolist() == pytest.approx(
        [2.0, np.nan], nan_ok=True
    )


def test_bootstrap_puts_the_figure_first_and_draws_the_same_rows_for_all_metrics() -> None:
    values = np.random.default_rng(0).random((1, 50))
    drawn = bootstrap(np.concatenate([values, 2 * values]), np.random.default_rng(1))
    assert drawn[:, 0].tolist() == pytest.approx([values.mean(), 2 * values.mean()])
    np.testing.assert_allclose(drawn[1], 2 * drawn[0])


def test_bootstrap_depends_on_its_seed_alone() -> None:
    values = np.random.default_rng(0).random((2, 20))
    one, again, other = (bootstrap(values, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert (one == again).all()
    assert (one != other).any()


def test_the_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=(1, 400))
    low, high = interval(bootstrap(values, np.random.default_rng(1))[0])
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


@given(NUMBERS, NUMBERS)
def test_auc_equals_counting_pairs(members: np.ndarray, others: np.ndarray) -> None:
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(members, others)]
    assert auc(members, others) == pytest.approx(np.mean(wins))


def test_bootstrapped_auc_starts_with_the_auc_and_spreads_around_it() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(1, 1, 80), rng.normal(0, 1, 60)
    drawn = bootstrap_auc(members, others, np.random.default_rng(1))
    low, high = interval(drawn)
    assert drawn[0] == auc(members, others)
    assert low < drawn[0] < high


BY_SCIPY = {  # scipy 1.17.1: ks_2samp(a, b, method="exact").pvalue, of rounded and therefore tied samples
    (3, 4, 0.0): 1.0,
    (5, 5, 1.0): 0.873015873015873,
    (20, 20, 0.5): 0.00396729438660086,
    (40, 40, 2.5): 4.3141348367663775e-12,
    (100, 60, 0.3): 0.363955457769871,
    (200, 200, 0.6): 4.024806511439489e-06,
    (7, 19, 0.9): 0.08799027059896626,
    (12, 12, 0.0): 0.2557751845677543,
}


def test_ks_p_values_are_scipys_exact_ones() -> None:
    rng = np.random.default_rng(0)
    for (n, m, shift), expected in BY_SCIPY.items():
        one, other = np.round(rng.normal(0, 1, n), 1), np.round(rng.normal(shift, 1, m), 1)
        assert ks_p_value(one, other) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_the_ks_p_value_equals_counting_every_order(one: list[int], other: list[int]) -> None:
    """Every way in which the two samples could have been interleaved, walked through one by one."""
    n, m = len(one), len(other)

    def distance(order: tuple[int, ...]) -> int:
        steps = np.cumsum([m if at in order else -n for at in range(n + m)])
        return int(np.abs(steps).max())

    points = sorted({*one, *other})
    observed = max(abs(m * sum(x <= p for x in one) - n * sum(x <= p for x in other)) for p in points)
    orders = list(itertools.combinations(range(n + m), n))
    extreme = sum(distance(order) >= observed for order in orders)
    assert ks_p_value(np.array(one, float), np.array(other, float)) == pytest.approx(extreme / len(orders))


def test_ks_tells_equal_from_shifted_samples() -> None:
    grid = np.linspace(0, 1, 100)
    assert ks_p_value(grid, grid) == 1.0
    assert ks_p_value(grid, grid + 0.05) > 0.95
    assert ks_p_value(grid, grid + 0.5) < 1e-9
    assert ks_p_value(grid, grid + 0.19) == pytest.approx(0.0539, abs=5e-5)


def test_ks_p_values_of_equal_laws_are_uniform() -> None:
    rng = np.random.default_rng(0)
    found = np.array([ks_p_value(rng.random(60), rng.random(80)) for _ in range(600)])
    for level in (0.05, 0.2, 0.5):
        assert (found <= level).mean() == pytest.approx(level, abs=0.06)


def test_the_harmonic_mean_is_0_with_a_0_and_hand_worked_without() -> None:
    assert harmonic_mean(np.array([[1.0], [0.5]]))[0] == pytest.approx(2 / 3)
    assert harmonic_mean(np.array([[1.0], [0.0]]))[0] == 0
    assert np.isnan(harmonic_mean(np.array([[1.0], [np.nan]]))[0])
