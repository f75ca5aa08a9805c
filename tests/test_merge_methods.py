"""The merge methods: equality with mergekit 0.1.5 and PEFT where the formulas agree, and properties."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit import sparsify
from peft.utils import merge_utils
from torch import Tensor

from stm.deltas import Adapter, Factors
from stm.errors import ParamsError
from stm.merge import methods
from stm.merge.methods import (
    METHODS,
    KeptMasks,
    Part,
    draw_mask,
    elect,
    find_largest,
    find_method,
    kept_count,
    mask_seed,
    merge_parts,
    rescale_masked,
)
from stm.merge.recipe import Recipe
from tests.merge_goldens import mask_source, mergekit_merge

densities = st.floats(0.01, 1.0)
seeds = st.integers(0, 2**31)


def random_deltas(count: int, seed: int, shape: tuple[int, ...] = (7, 5)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def merge(name: str, deltas: list[Tensor], weights: list[float], kept: list[float], rescale: str = "l1") -> Tensor:
    parts = [
        Part(delta, weight, density, index)
        for index, (delta, weight, density) in enumerate(zip(deltas, weights, kept, strict=True))
    ]
    return merge_parts(find_method(name), parts, rescale)  # type: ignore[arg-type]


def fix_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give mergekit our masks, in the order in which it asks for them, so that only the formulas are compared."""
    monkeypatch.setattr(sparsify.torch, "bernoulli", mask_source())


