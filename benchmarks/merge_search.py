"""How many evaluations of dev each kind of search needs, against the exhaustive grid, on real experts.

usage: python -m benchmarks.merge_search [--base models/warm_up] [--selected models/selected] [--step 0.25] [--seeds
3]

Every distinct mix of the grid is truly evaluated once (resumable, in --storage). The searches then run on that table,
so that many seeds cost nothing; the fixed rows that every search begins with count as evaluations.
"""

import argparse
import json
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

from optuna.storages import InMemoryStorage

from stm.encode import Encoder
from stm.files import write_json
from stm.merge.dev import as_texts, make_dev_set
from stm.merge.evaluator import Evaluator
from stm.merge.experts import read_experts
from stm.merge.fidelity import fidelity_proposer, measure_trust
from stm.merge.guard import decide
from stm.merge.mixer import Mixer
from stm.merge.plan import inputs_key, make_stand_in
from stm.merge.recipe import Recipe
from stm.merge.samplers import grid_proposer, make_sampler
from stm.merge.search import run_search
from stm.merge.similarity import compare_experts
from stm.merge.space import Interval, Space
from stm.merge.trials import Trial, open_study, storage_url
from stm.models import load_model
from stm.progress import say
from stm.prompts import read_prompts
from stm.tasks import read_tasks

KINDS = ("random", "tpe", "cma", "multi_fidelity")
MARGIN = 0.001  # nDCG@10 below the best of the grid that counts as reached


def evaluations_until(trials: list[Trial], target: float) -> int:
    """Distinct models evaluated until the target was reached; one more than all where it never was."""
    seen: set[str] = set()
    for trial in trials:
        seen.add(trial.recipe.key())
        if trial.value >= target:
            return len(seen)
    return len(seen) + 1


def simulate(kind: str, seed: int, space: Space, table: dict[str, Trial], score: Any, budget: int) -> list[Trial]:
    """Run one search on the table."""

    def look_up(origin: str, recipe: Recipe) -> Trial:
        known = table[recipe.key()]
        return Trial(origin, recipe, known.scores, known.tokens, known.seconds)

    study = open_study(space, "table", InMemoryStorage(), make_sampler(kind, space, seed))
    propose = fidelity_proposer(space, score, seed) if kind == "multi_fidelity" else None
    return run_search(space, study, look_up, budget, propose, is_shared=False)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate the grid, run every kind on it, and describe what was found."""
    folders = {path.name: path for path in sorted(Path(options.selected).iterdir()) if path.is_dir()}
    if options.experts:
        folders = {name: folders[name] for name in options.experts}
    experts = read_experts(options.base, folders)
    space = Space(options.method, tuple(experts.names), Interval(0.0, 1.0, options.step), None, 1.0, 1.0, 0, "l1")
    dev = make_dev_set(read_tasks(options.tasks, "dev"), [], options.max_queries, options.max_passages, 0)
    model = load_model(experts.base)
    prompts = {"base": as_texts(model.prompts)}
    prompts |= {name: read_prompts(adapter.folder).as_model_prompts() for name, adapter in experts.adapters.items()}
    with Mixer(model, experts) as mixer:
        evaluator = Evaluator(mixer, Encoder(model), dev, prompts)
        evaluator.choose_prompts(space.recipe(space.uniform()))
        study = open_study(
            space,
            inputs_key(experts, dev, evaluator.prompts),
            storage_url(options.storage, "", Path()),
            make_sampler("grid", space, 0),
        )
        table = run_search(space, study, evaluator.evaluate, 10**6, grid_proposer(space, 10**6), is_shared=False)
        score = make_stand_in(space, evaluator, dev)
        trust = measure_trust(space, score, table)
        by_key = {trial.recipe.key(): trial for trial in table}
        best = max(table, key=lambda trial: trial.value)
        needed = {
            kind: [
                evaluations_until(simulate(kind, seed, space, by_key, score, options.budget), best.value - MARGIN)
                for seed in range(options.seeds)
            ]
            for kind in KINDS
        }
    costs = [trial for trial in table if trial.tokens]
    return {
        "experts": compare_experts(experts.adapters),
        "dev": dev.sizes,
        "grid": {
            "step": options.step,
            "distinct_mixes": len(by_key),
            "best": best.as_dict(),
            "decision": decide(table).as_dict(),
        },
        "surrogate": trust,
        "evaluations_until_best_minus_0.001": {
            kind: {"median": statistics.median(counts), "runs": counts} for kind, counts in needed.items()
        },
        "budget": options.budget,
        "seconds_per_candidate": statistics.median(trial.seconds for trial in costs),
        "tokens_per_candidate": statistics.median(trial.tokens for trial in costs),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="models/warm_up")
    parser.add_argument("--selected", default="models/selected", help="folder of adapter folders")
    parser.add_argument("--experts", nargs="*", help="names in that folder; all by default")
    parser.add_argument("--tasks", default="data/tasks/dev")
    parser.add_argument("--method", default="linear")
    parser.add_argument("--step", type=float, default=0.25, help="step of the exhaustive grid")
    parser.add_argument("--budget", type=int, default=40, help="candidates of each search beside the fixed rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-queries", type=int, default=24)
    parser.add_argument("--max-passages", type=int, default=60)
    parser.add_argument("--storage", default=".stm/benchmarks/merge_search.db")
    parser.add_argument("--output", default="benchmarks/results/merge_search.json")
    options = parser.parse_args()
    result = measure(options)
    versions = {name: version(name) for name in ("torch", "transformers", "optuna", "cma")}
    write_json(options.output, {"versions": versions, **result})
    say(json.dumps(result["evaluations_until_best_minus_0.001"], indent=1))


if __name__ == "__main__":
    main()
