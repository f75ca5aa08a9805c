"""How many evaluations of dev a search needs until it has the best of the exhaustive grid, minus 0.001 nDCG@10.

usage: python -m benchmarks.merge_search --project FOLDER [--nodes 140] [--checks 150] [--budget 100] [--seeds 30]

FOLDER is a project after `dvc repro merge` (models/warm_up, models/selected, data/tasks/dev). The grid has 11 weights
per expert. Evaluating its 14,641 points truly takes days, so that the grid is made exhaustive in three steps, each
reported: (1) true evaluations at nodes spread over the grid by pivoted Cholesky; (2) the embeddings of every point
interpolated from them and scored; (3) the error of that measured on random points, and every point that could, within
the largest error seen, still be among the best evaluated truly, until none is left. What counts as reached is thus
decided by true evaluations alone. The multi-fidelity search then runs for real; random search, TPE and CMA-ES run on
the table. Everything is done twice, with the halves of dev exchanged, since our search has no randomness to repeat.
True evaluations are kept in --work, so that an interrupted run goes on.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage

from benchmarks.figures import make_parser, spread, write_figures
from benchmarks.merge_candidate import adapters
from benchmarks.merge_grid import MARGIN, Grid, Truth, measure_grid
from stm.encode import Encoder
from stm.merge.dev import HALVES, DevSet, Scores, make_dev_set
from stm.merge.evaluator import Evaluator
from stm.merge.experts import read_experts
from stm.merge.fidelity import fidelity_proposer, measure_trust
from stm.merge.mixer import Mixer
from stm.merge.plan import inputs_key, make_rungs
from stm.merge.recipe import Recipe
from stm.merge.samplers import make_sampler
from stm.merge.search import run_search
from stm.merge.similarity import compare_experts
from stm.merge.space import Interval, Space
from stm.merge.stand_in import StandIn
from stm.merge.trials import Trial, open_study
from stm.models import load_model
from stm.progress import say
from stm.tasks import read_tasks

BASELINES = ("random", "tpe", "cma")


class ReachedError(Exception):
    """Ends a search that has what it was run for."""


def exchange_halves(dev: DevSet) -> DevSet:
    """The same dev set, whose search half is the other one."""
    other = dict(zip(HALVES, reversed(HALVES), strict=True))
    return replace(dev, halves={task: {q: other[h] for q, h in row.items()} for task, row in dev.halves.items()})


def count_until(trials: Iterator[float], target: float, budget: int) -> int:
    """Evaluations until the target was reached; budget + 1 where it was not."""
    return next((number for number, value in enumerate(trials, 1) if value >= target), budget + 1)


def replay(grid: Grid, kind: str, seed: int, budget: int, target: float) -> dict[str, float]:
    """One search on the table: evaluations until the target, and the best found within the budget."""
    values: list[float] = []

    def look_up(origin: str, recipe: Recipe) -> Trial:
        row = grid.row_of.get(recipe.key())
        # Uniform weights and drop-ones of thirds lie between the points: their true score.
        value = grid.values[row] if row is not None else grid.truth.value(grid.dev, recipe)
        values.append(float(value))
        if values[-1] >= target or len(values) >= budget:
            raise ReachedError
        per_query = {"all": {half: {"mean": values[-1]} for half in HALVES}}
        return Trial(origin, recipe, Scores(per_query), 0, 0.0)

    study = open_study(grid.space, "table", InMemoryStorage(), make_sampler(kind, grid.space, seed))
    with suppress(ReachedError):
        run_search(grid.space, study, look_up, budget, None, is_shared=False)
    return {"until": count_until(iter(values), target, budget), "regret": target + MARGIN - max(values)}


def run_ours(
    grid: Grid, mixer: Mixer, encoder: Encoder, prompts: dict[str, str], shares: Sequence[float], budget: int,
    target: float,
) -> dict[str, Any]:  # fmt: skip
    """The multi-fidelity search, truly evaluated by a fresh evaluator, until the target or the budget."""
    encoder.tokens = 0
    evaluator = Evaluator(mixer, encoder, grid.dev, {"chosen": prompts})
    done: list[Trial] = []

    def evaluate(origin: str, recipe: Recipe) -> Trial:
        done.append(evaluator.evaluate(origin, recipe))
        spent = evaluator.cost()["full_evaluation_equivalents"]
        say(f"ours {list(shares)}: {len(done)} evaluations, {spent} equivalents, {done[-1].value:.4f} of {target:.4f}")
        if done[-1].value >= target or spent >= budget:
            raise ReachedError
        return done[-1]

    stand_in = StandIn(grid.space, evaluator)
    propose = fidelity_proposer(grid.space, stand_in, 0, make_rungs(shares, grid.space, evaluator))
    study = open_study(grid.space, "ours", InMemoryStorage(), make_sampler("multi_fidelity", grid.space, 0))
    with suppress(ReachedError):
        run_search(grid.space, study, evaluate, budget, propose, is_shared=False)
    best, trust = max(trial.value for trial in done), measure_trust(grid.space, stand_in, done)
    return {
        "is_reached": best >= target, "best": best, "regret": target + MARGIN - best, "full_evaluations": len(done),
        **evaluator.cost(), "spearman": trust["spearman"],
    }  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both objectives: the grid, our search, the baselines."""
    project = Path(options.project)
    experts = read_experts(project / "models/warm_up", adapters(project))
    space = Space(
        "task_arithmetic", tuple(experts.names), Interval(0.0, options.high, options.high / 10), None, 1.0, 1.0, 0, "l1"
    )
    dev = make_dev_set(read_tasks(project / "data/tasks/dev", "dev"), [], options.max_queries, options.max_passages, 0)
    model = load_model(experts.base)
    encoder = Encoder(model)
    result: dict[str, Any] = {
        "experts": compare_experts(experts.adapters), "dev": dev.sizes, "margin": MARGIN, "budget": options.budget,
    }  # fmt: skip
    with Mixer(model, experts) as mixer:
        chooser = Evaluator(mixer, encoder, dev, experts.candidate_prompts(model.prompts))
        chooser.choose_prompts(space.recipe(space.uniform()))
        prompts = dict(chooser.prompts)
        key = inputs_key(experts, dev, prompts)[:16]
        for name, objective in (("first half", dev), ("second half", exchange_halves(dev))):
            grid = Grid(space, objective, Truth(mixer, encoder, objective, prompts, Path(options.work) / key))
            found = {"grid": measure_grid(grid, options.nodes, options.checks, options.limit)}
            target = found["grid"]["best"] - MARGIN
            found["multi_fidelity"] = run_ours(grid, mixer, encoder, prompts, [], options.budget, target)
            if options.rungs:
                found["multi_fidelity_with_rungs"] = run_ours(
                    grid, mixer, encoder, prompts, options.rungs, options.budget, target
                )
            for kind in BASELINES:
                runs = [replay(grid, kind, seed, options.budget, target) for seed in range(options.seeds)]
                found[kind] = {
                    "share_reached": float(np.mean([run["until"] <= options.budget for run in runs])),
                    "until": spread([run["until"] for run in runs]), "regret": spread([run["regret"] for run in runs]),
                }  # fmt: skip
            result[name] = found
            write_figures(options.output, PACKAGES, vars(options), **result)
    return result


