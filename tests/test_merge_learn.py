"""Learned coefficients: the run-time mix is the written one, gradients find a better mix, the regulariser holds it
back."""

import random
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from stm.errors import ParamsError
from stm.merge.dev import DevSet, make_dev_set
from stm.merge.experts import Experts, read_experts
from stm.merge.learn import _batch, _not_negatives, adapters_at_run_time, learn, make_recipe
from stm.merge.materialise import materialise
from stm.merge.mixer import Mixer
from stm.merge.recipe import Recipe, layer_of
from stm.models import load_model
from stm.params.merge import LearnParams
from stm.tasks import Passage, Task
from tests.pico import pico_adapter, pico_backbone

PROMPTS = {"query": "Find: ", "document": ""}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge_learn")
    base = pico_backbone(folder / "base")
    for index, name in enumerate(["a", "b"]):
        pico_adapter(base, folder / name, rank=2 + index, seed=index, scale=0.3)
    return folder


@pytest.fixture(scope="module")
def experts(root: Path) -> Experts:
    return read_experts(root / "base", {name: root / name for name in ("a", "b")})


@pytest.fixture
def model(root: Path) -> SentenceTransformer:
    return load_model(root / "base")


@pytest.fixture(scope="module")
def dev() -> DevSet:
    corpus = {f"p{i}": Passage("", f"passage {i} about {chr(97 + i) * 3}") for i in range(14)}
    queries = {f"q{i}": f"what is {chr(97 + i) * 3}" for i in range(8)}
    qrels = {f"q{i}": {f"p{i}": 1, f"p{(i + 1) % 8}": 1, "p9": 0} for i in range(8)}
    return make_dev_set([Task("toy", "general", corpus, queries, qrels)], [], 0, 0, 0)


def make_params(**changes: object) -> LearnParams:
    values = {"granularity": "expert", "steps": 25, "learning_rate": 0.1, "pull": 0, "temperature": 0.1, "passages": 10}
    return LearnParams.model_validate({**values, **changes})


def uniform(experts: Experts) -> Recipe:
    return Recipe("linear", dict.fromkeys(experts.names, 1 / len(experts.names)))


