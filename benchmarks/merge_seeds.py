"""Does merging beat the best expert and training on all data? Several seeds of the embedded setting in one process.

usage: python -m benchmarks.merge_seeds --seeds 1 2 3 --warm-up-steps 60 --steps 16

Per seed: a warm-up, one expert per split from it, the all-data baseline of as many steps as the experts in sum (and one
of as many steps as a single expert, which says what the longer path is worth), a coefficient search per merge method on
the search half of dev with the guard on the other half, learned weights, and every model scored on dev and test. Beside
them: the plain sum of the experts' deltas, and the all-data delta at the length and with the prompt that are best on
dev, as the merges have theirs. With --join, those methods once more with the all-data model as one of the experts.
Models, what the searches found, and the scores per model lie under --work, so that an interrupted run goes on and the
same recipes can be scored on more queries.
What is made of the scores: `benchmarks.merge_summary`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.experiment import ALL, SHORT, Options, build_base, build_data, check_work, keep, train_models
from benchmarks.figures import make_parser, write_figures
from benchmarks.merge_summary import EXPERT, PARTS, average, summarise
from stm.encode import Encoder
from stm.files import sha256_text
from stm.merge.dev import DevSet, make_dev_set, score_model
from stm.merge.evaluator import Evaluator
from stm.merge.experts import Experts, read_experts
from stm.merge.guard import decide
from stm.merge.learn import learn
from stm.merge.methods import METHODS
from stm.merge.mixer import Mixer
from stm.merge.plan import inputs_key, make_space, search_space
from stm.merge.prompt import best_prompt, score_prompts
from stm.merge.recipe import Recipe
from stm.merge.similarity import compare_experts
from stm.merge.trials import Trial
from stm.models import load_model
from stm.params.merge import LearnParams, MergeParams
from stm.progress import say
from stm.prompts import own_prompts
from stm.tasks import read_tasks

SCORED = ("merged", "uniform", "sum", "learned")  # of the recipes found
PACKAGES = ("torch", "transformers", "peft", "optuna", "numpy", "scipy")
# What the recipes depend on beside the models; how many queries they are scored on does not matter.
SEARCH = (
    "params",
    "search_queries",
    "search_passages",
    "methods",
    "high",
    "density",
    "trials",
    "scales",
    "learn_steps",
)


def as_recipe(data: Mapping[str, Any]) -> Recipe:
    """What `Recipe.as_dict` wrote."""
    optional = {name: data[name] for name in ("densities", "seed", "rescale", "layers") if name in data}
    return Recipe(data["method"], data["weights"], scale=data["lambda"], **optional)


class Scoring:
    """The sets that models are scored on, and what was scored: a file per model in a folder per part and size."""

    def __init__(self, options: Options, data: Path, folder: Path) -> None:
        """Reduce the tasks of both parts."""
        queries, passages = {"dev": options.dev_queries, "test": options.test_queries}, options.score_passages
        self._sets = {
            part: make_dev_set(read_tasks(data / "tasks" / part, part), [], queries[part], passages, 0)
            for part in PARTS
        }
        self._folders = {part: folder / f"scores-{part}-{queries[part]}-{passages}" for part in PARTS}

    def score(self, name: str, file: str, encoder: Encoder, prompts: Mapping[str, str]) -> dict[str, Any]:
        """The model's scores by part; whatever is missing is encoded with `encoder`."""

        def table(part: str) -> dict[str, dict[str, float]]:
            return score_model(self._sets[part], encoder, prompts).queries_overall()

        tables = {part: keep(self._folders[part] / f"{file}.json", partial(table, part)) for part in PARTS}
        say(f"{name}: {', '.join(f'{part} {average(rows):.4f}' for part, rows in tables.items())}")
        return tables


def score_models(paths: Mapping[str, Path], scoring: Scoring) -> dict[str, Any]:
    """Models and adapters as they are, each with its own prompts."""
    tables = {}
    for name, path in paths.items():
        model = load_model(path)
        tables[name] = scoring.score(name, name, Encoder(model), own_prompts(model.prompts))
    return tables


