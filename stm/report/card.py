"""The model card: a README for the merged model, written from the figures of the report.

Takes the analysis and the stages' reports and returns Markdown; every text that comes from data is made harmless to
Markdown and HTML first. Does not know where the card is put.
"""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from stm.report.collect import Reports
from stm.report.compare import Analysis, percent, verdict
from stm.report.negatives import numbers
from stm.report.scores import SCOPES
from stm.report.stages import dig
from stm.report.views import score_rows, task_note

FRONT = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
language: en
tags: [sentence-transformers, retrieval, model-merging]
---
"""
LIMITS = (
    "It was trained and measured on short English definitions, synonyms and paragraphs of this project's making. "
    "Measure it on your own queries before you rely on it.",
    "The intervals are over queries: they say nothing about other kinds of text, languages or training seeds.",
    "The scores come from this project's own, partly reduced tasks. They belong to no public benchmark and cannot be "
    "compared with published figures.",
    "Retrieval ranks what the corpus holds, right or wrong. It is no medical advice and no medical device.",
)


def plain(text: str) -> str:
    """Return the text on one line with Markdown's and HTML's signs made harmless."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _json(value: Mapping[str, str]) -> str:
    """JSON that cannot close a fenced block or open a tag."""
    return json.dumps(value, indent=2).replace("`", "\\u0060").replace("<", "\\u003c")


def _usage(reports: Reports, folder: str) -> str:
    query = str(dig(reports.merge, "prompts", "chosen", "query", default=""))
    passage = str(dig(reports.merge, "prompts", "chosen", "document", default=""))
    return "\n".join(
        [
            "```python", "from sentence_transformers import SentenceTransformer", "",
            f"model = SentenceTransformer({json.dumps(folder)})",
            'queries = model.encode_query(["what is a heart attack"])',
            'passages = model.encode_document(["Myocardial infarction is the death of heart muscle."])',
            "print(model.similarity(queries, passages))", "```", "",
            "The prompts are in the model and are put before the text by these two calls:", "",
            "```json", _json({"query": query, "document": passage}), "```",
        ]
    )  # fmt: skip


def _scores(analysis: Analysis) -> str:
    subject, table = analysis.subject, analysis.table
    position = table.position(subject.name) or 0
    notes = {task.name: task_note(task) for task in table.tasks}
    notes |= {scope: f"average of {len(table.scope(scope))} tasks" for scope in SCOPES}
    rows = []
    for scope, intervals in analysis.intervals.items():
        own = intervals[position]
        rows.append((f"{plain(scope)} ({plain(notes[scope])})", f"{own.mean:.3f}", f"{own.low:.3f} to {own.high:.3f}"))
    return _table(("task", "nDCG@10", f"{percent(analysis.level)} interval"), rows)


def _rivals(analysis: Analysis) -> str:
    rows = [
        (plain(row["model"].label), f"{row['cells'][0]['mean']:.3f}",
         f"{row['cells'][0]['low']:.3f} to {row['cells'][0]['high']:.3f}")
        for row in score_rows(analysis)
    ]  # fmt: skip
    return _table(("model", "average nDCG@10", f"{percent(analysis.level)} interval"), rows)


def _recipe(reports: Reports) -> str:
    taken = dig(reports.merge, "decision", "taken", default={})
    weights = numbers(dig(taken, "weights"))
    if not weights:
        return "The report of the merge is not at hand."
    listed = ", ".join(f"{plain(name)} {value:.4g}" for name, value in weights.items())
    method = plain(dig(taken, "method", default="unknown"))
    return f"Method {method}; weights of the experts' task vectors: {listed}; scale {dig(taken, 'lambda', default=1)}."


def _data(reports: Reports) -> str:
    splits = dig(reports.prepare, "splits", default={})
    if not splits:
        return "The report of the data preparation is not at hand."
    lines = []
    for name, split in sorted(splits.items()):
        sources = ", ".join(plain(source) for source in sorted(dig(split, "sources", default={})))
        lines.append(f"* {plain(name)}: {dig(split, 'pairs', default=0):,} pairs from {sources or 'no source'}")
    removed = dig(reports.prepare, "contamination", "removed")
    if isinstance(removed, int):
        lines.append(f"\n{removed:,} rows that an evaluation task also holds were removed before training.")
    packages = dig(reports.prepare, "packages", default={})
    if packages:
        listed = ", ".join(f"{plain(k)} {plain(v)}" for k, v in sorted(packages.items()))
        lines.append(f"\nText comes from these packages; ATTRIBUTION.md of the project has their licences: {listed}.")
    return "\n".join(lines)


def model_card(analysis: Analysis, reports: Reports, folder: str = "models/merged") -> str:
    """Return the card as Markdown: use, prompts, scores with intervals, recipe, data, limits, provenance."""
    hashes = dig(reports.evaluation.get(analysis.subject.name, {}), "hashes", "model", default="unknown")
    versions = dig(reports.evaluation.get(analysis.subject.name, {}), "versions", default={})
    parts = [
        FRONT, "# A merged retriever", plain(verdict(analysis)), "## Use", _usage(reports, folder),
        "## Scores", _scores(analysis), "Against the other models of the run:", _rivals(analysis),
        "## Recipe", _recipe(reports), "## Training data", _data(reports),
        "## Limits", "\n".join(f"* {limit}" for limit in LIMITS),
        "## Provenance", f"* SHA-256 of the evaluated model folder: `{plain(hashes)}`",
        "\n".join(f"* {plain(name)} {plain(number)}" for name, number in sorted(versions.items())),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
