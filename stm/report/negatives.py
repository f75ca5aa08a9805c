"""What the page shows of hard negatives: mining and its guards, synthesis, hardness, reasons of rejection, samples.

Takes the reports of `mine` and `synthesize` as plain data; what they do not say is left out.
"""

from collections.abc import Mapping
from typing import Any

from stm.hardness import PER_UNIT
from stm.report.charts import bars, histogram
from stm.report.collect import Reports, dig, is_number, numbers
from stm.report.failures import shorten

MINED = {
    "rows": "rows", "negatives": "negatives", "rows_without_negatives": "rows without a negative",
    "rows_with_unscored_positive": "rows whose positive has no score",
}  # fmt: skip
JUDGED = {
    "asked": "negatives asked about", "unasked": "kept unjudged at the limit", "tokens_in": "tokens sent",
    "tokens_out": "tokens written", "cost": "cost",
}  # fmt: skip
MADE = {
    "rows_asked": "rows asked for", "accepted": "accepted", "acceptance_rate": "acceptance rate",
    "fallbacks": "rows left with mined negatives", "released": "rows with a released negative",
    "answers": "answers judged", "answers_replayed": "of these replayed",
    "regenerations": "asked again", "tokens_in": "tokens sent", "tokens_out": "tokens written", "cost": "cost",
    "seconds": "seconds",
}  # fmt: skip

GUARDS = {
    "same_text": "text of the positive or the query", "other_positive": "positive of the same query in another row",
    "same_concept": "on the positive's concept", "duplicate": "already in the row",
    "too_close": "score too near to the positive's", "cross_encoder": "cross-encoder: as good as the positive",
    "answers_query": "LLM: answers the query", "unjudged": "LLM: no clear verdict",
}  # fmt: skip
QUERIES = {"asked": "queries asked for", "accepted": "of these accepted"}


def negatives_view(reports: Reports, count: int) -> list[dict[str, Any]]:
    """Return per split the figures, charts and at most `count` samples of each kind."""
    rows = []
    for split in sorted({*reports.mine, *reports.synthesize}):
        mined, made = reports.mine.get(split, {}), reports.synthesize.get(split, {})
        rejected = numbers(made.get("rejected"))
        queries, judged = dig(made, "queries"), dig(mined, "judges", "llm")
        refused = {reason: n for reason, n in numbers(dig(queries, "outcomes")).items() if reason != "accepted"}
        origins = numbers(mined.get("negatives_by_origin"))
        rows.append({
            "split": split, "mine": _figures(mined, MINED), "synthesize": _figures(made, MADE),
            "guarded": _guarded(mined.get("guarded_out")), "failed": numbers(made.get("failed")),
            "queries": _figures(queries, QUERIES), "judged": _figures(judged, JUDGED),
            "is_judge_spent": dig(judged, "is_budget_exhausted") is True,
            "refused": bars(refused, f"Written queries of {split} that were rejected, by reason, count"),
            "origins": bars(origins, f"Negatives of {split} by origin, count"),
            "rejected": bars(rejected, f"Synthetic negatives of {split} that were rejected, by reason, count"),
            "hardness": _hardness(split, mined, made), "samples": _samples(made.get("samples"), count),
        })  # fmt: skip
    return rows


def _figures(report: Any, names: Mapping[str, str]) -> list[tuple[str, Any]]:
    return [(label, value) for key, label in names.items() if is_number(value := dig(report, key))]


def _guarded(guarded: Any) -> dict[str, Any]:
    """Candidates that may not be negatives: a row per guard that refused any, a column per origin, and the sum."""
    counts = {origin: numbers(by_guard) for origin, by_guard in guarded.items()} if isinstance(guarded, Mapping) else {}
    origins = sorted(origin for origin, by_guard in counts.items() if by_guard)
    found = {guard for by_guard in counts.values() for guard in by_guard}
    guards = [guard for guard in GUARDS if guard in found] + sorted(found - GUARDS.keys())
    rows = [(GUARDS.get(guard, guard), [counts[origin].get(guard, 0.0) for origin in origins]) for guard in guards]
    return {"origins": origins, "rows": rows, "sum": sum(sum(values) for _, values in rows)}


def _hardness(split: str, mined: Mapping[str, Any], made: Mapping[str, Any]) -> Any:
    """Both stages write score(negative) / score(positive) in bins; those of `synthesize` compare the same rows."""
    series: dict[str, list[float]] = {}
    for report, kinds in ((made, ("synthetic", "mined")), (mined, ("given", "bm25", "dense"))):
        for kind in () if series else kinds:
            bins = [count for count in dig(report, "hardness", kind, "histogram", default=()) if is_number(count)]
            if sum(bins):
                series[kind] = [value / sum(bins) for value in bins]
    return histogram(
        series, 1 / PER_UNIT, f"Hardness of the negatives of {split}: share by score relative to the positive"
    )


def _samples(samples: Any, count: int) -> list[dict[str, Any]]:
    """Samples by outcome ("accepted" first, then by reason of rejection), each as (field, text) pairs."""
    if not isinstance(samples, Mapping):
        return []
    kinds = []
    for reason in sorted(samples, key=lambda name: (name != "accepted", name)):
        listed = samples[reason] if isinstance(samples[reason], list) else []
        rows = [_fields(row) for row in listed[:count] if isinstance(row, Mapping)]
        if rows:
            kinds.append({"reason": reason, "rows": rows})
    return kinds


def _fields(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), shorten(str(value))) for key, value in row.items() if key != "id" and value]
