"""The core of `prepare`: from params to pairs per split, the warm-up mix, the tasks and the report, all in memory.

Reads sources, writes nothing. The evaluation tasks come first and whole, because what is trained on may hold nothing
of them whatever the caps say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from stm.errors import DataError
from stm.params.prepare import PrepareParams, Source
from stm.prepare.candidates import Candidates, tidy
from stm.prepare.contamination import EvaluationIndex, touched_queries
from stm.prepare.decontamination import Counts, add_up
from stm.prepare.embedded import Corpora
from stm.prepare.mixture import describe_texts, find_left_out, shorten_texts
from stm.prepare.sampling import as_rows, draw, seeded_permutation, share_out
from stm.prepare.sources import load_source, load_task
from stm.progress import say
from stm.schema import ROWS
from stm.tasks import Task, cap_task
from stm.words import normalise

PARTS = ("dev", "test")
# What to do where evaluation tasks hold all rows of a source.
ADVICE = (
    "give {tasks} or this source other rows, such as another split or file; where they share passages only, "
    "open_corpus: true on the task lets training see these"
)
UNUSABLE = {"blank": "have no query or no passage", "identical": "have one text for both"}


@dataclass(frozen=True)
class Prepared:
    """Everything that the stage writes."""

    pairs: dict[str, pl.DataFrame]  # by split
    warm_up: pl.DataFrame
    instructions: dict[str, str]  # by split
    tasks: dict[str, list[Task]]  # by part, capped
    report: dict[str, Any]


def prepare(params: PrepareParams) -> Prepared:
    """Build all outputs of the stage; the same params and files give the same values."""
    corpora = Corpora()
    say("prepare: evaluation tasks")
    full = {part: load_tasks(params, part, corpora) for part in PARTS}
    full["dev"], shared = separate(full["dev"], full["test"])
    index = EvaluationIndex([task for part in PARTS for task in full[part]], params.max_overlap)
    tasks = {part: [cap(params, task) for task in full[part]] for part in PARTS}
    for task in tasks["dev"]:
        require_two_queries(params, task, shared.get(task.name, 0))
    pairs: dict[str, pl.DataFrame] = {}
    warm_up: dict[str, pl.DataFrame] = {}
    splits: dict[str, Any] = {}
    drawn, mixed_in = Counts(), Counts()  # over all splits: of their own rows, and of the warm-up's
    others: list[tuple[Source, dict[str, int]]] = []  # rows that a source does not take of its mixture
    for split, sources in params.splits.items():
        say(f"prepare: {split}: reading its sources")
        candidates = tidy([load_source(source, corpora) for source in sources], split)
        others += [(source, found.others) for source, found in zip(sources, candidates, strict=True)]
        pairs[split], splits[split], found = draw_split(params, split, candidates, index)
        drawn.add(found)
        if split in params.warm_up_splits:
            warm_up[split], found = draw_warm_up(params, split, candidates, index)
            mixed_in.add(found)
        say(f"prepare: {split}: {pairs[split].height} of {sum(c.frame.height for c in candidates)} pairs")
        for line in describe_losses(splits[split]["sources"]):
            say(f"prepare: {split}: {line}")
    left_out = find_left_out(others)
    for mixture, texts in left_out:
        say(f"prepare: {sum(texts.values())} rows of {mixture['path']} are in no split: {describe_texts(texts)}")
    mixed = mix([warm_up[split] for split in params.warm_up_splits], params.seed)
    met = drawn.texts | mixed_in.texts
    report = {
        "seed": params.seed,
        "caps": params.model_dump(include={"max_pairs", "max_negatives", "max_queries", "max_passages"}),
        "packages": corpora.versions,
        "splits": splits,
        "warm_up": {"pairs": mixed.height, "splits": {split: rows.height for split, rows in warm_up.items()}},
        "tasks": {part: {task.name: describe_task(task, met) for task in tasks[part]} for part in PARTS},
        "contamination": summarise(drawn, mixed_in, index),
        "dev_queries_in_test": shared,
        "left_out": [{**mixture, "rows": sum(n.values()), "texts": shorten_texts(n)} for mixture, n in left_out],
    }
    return Prepared(pairs, mixed, {split: params.instruction_of(split) for split in params.splits}, tasks, report)


def describe_losses(sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines per source: rows that cannot be used, rows lost to evaluation tasks, a source that gives none at all."""
    lines = []
    for label, facts in sources.items():
        for kind, what in UNUSABLE.items():
            if facts[kind]:
                lines.append(f"{facts[kind]} of {facts['candidates']} rows of {label} {what}, and are left out")
        lost = facts["contamination"]["removed"]
        if lost:
            lines.append(f"rows of {label} that an evaluation task has as well, and that were removed: {lost}")
        if not facts["kept"]:
            columns = "correct its columns or its file, or take it out of prepare.splits"
            step = ADVICE.format(tasks=", ".join(facts["contamination"]["found_by_task"])) if lost else columns
            lines.append(f"{label}, of {facts['candidates']} rows, gives no pair; {step}")
    return lines


def cap(params: PrepareParams, task: Task) -> Task:
    """The task reduced to the caps; one of which no relevant passage is left is a `DataError`."""
    return cap_task(task, params.max_queries, params.max_passages, params.seed).check()


