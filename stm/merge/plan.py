"""What params ask for, as spaces, recipes and one search per method; the parts of the merge stage between params and
trials.

Knows params and hands plain values to the modules that search. Does not load or write models.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from stm.chip import compute_dtype, device
from stm.errors import ParamsError
from stm.files import hash_code, sha256_text
from stm.merge.dev import DevSet
from stm.merge.evaluator import Evaluator
from stm.merge.experts import Experts, hash_experts
from stm.merge.fidelity import RungScore, fidelity_proposer, measure_trust, mixes_of, rung_correlation
from stm.merge.interaction import choose_pair
from stm.merge.recipe import Recipe
from stm.merge.rungs import Rung, make_rung
from stm.merge.samplers import Proposer, grid_proposer, make_sampler
from stm.merge.search import run_search
from stm.merge.space import Interval, Space
from stm.merge.stand_in import StandIn
from stm.merge.trials import Trial, open_study, storage_url
from stm.params.merge import MergeParams

MOST_POINTS = 200_000  # of a grid that is tried point by point
# The code that turns recipes and dev tasks into scores, and the libraries that it computes with.
SCORING = (
    "ahead", "chip", "deltas", "encode", "merge/dev", "merge/evaluator", "merge/methods", "merge/mixer", "merge/prompt",
    "merge/recipe", "merge/rungs", "merge/space", "metrics", "models", "packed", "pooled", "rounding",
)  # fmt: skip
LIBRARIES = ("numpy", "tokenizers", "torch", "transformers", "sentence-transformers")


def make_space(params: MergeParams, method: str, experts: Sequence[str]) -> Space:
    """The space that params describe for one method; `ParamsError` if the search that they ask for cannot search it."""
    weights, densities = params.search.weights, params.search.densities
    space = Space(
        method=method,
        experts=tuple(experts),
        weights=Interval(weights.low, weights.high, weights.step),
        densities=Interval(densities.low, densities.high, densities.step) if densities else None,
        density=params.density,
        scale=params.scale,
        seed=params.seed,
        rescale=params.rescale,
    )
    kind, count = params.search.kind, len(space.intervals())
    if kind == "cma" and count == 1 and not params.weights:
        raise ParamsError("merge.search.kind is cma, which needs two coefficients, and there is one; take grid or tpe")
    if kind == "grid" and space.grid_size() > MOST_POINTS and not params.weights:
        raise ParamsError(
            f"merge.search.kind is grid, and the grid of {method!r} has {space.grid_size():,} points, more than "
            f"{MOST_POINTS:,}; raise the steps of merge.search.weights and densities, or take multi_fidelity"
        )
    return space


def fixed_recipe(params: MergeParams, names: Sequence[str]) -> Recipe | None:
    """The recipe that params fix, or None where a search is wanted; `ParamsError` names an expert that is not
    there.
    """
    if not params.weights:
        return None
    unknown = sorted({*params.weights, *params.densities} - set(names))
    if unknown:
        raise ParamsError(
            f"merge.weights or merge.densities name the expert {unknown[0]!r}; there are {', '.join(names)}"
        )
    densities = {name: params.densities.get(name, params.density) for name in names}
    weights = {name: params.weights.get(name, 0.0) for name in names}
    return Recipe(params.methods[0], weights, densities, params.scale, params.seed, params.rescale)


def check_interaction(params: MergeParams, names: Sequence[str]) -> None:
    """`ParamsError` if params ask for the interaction of an expert that is not there."""
    if params.interaction is not None and len(names) > 1:
        choose_pair(dict.fromkeys(names, 0.0), params.interaction.experts)


def inputs_key(experts: Experts, dev: DevSet, prompts: Mapping[str, str]) -> str:
    """The hash of everything but the space that a score depends on: inputs, code, libraries, chip and precision."""
    parts = [hash_experts(experts), repr(sorted(prompts.items())), hash_code(SCORING, LIBRARIES)]
    parts += [device().type, str(compute_dtype())]
    for task in dev.tasks:
        halves, passages = dev.halves[task.name], list(zip(task.corpus, dev.rows[task.name], strict=True))
        parts.append(repr((task.name, sorted(task.queries.items()), task.qrels, sorted(halves.items()))))
        parts.append(repr((passages, task.ignores_identical_ids)))
    return sha256_text(*parts, *dev.texts)


def merge_key(params: MergeParams, experts: Experts, dev: DevSet, prompts: Mapping[str, Mapping[str, str]]) -> str:
    """The name of a merge: the hash of its settings and of what its scores depend on."""
    candidates = {name: repr(sorted(texts.items())) for name, texts in prompts.items()}
    return sha256_text(inputs_key(experts, dev, candidates), params.model_dump_json())[:16]


def search_space(
    params: MergeParams, space: Space, inputs: str, evaluator: Evaluator, folder: Path
) -> tuple[list[Trial], dict[str, Any] | None]:
    """Search one space; return all trials and, for the multi-fidelity search, how far its stand-in could be
    trusted.
    """
    settings = params.search
    key = sha256_text(inputs, repr(space.describe()), settings.kind, str(settings.seed))
    sampler = make_sampler(settings.kind, space, settings.seed, bool(settings.storage))
    study = open_study(space, key, storage_url(settings.storage, key, folder), sampler)
    stand_in, shares = StandIn(space, evaluator), sorted(settings.rungs)
    rungs = make_rungs(shares, space, evaluator)
    propose: Proposer | None = None
    if settings.kind == "grid":
        propose = grid_proposer(space, settings.seed)
    elif settings.kind == "multi_fidelity":
        propose = fidelity_proposer(space, stand_in, settings.seed, rungs)
    budget = 0 if space.is_single_model else settings.trials
    trials = run_search(space, study, evaluator.evaluate, budget, propose, bool(settings.storage))
    evaluator.remember(trials)
    if settings.kind != "multi_fidelity":
        return trials, None
    return trials, measure_trust(space, stand_in, trials) | {"rungs": describe_rungs(shares, rungs, trials)}


def make_rungs(shares: Sequence[float], space: Space, evaluator: Evaluator) -> list[RungScore]:
    """One scorer per share of queries; each rung's passages are pooled at its first use, when the experts alone have
    been evaluated.
    """

    def make(share: float) -> RungScore:
        @cache
        def rung() -> Rung:
            singles = [space.recipe(space.point({name: 1.0})) for name in space.experts]
            return make_rung(evaluator.dev, share, [evaluator.embeddings(recipe) for recipe in singles])

        return lambda recipe: evaluator.evaluate_rung(recipe, rung())

    return [make(share) for share in shares]


def describe_rungs(
    shares: Sequence[float], rungs: Sequence[RungScore], trials: Sequence[Trial]
) -> list[dict[str, float]]:
    """Per rung its share of queries and its rank correlation with the full score over the distinct mixes."""
    mixes = [trials[row] for row in mixes_of(trials).values()]
    return [
        {"share": share, "spearman": rung_correlation(rung, mixes)} for share, rung in zip(shares, rungs, strict=True)
    ]
