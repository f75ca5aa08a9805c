"""The merge stage's core: experts and dev tasks in, a merged model folder and its trace out.

Orders the steps (check, choose prompts, search, guard, write) and leaves each to its own module.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from stm.encode import Encoder
from stm.files import remove_directory
from stm.folders import describe_folder
from stm.merge.card import folder_card, recipe_line
from stm.merge.dev import HALVES, DevSet, make_dev_set
from stm.merge.evaluator import Evaluator
from stm.merge.experts import Experts, read_experts
from stm.merge.guard import Decision, compare, decide
from stm.merge.interaction import measure_interaction
from stm.merge.learn import learn
from stm.merge.materialise import materialise
from stm.merge.memory import Memories
from stm.merge.mixer import Mixer
from stm.merge.named import merge_by_name, write_named
from stm.merge.plan import check_interaction, fixed_recipe, inputs_key, make_space, merge_key, search_space
from stm.merge.prompt import best_prompt, score_prompts
from stm.merge.recipe import Recipe
from stm.merge.similarity import compare_experts
from stm.merge.space import Space
from stm.merge.trials import Trial
from stm.models import load_model
from stm.params.merge import MergeParams, NamedParams
from stm.progress import say
from stm.tasks import Task

ABANDONED = 7 * 24 * 3600  # seconds since anything was written below a merge's folder


def merge_experts(
    params: MergeParams,
    base: Path | str,
    folders: Mapping[str, Path],
    tasks: Sequence[Task],
    output: Path | str,
    storage: Path | str,
) -> dict[str, Any]:
    """Merge the adapters in `folders` (expert -> folder) into `base`, write the model to `output`, return the trace.

    Below the folder `storage` stands what an interrupted merge of the same inputs goes on from; a finished one leaves
    nothing there and removes what others left a week ago. A storage that params name is left alone. Raises
    `ModelError`, `ParamsError` or `DataError` before any encoding for whatever can be known to be wrong by then.
    """
    experts = read_experts(base, folders)
    spaces = [make_space(params, method, experts.names) for method in params.methods]
    fixed = fixed_recipe(params, experts.names)
    check_interaction(params, experts.names)
    dev = make_dev_set(tasks, params.tasks, params.max_queries, params.max_passages, params.seed)
    model = load_model(experts.base)
    prompts = experts.candidate_prompts(model.prompts)
    scratch = Path(storage) / merge_key(params, experts, dev, prompts)
    memories = Memories(None if params.search.storage else scratch)
    with Mixer(model, experts) as mixer:
        evaluator = Evaluator(mixer, Encoder(model), dev, prompts, memories)
        simplest = spaces[0].recipe(spaces[0].uniform())
        first = evaluator.choose_prompts(simplest)
        say(f"merge: query prompt {evaluator.prompts['query']!r}")
        if params.mergekit is not None:
            uniform = evaluator.evaluate("uniform", simplest)
            trace = _merge_named(params.mergekit, params.seed, experts, dev, prompts, uniform, output)
            _clean_up(scratch)
            return trace
        if fixed is None:
            found = _search(params, spaces, evaluator, experts, scratch)
            _learn(params, found, model, mixer, evaluator, experts)
            decision = decide(found.trials)
        else:
            found = _Found([evaluator.evaluate("uniform", simplest), evaluator.evaluate("fixed", fixed)])
            decision = Decision(found.trials[1], found.trials[1], found.trials[0], "params.yaml gives the weights")
        taken, last = decision.taken.recipe, first
        interaction = _interaction(params, experts, evaluator, taken, found.trials)
        if taken.key() != simplest.key():
            last = evaluator.choose_prompts(taken, is_guarded=True)
            decision = decision.rescore(evaluator.evaluate("final", taken).scores)
    say(f"merge: {decision.reason}; {taken.method}, weights {dict(taken.weights)}")
    materialise(experts, taken, evaluator.prompts, output)
    _clean_up(scratch)
    tried = {"with_uniform": [p.as_dict() for p in first], "final": [p.as_dict() for p in last]}
    return {
        "decision": decision.as_dict(),
        "prompts": {"chosen": dict(evaluator.prompts), **tried},
        **found.as_dict(),
        "interaction": interaction,
        "experts": compare_experts(experts.adapters),
        "dev": {"tasks": dev.sizes, "seed": params.seed, "metric": "ndcg_at_10"},
        "search": params.search.model_dump(exclude={"storage"}),
        "cost": evaluator.cost(),
    }


def _clean_up(scratch: Path) -> None:
    """Remove the folder of a finished merge, and those beside it of merges that nobody has gone on with for long."""
    remove_directory(scratch)
    for folder in sorted(scratch.parent.glob("[0-9a-f]" * len(scratch.name))):
        # Whatever is written into a folder, embeddings or SQLite's journal, gives the folder itself a new time.
        with contextlib.suppress(FileNotFoundError):
            if folder.is_dir() and time.time() - folder.stat().st_mtime > ABANDONED:
                remove_directory(folder)


def _search(
    params: MergeParams, spaces: Sequence[Space], evaluator: Evaluator, experts: Experts, storage: Path
) -> "_Found":
    found, key = _Found(), inputs_key(experts, evaluator.dev, evaluator.prompts)
    for space in spaces:
        trials, trust = search_space(params, space, key, evaluator, storage)
        found.trials += trials
        found.trusts += [trust] if trust else []
    return found


def _learn(
    params: MergeParams, found: "_Found", model: SentenceTransformer, mixer: Mixer, evaluator: Evaluator,
    experts: Experts,
) -> None:  # fmt: skip
    if params.learn is None:
        return
    mixer.restore()
    start = max(found.trials, key=lambda trial: trial.value).recipe
    learned = learn(model, experts, evaluator.dev, evaluator.prompts, start, params.learn, params.seed)
    evaluator.add_cost(learned.tokens, learned.seconds)
    trial = evaluator.evaluate("learned", learned.recipe)
    tokens, seconds = trial.tokens + learned.tokens, trial.seconds + learned.seconds
    found.trials.append(replace(trial, tokens=tokens, seconds=seconds))
    found.losses = learned.losses


def _interaction(
    params: MergeParams, experts: Experts, evaluator: Evaluator, taken: Recipe, trials: Sequence[Trial]
) -> dict[str, Any] | None:
    if params.interaction is None or len(experts.names) < 2:
        return None
    space = replace(make_space(params, taken.method, experts.names), scale=taken.scale)
    done = [trial for trial in trials if trial.recipe.method == taken.method and not trial.recipe.layers]
    return measure_interaction(params.interaction, space, evaluator, taken, done)


def _merge_named(
    params: NamedParams,
    seed: int,
    experts: Experts,
    dev: DevSet,
    prompts: Mapping[str, Mapping[str, str]],
    uniform: Trial,
    output: Path | str,
) -> dict[str, Any]:
    """Merge by a further method of mergekit; the trace has the same form, with that method's one row beside uniform
    weights.
    """
    started = time.perf_counter()
    model = merge_by_name(experts, params.method, params.parameters, seed)
    encoder = Encoder(deepcopy(model))  # which computes in bfloat16 where the machine does; what is written does not
    scored = score_prompts(dev, encoder, prompts)
    best = best_prompt(scored)
    chosen = best.as_model_prompts()
    line = recipe_line(f"mergekit:{params.method}", {}, 1.0, parameters=params.parameters)
    card = folder_card(experts.names, line, chosen, describe_folder(experts.base))
    write_named(experts, model, chosen, output, card)
    tokens, seconds = encoder.tokens, round(time.perf_counter() - started, 3)
    row = {
        "origin": "fixed",
        "method": f"mergekit:{params.method}",
        "parameters": params.parameters,
        "seed": seed,
        "weights": {},
        **{half: best.scores.mean(half) for half in HALVES},
        "tasks": best.scores.tasks(),
        "tokens": tokens,
        "seconds": seconds,
    }
    decision = {
        "taken": row,
        "winner": row,
        "uniform": uniform.as_dict(),
        "difference": {half: compare(best.scores, uniform.scores, half) for half in HALVES},
        "is_uniform_taken": False,
        "reason": "params.yaml gives a method of mergekit",
    }
    return {
        "decision": decision,
        "prompts": {"chosen": chosen, "final": [candidate.as_dict() for candidate in scored]},
        "trials": [uniform.as_dict(), row],
        "experts": compare_experts(experts.adapters),
        "dev": {"tasks": dev.sizes, "metric": "ndcg_at_10"},
        "cost": {"evaluations": 2, "tokens": uniform.tokens + tokens, "seconds": round(uniform.seconds + seconds, 3)},
    }


@dataclass
class _Found:
    """What the searches of all methods have brought so far."""

    trials: list[Trial] = field(default_factory=list)
    trusts: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "trials": [trial.as_dict() for trial in self.trials],
            "ablation": ablation(self.trials),
            "surrogate": self.trusts,
            "learned_losses": self.losses,
        }


def ablation(trials: Sequence[Trial]) -> dict[str, dict[str, dict[str, float]]]:
    """Per method and expert: its score alone, uniform weights without it, and what uniform weights lose by that.

    Means over tasks of both halves; a negative loss says that the mix is better without the expert.
    """
    table: dict[str, dict[str, dict[str, float]]] = {}
    whole: dict[str, float] = {}
    for trial in trials:
        kind, _, expert = trial.origin.partition(":")
        mean = (trial.scores.mean("search") + trial.scores.mean("holdout")) / 2
        if kind == "uniform":
            whole[trial.recipe.method] = mean
        elif kind in ("single", "without"):
            row = table.setdefault(trial.recipe.method, {}).setdefault(expert, {})
            row["alone" if kind == "single" else "without"] = mean
    for method, rows in table.items():
        for row in rows.values():
            if "without" in row:
                row["loss_without"] = whole[method] - row["without"]
    return table