def require_two_queries(params: PrepareParams, task: Task, shared: int) -> None:
    """`DataError` if a capped dev task has one query: searches see one half of them, the other half decides.

    `shared` is how many it lost to the test tasks.
    """
    if len(task.queries) < 2:
        lost = f", beside {shared} that a test task asks as well" if shared else ""
        more = "give it more, for instance those of another split"
        step = "raise prepare.max_queries" if params.max_queries == 1 else more
        raise DataError(
            f"prepare.tasks: the dev task {task.name!r} has one judged query{lost}; dev needs at least two, so {step}"
        )


def load_tasks(params: PrepareParams, part: str, corpora: Corpora) -> list[Task]:
    """The full tasks of "dev" or "test", in name order."""
    table = getattr(params.tasks, part)
    return [load_task(table[name], name, part, corpora) for name in sorted(table)]


def separate(dev: list[Task], test: list[Task]) -> tuple[list[Task], dict[str, int]]:
    """The dev tasks without the queries that a test task asks as well, and how many those were, by task.

    What is chosen on a test query knows the test. A dev task of which none is left is a `DataError`.
    """
    asked = {normalise(text) for task in test for text in task.queries.values()}
    tasks, shared = [], {}
    for task in dev:
        kept = {key: text for key, text in task.queries.items() if normalise(text) not in asked}
        if not kept:
            raise DataError(
                f"prepare.tasks: the dev task {task.name!r} asks nothing but what a test task asks as well; prompts, "
                "variants and weights are chosen on dev, so give it other queries, for instance another split"
            )
        if len(kept) < len(task.queries):
            shared[task.name] = len(task.queries) - len(kept)
        qrels = {key: judged for key, judged in task.qrels.items() if key in kept}
        tasks.append(replace(task, queries=kept, qrels=qrels))
    return tasks, shared


def draw_split(
    params: PrepareParams, split: str, candidates: list[Candidates], index: EvaluationIndex
) -> tuple[pl.DataFrame, dict[str, Any], Counts]:
    """A split's rows, its part of the report and the counts of its decontamination.

    A split that decontamination leaves empty, or with one row, is a `DataError`.
    """
    taken, counts = draw(
        candidates, index, split=split, total=params.max_pairs, seed=params.seed, remove=params.decontaminate
    )
    total = add_up(counts.values())
    rows = as_rows(taken, candidates, split, params.seed, params.max_negatives)
    if rows.is_empty():
        raise DataError(
            f"the split {split!r} is empty: every pair is in an evaluation task; "
            + ADVICE.format(tasks=", ".join(sorted(total.found_by_task)))
        )
    if rows.height == 1:
        raise DataError(
            f"the split {split!r} has one row, and a training contrasts at least two; give it more data, or remove it"
        )
    return rows, describe_split(candidates, taken, counts, rows), total


def describe_split(
    candidates: list[Candidates], taken: dict[str, pl.DataFrame], counts: dict[str, Counts], rows: pl.DataFrame
) -> dict[str, Any]:
    """Counts of a split and its sources, for the report."""
    return {
        "pairs": rows.height,
        "negatives_per_pair": round(float(rows["negatives"].list.len().cast(pl.Int64).sum()) / rows.height, 3),
        "sources": {
            source.label: {
                **source.facts,
                "kept": taken[source.label].height,
                "contamination": counts[source.label].describe(),
            }
            for source in candidates
        },
    }


def draw_warm_up(
    params: PrepareParams, split: str, candidates: list[Candidates], index: EvaluationIndex
) -> tuple[pl.DataFrame, Counts]:
    """A split's part of the warm-up, from the other end than its own pairs, and the counts of its decontamination.

    Less than its share if it has less.
    """
    shares = share_out(params.warm_up_pairs, [params.warm_up_pairs] * len(params.warm_up_splits))
    share = shares[params.warm_up_splits.index(split)]
    if not share:
        return pl.DataFrame(schema=ROWS), Counts()
    taken, counts = draw(
        candidates, index, split=split, total=share, seed=params.seed, from_end=True, remove=params.decontaminate
    )
    return as_rows(taken, candidates, split, params.seed, params.max_negatives), add_up(counts.values())


def mix(frames: list[pl.DataFrame], seed: int) -> pl.DataFrame:
    """The rows of all frames in a seeded order."""
    frame = pl.concat(frames)
    return frame[seeded_permutation(frame.height, str(seed), "warm_up")]


def describe_task(task: Task, met: set[int]) -> dict[str, Any]:
    """Sizes and provenance of a capped task, and its queries among the evaluation texts `met`, for the report."""
    return {
        "domain": task.domain,
        "queries": len(task.queries),
        "passages": len(task.corpus),
        "judged": sum(map(len, task.qrels.values())),
        "contaminated_queries": touched_queries(task, np.fromiter(met, np.uint64, len(met))),
        **task.notes,
    }


def summarise(drawn: Counts, mixed_in: Counts, index: EvaluationIndex) -> dict[str, Any]:
    """Contamination over all splits: what was tested, found, removed and left, by task; left in the warm-up too."""
    sizes = {"max_overlap": index.max_overlap, **index.describe()}
    return {**sizes, **drawn.describe(), "left": drawn.left + mixed_in.left}
