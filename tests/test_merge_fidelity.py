"""The stand-in and the multi-fidelity search that is guided by it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage

from stm.merge import surrogate
from stm.merge.dev import DevSet, Scores, make_dev_set, query_texts, score_embeddings
from stm.merge.fidelity import (
    POOL,
    Doubles,
    candidate_pool,
    climb,
    fidelity_proposer,
    measure_trust,
    predict,
    rank_correlation,
)
from stm.merge.recipe import Recipe
from stm.merge.samplers import make_sampler
from stm.merge.search import run_search
from stm.merge.space import Interval, Point, Space
from stm.merge.surrogate import Surrogate
from stm.merge.trials import Trial, open_study
from stm.tasks import Passage, Task
from stm.text_encoder import Floats
from tests.test_merge_search import EXPERTS, make_space

BEST = np.array([0.7, 0.1, 0.2])


def make_dev() -> DevSet:
    corpus = {f"p{i}": Passage("", f"passage {i}") for i in range(30)}
    queries = {f"q{i}": f"query {i}" for i in range(12)}
    qrels = {f"q{i}": {f"p{i}": 1, f"p{i + 12}": 2} for i in range(12)}
    tasks = [Task(name, "general", corpus, queries, qrels) for name in ("one", "two")]
    return make_dev_set(tasks, [], 0, 0, 0)


def random_anchor(dev: DevSet, seed: int) -> tuple[Floats, Floats]:
    """Noisy embeddings in which a query resembles its passages."""
    rng = np.random.default_rng(seed)
    passages = rng.normal(size=(len(dev.texts), 16))
    queries = np.tile(passages[:12] + passages[12:24], (2, 1)) + rng.normal(size=(len(query_texts(dev)), 16)) * 2
    unit = [(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32) for rows in (queries, passages)]
    return unit[0], unit[1]


def test_dev_scores_are_of_the_first_ten_passages() -> None:
    corpus = {f"p{i:02d}": Passage("", f"passage {i}") for i in range(12)}
    task = Task("t", "general", corpus, {"in": "a", "out": "b"}, {"in": {"p09": 1}, "out": {"p10": 1}})
    angles = np.linspace(0, 1, 12)
    passages, queries = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.tile([1.0, 0.0], (2, 1))
    dev = make_dev_set([task], [], 0, 0, 0)
    scores = score_embeddings(dev, queries.astype(np.float32), passages.astype(np.float32)).queries_overall()
    assert scores["t"] == pytest.approx({"in": 1 / np.log2(11), "out": 0.0})


def test_a_pure_anchor_scores_as_its_expert_does() -> None:
    dev = make_dev()
    anchors = [random_anchor(dev, seed) for seed in range(3)]
    scores = Surrogate(dev, anchors).score(np.eye(3))
    for score, (queries, passages) in zip(scores, anchors, strict=True):
        assert score == pytest.approx(score_embeddings(dev, queries, passages).mean("search"), abs=1e-6)


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda weights: sum(weights) > 0.1))
def test_a_mix_scores_as_its_mixed_embeddings_do(weights: list[float]) -> None:
    dev = make_dev()
    anchors = [random_anchor(dev, seed) for seed in range(3)]
    mixed = [sum(w * a[side] for w, a in zip(weights, anchors, strict=True)) for side in (0, 1)]
    queries, passages = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in mixed)
    expected = score_embeddings(dev, queries.astype(np.float32), passages.astype(np.float32)).mean("search")
    assert Surrogate(dev, anchors).score(np.array([weights]))[0] == pytest.approx(expected, abs=1e-3)


def test_bulk_and_single_scores_agree() -> None:
    dev = make_dev()
    surrogate = Surrogate(dev, [random_anchor(dev, seed) for seed in range(3)])
    weights = np.random.default_rng(0).dirichlet(np.ones(3), size=150)
    np.testing.assert_allclose(
        surrogate.score(weights)[[0, 77, 149]], [surrogate.score(weights[[i]])[0] for i in (0, 77, 149)]
    )


def test_pairs_of_anchors_are_formed_for_one_block_of_candidates_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    dev, sizes, score_block = make_dev(), [], surrogate._score_block

    def spy(pairs: torch.Tensor, task: surrogate._TaskGrams) -> torch.Tensor:
        sizes.append(pairs.untyped_storage().nbytes() // pairs.element_size())
        return score_block(pairs, task)

    monkeypatch.setattr(surrogate, "_score_block", spy)
    Surrogate(dev, [random_anchor(dev, seed) for seed in range(3)]).score(np.full((200, 3), 0.5))
    assert max(sizes) == surrogate.CANDIDATES_PER_BLOCK * 3 * 3


def test_a_part_of_large_tasks_ranks_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    dev, rng = make_dev(), np.random.default_rng(0)
    anchors = [random_anchor(dev, seed) for seed in range(3)]
    mixes = rng.dirichlet(np.ones(3), 40)
    whole = Surrogate(dev, anchors).score(mixes)
    monkeypatch.setattr("stm.merge.surrogate.MOST_CELLS", 2 * 80)
    part = Surrogate(dev, anchors)
    assert [task.gains.shape for task in part._tasks] == [(4, 20)] * 2
    assert all((task.gains > 0).sum(dim=1).eq(2).all() for task in part._tasks), "what is judged stays"
    assert rank_correlation(part.score(mixes), whole) > 0.5


def test_a_query_without_a_relevant_passage_scores_nothing() -> None:
    dev = make_dev()
    task = replace(dev.tasks[0], qrels={q: {"p0": -1} for q in dev.tasks[0].queries})
    anchors = [random_anchor(dev, seed) for seed in range(2)]
    scores = Surrogate(replace(dev, tasks=(task, dev.tasks[1])), anchors).score(np.eye(2))
    assert (scores > 0).all()
    assert (scores <= 0.5).all()


def test_rank_correlation_is_spearmans_and_zero_without_information() -> None:
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([1.0, 4, 9, 16])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0, 2]), np.array([1.0, 2])) == 0
    assert rank_correlation(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) == 0


def test_the_pool_holds_each_model_once_and_is_bounded() -> None:
    for space in (make_space(), make_space(step=0.0), make_space("ties", 0.1, Interval(0.1, 1.0, 0.1))):
        pool = candidate_pool(space, seed=0)
        keys = [space.recipe(point).key() for point in pool]
        assert len(keys) == len(set(keys)) <= POOL
        assert pool == candidate_pool(space, seed=0)


def test_a_grid_of_more_points_than_an_integer_counts_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Space, "grid", lambda self: iter(()))  # which would never end
    space = Space("linear", tuple(f"e{i:02d}" for i in range(64)), Interval(0.5, 1.0, 0.5), None, 1.0, 1.0, 0, "l1")
    assert len(candidate_pool(space, seed=0)) == POOL


def test_points_of_negative_weights_are_in_the_pool_where_they_have_a_model() -> None:
    for method in ("task_arithmetic", "linear"):
        for weights in (Interval(-1.0, 1.0, 0.5), Interval(-1.0, 0.0, 0.5)):
            space = Space(method, ("a", "b"), weights, None, 1.0, 1.0, 0, "l1")
            keys = [space.recipe(point).key() for point in candidate_pool(space, seed=0)]
            assert len(keys) == len(set(keys))
            assert set(keys) == {space.recipe(point).key() for point in space.grid()}


def test_a_space_without_any_model_has_an_empty_pool() -> None:
    space = Space("linear", ("a", "b"), Interval(0.0, 0.5, 1.0), None, 1.0, 1.0, 0, "l1")
    assert candidate_pool(space, seed=0) == []
    assert fidelity_proposer(space, Waves(0.0), seed=0)([], []) is None


def test_a_useless_stand_in_is_not_followed() -> None:
    known, candidates = np.eye(3), np.array([[0.9, 0.1, 0.0], [0.0, 0.1, 0.9]])
    values, misleading = np.array([0.9, 0.5, 0.1]), np.array([0.1, 0.5, 0.9])
    mean, deviation = predict(known, values, misleading, candidates, np.array([0.1, 0.9]), trust=-1.0)
    assert mean[0] > mean[1]
    assert (deviation > 0).all()


def test_a_trusted_stand_in_is_followed() -> None:
    known, candidates = np.eye(4), np.full((2, 4), 0.25)
    values = np.array([0.1, 0.2, 0.3, 0.4])
    mean, _ = predict(known, values, values, candidates, np.array([0.6, 0.2]), trust=1.0)
    assert mean[0] == pytest.approx(mean[1] + 0.4)


def true_score(weights: Doubles) -> float:
    return float(1 - ((weights / weights.sum() - BEST) ** 2).sum())


def evaluate(origin: str, recipe: Recipe) -> Trial:
    score = true_score(np.array([recipe.weights[name] for name in EXPERTS]))
    per_query = {"t": {"search": {"q1": score}, "holdout": {"q2": score}}}
    return Trial(origin, recipe, Scores(per_query), tokens=10, seconds=0.1)


class Waves:
    """A stand-in that is the true score plus a wave of the given height."""

    def __init__(self, noise: float, sign: float = 1.0) -> None:
        self.noise, self.sign = noise, sign

    def score(self, points: Sequence[Point], done: Sequence[Trial]) -> Doubles:
        weights = np.array([[point[f"weight.{name}"] for name in EXPERTS] for point in points])
        waves = np.sin(40 * weights[:, 0] + 17 * weights[:, 1]) * self.noise
        return np.asarray(self.sign * np.array([true_score(row) for row in weights]) + waves)

    def score_unseen(self, done: Sequence[Trial]) -> Doubles:
        return self.score([{f"weight.{n}": trial.recipe.weights[n] for n in EXPERTS} for trial in done], done)


@pytest.mark.parametrize(("noise", "sign", "floor"), [(0.0, 1.0, 0.999), (0.1, 1.0, 0.99), (0.1, -1.0, 0.98)])
def test_the_search_comes_near_the_best_in_few_trials(noise: float, sign: float, floor: float) -> None:
    space = make_space()
    study = open_study(space, "key", InMemoryStorage(), make_sampler("multi_fidelity", space, 0))
    waves = Waves(noise, sign)
    trials = run_search(space, study, evaluate, 10, fidelity_proposer(space, waves, seed=0), is_shared=False)
    assert len(trials) == 7 + 10
    assert max(trial.value for trial in trials) > floor
    trust = measure_trust(space, waves, trials)
    assert trust["mixes"] == len(trust["points"]) == 14
    assert (trust["spearman"] > 0.5) == (sign > 0)


def make_trials(weights: Sequence[Sequence[float]]) -> list[Trial]:
    return [evaluate("search", Recipe("linear", dict(zip(EXPERTS, row, strict=True)))) for row in weights]


def test_rungs_halve_the_candidates_and_only_trusted_ones_rank_them() -> None:
    space, asked = make_space(), []
    done = make_trials([[0.7, 0.1, 0.2], [0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
    points = [space.point(dict(zip(EXPERTS, row, strict=True))) for row in
              ([0.2, 0.2, 0.6], [0.3, 0.5, 0.2], [0.6, 0.2, 0.2], [0.1, 0.8, 0.1])]  # fmt: skip

    def truthful(recipe: Recipe) -> float:
        asked.append(recipe)
        return evaluate("rung", recipe).value

    assert climb(space, points, [truthful, truthful], done, trust=0.2) == points[2]
    assert len([recipe for recipe in asked if recipe.weights["nlu"] in (0.2, 0.5, 0.8)]) == 4 + 2
    asked.clear()
    assert climb(space, points, [lambda recipe: -truthful(recipe)] * 2, done, trust=0.2) == points[0]
    assert len(asked) == 2 * len(done), "what no rung may rank costs nothing"
    assert climb(space, points[:1], [], done, trust=0.2) == points[0]


def test_a_space_that_is_used_up_ends_the_search() -> None:
    space = make_space(step=1.0)
    study = open_study(space, "key", InMemoryStorage(), make_sampler("multi_fidelity", space, 0))
    propose = fidelity_proposer(space, Waves(0.0), seed=0)
    trials = run_search(space, study, evaluate, 50, propose, is_shared=False)
    assert len({trial.recipe.key() for trial in trials}) == len(trials) == 7