def test_what_rounding_leaves_of_a_divisor_of_nothing_divides_nothing() -> None:
    weights = [-1.5, 1.1, 0.4, 0.5]  # the first three agree and sum to 0, in float32 to 3e-8
    deltas = [torch.tensor([value]) for value in (-1e-3, 1e-3, 1e-3, -1e-6)]
    assert sum(torch.tensor(weights[:3])) != 0
    assert elect(deltas, weights, normalize=True).item() == pytest.approx(3e-3)


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.6, 0.3, 0.1], [0.9, 0.2, 0.4], [1.0, 0.0, 0.7]])
@pytest.mark.parametrize("kept", [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [0.3, 0.9, 0.1]])
def test_equals_mergekit(name: str, weights: list[float], kept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    # Multiples of 1/64: mergekit's subtraction of the base loses nothing, so that only formulas are compared.
    base, *deltas = [(tensor * 64).round() / 64 for tensor in random_deltas(4, seed=3, shape=(16, 12))]
    fix_masks(monkeypatch)
    expected = mergekit_merge(name, base, deltas, weights, kept)
    torch.testing.assert_close(base + merge(name, deltas, weights, kept), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", list(METHODS))
def test_equals_the_golden_of_mergekit(name: str) -> None:
    golden = json.loads(Path(__file__).with_name("merge_goldens.json").read_text())
    assert set(golden["merged"]) == set(METHODS)
    deltas, origin = [torch.tensor(delta) for delta in golden["deltas"]], golden["origin"]
    found = merge(name, deltas, origin["weights"], origin["densities"])
    torch.testing.assert_close(found, torch.tensor(golden["merged"][name]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_equals_peft_where_all_weights_are_one(density: float) -> None:
    deltas = random_deltas(3, seed=5)
    # PEFT divides by the count of agreeing experts, mergekit by their weights: the same where all are 1.
    kept = [merge_utils.prune(delta, density, method="magnitude") if density < 1 else delta for delta in deltas]
    mask = merge_utils.calculate_majority_sign_mask(torch.stack(kept))
    expected = merge_utils.disjoint_merge(torch.stack(kept), mask)
    torch.testing.assert_close(merge("ties", deltas, [1.0] * 3, [density] * 3), expected)


def test_ties_differs_from_peft_with_other_weights() -> None:
    deltas, weights = random_deltas(3, seed=5), [0.6, 0.3, 0.1]
    peft = merge_utils.ties(deltas, torch.tensor(weights), density=0.5)
    ours = merge("ties", deltas, weights, [0.5] * 3)
    assert float((ours - peft).norm() / peft.norm()) > 0.5


def test_task_arithmetic_equals_peft() -> None:
    deltas, weights = random_deltas(3, seed=6), [0.6, -0.3, 0.1]
    expected = merge_utils.task_arithmetic(deltas, torch.tensor(weights))
    torch.testing.assert_close(merge("task_arithmetic", deltas, weights, [1.0] * 3), expected)


def test_dare_linear_rescaled_by_density_equals_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas, weights = random_deltas(3, seed=7), [0.6, 0.3, 0.1]
    fix_masks(monkeypatch)
    expected = merge_utils.dare_linear(deltas, torch.tensor(weights), density=0.4)
    torch.testing.assert_close(merge("dare_linear", deltas, weights, [0.4] * 3, "density"), expected)


def test_linear_equals_the_average_of_full_weights() -> None:
    base, *deltas = random_deltas(4, seed=8)
    weights = [0.5, 2.0, 0.25]
    expected = sum(w * (base + d) for w, d in zip(weights, deltas, strict=True)) / sum(weights)
    torch.testing.assert_close(base + merge("linear", deltas, weights, [1.0] * 3), expected)


@given(size=st.integers(1, 60), density=densities, seed=seeds)
def test_magnitude_keeps_exactly_the_count(size: int, density: float, seed: int) -> None:
    delta = random_deltas(1, seed, (size,))[0]
    mask = find_largest(delta, density)
    assert int(mask.sum()) == kept_count(size, density)
    assert kept_count(size, density) == max(1, int(density * size))
    assert mask.all() or delta[mask].abs().min() >= delta[~mask].abs().max()


@given(size=st.integers(1, 40), density=densities)
def test_equal_magnitudes_keep_the_first(size: int, density: float) -> None:
    signs = torch.tensor([(-1.0) ** index for index in range(size)])
    mask, count = find_largest(signs, density), kept_count(size, density)
    assert mask[:count].all()
    assert not mask[count:].any()


class SaysGpu(torch.Tensor):
    """A tensor on the CPU that takes the ways of one on a GPU."""

    is_cuda = True


@given(size=st.integers(1, 60), density=densities, seed=seeds, equal=st.booleans())
def test_a_gpu_keeps_the_same_values(size: int, density: float, seed: int, equal: bool) -> None:
    delta = random_deltas(1, seed, (size,))[0]
    delta = delta.sign() if equal else delta
    assert torch.equal(find_largest(delta.as_subclass(SaysGpu), density), find_largest(delta, density))


def test_random_keeps_the_density_on_average_and_the_norm() -> None:
    delta = random_deltas(1, 1, (200, 200))[0]
    mask = draw_mask(delta.shape, 0.3, seed=4)
    assert float(mask.float().mean()) == pytest.approx(0.3, abs=0.01)
    kept = rescale_masked(delta * mask, delta, 0.3, "l1")
    assert float(kept.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-5)
    torch.testing.assert_close(rescale_masked(delta * mask, delta, 0.3, "density")[mask], delta[mask] / 0.3)


recipes = st.lists(st.tuples(st.sampled_from(list(METHODS)), st.sampled_from([0.1, 0.5, 1.0])), min_size=2, max_size=6)


@settings(max_examples=40)
@given(recipes=recipes, seed=seeds)
def test_kept_masks_are_those_that_would_be_made(recipes: list[tuple[str, float]], seed: int) -> None:
    deltas, kept = random_deltas(3, seed), KeptMasks()
    for name, density in recipes:
        parts = [Part(delta, 0.5, density, seed=index) for index, delta in enumerate(deltas)]
        assert torch.equal(merge_parts(find_method(name), parts, "l1", kept), merge_parts(find_method(name), parts))


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties"])
def test_another_weight_makes_no_mask_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make_mask, deltas, kept = methods.make_mask, random_deltas(3, 0), KeptMasks()

    def count(thin: methods.Thin, part: Part) -> Tensor:
        made.append(part.seed)
        return make_mask(thin, part)

    monkeypatch.setattr(methods, "make_mask", count)
    for weight, density in ((0.5, 0.5), (0.9, 0.5), (0.9, 0.3), (0.1, 0.3)):
        parts = [Part(delta, weight, density, seed=index) for index, delta in enumerate(deltas)]
        merge_parts(find_method(name), parts, "l1", kept)
    assert made == [0, 1, 2, 0, 1, 2], "once per density"


@settings(max_examples=30)
@given(name=st.sampled_from(list(METHODS)), seed=seeds)
def test_one_expert_with_weight_one_is_that_expert(name: str, seed: int) -> None:
    delta = random_deltas(1, seed)[0]
    assert torch.equal(merge(name, [delta], [1.0], [1.0]), delta)


@settings(max_examples=30)
@given(name=st.sampled_from(list(METHODS)), count=st.integers(2, 5), seed=seeds)
def test_equal_experts_with_weights_that_sum_to_one_are_that_expert(name: str, count: int, seed: int) -> None:
    delta = random_deltas(1, seed)[0]
    merged = merge(name, [delta] * count, [1 / count] * count, [1.0] * count)
    torch.testing.assert_close(merged, delta)


@settings(max_examples=40)
@given(name=st.sampled_from(list(METHODS)), density=densities, seed=seeds)
def test_inputs_stay_and_the_result_is_finite_and_repeatable(name: str, density: float, seed: int) -> None:
    deltas = random_deltas(3, seed, (3, 2))
    deltas[1][0] = 0.0
    copies = [delta.clone() for delta in deltas]
    first = merge(name, deltas, [0.7, 0.2, 0.4], [density] * 3)
    second = merge(name, deltas, [0.7, 0.2, 0.4], [density] * 3)
    assert all(torch.equal(delta, copy) for delta, copy in zip(deltas, copies, strict=True))
    assert torch.equal(first, second)
    assert bool(torch.isfinite(first).all())


@settings(max_examples=40)
@given(name=st.sampled_from(list(METHODS)), density=densities, seed=seeds, order=st.permutations([0, 1, 2]))
def test_the_order_of_experts_does_not_matter(name: str, density: float, seed: int, order: list[int]) -> None:
    deltas, weights = random_deltas(3, seed), [0.5, 0.3, 0.9]
    parts = [Part(deltas[index], weights[index], density, seed=index) for index in range(3)]
    merged = merge_parts(find_method(name), parts)
    torch.testing.assert_close(merge_parts(find_method(name), [parts[index] for index in order]), merged)


@given(density=densities)
def test_all_zero_deltas_stay_zero(density: float) -> None:
    zero = torch.zeros(3, 4)
    for name in METHODS:
        assert not merge(name, [zero, zero], [0.5, 0.5], [density] * 2).any()


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_a_density_out_of_range_is_refused(density: float) -> None:
    with pytest.raises(ParamsError, match=r"fraction kept, in \(0, 1\]"):
        Recipe("ties", {"a": 1.0}, {"a": density})


@pytest.mark.parametrize("name", ["linear", "ties"])
def test_weights_that_cannot_be_normalised_are_refused(name: str) -> None:
    with pytest.raises(ParamsError, match="sum to zero"):
        Recipe(name, {"a": 0.5, "b": -0.5})
    assert Recipe("task_arithmetic", {"a": 0.5, "b": -0.5}).experts == ("a", "b")


def test_other_bad_recipes_are_refused() -> None:
    bad: list[Callable[[], Recipe]] = [
        lambda: Recipe("slurp", {"a": 1.0}),
        lambda: Recipe("task_arithmetic", {}),
        lambda: Recipe("linear", {"a": float("nan")}),
    ]
    for make in bad:
        with pytest.raises(ParamsError):
            make()


def test_keys_tell_models_apart_not_spellings() -> None:
    assert Recipe("linear", {"a": 1, "b": 3}).key() == Recipe("linear", {"b": 0.75, "a": 0.25}).key()
    assert Recipe("task_arithmetic", {"a": 1, "b": 3}).key() != Recipe("task_arithmetic", {"a": 0.25, "b": 0.75}).key()
    assert Recipe("linear", {"a": 1}, seed=1).key() == Recipe("linear", {"a": 1}, seed=2).key()
    half = {"a": 0.5, "b": 0.5}
    assert Recipe("dare_ties", half, half, seed=1).key() != Recipe("dare_ties", half, half, seed=2).key()
    assert Recipe("dare_ties", half, half).key() != Recipe("dare_ties", half, half, rescale="density").key()
    assert Recipe("dare_ties", half, half).key() != Recipe("dare_ties", half, {"a": 0.5}).key()
    assert Recipe("task_arithmetic", half, scale=2.0).key() != Recipe("task_arithmetic", half).key()
    assert Recipe("ties", {"a": 1, "b": 1}).key() == Recipe("ties", half, seed=5).key()
    assert Recipe("ties", half, half).key() == Recipe("ties", half, half, seed=5, rescale="density").key()
    assert Recipe("ties", {"a": -1, "b": -1}).key() != Recipe("ties", half).key()


SAME_MODEL = [
    (Recipe("linear", {"a": 2, "b": 6}, scale=0.8), Recipe("task_arithmetic", {"a": 0.2, "b": 0.6})),
    (Recipe("task_arithmetic", {"a": 0.2, "b": 0.6}), Recipe("dare_linear", {"a": 0.2, "b": 0.6}, seed=7)),
    (Recipe("task_arithmetic", {"a": 0.2, "b": 0.0}), Recipe("dare_linear", {"a": 0.2}, {"b": 0.3})),
    (Recipe("linear", {"a": 5.0, "b": 0.0}), Recipe("ties", {"a": 0.3})),
    (Recipe("linear", {"a": 1.0}), Recipe("dare_ties", {"a": 1.0})),
    (Recipe("ties", {"a": 0.5, "b": 0.0}, {"b": 0.4}), Recipe("ties", {"a": 1.0})),
]


@pytest.mark.parametrize(("one", "other"), SAME_MODEL, ids=lambda recipe: recipe.method)
def test_recipes_of_several_methods_that_give_one_model_have_one_key(one: Recipe, other: Recipe) -> None:
    assert one.key() == other.key()
    generator = torch.Generator().manual_seed(0)
    adapters = {}
    for name in ("a", "b"):
        a, b = (torch.randn(4, 4, generator=generator) for _ in range(2))
        adapters[name] = Adapter(Path(name), "", {"w": Factors(a, b, 0.5)})
    first, second = (recipe.merged_delta(adapters, "w") for recipe in (one, other))
    assert first is not None
    torch.testing.assert_close(first, second)


def test_masks_depend_on_seed_expert_and_tensor() -> None:
    seeds_seen = {mask_seed(s, e, t) for s in (0, 1) for e in ("a", "b") for t in ("x", "y")}
    assert len(seeds_seen) == 8
    assert mask_seed(0, "a", "x") == mask_seed(0, "a", "x")
