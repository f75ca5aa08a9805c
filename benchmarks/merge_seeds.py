"""Does merging beat the best expert and training on all data? Several seeds of the embedded setting in one process.

usage: python -m benchmarks.merge_seeds --seeds 1 2 3 --warm-up-steps 60 --steps 16

Per seed: a warm-up, one expert per split from it, the all-data baseline of as many steps as the experts in sum (and one
of as many steps as a single expert, which says what the longer path is worth), a coefficient search per merge method on
the search half of dev with the guard on the other half, learned weights, and every model scored on dev and test. Beside
them: the plain sum of the experts' deltas, and the all-data delta at the length that is best on dev. With --join, the
merge once more with the all-data model as one of the experts. Results are kept per seed and per model under --work, so
that an interrupted run goes on.
What is made of the scores: `benchmarks.merge_summary`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.experiment import ALL, SHORT, Options, build_base, build_data, check_work, train_models
from benchmarks.figures import write_figures
from benchmarks.merge_summary import PARTS, average, summarise
from stm.encode import Encoder
from stm.files import read_json, sha256_text, write_json
from stm.merge.dev import DevSet, Scores, as_texts, make_dev_set, score_model
from stm.merge.evaluator import Evaluator
from stm.merge.experts import Experts, read_experts
from stm.merge.guard import decide
from stm.merge.learn import Settings, learn
from stm.merge.methods import METHODS
from stm.merge.mixer import Mixer
from stm.merge.plan import inputs_key, make_space, search_space
from stm.merge.recipe import Recipe
from stm.merge.similarity import compare_experts
from stm.merge.trials import Trial
from stm.models import load_model
from stm.params.merge import MergeParams
from stm.progress import say
from stm.prompts import read_prompts
from stm.tasks import read_tasks

PACKAGES = ("torch", "transformers", "peft", "optuna", "numpy", "scipy")


def as_table(scores: Scores) -> dict[str, dict[str, float]]:
    """nDCG@10 by task and query, halves together."""
    return {task: {**halves["search"], **halves["holdout"]} for task, halves in scores.per_query.items()}


def keep(path: Path, make: Callable[[], Any]) -> Any:
    """What `path` holds, made and written there unless it exists."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def score_adapters(experts: Experts, folder: Path, sets: Mapping[str, DevSet], run: Path) -> dict[str, Any]:
    """Backbone, warm-up, every expert and both all-data models on dev and test, with their own prompts."""
    paths = {"backbone": folder.parent / "backbone", "warm_up": experts.base}
    paths |= {name: folder / "adapters" / name for name in (ALL, SHORT)}
    paths |= {f"expert {name}": adapter.folder for name, adapter in experts.adapters.items()}
    tables = {}

    def score(path: Path) -> dict[str, Any]:
        model = load_model(path)
        prompts = as_texts(model.prompts)
        return {part: as_table(score_model(sets[part], Encoder(model), prompts)) for part in PARTS}

    for name, path in paths.items():
        tables[name] = keep(run / f"{name}.json", partial(score, path))
        say(f"{name}: {describe(tables[name])}")
    return tables


def scale_all_data(scales: Sequence[float], folder: Path, sets: Mapping[str, DevSet]) -> dict[str, Any]:
    """The all-data delta times the factor that is best on the search half, and that model's scores by part.

    The searches choose the length of a merged delta on dev; this gives the all-data model the same freedom.
    """
    experts = read_experts(folder / "warm_up", {ALL: folder / "adapters" / ALL})
    model = load_model(experts.base)
    prompts = as_texts(model.prompts)
    with Mixer(model, experts) as mixer:
        encoder = Encoder(model)

        def score(scale: float, part: str) -> Scores:
            mixer.mix(Recipe("task_arithmetic", {ALL: scale}))
            return score_model(sets[part], encoder, prompts)

        best = max(scales, key=lambda scale: score(scale, "search").mean("search"))
        return {"scale": best, "table": {part: as_table(score(best, part)) for part in PARTS}}


