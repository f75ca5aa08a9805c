"""The metric contract, rule by rule, against pytrec_eval where it has an opinion."""

import math
from random import Random

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from stm.errors import DataError
from stm.metrics import Floats, mean, missing_queries, ndcg_at_k, order_passages, rank, recall_at_k

Judged = dict[str, dict[str, int]]
Scored = dict[str, dict[str, float]]
IDS = ["a", "b", "B", "10", "9", "é", "z1", "z10", "z2", "\U0001f600", "\uffee", "m"]
# Scores that collide in float32 but not in float64 are where sorting by float64 goes wrong.
SCORES = st.sampled_from([0.0, 0.5, 0.5 + 1e-9, 0.5 - 1e-9, 0.25, 1.0, -1.0, 1 / 3, float(np.float32(1 / 3))])
RUNS = st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), st.dictionaries(st.sampled_from(IDS), SCORES, min_size=1))
QRELS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]),
    st.dictionaries(st.sampled_from(IDS), st.integers(-1, 3), min_size=1),
    min_size=1,
)


@settings(max_examples=400, deadline=None)
@given(QRELS, RUNS, st.sampled_from([1, 3, 10]))
def test_equals_pytrec_eval_on_runs_full_of_ties(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], k: int
) -> None:
    reference = pytrec_eval.RelevanceEvaluator(qrels, {f"ndcg_cut.{k}", f"recall.{k}"}).evaluate(run)
    ndcg, recall = ndcg_at_k(qrels, run, k), recall_at_k(qrels, run, k)
    assert list(ndcg) == list(recall) == list(qrels)
    for query_id in qrels:
        expected = reference.get(query_id, {f"ndcg_cut_{k}": 0.0, f"recall_{k}": 0.0})  # rule 3: missing is 0
        assert ndcg[query_id] == pytest.approx(expected[f"ndcg_cut_{k}"], abs=1e-12)
        assert recall[query_id] == pytest.approx(expected[f"recall_{k}"], abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(QRELS, RUNS, st.randoms(use_true_random=False))
def test_insertion_order_never_matters(
    qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]], random: Random
) -> None:
    shuffled: dict[str, dict[str, float]] = {}
    for query_id, scores in run.items():
        items = list(scores.items())
        random.shuffle(items)
        shuffled[query_id] = dict(items)
    assert ndcg_at_k(qrels, run) == ndcg_at_k(qrels, shuffled)


def test_hand_computed_value() -> None:
    qrels = {"q": {"a": 3, "b": 1, "c": 0}}
    run = {"q": {"c": 0.9, "a": 0.8, "b": 0.7}}
    best = 3 + 1 / math.log2(3)
    assert ndcg_at_k(qrels, run)["q"] == pytest.approx((3 / math.log2(3) + 1 / math.log2(4)) / best)
    assert recall_at_k(qrels, run, 2)["q"] == 0.5
    eleventh = {"q": {f"p{rank:02d}": float(-rank) for rank in range(11)}}
    assert ndcg_at_k({"q": {"p10": 1}}, eleventh) == recall_at_k({"q": {"p10": 1}}, eleventh) == {"q": 0.0}


def test_a_constant_scorer_does_not_profit_from_corpus_order() -> None:
    passages = [f"p{number:03d}" for number in range(100)]
    run = {"q": dict.fromkeys(passages, 1.0)}
    assert ndcg_at_k({"q": {"p000": 1}}, run)["q"] == 0.0


def test_missing_empty_and_unjudged_queries() -> None:
    qrels = {"missing": {"a": 1}, "empty": {"a": 1}, "irrelevant": {"a": 0}, "unjudged": {}}
    run = {"empty": {}, "irrelevant": {"a": 1.0}, "unjudged": {"a": 1.0}, "unknown": {"a": 1.0}}
    assert ndcg_at_k(qrels, run) == {"missing": 0.0, "empty": 0.0, "irrelevant": 0.0}
    assert recall_at_k(qrels, run) == {"missing": 0.0, "empty": 0.0, "irrelevant": 0.0}
    assert missing_queries(qrels, run) == missing_queries(qrels, {**run, "unjudged": {}}) == ["empty", "missing"]


