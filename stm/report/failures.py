"""Failures worth reading: the queries at which the subject loses most, with what it should have found and what it
found.

Takes the analysis, the evaluations and the tasks' texts; does not know where they are read from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stm.metrics import NDCG
from stm.report.compare import Analysis
from stm.tasks import Task

TEXT = 400  # characters of a passage that are shown


def shorten(text: str) -> str:
    """Return the text on one line, cut at `TEXT` characters."""
    line = " ".join(text.split())
    return line if len(line) <= TEXT else line[: TEXT - 1].rstrip() + "\u2026"


@dataclass(frozen=True)
class Failure:
    """A query at which the subject loses to another model."""

    task: str
    query: str
    own: float
    rival: str
    best: float
    relevant: list[str]
    found: list[str]


def find_failures(
    analysis: Analysis, evaluations: Mapping[str, Mapping[str, Any]], tasks: Mapping[str, Task], count: int
) -> list[Failure]:
    """Return the queries where the subject loses most nDCG@10 to the best other model, the worst first, texts
    included.

    At most half of them come from one task, so that one hard task does not hide the others. Tasks whose text is not
    at hand are left out.
    """
    table, column = analysis.table, analysis.table.column(analysis.subject.name)
    found: list[tuple[float, str, str, int, int]] = []
    for number, task in enumerate(table.tasks):
        scores_NM = table.scores[NDCG][number]
        rival_N = np.argmax(scores_NM, axis=1)
        loss_N = scores_NM.max(axis=1) - scores_NM[:, column]
        worst = sorted(np.flatnonzero(loss_N > 0), key=lambda row: (-loss_N[row], table.query_ids[number][row]))
        rows = [(-float(loss_N[r]), task.name, table.query_ids[number][r], int(rival_N[r]), number) for r in worst]
        found += rows[: max(1, count // 2)] if task.name in tasks else []
    return [_failure(analysis, evaluations, tasks, row) for row in sorted(found)[:count]]


def _failure(
    analysis: Analysis,
    evaluations: Mapping[str, Mapping[str, Any]],
    tasks: Mapping[str, Task],
    row: tuple[float, str, str, int, int],
) -> Failure:
    loss, name, query_id, rival, number = row
    task, table = tasks[name], analysis.table
    best = float(table.scores[NDCG][number][table.query_ids[number].index(query_id), rival])
    top = evaluations[analysis.subject.name]["tasks"][name].get("top", {}).get(query_id, [])
    return Failure(
        name, shorten(task.queries.get(query_id, query_id)), best + loss, table.models[rival].label, best,
        _texts(task, task.relevant(query_id)[:2]), _texts(task, top[:2]),
    )  # fmt: skip


def _texts(task: Task, ids: Sequence[str]) -> list[str]:
    return [shorten(task.corpus[key].full_text()) for key in ids if key in task.corpus]
