"""Intervals and tests by simulation and against scipy and hand computation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test

from stm.errors import DataError
from stm.significance import (
    Array,
    Comparison,
    bootstrap_means,
    corrected_width,
    group_alike,
    holm,
    least_p_value,
    macro_mean,
    mean_intervals,
    p_values,
    percentile_intervals,
    randomised_means,
    resample,
)


def _p_values(differences: list[Array], rounds: int, seed: int) -> Array:
    return p_values(macro_mean(differences), np.mean(randomised_means(differences, rounds, seed), axis=0))


def _compare(strata: list[Array], rounds: int) -> list[Comparison]:
    return resample(strata, 0, rounds, seed=0).comparisons(range(len(strata)), 0.95)


def _scores(rng: np.random.Generator, count: int, columns: int = 1, centre: float = 0.5) -> Array:
    """Scores as nDCG has them: many zeros and ones, some between."""
    kind = rng.random((count, columns))
    middle = rng.beta(2, 2, (count, columns))
    return np.where(kind < 0.5 * (1.5 - centre), 0.0, np.where(kind > 0.75, 1.0, middle))


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    truth = _scores(rng, 200_000).mean()
    strata = [_scores(rng, 30, 400), _scores(rng, 60, 400)]  # 400 simulated evaluations of two tasks
    intervals = mean_intervals(strata, 1000, seed=0)
    covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert 0.925 <= covered <= 0.975


def test_without_a_difference_the_test_rejects_at_its_level() -> None:
    rng = np.random.default_rng(6)
    first, second = _scores(rng, 50, 500), _scores(rng, 50, 500)
    chance = _p_values([first - second], 999, seed=0)
    assert 0.03 <= np.mean(chance <= 0.05) <= 0.07
    assert 0.44 <= np.mean(chance <= 0.5) <= 0.56


def test_p_value_agrees_with_scipy_on_one_task() -> None:
    rng = np.random.default_rng(7)
    difference = rng.normal(0.15, 0.4, 40)
    ours = _p_values([difference[:, None]], 20_000, seed=1)[0]
    reference = permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(2)
    )
    assert ours == pytest.approx(reference.pvalue, abs=0.01)


def test_identical_models_are_never_different() -> None:
    values = _scores(np.random.default_rng(8), 20, 2)
    values[:, 1] = values[:, 0]
    same = _compare([values], 500)[1]
    assert (same.difference, same.low, same.high, same.effect) == (0, 0, 0, 0)
    assert same.p_value == 1.0
    assert (same.wins, same.losses, same.ties) == (0, 0, 20)


def test_a_clear_difference_is_found_and_signed() -> None:
    rng = np.random.default_rng(9)
    worse = _scores(rng, 80) * 0.8
    better = worse + rng.normal(0.1, 0.05, worse.shape)
    result = _compare([np.hstack([better, worse])], 2000)[1]
    assert 0.05 < result.low < result.difference < result.high < 0.15
    assert result.p_value < 0.001
    assert result.wins > 70
    assert result.effect > 1


def test_the_effect_is_the_mean_over_the_spread_of_the_pairs_differences() -> None:
    rng = np.random.default_rng(4)
    strata = [rng.random((12, 3)), rng.random((9, 3))]
    for column, found in enumerate(_compare(strata, 10)[1:], 1):
        differences = [values[:, 0] - values[:, column] for values in strata]
        spread = np.sqrt(np.mean([np.var(row, ddof=1) for row in differences]))
        assert found.effect == pytest.approx(np.mean([row.mean() for row in differences]) / spread)


def test_every_task_weighs_the_same_whatever_its_size() -> None:
    strata = [np.full((1000, 1), 0.2), np.full((10, 1), 0.8)]
    assert macro_mean(strata)[0] == pytest.approx(0.5)
    interval = mean_intervals(strata, 200, seed=0)[0]
    assert [interval.low, interval.high] == pytest.approx([0.5, 0.5])


def test_blocks_do_not_change_a_draw_and_seeds_do(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [_scores(np.random.default_rng(1), 30, 3)]
    first, again = bootstrap_means(values, 50, 4)[0], bootstrap_means(values, 50, 4)[0]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, bootstrap_means(values, 50, 5)[0])
    flipped = randomised_means(values, 50, 4)[0]
    monkeypatch.setattr("stm.significance.CELLS_PER_BLOCK", 300)  # ten resamples a block
    assert np.allclose(bootstrap_means(values, 50, 4)[0], first)
    assert np.allclose(randomised_means(values, 50, 4)[0], flipped)


def test_percentiles_are_those_of_the_resamples() -> None:
    means = np.linspace(0, 1, 101)[:, None]
    interval = percentile_intervals(np.array([0.5]), means, 0.9)[0]
    assert [interval.low, interval.high] == pytest.approx([0.05, 0.95])


def test_resampled_means_lean_to_the_side_of_the_scores() -> None:
    one_hit = np.eye(1, 20).T  # one of twenty queries is right, so chance can add more than it can take away
    means = bootstrap_means([one_hit], 4000, seed=0)[0]
    assert means.mean() == pytest.approx(0.05, abs=0.005)
    assert means.std() == pytest.approx(one_hit.std(ddof=1) / 20**0.5, rel=0.1)
    assert 0.05 - means.min() < means.max() - 0.05


def test_scopes_read_the_same_draw() -> None:
    rng = np.random.default_rng(2)
    strata = [_scores(rng, 20, 3), _scores(rng, 30, 3)]
    drawn = resample(strata, 1, 200, seed=3)
    alone, both = drawn.intervals([0], 0.9), drawn.intervals([0, 1], 0.9)
    assert [row.mean for row in alone] == pytest.approx(list(strata[0].mean(axis=0)))
    assert both == mean_intervals(strata, 200, 3, 0.9)
    compared = drawn.comparisons([0, 1], 0.9)
    assert compared[1].difference == 0
    assert compared[0].difference == pytest.approx(both[1].mean - both[0].mean)
    assert sum((compared[0].wins, compared[0].losses, compared[0].ties)) == 50


def test_no_p_value_is_below_what_the_ways_to_flip_signs_allow() -> None:
    assert least_p_value(10_000, 5) == 1 / 16
    assert least_p_value(999, 40) == 1 / 1000
    assert least_p_value(999, 100_000) == 1 / 1000
    strata = [np.array([[1.0, 0.0]] * 3), np.array([[1.0, 0.1]] * 2)]
    found = [resample(strata, 0, 60, seed).comparisons([0, 1], 0.95)[1].p_value for seed in range(40)]
    assert min(found) == 1 / 16
    assert np.mean(found) == pytest.approx(1 / 16, abs=0.04)


def test_an_interval_is_wider_for_the_strictest_of_several_comparisons() -> None:
    assert corrected_width(1, 0.95) == 1
    assert corrected_width(8, 0.95) == pytest.approx(2.7344 / 1.9600, abs=1e-4)  # quantiles .996875 and .975
    assert corrected_width(8, 0.99) < corrected_width(8, 0.9)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_never_smaller_keeps_the_order_and_stays_a_probability(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)


def test_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="at least one query"):
        resample([np.empty((0, 2))], 0, 10, 0)
    with pytest.raises(DataError, match="at least one query"):
        macro_mean([])
    with pytest.raises(DataError, match="NaN"):
        mean_intervals([np.array([[np.nan]])], 10, 0)


def _alike(rng: np.random.Generator, answers: int, columns: int) -> tuple[Array, list[int]]:
    """Scores of queries for so many answers, one to six each, half of whose variance is the answer's; and the answer
    of each query.
    """
    asked = [answer for answer in range(answers) for _ in range(rng.integers(1, 7))]
    own, common = rng.normal(0, 0.2, (len(asked), columns)), rng.normal(0, 0.2, (answers, columns))
    return own + common[asked], asked


def test_queries_for_the_same_answers_are_drawn_together_and_intervals_cover() -> None:
    rng = np.random.default_rng(11)
    (first, one), (second, two) = _alike(rng, 40, 400), _alike(rng, 25, 400)
    groups = [group_alike(one), group_alike(two)]
    covered, alone = (
        np.mean([row.low <= 0 <= row.high for row in mean_intervals([first, second], 1000, 0, groups=found)])
        for found in (groups, None)
    )
    assert 0.925 <= covered <= 0.975
    assert alone < 0.88


def test_without_a_difference_queries_for_the_same_answers_reject_at_the_level() -> None:
    rng = np.random.default_rng(12)
    differences, asked = _alike(rng, 40, 500)
    observed = macro_mean([differences])
    together, alone = (
        p_values(observed, randomised_means([differences], 999, 0, groups)[0])
        for groups in ([group_alike(asked)], None)
    )
    assert 0.03 <= np.mean(together <= 0.05) <= 0.07
    assert np.mean(alone <= 0.05) > 0.12


def test_a_resample_of_groups_is_the_mean_of_the_queries_that_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups = np.array([[1.0], [0.0], [0.5]]), group_alike("bab")
    assert groups.tolist() == [0, 1, 0]
    means = bootstrap_means([values], 500, 1, [groups])[0][:, 0]
    plain = (means - 0.5) / 2**0.5 + 0.5  # without the widening for two groups
    assert {round(float(mean), 9) for mean in plain} == {0.0, 0.5, 0.75}  # a twice, each once, b twice
    monkeypatch.setattr("stm.significance.CELLS_PER_BLOCK", 20)  # ten resamples a block
    assert np.array_equal(bootstrap_means([values], 500, 1, [groups])[0][:, 0], means)


def test_signs_change_by_group_and_few_groups_bound_the_p_value() -> None:
    differences, groups = np.array([[1.0], [1.0], [-0.5], [0.5]]), group_alike([3, 3, 1, 1])
    found = randomised_means([differences], 200, 0, [groups])[0]
    assert {abs(float(mean)) for mean in found[:, 0]} == {0.5}  # the second group's difference is 0 either way
    scores = np.hstack([np.ones((9, 1)), np.zeros((9, 1))])
    three = resample([scores], 0, 999, 0, [group_alike([0, 1, 2] * 3)])
    assert three.comparisons([0], 0.95)[1].p_value == pytest.approx(1 / 4, abs=0.05)
    assert three.comparisons([0], 0.95)[1].p_value >= 1 / 4