def describe(table: Mapping[str, Any]) -> str:
    """The averages of one model, for the log."""
    return ", ".join(f"{part} {average(rows):.4f}" for part, rows in table.items())


def merge_params(options: Options, method: str) -> MergeParams:
    """The merge section with this run's search."""
    values = yaml.safe_load(Path(options.params).read_text(encoding="utf-8"))["merge"]
    search = {
        **values["search"], "kind": "multi_fidelity", "trials": options.trials,
        "weights": {"low": 0.0, "high": options.high, "step": 0.1}, "storage": "",
    }  # fmt: skip
    return MergeParams.model_validate({**values, "method": method, "density": options.density, "search": search})


def search_methods(
    options: Options, experts: Experts, evaluator: Evaluator, folder: Path
) -> tuple[dict[str, Recipe], dict[str, Any]]:
    """Per method the recipe that the guard takes and the winner of the search half; all trials as plain data."""
    recipes: dict[str, Recipe] = {"uniform": Recipe("linear", dict.fromkeys(experts.names, 1 / len(experts.names)))}
    trace: dict[str, Any] = {}
    every: list[Trial] = []
    for method in options.methods:
        params = merge_params(options, method)
        space = make_space(params, method, experts.names)
        trials, trust = search_space(
            params, space, inputs_key(experts, evaluator.dev, evaluator.prompts), evaluator, folder
        )
        decision, every = decide(trials), every + trials
        recipes |= {f"merged {method}": decision.taken.recipe, f"winner {method}": decision.winner.recipe}
        trace[method] = {
            "decision": decision.as_dict(), "trials": [trial.as_dict() for trial in trials],
            "spearman": trust["spearman"] if trust else None,
        }  # fmt: skip
        say(f"{method}: {decision.reason}; {dict(decision.taken.recipe.weights)}")
    recipes["sum"] = Recipe("task_arithmetic", dict.fromkeys(experts.names, 1.0))
    return recipes, trace | {"best": max(every, key=lambda trial: trial.value)}


def learn_weights(
    options: Options, experts: Experts, evaluator: Evaluator, model: Any, start: Recipe
) -> dict[str, Recipe]:
    """Learned weights per expert, and per expert and layer, from the best of the searches."""
    found = {}
    for granularity in ("expert", "layer") if options.learn_steps else ():
        settings = Settings(granularity, options.learn_steps, 0.02, 1.0, 0.05, 32, 0)
        learned = learn(model, experts, evaluator.dev, evaluator.prompts, start, settings)
        found[f"learned per {granularity}"] = learned.recipe
    return found


def merge_seed(options: Options, experts: Experts, sets: Mapping[str, DevSet], run: Path) -> dict[str, Any]:
    """Search and learn on dev, score every recipe on dev and test."""
    model = load_model(experts.base)
    candidates = {"base": as_texts(model.prompts)}
    candidates |= {n: read_prompts(adapter.folder).as_model_prompts() for n, adapter in experts.adapters.items()}
    tables = {}
    with Mixer(model, experts) as mixer:
        encoder = Encoder(model)
        evaluator = Evaluator(mixer, encoder, sets["search"], candidates)
        evaluator.choose_prompts(Recipe("linear", dict.fromkeys(experts.names, 1 / len(experts.names))))
        recipes, trace = search_methods(options, experts, evaluator, run)
        mixer.restore()
        cost = evaluator.cost()
        recipes |= learn_weights(options, experts, evaluator, model, trace.pop("best").recipe)

        def score(recipe: Recipe) -> dict[str, Any]:
            mixer.mix(recipe)
            return {part: as_table(score_model(sets[part], encoder, evaluator.prompts)) for part in PARTS}

        for name, recipe in recipes.items():
            tables[name] = keep(run / f"{recipe.key()[:24]}.json", partial(score, recipe))
            say(f"{name}: {describe(tables[name])}")
    return {
        "tables": tables, "recipes": {name: recipe.as_dict() for name, recipe in recipes.items()}, "trace": trace,
        "prompt": evaluator.prompts["query"], "search_cost": cost,
    }  # fmt: skip


