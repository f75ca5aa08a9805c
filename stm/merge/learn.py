"""Learned coefficients: gradient descent on the weights of the experts alone, one per expert or one per expert and
layer.

The model stays frozen; every adapted linear layer adds `sum_k c_k scale_k B_k A_k x`, and only `c` is trained, by
InfoNCE on dev queries of the search half. Whether the result is taken is decided elsewhere, on the other half.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from stm.deltas import match_names
from stm.encode import Passes
from stm.errors import ModelError
from stm.merge.dev import DevSet
from stm.merge.experts import Experts
from stm.merge.recipe import Recipe, layer_of
from stm.params.merge import LearnParams
from stm.progress import Meter
from stm.tasks import Task


@dataclass(frozen=True)
class Learned:
    """The recipe found, the losses in order, and the tokens that went through the model."""

    recipe: Recipe
    losses: list[float]
    tokens: int
    seconds: float


@contextmanager
def adapters_at_run_time(
    model: nn.Module, experts: Experts, coefficients_LK: Tensor, layers: Sequence[int | None]
) -> Iterator[None]:
    """Let every adapted linear layer add its experts' deltas, weighted by the row of its layer (K: experts in name
    order).
    """
    first = next(iter(experts.adapters.values()))
    names = match_names(first, dict(model.named_parameters()))
    with ExitStack() as stack:
        for name, target in names.items():
            module = model.get_submodule(target.removesuffix(".weight"))
            if not isinstance(module, nn.Linear):
                raise ModelError(
                    f"{name!r} is no linear layer; learned coefficients need adapters of linear layers only"
                )
            handle = module.register_forward_hook(
                _hook(experts, name, coefficients_LK, layers.index(layer_of(name, layers)))
            )
            stack.callback(handle.remove)
        yield


def _hook(experts: Experts, name: str, coefficients_LK: Tensor, row: int):  # type: ignore[no-untyped-def]
    device = coefficients_LK.device
    parts = [adapter.factors[name] for adapter in experts.adapters.values()]
    a = torch.cat([part.a.float() for part in parts]).to(device)
    b = torch.cat([part.b.float() for part in parts], dim=1).to(device)
    scales = torch.cat([torch.full((len(part.a),), part.scale) for part in parts]).to(device)
    expert_of = torch.cat([torch.full((len(part.a),), index) for index, part in enumerate(parts)]).to(device)

    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            hidden = (inputs[0].float() @ a.T) * (scales * coefficients_LK[row][expert_of])
            return output + (hidden @ b.T).to(output.dtype)

    return add


def _embed(passes: Passes, texts: Sequence[str], prompt: str) -> tuple[Tensor, int]:
    rows = passes.tokenize([prompt + text for text in texts])
    return passes.embed(passes.arrange(rows)), sum(len(row) for row in rows)


def _batch(
    task: Task, halves: Mapping[str, str], size: int, rng: random.Random
) -> tuple[list[str], list[str], list[int]]:
    """Query ids of the search half, passage ids (one relevant one per query first), and each query's row among
    them.

    At most half of `size` queries, drawn where there are more: a step's memory does not grow with the task.
    """
    queries = [q for q in task.queries if halves[q] == "search" and any(score > 0 for score in task.qrels[q].values())]
    most = max(1, size // 2)
    queries = rng.sample(queries, most) if len(queries) > most else queries
    positives = [rng.choice([p for p, score in task.qrels[q].items() if score > 0]) for q in queries]
    passages = list(dict.fromkeys(positives))
    others = [p for p in task.corpus if p not in set(passages)]
    passages += rng.sample(others, min(len(others), max(0, size - len(passages))))
    return queries, passages, [passages.index(p) for p in positives]


def _not_negatives(
    task: Task, queries: Sequence[str], passages: Sequence[str], targets: Sequence[int]
) -> list[list[bool]]:
    """Per query which passages are neither its target nor negatives: others that are judged relevant, and its own text
    where the task ignores it.
    """

    def is_left_out(query_id: str, passage_id: str) -> bool:
        return task.qrels[query_id].get(passage_id, 0) > 0 or (task.ignores_identical_ids and passage_id == query_id)

    return [
        [column != target and is_left_out(query_id, passage_id) for column, passage_id in enumerate(passages)]
        for query_id, target in zip(queries, targets, strict=True)
    ]


def _loss(
    passes: Passes,
    task: Task,
    halves: Mapping[str, str],
    prompts: Mapping[str, str],
    params: LearnParams,
    rng: random.Random,
) -> tuple[Tensor, int]:
    """InfoNCE of one task on one batch."""
    queries, passages, targets = _batch(task, halves, params.passages, rng)
    queries_QD, query_tokens = _embed(passes, [task.queries[q] for q in queries], prompts.get("query", ""))
    texts = [task.corpus[p].full_text() for p in passages]
    passages_PD, passage_tokens = _embed(passes, texts, prompts.get("document", ""))
    scores_QP = queries_QD @ passages_PD.T / params.temperature
    masked = torch.tensor(_not_negatives(task, queries, passages, targets), device=scores_QP.device)
    scores_QP = scores_QP.masked_fill(masked, float("-inf"))
    loss = nn.functional.cross_entropy(scores_QP, torch.tensor(targets, device=scores_QP.device))
    return loss, query_tokens + passage_tokens


def learn(
    model: SentenceTransformer,
    experts: Experts,
    dev: DevSet,
    prompts: Mapping[str, str],
    start: Recipe,
    params: LearnParams,
    seed: int,
) -> Learned:
    """Train the coefficients from those of `start`; `model` must hold the base's weights and is left as it was.

    Returns a task-arithmetic recipe, with weights per layer where `granularity` is "layer". Adam; the tasks take
    turns; `seed` draws queries and passages.
    """
    began, rng, passes = time.perf_counter(), random.Random(seed), Passes(model)
    found = {layer_of(name) for name in experts.targets}
    is_layered = params.granularity == "layer"
    layers = sorted(found, key=lambda layer: -1 if layer is None else layer) if is_layered else [None]
    weights = start.factors()
    anchor = torch.tensor([[weights.get(name, 0.0) for name in experts.names]] * len(layers), device=model.device)
    coefficients = anchor.clone().requires_grad_()
    frozen = [p for p in model.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam([coefficients], lr=params.learning_rate)
    losses, tokens = [], 0
    with adapters_at_run_time(model, experts, coefficients, layers), Meter("learn weights", params.steps) as meter:
        for step in range(params.steps):
            task = dev.tasks[step % len(dev.tasks)]
            loss, used = _loss(passes, task, dev.halves[task.name], prompts, params, rng)
            total = loss + params.pull * ((coefficients - anchor) ** 2).mean()
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            tokens += used
            meter.advance(note=f"loss {losses[-1]:.3f}")
    for parameter in frozen:
        parameter.requires_grad_(True)
    recipe = make_recipe(experts.names, coefficients.detach().cpu(), layers, start)
    return Learned(recipe, losses, tokens, time.perf_counter() - began)


def make_recipe(names: Sequence[str], coefficients_LK: Tensor, layers: Sequence[int | None], start: Recipe) -> Recipe:
    """The coefficients as a recipe: their mean per expert, and the rows by layer where there are several."""
    rounded = [[round(float(value), 6) for value in row] for row in coefficients_LK]
    means = coefficients_LK.mean(dim=0)
    weights = {name: round(float(mean), 6) for name, mean in zip(names, means, strict=True)}
    by_layer = {str(layer): dict(zip(names, row, strict=True)) for layer, row in zip(layers, rounded, strict=True)}
    return Recipe("task_arithmetic", weights, seed=start.seed, layers=by_layer if len(layers) > 1 else {})