def score_recipes(
    experts: Experts, recipes: Mapping[str, Recipe], prompts: Mapping[str, str], scoring: Scoring
) -> dict[str, Any]:
    """The mixes of the recipes, all with the same prompts; recipes of one model share its scores."""
    tables, model = {}, load_model(experts.base)
    with Mixer(model, experts) as mixer:
        for name, recipe in recipes.items():
            mixer.mix(recipe)
            file = sha256_text(recipe.key(), *(prompts[key] for key in sorted(prompts)))[:24]
            tables[name] = scoring.score(name, file, Encoder(model), prompts)
    return tables


def find_scale(scales: Sequence[float], whole: Experts, experts: Experts, dev: DevSet) -> dict[str, Any]:
    """The factor of the all-data delta and the prompts, of those of `experts`, that are best on the search half.

    The searches choose the length of a merged delta and its prompts on dev; this gives the all-data model the same
    freedom.
    """
    model = load_model(whole.base)
    candidates = experts.candidate_prompts(model.prompts)
    with Mixer(model, whole) as mixer:
        encoder = Encoder(model)

        def choose(scale: float) -> tuple[float, dict[str, str]]:
            mixer.mix(Recipe("task_arithmetic", {ALL: scale}))
            best = best_prompt(score_prompts(dev, encoder, candidates))
            return best.scores.mean("search"), best.as_model_prompts()

        found = {scale: choose(scale) for scale in scales}
    scale = max(found, key=lambda scale: found[scale][0])
    return {"scale": scale, "prompts": found[scale][1]}


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
) -> tuple[dict[str, Recipe], dict[str, Any], Recipe]:
    """Per method the recipe that the guard takes; all trials; the best recipe."""
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
        recipes[f"merged {method}"] = decision.taken.recipe
        trace[method] = {
            "decision": decision.as_dict(), "trials": [trial.as_dict() for trial in trials],
            "spearman": trust["spearman"] if trust else None,
        }  # fmt: skip
        say(f"{method}: {decision.reason}; {dict(decision.taken.recipe.weights)}")
    recipes["sum"] = Recipe("task_arithmetic", dict.fromkeys(experts.names, 1.0))
    return recipes, trace, max(every, key=lambda trial: trial.value).recipe


def learn_weights(
    options: Options, experts: Experts, evaluator: Evaluator, model: Any, start: Recipe
) -> dict[str, Recipe]:
    """Learned weights per expert, and per expert and layer, from the best of the searches."""
    found = {}
    for granularity in ("expert", "layer") if options.learn_steps else ():
        params = LearnParams(granularity=granularity, steps=options.learn_steps, learning_rate=0.02, pull=1.0)
        learned = learn(model, experts, evaluator.dev, evaluator.prompts, start, params, 0)
        found[f"learned per {granularity}"] = learned.recipe
    return found


def find_merges(options: Options, experts: Experts, dev: DevSet, folder: Path) -> dict[str, Any]:
    """Search and learn on dev: the recipes, how they were found, and the prompts that go with them, as plain data."""
    model = load_model(experts.base)
    with Mixer(model, experts) as mixer:
        evaluator = Evaluator(mixer, Encoder(model), dev, experts.candidate_prompts(model.prompts))
        evaluator.choose_prompts(Recipe("linear", dict.fromkeys(experts.names, 1 / len(experts.names))))
        recipes, trace, best = search_methods(options, experts, evaluator, folder)
        mixer.restore()
        cost = evaluator.cost()
        recipes |= learn_weights(options, experts, evaluator, model, best)
    return {
        "experts": compare_experts(experts.adapters), "trace": trace, "search_cost": cost,
        "recipes": {name: recipe.as_dict() for name, recipe in recipes.items()}, "prompts": evaluator.prompts,
    }  # fmt: skip


