"""What the page shows of the other stages: data, training, prompts, selection, merge, cost, provenance.

Takes their reports as plain data and returns plain values for the template. Reads tolerantly: what a stage did not
write is left out, never invented.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stm.merge.card import LAYERED, list_parameters, made_from
from stm.report.charts import bars, curves, trace
from stm.report.collect import Reports, dig, entries, is_number, numbers

LEVELS = 6  # lines of an interaction plot
SPENT = ("seconds", "tokens", "tokens_in", "tokens_out", "cost")  # what the reports count, cost in money


def data_view(reports: Reports) -> dict[str, Any]:
    """Return pairs per split and source, and the tasks."""
    splits = []
    for name, split in entries(reports.prepare, "splits"):
        sources = [{"name": key, "kept": dig(row, "kept")} for key, row in entries(split, "sources")]
        splits.append({"name": name, "pairs": dig(split, "pairs"), "sources": sources})
    packages = [(name, _versions(row)) for name, row in entries(reports.prepare, "packages")]
    return {"splits": splits, "packages": packages, "warm_up": dig(reports.prepare, "warm_up", "pairs")}


def _versions(row: Any) -> str:
    """The version of a package, and those of the data in it by name."""
    further = {key: value for key, value in row.items() if key != "version"} if isinstance(row, Mapping) else {}
    return ", ".join([str(dig(row, "version", default=row)), *(f"{key} {value}" for key, value in further.items())])


COUNTED = (
    "tested", "evaluation_texts", "found", "removed", "negatives", "negatives_found", "negatives_removed", "left",
)  # fmt: skip


def _counts(data: Any) -> dict[str, Any]:
    return {name: dig(data, name) for name in COUNTED}


def contamination_view(reports: Reports) -> dict[str, Any]:
    """Return what was found and removed, per source and per evaluation task."""
    total = dig(reports.prepare, "contamination", default={})
    rows = [
        {"split": split, "source": source, **_counts(dig(row, "contamination"))}
        for split, part in entries(reports.prepare, "splits")
        for source, row in entries(part, "sources")
    ]
    found = _counts(total) if total else {}
    return {"total": found, "rows": rows, "by_task": numbers(dig(total, "found_by_task"))}


def _trainings(reports: Reports) -> dict[str, Mapping[str, Any]]:
    """Every training report by name: warm-up, experts, all-data."""
    found = {"warm-up": reports.warm_up, **reports.train, "all data": reports.train_all}
    return {name: report for name, report in found.items() if report}


def losses(reports: Reports) -> dict[str, list[float]]:
    """Return the loss of each step of every training, by its name."""
    return {name: _losses(report.get("history")) for name, report in _trainings(reports).items()}


def _losses(history: Any) -> list[float]:
    found = [dig(row, "loss") for row in history] if isinstance(history, list) else []
    return [float(loss) for loss in found if is_number(loss)]


def training_view(reports: Reports) -> dict[str, Any]:
    """Return the loss curves and a row of totals per training."""
    history, rows = losses(reports), []
    for name, report in _trainings(reports).items():
        ends = {"first": history[name][0], "last": _last(history[name])} if history[name] else {}
        totals = {key: report.get(key) for key in ("rows", "steps", "tokens", "seconds")}
        rows.append({"name": name, "first": None, "last": None, **ends, **totals})
    return {"chart": curves(history, "Training loss, running mean", "step"), "rows": rows}


def _last(values: Sequence[float]) -> float:
    """The mean over the last quarter of the steps, ten at most: a short training's beginning is no part of it."""
    tail = values[-min(10, max(1, len(values) // 4)) :]
    return sum(tail) / len(tail)


def prompts_view(reports: Reports) -> list[dict[str, Any]]:
    """Return per split the search of its instruction: what was tried, what was taken and why."""
    rows = []
    for split, report in sorted(reports.search_prompts.items()):
        tried = [row for row in report.get("candidates", []) if isinstance(row, Mapping)]
        candidates = [
            {"instruction": str(row.get("instruction", "")), "origin": row.get("origin", ""),
             "search": dig(row, "search", "mean"), "guard": dig(row, "guard", "mean"),
             "is_chosen": row.get("index") == report.get("chosen")}
            for row in tried
        ]  # fmt: skip
        scores = [row["search"] for row in candidates if is_number(row["search"])]
        chosen = next((index for index, row in enumerate(candidates) if row["is_chosen"]), None)
        chart = trace(scores, chosen, f"Search of an instruction for {split}, nDCG@10 on the search half")
        rows.append({
            "split": split, "seed": report.get("seed_instruction", ""), "chosen": report.get("instruction", ""),
            "reason": report.get("reason", ""), "candidates": candidates,
            "failed": sum(n for why, n in numbers(dig(report, "llm", "failures")).items() if why != "budget"),
            "is_spent": dig(report, "llm", "is_budget_exhausted") is True,
            "chart": chart if len(scores) == len(candidates) and len(scores) > 1 else "",
        })  # fmt: skip
    return rows


def select_view(reports: Reports) -> list[dict[str, Any]]:
    """Return the experts with their dev scores, the best first within a split; last the baseline by prompt."""
    experts = dig(reports.select, "experts", default={})
    rows = [{"name": name, **row} for name, row in experts.items() if isinstance(row, Mapping)]
    rows.sort(key=lambda row: (str(row.get("split")), -float(row.get("mean") or 0), row["name"]))
    baseline = dig(reports.select, "baseline", default={})
    for row in sorted(baseline.get("prompts", []), key=lambda row: -row["mean"]):
        owners = ["the base" if owner == baseline["name"] else owner for owner in row["proposed_by"]]
        rows.append({
            "name": baseline["name"], "split": "all", "negatives": "mined", "mean": row["mean"], "is_selected": False,
            "instruction": f"that of {', '.join(owners)}",
        })  # fmt: skip
    return rows


def merge_view(reports: Reports) -> dict[str, Any]:
    """Return the merge that was taken, the trace of the search, and how the experts relate."""
    report = reports.merge
    if not report:
        return {}
    taken = dig(report, "decision", "taken", default={})
    parameters = dig(taken, "parameters")
    trials = [row for row in report.get("trials", []) if isinstance(row, Mapping)]
    values = [row["search"] for row in trials if is_number(row.get("search"))]
    position = next((index for index, row in enumerate(trials) if _same_recipe(row, taken)), None)
    ranked = sorted(trials, key=lambda row: -float(row.get("search") or 0))
    return {
        "method": dig(taken, "method", default="unknown"), "scale": dig(taken, "lambda"),
        "weights": bars(numbers(dig(taken, "weights")), "Weight of each expert in the merged model"),
        "densities": numbers(dig(taken, "densities")),
        "layered": LAYERED if dig(taken, "layers") else "",
        "parameters": list_parameters(parameters) if isinstance(parameters, Mapping) else "",
        "reason": dig(report, "decision", "reason", default=""), "search": dig(taken, "search"),
        "holdout": dig(taken, "holdout"), "uniform": dig(report, "decision", "uniform", default={}),
        "trials": ranked[:10], "count": len(trials), "experts": entries(report, "experts"),
        "chart": trace(values, position, "Merge search, nDCG@10 on the search half of the dev tasks"),
        "prompt": dig(report, "prompts", "chosen", "query", default=""), "interaction": interaction_view(report),
    }  # fmt: skip


def interaction_view(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plot of two weights, a line per weight of the second expert, and its figures as rows."""
    found = dig(report, "interaction", default={}) or {}
    values, scores, experts = (list(dig(found, key, default=[])) for key in ("values", "scores", "experts"))
    if len(experts) != 2 or len(values) < 2 or len(scores) != len(values) or not all(map(is_number, values)):
        return {}
    step, share = -(-len(values) // LEVELS), dig(found, "share")
    columns = [index for index in range(len(values)) if index % step == 0]
    whole = all(is_number(score) for row in scores for score in row)
    shown = scores if whole else scores[1:]  # with weights from 0 only the point without any weight has no score
    if not all(is_number(score) for row in shown for score in row):
        return {}
    lines = {f"{experts[1]} {values[index]:g}": [float(row[index]) for row in shown] for index in columns}
    ends = (float(values[0 if whole else 1]), float(values[-1]))
    title = f"Interaction of the weights of {experts[0]} and {experts[1]}, nDCG@10 on the search half"
    return {
        "chart": curves(lines, title, f"weight of {experts[0]}", smooth=False, ends=ends),
        "experts": experts, "columns": [values[index] for index in columns],
        "rows": [(value, [row[index] for index in columns]) for value, row in zip(values, scores, strict=True)],
        "source": dig(found, "source", default=""), "share": share if is_number(share) else None,
        "held": numbers(dig(found, "held")),
    }  # fmt: skip


def _same_recipe(row: Mapping[str, Any], taken: Any) -> bool:
    keys = ("method", "weights", "lambda", "densities", "layers", "parameters")
    return isinstance(taken, Mapping) and all(row.get(key) == taken.get(key) for key in keys)


def cost_view(reports: Reports) -> list[dict[str, Any]]:
    """Return seconds, tokens and money per stage of the pipeline and in all, as far as the reports say."""
    parts: list[tuple[str, Iterable[Mapping[str, Any]]]] = [
        ("prepare", [reports.prepare]), ("mine", reports.mine.values()), ("synthesize", reports.synthesize.values()),
        ("warm_up", [reports.warm_up]), ("train", reports.train.values()), ("train_all", [reports.train_all]),
        ("search_prompts", reports.search_prompts.values()), ("select", [reports.select]), ("merge", [reports.merge]),
        ("bm25", [reports.evaluation.get("bm25", {})]),
        ("evaluate", [report for name, report in reports.evaluation.items() if name != "bm25"]),
    ]  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name, listed in parts:
        given = [report for report in listed if report]
        rows.append({"stage": name, "runs": len(given), **{key: _total(given, key) for key in SPENT}})
    sums = {key: _sum(row[key] for row in rows) for key in SPENT}
    return [*rows, {"stage": "all stages", "runs": sum(row["runs"] for row in rows), **sums}]


def _total(reports: Iterable[Mapping[str, Any]], key: str) -> float | None:
    places = ((key,), ("cost", key), ("llm", key), ("judges", "llm", key))
    found = [next((v for v in (dig(r, *p) for p in places) if is_number(v)), None) for r in reports]
    return _sum(found)


def _sum(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) if given else None


def provenance_view(reports: Reports) -> dict[str, Any]:
    """Return paths and hashes of the models, hashes of the tasks' data, and library versions."""
    models, tasks, versions = [], {}, {}
    for name, row in sorted(reports.evaluation.items()):
        about = {key: row.get(key, "") for key in ("path", "role")}
        models.append({"name": name, "hash": str(dig(row, "hashes", "model", default="")), **about})
        tasks.update({task: str(dig(scores, "data", default="")) for task, scores in row["tasks"].items()})
        versions.update(dig(row, "versions", default={}))
    return {"models": models, "tasks": sorted(tasks.items()), "versions": sorted(versions.items()),
            "sources": _sources(reports), "made_from": made_from(dig(reports.merge, "model", default={}))}  # fmt: skip


def _sources(reports: Reports) -> list[dict[str, str]]:
    """Every source of training pairs with where it came from: its kind, path or id, and revision or hash."""
    return [
        {"split": split, "source": source, "kind": str(dig(row, "kind", default="")),
         "path": str(dig(row, "path", default="")),
         "version": str(dig(row, "revision", default="") or dig(row, "sha256", default=""))}
        for split, part in entries(reports.prepare, "splits")
        for source, row in entries(part, "sources")
    ]  # fmt: skip
