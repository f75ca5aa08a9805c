"""What `benchmarks.merge_seeds` makes of its score tables: averages, comparisons, gains and whether they add up."""

from typing import Any

import pytest

from benchmarks.merge_seeds import as_recipe
from benchmarks.merge_summary import additivity, compare, gains, interval, summarise
from stm.merge.recipe import Recipe

SCORES = {  # model -> nDCG@10 on the tasks "near" and "far"
    "warm_up": (0.5, 0.4), "expert a": (0.6, 0.4), "expert b": (0.5, 0.5), "all_data": (0.55, 0.5),
    "sum": (0.58, 0.48), "merged linear": (0.7, 0.6),
}  # fmt: skip


def make_tables(lift: float = 0.0) -> dict[str, Any]:
    """One seed's tables of ten queries per task; `lift` is what the merged model has more than in SCORES."""

    def task(name: str, score: float) -> dict[str, float]:
        return {f"q{i}": score + 0.001 * (i - 4.5) + lift * (name == "merged linear") for i in range(10)}

    return {
        name: {part: {"near": task(name, near), "far": task(name, far)} for part in ("dev", "test")}
        for name, (near, far) in SCORES.items()
    }


def test_gains_are_over_the_warm_up_and_averaged_over_seeds() -> None:
    found = gains([make_tables(), make_tables(0.1)], "test")
    assert "warm_up" not in found
    assert found["expert a"] == pytest.approx({"near": 0.1, "far": 0.0})
    assert found["merged linear"] == pytest.approx({"near": 0.25, "far": 0.25})


def test_the_gain_of_the_sum_stands_beside_the_sum_of_the_gains() -> None:
    found = additivity([make_tables()], "dev")
    assert found["tasks"]["near"] == pytest.approx({"sum_of_gains": 0.1, "gain_of_sum": 0.08})
    assert found["tasks"]["far"] == pytest.approx({"sum_of_gains": 0.1, "gain_of_sum": 0.08})
    assert found["pearson"] is None, "nothing varies, so nothing correlates"


def test_intervals_are_students_over_seeds() -> None:
    assert interval([0.5]) == {"mean": 0.5, "seeds": [0.5]}
    found = interval([0.1, 0.2, 0.3])
    assert (found["low"], found["high"]) == pytest.approx((0.2 - 0.2484, 0.2 + 0.2484), abs=1e-4)  # t(.975, 2) = 4.303


def test_a_lead_that_every_query_has_is_certain_over_queries_and_wide_over_seeds() -> None:
    rows = compare([make_tables(), make_tables(0.2)], "test", "merged linear")
    lead = rows["all_data"]
    assert lead["over_queries"]["low"] == pytest.approx(lead["over_queries"]["high"]) == pytest.approx(0.225)
    assert lead["over_seeds"]["seeds"] == pytest.approx([0.125, 0.325])
    assert lead["over_seeds"]["low"] < 0 < lead["over_seeds"]["high"]


def test_the_summary_names_the_best_expert_and_compares_what_was_merged() -> None:
    summary = summarise([{"tables": make_tables()}])
    assert summary["dev"]["best_expert"] in {"expert a", "expert b"}
    assert set(summary["test"]["differences"]) == {"sum", "merged linear"}
    assert summary["test"]["averages"]["all_data"]["mean"] == pytest.approx(0.525)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("ties", {"a": 0.3, "b": 0.7}, {"a": 0.5, "b": 0.2}, 0.8),
        Recipe("dare_linear", {"a": 0.3, "b": 0.7}, {"a": 0.5}, seed=3, rescale="density"),
        Recipe("task_arithmetic", {"a": 1.0}, layers={"0": {"a": 0.5}}),
    ],
)
def test_a_recipe_that_was_kept_gives_the_same_model(recipe: Recipe) -> None:
    assert as_recipe(recipe.as_dict()).key() == recipe.key()
