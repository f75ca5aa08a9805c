"""Gates: pure verdicts on planted scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_model_version_tag

from stm.errors import DataError, ParamsError
from stm.files import write_json
from stm.params.base import parse_section
from stm.params.promote import Comparison, Gates, Limit, PromoteParams
from stm.promote.decision import decide
from stm.promote.evidence import Evaluation, TaskScores, read_evaluation
from stm.promote.gates import Measured, Verdict, compare, judge, judge_limit, judge_tasks
from tests.registry_project import promote_params


def model(name: str, role: str, medical: list[float], general: list[float]) -> Evaluation:
    """An evaluation with one medical and one general task."""
    return Evaluation(name, role, {"med": task("medical", "m", medical), "gen": task("general", "g", general)})


def task(domain: str, digest: str, scores: list[float], times: int = 1) -> TaskScores:
    """Scores of a task whose queries ask for the same passages `times` times in a row."""
    same_answers = {f"q{index}": f"q{index - index % times}" for index in range(len(scores)) if index % times}
    return TaskScores(domain, digest, {f"q{index}": score for index, score in enumerate(scores)}, same_answers)


def rule(**changes: object) -> Comparison:
    values = {"against": ["expert"], "average": "all", "min_gain": 0.0, "significance": 0.05, "required": True}
    return Comparison.model_validate({**values, **changes})


def run(rule: Comparison, mine: Evaluation, *others: Evaluation, champion: Evaluation | None = None) -> Verdict:
    return compare("gate", rule, mine, others, champion, resamples=500, seed=1)


MERGED = model("merged", "merged", [0.5, 0.6, 0.7, 0.4] * 10, [0.5, 0.5, 0.3, 0.2] * 10)


def test_the_average_counts_every_task_the_same_however_many_queries_it_has() -> None:
    uneven = model("x", "expert", [1.0], [0.0] * 9)
    assert uneven.average("all") == 0.5
    assert (uneven.average("medical"), uneven.average("general")) == (1.0, 0.0)


def test_a_clear_gain_passes_and_reports_its_figures() -> None:
    worse = model("a", "expert", [0.1, 0.2, 0.3, 0.2] * 10, [0.1, 0.0, 0.1, 0.1] * 10)
    verdict = run(rule(), MERGED, worse)
    assert verdict.passed
    assert not verdict.holds
    assert verdict.figures["gain"] == pytest.approx(0.55 * 0.5 + 0.375 * 0.5 - 0.2 * 0.5 - 0.075 * 0.5, abs=1e-6)
    assert 0 < verdict.figures["lower_bound"] < verdict.figures["gain"]
    assert "of a (average all)" in verdict.detail


def test_a_noisy_gain_passes_on_the_means_alone_but_not_with_significance() -> None:
    noisy = model("a", "expert", [0.0, 1.0, 1.0, 0.0] * 10, [1.0, 0.0, 0.0, 0.3] * 10)
    assert (MERGED.average("all") or 0) > (noisy.average("all") or 0)
    assert run(rule(significance=0), MERGED, noisy).passed
    verdict = run(rule(), MERGED, noisy)
    assert not verdict.passed
    assert verdict.holds
    assert "misses" in verdict.detail


@pytest.mark.parametrize(("level", "quantile"), [(0.05, 1.645), (0.2, 0.842)])
def test_the_bound_is_one_sided_at_the_level_of_the_gate(level: float, quantile: float) -> None:
    rng = np.random.default_rng(1)
    gains = [rng.normal(0.1, spread, 60).tolist() for spread in (0.2, 0.3)]
    mine, other = model("m", "merged", *gains), model("a", "expert", [0.0] * 60, [0.0] * 60)
    figures = compare("gate", rule(significance=level), mine, [other], None, resamples=4000, seed=1).figures
    error = sum(np.var(task, ddof=1) / 60 for task in gains) ** 0.5 / 2  # of the mean of two tasks
    assert (figures["gain"] - figures["lower_bound"]) / error == pytest.approx(quantile, abs=0.08)


def test_the_best_of_several_opponents_is_the_one_to_beat() -> None:
    weak, strong = model("weak", "expert", [0.1] * 40, [0.1] * 40), model("strong", "expert", [0.9] * 40, [0.9] * 40)
    assert run(rule(), MERGED, weak, strong).figures["opponent_name"] == "strong"
    assert run(rule(against=["we*"]), MERGED, weak, strong).figures["opponent_name"] == "weak"


def test_an_opponent_that_is_not_there_or_could_not_run_fails_the_gate() -> None:
    weak, lost = model("weak", "outside", [0.1] * 40, [0.1] * 40), Evaluation("strong", "outside", {})
    verdict = run(rule(against=["outside"]), MERGED, weak, lost)
    assert (verdict.passed, verdict.detail) == (False, "there is no evaluation of strong to compare with")
    assert not run(rule(against=["expert", "@champion"]), MERGED).passed
    assert run(rule(against=["@champion"]), MERGED).passed


def test_one_query_has_no_confidence_bound() -> None:
    mine, other = model("m", "merged", [0.9], [0.9, 0.8]), model("a", "expert", [0.1], [0.1, 0.1])
    assert run(rule(significance=0), mine, other).passed
    assert "the queries of a task ask for one answer" in run(rule(), mine, other).detail


@pytest.mark.parametrize(("level", "needed"), [(0.05, 5), (0.25, 2), (0.01, 7), (0.4, 2)])
def test_a_bound_takes_as_many_queries_as_can_reach_its_level(level: float, needed: int) -> None:
    def judge_on(queries: int) -> Verdict:
        mine, other = (Evaluation(n, n, {"t": task("medical", "d", [s] * queries)})
                       for n, s in (("merged", 0.9), ("expert", 0.1)))  # fmt: skip
        return run(rule(significance=level), mine, other)

    assert judge_on(needed).passed
    assert 2.0**-needed <= level < 2.0 ** (1 - needed)
    if needed > 2:
        assert judge_on(needed - 1).detail == (
            f"the tasks ask for {needed - 1} different answers (average all), of which no confidence bound at level "
            f"{level:g} can be had; that takes at least {needed}"
        )
        assert judge_on(needed - 1).holds


def test_asking_again_for_the_same_answers_makes_no_gain_surer() -> None:
    def judge_on(times: int, again: int) -> Verdict:
        found = {"merged": [0.9, 0.5, 0.6, 0.2, 0.7, 0.5, 0.4, 0.6], "expert": [0.2, 0.6, 0.5, 0.3, 0.2, 0.6, 0.3, 0.5]}
        mine, other = (Evaluation(n, n, {"t": task("medical", "d", [v for v in s for _ in range(again)], times)})
                       for n, s in found.items())  # fmt: skip
        return run(rule(), mine, other)

    once, often, independent = judge_on(1, 1), judge_on(20, 20), judge_on(1, 20)
    assert once.figures["lower_bound"] == often.figures["lower_bound"]
    assert not often.passed
    assert independent.passed


@pytest.mark.parametrize(
    ("times", "reason"), [(20, "the tasks ask for 3 different answers"), (60, "ask for one answer")]
)
def test_many_queries_for_few_answers_have_no_confidence_bound(times: int, reason: str) -> None:
    mine, other = (Evaluation(n, n, {"t": task("medical", "d", [s] * 60, times)})
                   for n, s in (("merged", 0.9), ("expert", 0.1)))  # fmt: skip
    assert reason in run(rule(), mine, other).detail


def test_an_evaluation_of_before_answers_were_recorded_gives_no_bound() -> None:
    old = Evaluation("merged", "merged", {n: replace(t, same_answers=None) for n, t in MERGED.tasks.items()})
    other = model("a", "expert", [0.1] * 40, [0.1] * 40)
    verdict = run(rule(), old, other)
    assert not verdict.passed
    assert verdict.detail == (
        "the evaluation does not say which queries of gen ask for the same passages; make it again with `dvc repro -f "
        "-s evaluate`"
    )
    assert run(rule(significance=0), old, other).passed


def test_the_queries_of_all_tasks_of_the_average_count_together() -> None:
    mine, other = model("m", "merged", [0.9] * 3, [0.9] * 2), model("a", "expert", [0.1] * 3, [0.1] * 2)
    assert run(rule(), mine, other).passed
    assert "the tasks ask for 3 different answers (average medical)" in run(rule(average="medical"), mine, other).detail
    assert run(rule(average="medical", significance=0), mine, other).passed


def test_too_few_resamples_for_the_level_of_a_gate_are_refused(tmp_path: Path) -> None:
    params = promote_params(tmp_path).model_dump()
    params["gates"]["comparisons"]["champion"]["significance"] = 0.001
    with pytest.raises(ParamsError) as caught:
        parse_section(params, PromoteParams, "promote")
    assert str(caught.value).splitlines()[1:] == [
        "promote: 200 resamples are too few for gates.comparisons.champion.significance, which is 0.001; set resamples "
        "to at least 5,000, or the significance to at least 0.025"
    ]
    assert parse_section(params | {"resamples": 5000}, PromoteParams, "promote").resamples == 5000
    params["gates"]["comparisons"]["champion"]["significance"] = 0  # compares the means alone
    assert parse_section(params | {"resamples": 100}, PromoteParams, "promote").resamples == 100


@given(st.integers(100, 100_000))
def test_the_significance_that_a_refusal_suggests_is_taken(resamples: int) -> None:
    params = promote_params(Path()).model_dump() | {"resamples": resamples}
    params["gates"]["comparisons"]["champion"]["significance"] = float(f"{5 / resamples:g}")
    assert PromoteParams.model_validate(params)


def test_a_tolerated_loss_lets_a_slightly_worse_model_pass() -> None:
    better = model("a", "expert", [score + 0.01 for score in MERGED.tasks["med"].scores.values()],
                   [score + 0.01 for score in MERGED.tasks["gen"].scores.values()])  # fmt: skip
    assert not run(rule(), MERGED, better).passed
    assert run(rule(min_gain=-0.02), MERGED, better).passed


def test_without_a_champion_the_champion_gate_passes_and_with_a_better_one_it_holds() -> None:
    against = rule(against=["@champion"])
    assert run(against, MERGED).passed
    champion = model("champion (version 3)", "champion", [0.9] * 40, [0.9] * 40)
    verdict = run(against, MERGED, champion=champion)
    assert verdict.holds
    assert "champion (version 3)" in verdict.detail


def test_a_model_is_never_its_own_opponent() -> None:
    assert run(rule(against=["*"]), MERGED, MERGED).detail == "no evaluated model matches *"


def test_models_evaluated_on_other_queries_or_data_cannot_be_compared() -> None:
    fewer = model("a", "expert", [0.1] * 39, [0.1] * 40)
    assert "cannot be compared" in run(rule(), MERGED, fewer).detail
    tasks = {**MERGED.tasks, "med": replace(MERGED.tasks["med"], digest="changed")}
    assert not run(rule(), MERGED, Evaluation("a", "expert", tasks)).passed


def test_an_average_without_tasks_does_not_pass() -> None:
    only = Evaluation("merged", "merged", {"med": MERGED.tasks["med"]})
    other = Evaluation("a", "expert", {"med": MERGED.tasks["med"]})
    assert "no test task" in run(rule(average="general"), only, other).detail


def test_the_worst_task_decides_the_task_gate() -> None:
    champion = model("champion", "champion", [0.0] * 40, [0.5] * 40)
    verdict = judge_tasks(Limit(at_most=0.05, required=True), MERGED, champion)
    assert not verdict.passed
    assert verdict.figures["task"] == "gen"
    assert judge_tasks(Limit(at_most=0.2, required=True), MERGED, champion).passed
    assert judge_tasks(Limit(at_most=0, required=True), MERGED, None).passed


def hits(name: str, count: int, queries: int) -> Evaluation:
    """An evaluation of one task in which the first `count` queries find their passage."""
    scores = {f"q{index:03}": float(index < count) for index in range(queries)}
    return Evaluation(name, "expert", {"t": TaskScores("medical", "d", scores)})


@pytest.mark.parametrize("count", range(1, 21))
def test_a_loss_of_exactly_the_bound_passes_wherever_it_lies(count: int) -> None:
    verdict = judge_tasks(Limit(at_most=0.05, required=True), hits("m", count - 1, 20), hits("c", count, 20))
    assert (verdict.passed, verdict.figures["value"]) == (True, 0.05)
    assert not judge_tasks(
        Limit(at_most=0.049999, required=True), hits("m", count - 1, 20), hits("c", count, 20)
    ).passed


@pytest.mark.parametrize("count", range(1, 101, 3))
def test_a_gain_of_exactly_the_bound_passes_wherever_it_lies(count: int) -> None:
    mine, other, certain = hits("m", count - 1, 100), hits("a", count, 100), {"significance": 0}
    assert run(rule(min_gain=-0.01, **certain), mine, other).passed
    assert not run(rule(min_gain=-0.009999, **certain), mine, other).passed


def test_a_figure_that_is_measured_and_no_difference_of_means_is_compared_to_its_last_digit() -> None:
    verdict = judge_limit("reload_difference", Limit(at_most=0, required=True), 3e-8)
    assert (verdict.passed, verdict.figures["value"]) == (False, 3e-8)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_limit_passes_exactly_up_to_its_bound(value: float, bound: float) -> None:
    assert judge_limit("size", Limit(at_most=bound, required=True), value).passed == (value <= bound)


@pytest.mark.parametrize(
    ("files", "at_most", "detail"),
    [
        ([], 0, "0 is within 0"), (["a"], 1, "1 is within 1: a"), (["a", "b", "c"], 0, "3 exceeds 0: a, b, c"),
        (["a", "b", "c", "d", "e"], 0, "5 exceeds 0: a, b, c and 2 more"),
    ],
)  # fmt: skip
def test_of_files_the_number_counts_and_the_first_are_named(files: list[str], at_most: int, detail: str) -> None:
    verdict = judge_limit("changed_files", Limit(at_most=at_most, required=True), files)
    assert (verdict.detail, verdict.passed, verdict.figures["value"]) == (detail, len(files) <= at_most, len(files))


def test_a_figure_that_was_not_measured_does_not_pass() -> None:
    verdict = judge_limit("contamination", Limit(at_most=0, required=True), None)
    assert verdict.holds
    assert verdict.detail == "not measured"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=30), st.floats(0.001, 0.2))
def test_the_bound_never_exceeds_a_uniform_gain_and_meets_it(scores: list[float], gain: float) -> None:
    low, high = model("a", "expert", scores, scores), model("merged", "merged", scores, scores)
    tasks = {
        name: replace(task, scores={key: score + gain for key, score in task.scores.items()})
        for name, task in high.tasks.items()
    }
    verdict = run(rule(), Evaluation("merged", "merged", tasks), low)
    assert verdict.figures["lower_bound"] == pytest.approx(gain, abs=1e-5)


def test_judging_is_complete_and_the_same_every_time(tmp_path: Path) -> None:
    gates = promote_params(tmp_path).gates
    assert isinstance(gates, Gates)
    measured = Measured(0, 0.0, 1.0, 5.0, ())
    base = model("base", "base", [0.0] * 40, [0.1] * 40)
    first = judge(gates, MERGED, [base], None, measured, resamples=200, seed=3)
    assert first == judge(gates, MERGED, [base], None, measured, resamples=200, seed=3)
    assert {verdict.name for verdict in first} == {*gates.comparisons, "task_loss", *vars(measured)}
    failed = {verdict.name for verdict in first if not verdict.passed}
    assert failed == {"best_expert", "all_data"}


@pytest.mark.parametrize("name", ["vs. all-data (medical)", "a/b", "a:b", "", "x" * 201, "task_loss", "not_withdrawn"])
def test_gate_names_that_cannot_be_a_tag_or_are_taken_are_refused(tmp_path: Path, name: str) -> None:
    gates = promote_params(tmp_path).gates.model_dump()
    gates["comparisons"][name] = gates["comparisons"]["all_data"]
    with pytest.raises(ParamsError, match=r"gates"):
        parse_section({**promote_params(tmp_path).model_dump(), "gates": gates}, PromoteParams, "promote")


def test_gate_names_may_be_words_of_any_script(tmp_path: Path) -> None:
    for name in ("vs. all-data 2", "größer_als", "x" * 200):
        _validate_model_version_tag(f"gate.{name}", "x")
        gates = promote_params(tmp_path).gates.model_dump()
        gates["comparisons"][name] = gates["comparisons"]["all_data"]
        assert name in promote_params(tmp_path, gates=gates).gates.comparisons


@pytest.mark.parametrize(
    ("version", "previous", "force", "passed", "expected", "champion"),
    [
        (2, 1, "", True, "promoted", 2), (2, 1, "", False, "held", 1), (2, 1, "a reason", False, "forced", 2),
        (2, 1, "a reason", True, "promoted", 2), (1, 1, "", False, "unchanged", 1), (1, 0, "", True, "promoted", 1),
        (0, 0, "", False, "held", 0),
    ],
)  # fmt: skip
def test_decisions(version: int, previous: int, force: str, passed: bool, expected: str, champion: int) -> None:
    outcome = decide([Verdict("g", passed, True, "d")], version, previous, "m", force=force, dry_run=False)
    assert (outcome.decision, outcome.champion) == (expected, champion)
    assert outcome.line()
    assert "\n" not in outcome.line()
    assert outcome.as_json()["gates"]["g"]["passed"] is passed
    assert outcome.as_json()["champion"] == (champion or None)


@pytest.mark.parametrize(
    ("version", "previous", "force", "passed", "line"),
    [
        (1, 0, "", True, "version 1 is the champion: all required gates passed"),
        (2, 1, "", True, "version 2 is the champion (before: version 1): all required gates passed"),
        (2, 1, "", False, "version 2 is held back as challenger, version 1 stays champion; g: d"),
        (1, 0, "", False, "version 1 is held back as challenger, there is no champion yet; g: d"),
        (2, 1, "a trial", False,
         "version 2 is the champion (before: version 1) by force (a trial); gates missed: g: d"),
        (1, 1, "", True, "version 1 is the champion already"),
        (1, 1, "", False, "version 1 is the champion already, though today it misses g: d"),
    ],
)  # fmt: skip
def test_a_decision_says_who_is_champion_and_why(
    version: int, previous: int, force: str, passed: bool, line: str
) -> None:
    outcome = decide([Verdict("g", passed, True, "d")], version, previous, "m", force=force, dry_run=False)
    assert outcome.line() == outcome.as_json()["line"] == line
    assert outcome.as_json()["previous_champion"] == (previous or None)


def test_a_gate_that_is_not_required_never_holds() -> None:
    outcome = decide([Verdict("g", False, False, "d")], 2, 1, "m", force="", dry_run=False)
    assert outcome.decision == "promoted"


@pytest.mark.parametrize("same", [["q1"], "q0", 3, None])
def test_same_answers_of_another_form_are_refused(tmp_path: Path, same: object) -> None:
    tasks = {"t": {"per_query": {"ndcg_at_10": {"q0": 1.0, "q1": 0.5}}, "same_answers": same}}
    write_json(tmp_path / "m.json", {"model": "m", "role": "merged", "tasks": tasks})
    with pytest.raises(DataError, match="make it again with"):
        read_evaluation(tmp_path / "m.json")


@pytest.mark.parametrize("score", [-0.1, 1.1])
def test_a_score_that_is_none_is_refused_with_its_query(tmp_path: Path, score: float) -> None:
    tasks = {"t": {"per_query": {"ndcg_at_10": {"q1": 1.0, "q2": score}}}}
    write_json(tmp_path / "m.json", {"model": "m", "role": "merged", "tasks": tasks})
    with pytest.raises(DataError, match=rf"the score of query 'q2' is {score}"):
        read_evaluation(tmp_path / "m.json")