def run_seed(options: Options, splits: Sequence[str], data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Everything of one seed."""
    settings = {key: value for key, value in vars(options).items() if key not in ("seeds", "output", "work", "join")}
    run = folder / f"scores-{sha256_text(repr(sorted(settings.items())))[:12]}"
    reports = train_models(options, splits, data, folder, seed)
    tasks = {part: read_tasks(data / "tasks" / part, part) for part in PARTS}
    sets = {part: make_dev_set(tasks[part], [], options.score_queries, options.score_passages, 0) for part in PARTS}
    sets["search"] = make_dev_set(tasks["dev"], [], options.search_queries, options.search_passages, 0)
    adapters = {split: folder / "adapters" / split for split in splits}

    def score_seed() -> dict[str, Any]:
        experts = read_experts(folder / "warm_up", adapters)
        single = score_adapters(experts, folder, sets, run)
        scaled = keep(run / "all_data scaled.json", partial(scale_all_data, options.scales, folder, sets))
        single[f"{ALL} scaled"] = scaled["table"]
        say(f"{ALL} times {scaled['scale']}: {describe(scaled['table'])}")
        merged = merge_seed(options, experts, sets, run)
        return {
            "trainings": reports, "experts": compare_experts(experts.adapters), "all_data_scale": scaled["scale"],
            **merged, "tables": {**single, **merged["tables"]},
        }  # fmt: skip

    def score_join() -> dict[str, Any]:
        joined = read_experts(folder / "warm_up", {**adapters, ALL: folder / "adapters" / ALL})
        return {"experts": compare_experts(joined.adapters), **merge_seed(options, joined, sets, run / "joined")}

    result = dict(keep(run / "result.json", score_seed))
    if options.join:
        joined = dict(keep(run / "joined.json", score_join))
        tables = {f"joined {name}": table for name, table in joined.pop("tables").items()}
        result |= {"joined": joined, "tables": {**result["tables"], **tables}}
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--layers", type=int, default=6, help="layers of the backbone that are kept")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens per text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--pairs", type=int, default=1024, help="pairs per split")
    parser.add_argument("--warm-up-pairs", type=int, default=2048)
    parser.add_argument("--warm-up-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=16, help="steps per expert")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of experts and the all-data model")
    parser.add_argument("--negatives", type=int, default=0, help="hard negatives per row")
    parser.add_argument("--mined", action="store_true", help="mine negatives as the pipeline does")
    parser.add_argument("--max-queries", type=int, default=40, help="per dev and test task")
    parser.add_argument("--max-passages", type=int, default=60)
    parser.add_argument("--score-queries", type=int, default=0, help="of these, per task, that are scored; 0: all")
    parser.add_argument("--score-passages", type=int, default=0)
    parser.add_argument("--search-queries", type=int, default=24, help="per dev task, both halves, for the searches")
    parser.add_argument("--search-passages", type=int, default=30)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--high", type=float, default=1.2, help="largest weight of an expert")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--trials", type=int, default=5, help="candidates per method beside the fixed rows")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 0.75, 1.0, 1.25, 1.5], help="of all data")
    parser.add_argument("--learn-steps", type=int, default=24, help="0 learns nothing")
    parser.add_argument("--join", action="store_true", help="also merge the experts with the all-data model")
    parser.add_argument("--work", default=".stm/benchmarks/merge_seeds")
    parser.add_argument("--output", default="benchmarks/results/merge_seeds.json")
    options = parser.parse_args()
    work = Path(options.work)
    check_work(options, work)
    splits = build_data(options, work / "data")
    build_base(options, work / "backbone")
    results = []
    for seed in options.seeds:
        results.append(run_seed(options, splits, work / "data", work / f"seed-{seed}", seed))
        kept = ("trainings", "experts", "all_data_scale", "recipes", "trace", "prompt", "search_cost", "joined")
        seeds = {str(s): {k: r[k] for k in kept if k in r} for s, r in zip(options.seeds, results, strict=False)}
        write_figures(options.output, PACKAGES, vars(options), **summarise(results), seeds=seeds)
    say(f"written to {options.output}")


if __name__ == "__main__":
    main()
