"""Embeddings of unseen mixes from seen ones, the rungs, the stand-in on a real pico model, and the interaction of two
weights."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm.encode import Encoder
from stm.errors import DataError, ParamsError
from stm.merge.dev import DevSet, embed, make_dev_set, query_texts, score_embeddings
from stm.merge.evaluator import Evaluator
from stm.merge.experts import Experts, read_experts
from stm.merge.interaction import choose_pair, grid_of_two, interaction_share
from stm.merge.interpolation import Places, cardinal_weights, kernel, places_of, unseen_weights
from stm.merge.mixer import Mixer
from stm.merge.recipe import Recipe
from stm.merge.rungs import make_rung
from stm.merge.space import Interval, Space
from stm.merge.stand_in import StandIn
from stm.models import load_model
from stm.prompts import own_prompts
from stm.tasks import Passage, Task
from tests.pico import pico_adapter, pico_backbone

NAMES = ("a", "b")
rng = np.random.default_rng(0)


def make_places(count: int, experts: int = 3, seed: int = 0) -> Places:
    drawn = np.random.default_rng(seed)
    return Places(drawn.uniform(0, 1, (count, experts)), np.ones((count, experts)))


def make_dev(queries: int = 8, passages: int = 30) -> DevSet:
    corpus = {f"p{i}": Passage("", f"passage {i} about {chr(97 + i % 26) * 3}") for i in range(passages)}
    asked = {f"q{i}": f"what is {chr(97 + i) * 3}" for i in range(queries)}
    tasks = [Task(n, "general", corpus, asked, {q: {f"p{i}": 1} for i, q in enumerate(asked)}) for n in ("one", "two")]
    return make_dev_set(tasks, [], 0, 0, 0)


@given(seed=st.integers(0, 100))
@settings(max_examples=20)
def test_what_is_known_is_interpolated_exactly(seed: int) -> None:
    anchors = make_places(6, seed=seed)
    np.testing.assert_allclose(cardinal_weights(anchors, anchors), np.eye(6), atol=1e-3)


def test_densities_of_a_method_that_thins_nothing_place_a_mix_nowhere_else() -> None:
    given, none = (Recipe("task_arithmetic", {"a": 0.5, "b": 0.2}, densities) for densities in ({"a": 0.5}, {}))
    assert given.key() == none.key()
    places = places_of([given, none], ["a", "b"])
    np.testing.assert_array_equal(places.factors[0], places.factors[1])
    np.testing.assert_array_equal(places.densities, np.ones((2, 2)))


def test_from_the_experts_alone_it_is_nearly_first_order_merging() -> None:
    recipes = [None, *(Recipe("task_arithmetic", {name: 1.0}) for name in "abc")]
    anchors = places_of(recipes, list("abc"))
    weights = cardinal_weights(places_of([Recipe("task_arithmetic", {"a": 0.5, "b": 0.2})], list("abc")), anchors)
    np.testing.assert_allclose(weights, [[0.3, 0.5, 0.2, 0.0]], atol=0.06)


def test_factors_without_bound_overflow_nothing() -> None:
    places = Places(np.array([[1e3, -1e3], [1.0, 0.0], [0.0, 1.0], [1e9, 1e9]]), np.ones((4, 2)))
    with np.errstate(all="raise"):
        assert np.isfinite(cardinal_weights(places, Places(places.factors[1:3], places.densities[1:3]))).all()
    near = make_places(12)
    far = Places(near.factors[:3] * 0 + np.eye(3) * 16.0, np.ones((3, 3)))
    anchors = Places(np.vstack([near.factors, far.factors]), np.ones((15, 3)))
    spectrum = np.linalg.eigvalsh(kernel(anchors, anchors))
    assert spectrum.min() > -1e-9 * spectrum.max(), "it is a kernel"
    assert np.allclose(cardinal_weights(near, anchors), np.eye(15)[:12], atol=0.01)


def test_leaving_one_out_is_what_refitting_without_it_gives() -> None:
    anchors = make_places(7)
    unseen = unseen_weights(anchors)
    for left in range(7):
        rest = [row for row in range(7) if row != left]
        others = Places(anchors.factors[rest], anchors.densities[rest])
        one = Places(anchors.factors[[left]], anchors.densities[[left]])
        assert unseen[left, left] == 0
        np.testing.assert_allclose(unseen[left, rest], cardinal_weights(one, others)[0], atol=1e-3)


def test_curved_embeddings_are_predicted_better_the_more_is_known() -> None:
    target = make_places(50, seed=9)

    def curve(places: Places) -> np.ndarray:
        a, b, c = places.factors.T
        return np.stack([1 + a - 0.3 * a * b, b + 0.2 * c**2, np.cos(a) + 0.1 * a * b * c], axis=1)

    errors = []
    for count in (5, 15, 40):
        anchors = make_places(count, seed=3)
        errors.append(np.abs(cardinal_weights(target, anchors) @ curve(anchors) - curve(target)).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_normalised_weights_and_densities_have_their_places() -> None:
    places = places_of([Recipe("ties", {"a": 1.0, "b": 3.0}, {"b": 0.4}, scale=2.0), None], ["a", "b"])
    assert places.factors.tolist() == [[0.5, 1.5], [0.0, 0.0]]
    assert places.densities.tolist() == [[1.0, 0.4], [1.0, 1.0]]


def test_a_rung_keeps_few_queries_and_what_anybody_ranks_high() -> None:
    dev = make_dev()
    queries = rng.normal(size=(len(query_texts(dev)), 8)).astype(np.float32)
    passages = rng.normal(size=(len(dev.texts), 8)).astype(np.float32)
    rung = make_rung(dev, 0.5, [(queries, passages)])
    assert rung.dev.sizes["one"]["queries"] == 2
    assert 10 <= rung.dev.sizes["one"]["passages"] < 30
    assert [query_texts(dev)[row] for row in rung.queries] == query_texts(rung.dev)
    assert [dev.texts[row] for row in rung.passages] == list(rung.dev.texts)
    # Whoever was pooled has the same top ten in the pool as in the whole corpus.
    whole = score_embeddings(dev, queries, passages).per_query["one"]["search"]
    part = score_embeddings(rung.dev, queries[rung.queries], passages[rung.passages]).per_query["one"]["search"]
    assert part == {query: whole[query] for query in part}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    folder = tmp_path_factory.mktemp("merge_interpolation")
    base = pico_backbone(folder / "base")
    return read_experts(base, {n: pico_adapter(base, folder / n, seed=s, scale=0.2) for s, n in enumerate(NAMES)})


def make_space(method: str = "task_arithmetic", densities: Interval | None = None) -> Space:
    return Space(method, NAMES, Interval(0.0, 1.0, 0.1), densities, 1.0, 1.0, 0, "l1")


def test_a_mix_whose_embeddings_are_not_finite_is_named(experts: Experts) -> None:
    model = load_model(experts.base)
    encoder = Encoder(model)
    with Mixer(model, experts) as mixer:
        evaluator = Evaluator(mixer, encoder, make_dev(), {"base": own_prompts(model.prompts)})
        recipe = Recipe("task_arithmetic", {"a": 1e30, "b": 0.5})
        named = r"^the mix by task_arithmetic with weights {'a': 1e\+30, 'b': 0.5}: .* hold NaN or infinity"
        with pytest.raises(DataError, match=named):
            evaluator.evaluate("search", recipe)


def test_the_stand_in_comes_nearer_to_the_model_the_more_was_evaluated(experts: Experts) -> None:
    dev, space, model = make_dev(), make_space(), load_model(experts.base)
    encoder = Encoder(model)
    with Mixer(model, experts) as mixer:
        evaluator = Evaluator(mixer, encoder, dev, {"base": own_prompts(model.prompts)})
        done = [evaluator.evaluate("search", space.recipe(space.point({"a": a, "b": b}))) for a, b in [(0.3, 0.3)]]
        stand_in = StandIn(space, evaluator)
        point = space.point({"a": 0.6, "b": 0.7})
        assert stand_in.score([space.point({"a": 0.3, "b": 0.3})], done)[0] == pytest.approx(done[0].value, abs=1e-3)
        learned = [replace(done[0], recipe=Recipe(space.method, {"a": 0.3, "b": 0.3}))]
        other = StandIn(replace(space, density=0.5), evaluator)
        assert other.score([space.point({"a": 0.3, "b": 0.3})], learned)[0] == pytest.approx(done[0].value, abs=1e-3)
        assert stand_in.score_unseen(done).shape == (1,)
        before = encoder.tokens
        rung = make_rung(dev, 0.5, [evaluator.embeddings(done[0].recipe)])
        evaluator.evaluate_rung(done[0].recipe, rung)
        assert encoder.tokens == before, "what was evaluated in full has its rung for free"
        evaluator.evaluate_rung(space.recipe(point), rung)
        assert 0 < encoder.tokens - before < max(trial.tokens for trial in done)
        mixer.mix(space.recipe(point))
        true = np.concatenate(embed(dev, encoder, evaluator.prompts)).ravel()
        errors = []
        for more in ([], [(0.9, 0.1), (0.1, 0.9), (0.9, 0.9), (0.6, 0.4), (0.4, 0.8)]):
            done += [evaluator.evaluate("search", space.recipe(space.point({"a": a, "b": b}))) for a, b in more]
            recipes = [None, *(space.recipe(space.point({n: 1.0})) for n in NAMES), *(trial.recipe for trial in done)]
            anchors = places_of(recipes, NAMES)
            rows = np.stack([np.concatenate(evaluator.embeddings(recipe)).ravel() for recipe in recipes])
            weights = cardinal_weights(places_of([space.recipe(point)], NAMES), anchors)
            errors.append(float(np.linalg.norm(weights[0] @ rows - true) / np.linalg.norm(true)))
        assert errors[1] < errors[0] / 2


def test_the_pair_is_the_one_named_or_the_heaviest() -> None:
    weights = {"a": 0.2, "b": 0.5, "c": 0.5}
    assert choose_pair(weights, []) == ("b", "c")
    assert choose_pair(weights, ["c", "a"]) == ("c", "a")
    with pytest.raises(ParamsError, match="'x'; there are a, b, c"):
        choose_pair(weights, ["a", "x"])


def test_a_grid_of_two_holds_the_others_and_leaves_out_what_has_no_weight() -> None:
    centre = Recipe("linear", {"a": 0.5, "b": 0.5})
    points = grid_of_two(make_space("linear"), centre, ("b", "a"), [0.0, 1.0])
    assert points == [None, {"weight.b": 0.0, "weight.a": 1.0}, {"weight.b": 1.0, "weight.a": 0.0},
                      {"weight.b": 1.0, "weight.a": 1.0}]  # fmt: skip
    space = make_space("ties", Interval(0.1, 1.0, 0.1))
    (point,) = grid_of_two(space, Recipe("ties", {"a": 1.0, "b": 1.0}, {"a": 0.3}), ("a", "b"), [0.5])
    assert point == {"weight.a": 0.5, "weight.b": 0.5, "density.a": 0.3, "density.b": 1.0}
    (fixed,) = grid_of_two(make_space("ties"), Recipe("ties", {"a": 1.0, "b": 1.0}, {"a": 0.3}), ("a", "b"), [0.5])
    assert make_space("ties").recipe(fixed or {}).densities == {"a": 0.3, "b": 1.0}, "those of the model that is taken"


def test_the_share_of_interaction_is_that_of_a_two_way_analysis_of_variance() -> None:
    rows, columns = np.array([0.1, 0.2, 0.4]), np.array([0.0, 0.3])
    assert interaction_share(rows[:, None] + columns[None, :]) == pytest.approx(0)
    assert interaction_share(np.array([[1.0, -1.0], [-1.0, 1.0]])) == pytest.approx(1)
    assert interaction_share(np.ones((3, 3))) is None
    with_hole = np.arange(9.0).reshape(3, 3)
    with_hole[0, 0] = np.nan
    assert interaction_share(with_hole) == pytest.approx(0)
    np.fill_diagonal(with_hole, np.nan)
    assert interaction_share(with_hole) is None