@pytest.mark.parametrize("layers", [[None], [0, 1]])
def test_the_mix_at_run_time_is_the_mix_in_the_weights(
    experts: Experts, model: SentenceTransformer, layers: list[int | None]
) -> None:
    coefficients = torch.tensor([[0.7, 0.2], [0.1, 0.9]])[: len(layers)]
    tokens = {"input_ids": torch.arange(2, 40).reshape(2, 19), "attention_mask": torch.ones(2, 19, dtype=torch.long)}
    with torch.inference_mode():
        before = model(dict(tokens))["sentence_embedding"]
        with adapters_at_run_time(model, experts, coefficients, layers):
            found = model(dict(tokens))["sentence_embedding"]
        after = model(dict(tokens))["sentence_embedding"]
        with Mixer(model, experts) as mixer:
            mixer.mix(make_recipe(experts.names, coefficients, layers, uniform(experts)))
            expected = model(dict(tokens))["sentence_embedding"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(before, after)


@pytest.mark.parametrize("granularity", ["expert", "layer"])
def test_learning_lowers_the_loss_and_leaves_the_model(
    experts: Experts, model: SentenceTransformer, dev: DevSet, granularity: str
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learned = learn(model, experts, dev, PROMPTS, uniform(experts), make_params(granularity=granularity), 0)
    assert sum(learned.losses[-5:]) < sum(learned.losses[:5])
    assert learned.tokens > 0
    assert learned.recipe.method == "task_arithmetic"
    assert set(learned.recipe.layers) == ({"0", "1"} if granularity == "layer" else set())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_strong_pull_keeps_the_searched_weights(experts: Experts, model: SentenceTransformer, dev: DevSet) -> None:
    start = Recipe("linear", {"a": 3.0, "b": 1.0})
    free = learn(model, experts, dev, PROMPTS, start, make_params(steps=10, learning_rate=0.01), 0)
    held = learn(model, experts, dev, PROMPTS, start, make_params(steps=10, learning_rate=0.01, pull=1000.0), 0)

    def distance(recipe: Recipe) -> float:
        return abs(recipe.weights["a"] - 0.75) + abs(recipe.weights["b"] - 0.25)

    assert distance(held.recipe) < distance(free.recipe)


def test_learning_is_repeatable(experts: Experts, model: SentenceTransformer, dev: DevSet) -> None:
    runs = [learn(model, experts, dev, PROMPTS, uniform(experts), make_params(steps=4), 0) for _ in range(2)]
    assert runs[0].recipe == runs[1].recipe
    assert runs[0].losses == runs[1].losses


def test_a_step_takes_no_more_queries_than_half_of_its_passages(dev: DevSet) -> None:
    halves = dict.fromkeys(dev.tasks[0].queries, "search")
    queries, passages, targets = _batch(dev.tasks[0], halves, 6, random.Random(0))
    assert len(set(queries)) == len(targets) == 3
    assert len(passages) == 6
    assert _batch(dev.tasks[0], halves, 16, random.Random(0))[0] == list(halves), "where they fit, all in their order"


@pytest.mark.parametrize("ignores", [False, True])
def test_a_querys_own_text_is_no_negative_where_the_task_ignores_it(ignores: bool) -> None:
    corpus = {name: Passage("", name) for name in ("q1", "q2", "a", "b")}
    qrels = {"q1": {"a": 1, "b": 1}, "q2": {"b": 1}}
    task = Task("toy", "general", corpus, {"q1": "q1", "q2": "q2"}, qrels, {"ignore_identical_ids": ignores})
    found = _not_negatives(task, ["q1", "q2"], ["a", "b", "q1", "q2"], [0, 1])
    assert found == [[False, True, ignores, False], [False, False, False, ignores]]


def test_starts_are_plain_factors_of_the_deltas() -> None:
    assert Recipe("linear", {"a": 3.0, "b": 1.0}, scale=2.0).factors() == {"a": 1.5, "b": 0.5}
    assert Recipe("task_arithmetic", {"a": 3.0, "b": 1.0}, scale=2.0).factors() == {"a": 6.0, "b": 2.0}


def test_layers_are_read_from_names() -> None:
    assert layer_of("layers.11.mlp.up_proj.weight") == 11
    assert layer_of("model.layers.3.self_attn.q_proj.weight") == 3
    assert layer_of("encoder.layer.2.output.dense.weight") == 2
    assert layer_of("embed_tokens.weight") is None
    assert layer_of("layers.11.mlp.up_proj.weight", [None]) is None


def test_weights_of_a_layer_replace_the_others(experts: Experts, tmp_path: Path) -> None:
    recipe = Recipe("task_arithmetic", {"a": 0.5, "b": 0.5}, layers={"1": {"a": 1.0, "b": 0.0}})
    first, second = (f"layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    delta = recipe.merged_delta(experts.adapters, second)
    assert delta is not None
    torch.testing.assert_close(delta, experts.adapters["a"].delta(second))
    delta = recipe.merged_delta(experts.adapters, first)
    mean = 0.5 * experts.adapters["a"].delta(first) + 0.5 * experts.adapters["b"].delta(first)
    torch.testing.assert_close(delta, mean)
    assert recipe.key() != Recipe("task_arithmetic", {"a": 0.5, "b": 0.5}).key()
    materialise(experts, recipe, {}, tmp_path / "merged")
    assert "each layer has weights of its own" in (tmp_path / "merged/README.md").read_text()
    with pytest.raises(ParamsError, match="layer 1"):
        Recipe("task_arithmetic", {"a": 0.5}, layers={"1": {"a": float("nan")}})