def run_seed(options: Options, splits: Sequence[str], data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Everything of one seed."""
    settings = {key: getattr(options, key) for key in SEARCH}
    searches = folder / f"searches-{sha256_text(repr(sorted(settings.items())))[:12]}"
    trainings = train_models(options, splits, data, folder, seed)
    base, adapters = folder / "warm_up", {name: folder / "adapters" / name for name in (*splits, ALL, SHORT)}
    tasks = read_tasks(data / "tasks" / "dev", "dev")
    dev = make_dev_set(tasks, [], options.search_queries, options.search_passages, 0)
    scoring = Scoring(options, data, folder)

    alone = {f"{EXPERT}{name}" if name in splits else name: path for name, path in adapters.items()}
    tables = score_models({"backbone": folder.parent / "backbone", "warm_up": base, **alone}, scoring)

    whole, experts = (read_experts(base, {name: adapters[name] for name in names}) for names in ([ALL], splits))
    scaled = keep(searches / "scale.json", partial(find_scale, options.scales, whole, experts, dev))
    recipe = Recipe("task_arithmetic", {ALL: scaled["scale"]})
    tables |= score_recipes(whole, {f"{ALL} scaled": recipe}, scaled["prompts"], scoring)

    def merge(options: Options, experts: Experts, where: Path, prefix: str, rows: tuple[str, ...]) -> dict[str, Any]:
        found = keep(where / "found.json", partial(find_merges, options, experts, dev, where))
        recipes = {f"{prefix}{n}": as_recipe(data) for n, data in found["recipes"].items() if n.startswith(rows)}
        tables.update(score_recipes(experts, recipes, found["prompts"], scoring))
        return dict(found)

    found = merge(options, experts, searches, "", SCORED)
    result = {"trainings": trainings, "all_data_scale": scaled["scale"], **found}
    if options.join:
        joined = read_experts(base, {name: adapters[name] for name in (*splits, ALL)})
        changed = Options(**{**vars(options), "methods": options.join, "learn_steps": 0})
        where = searches / f"joined-{'-'.join(options.join)}"
        result["joined"] = merge(changed, joined, where, "joined ", ("merged", "uniform"))
    return {**result, "tables": tables}


def main() -> None:
    """Run the benchmark."""
    parser = make_parser(__doc__, "merge_seeds")
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
    parser.add_argument("--dev-queries", type=int, default=0, help="of these, per dev task, that are scored; 0: all")
    parser.add_argument("--test-queries", type=int, default=0, help="per test task")
    parser.add_argument(
        "--score-passages", type=int, default=0, help="per task, judged ones included; more where those are more"
    )
    parser.add_argument("--search-queries", type=int, default=24, help="per dev task, both halves, for the searches")
    parser.add_argument("--search-passages", type=int, default=30)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--high", type=float, default=1.2, help="largest weight of an expert")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--trials", type=int, default=5, help="candidates per method beside the fixed rows")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 0.75, 1.0, 1.25, 1.5], help="of all data")
    parser.add_argument("--learn-steps", type=int, default=24, help="0 learns nothing")
    parser.add_argument("--join", nargs="+", default=[], help="methods that also merge experts and all-data model")
    parser.add_argument("--work", default=".stm/benchmarks/merge_seeds")
    options = parser.parse_args()
    work = Path(options.work)
    check_work(options, work)
    splits = build_data(options, work / "data")
    build_base(options, work / "backbone")
    results = []
    for seed in options.seeds:
        results.append(run_seed(options, splits, work / "data", work / f"seed-{seed}", seed))
        found = [{key: value for key, value in result.items() if key != "tables"} for result in results]
        seeds = dict(zip(map(str, options.seeds), found, strict=False))
        write_figures(options.output, PACKAGES, vars(options), **summarise(results), seeds=seeds)
    say(f"written to {options.output}")


if __name__ == "__main__":
    main()