PACKAGES = ("torch", "transformers", "optuna", "cma", "numpy", "scipy")


def main() -> None:
    """Run the benchmark."""
    parser = make_parser(__doc__, "merge_search")
    parser.add_argument("--project", default=".")
    parser.add_argument("--high", type=float, default=1.0, help="largest weight; the grid has 11 values from 0")
    parser.add_argument("--nodes", type=int, default=140)
    parser.add_argument("--checks", type=int, default=150)
    parser.add_argument("--limit", type=int, default=600, help="true evaluations of what could be the best, at most")
    parser.add_argument("--budget", type=int, default=100, help="evaluations of dev for every search")
    parser.add_argument("--seeds", type=int, default=30, help="runs of each baseline")
    parser.add_argument("--rungs", type=float, nargs="*", default=[0.25, 0.5], help="of one more search; none: no such")
    parser.add_argument("--max-queries", type=int, default=24)
    parser.add_argument("--max-passages", type=int, default=24)
    parser.add_argument("--work", default=".stm/benchmarks/merge_search")
    options = parser.parse_args()
    if not (10 / options.high).is_integer():
        parser.error("--high must leave the weight 1, an expert alone, among the 11 values: 1, 1.25, 2, 2.5, 5 or 10")
    result = measure(options)
    for name in ("first half", "second half"):
        ours = result[name]["multi_fidelity"]
        say(f"{name}: reached {ours['is_reached']} after {ours['full_evaluation_equivalents']} evaluations")


if __name__ == "__main__":
    main()