def test_where_the_contract_leaves_pytrec_eval_and_where_it_does_not() -> None:
    qrels = {"missing": {"a": 1}, "empty": {"a": 1}, "irrelevant": {"a": 0}, "found": {"a": 1}}
    run: Scored = {"empty": {}, "irrelevant": {"a": 1.0}, "found": {"a": 1.0}, "unknown": {"a": 1.0}}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    ours = ndcg_at_k(qrels, run)
    assert {key: row["ndcg_cut_10"] for key, row in theirs.items()} == {
        key: score for key, score in ours.items() if key != "missing"
    }
    assert "missing" not in theirs  # rule 3: here it counts as 0
    unjudged = pytrec_eval.RelevanceEvaluator({"q": {}}, {"ndcg_cut.10"}).evaluate({"q": {"a": 1.0}})
    assert unjudged == ndcg_at_k({"q": {}}, {"q": {"a": 1.0}}) == {}  # rule 4: not scored at all
    broken = {"q": {"a": float("nan"), "b": 0.5}}
    assert pytrec_eval.RelevanceEvaluator({"q": {"a": 1}}, {"ndcg_cut.10"}).evaluate(broken)["q"]["ndcg_cut_10"] > 0
    with pytest.raises(DataError, match="NaN"):  # rule 6
        ndcg_at_k({"q": {"a": 1}}, broken)


def test_identical_ids_follow_arguana_only_when_asked() -> None:
    qrels, run = {"x": {"y": 1}}, {"x": {"x": 1.0, "y": 0.5}}
    without = {"x": {"y": 0.5}}  # what mteb hands to pytrec_eval
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(without)
    assert ndcg_at_k(qrels, run, ignore_identical_ids=True)["x"] == theirs["x"]["ndcg_cut_10"]
    assert ndcg_at_k(qrels, run)["x"] == pytest.approx(1 / math.log2(3))
    assert ndcg_at_k(qrels, run, ignore_identical_ids=True)["x"] == 1.0
    assert run == {"x": {"x": 1.0, "y": 0.5}}


def test_nan_scores_and_no_scores_are_errors() -> None:
    with pytest.raises(DataError, match="passage 'b' is NaN"):
        ndcg_at_k({"q": {"a": 1}}, {"q": {"a": 1.0, "b": float("nan")}})
    with pytest.raises(DataError, match="no scores to average"):
        mean({})
    with pytest.raises(DataError, match="at least one rank"):
        recall_at_k({"q": {"a": 1}}, {}, 0)
    assert mean({"a": 0.25, "b": 0.75}) == 0.5


def _random_side(rng: np.random.Generator, count: int, decimals: int | None = None) -> Floats:
    embeddings = rng.standard_normal((count, 4)).astype(np.float32)
    return embeddings if decimals is None else np.round(embeddings, decimals)


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_rank_equals_a_full_sort_with_ties(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stm.metrics.CELLS_PER_BLOCK", 64)  # several blocks
    rng = np.random.default_rng(3)
    queries, passages = _random_side(rng, 7, 0), _random_side(rng, 31, 0)  # whole numbers: many exact ties
    query_ids, passage_ids = [f"q{i}" for i in range(7)], [f"p{i}" for i in range(31)]
    run = rank(queries, passages, query_ids, passage_ids, k)
    for row, query_id in enumerate(query_ids):
        full = {key: float(queries[row] @ passages[index]) for index, key in enumerate(passage_ids)}
        assert list(run[query_id]) == order_passages(full, k)
        assert all(run[query_id][key] == full[key] for key in run[query_id])


def test_rank_leaves_out_the_query_itself_and_still_fills_k() -> None:
    embeddings = np.eye(3, dtype=np.float32)
    run = rank(embeddings, embeddings, ["a", "b", "c"], ["a", "b", "c"], 2, ignore_identical_ids=True)
    found = {query_id: list(scores) for query_id, scores in run.items()}
    assert found == {"a": ["c", "b"], "b": ["c", "a"], "c": ["b", "a"]}


def test_rank_refuses_what_it_cannot_rank() -> None:
    good = np.eye(2, dtype=np.float32)
    broken = np.array([[1.0, 0.0], [float("nan"), 0.0]], dtype=np.float32)
    with pytest.raises(DataError, match=r"1 passage embedding.*first at 'y'"):
        rank(good, broken, ["a", "b"], ["x", "y"], 1)
    with pytest.raises(DataError, match="'x' appears twice"):
        rank(good, np.zeros((3, 2), np.float32), ["a", "b"], ["y", "x", "x"], 1)
    with pytest.raises(DataError, match="shape 2x2"):
        rank(good, good, ["a"], ["x", "y"], 1)
    with pytest.raises(DataError, match="2 and 3 dimensions"):
        rank(good, np.eye(3, dtype=np.float32), ["a", "b"], ["x", "y", "z"], 1)
    with pytest.raises(DataError, match="at least one rank"):
        rank(good, good, ["a", "b"], ["x", "y"], 0)
    assert rank(good, np.empty((0, 2), np.float32), ["a", "b"], [], 1) == {"a": {}, "b": {}}
