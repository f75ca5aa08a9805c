"""Which dev queries a search sees: two halves that are kept apart.

Takes tasks and numbers, returns tasks and items; the same seed gives the same halves. Does not know models or
instructions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from stm.errors import DataError
from stm.files import sha256_text
from stm.halves import cut_in_halves
from stm.tasks import Task


@dataclass(frozen=True, order=True)
class Item:
    """One dev query of one task."""

    task: str
    query_id: str


Halves = tuple[list[Item], list[Item]]  # search, guard


def split_halves(tasks: Sequence[Task], queries: int, seed: int) -> Halves:
    """Return (search half, guard half): disjoint, at most `queries` each, spread evenly over the tasks.

    Within a task the queries are ordered by a hash of seed, task and id and dealt out as `cut_in_halves` does.
    `DataError` if a half would be empty.
    """
    halves: tuple[list[list[Item]], list[list[Item]]] = ([], [])
    for task in sorted(tasks, key=lambda task: task.name):
        judged = [
            query_id for query_id, passages in task.qrels.items() if any(score > 0 for score in passages.values())
        ]
        ordered = sorted(judged, key=lambda query_id: sha256_text(str(seed), task.name, query_id))
        for half, dealt in zip(halves, cut_in_halves(task, ordered), strict=True):
            half.append([Item(task.name, query_id) for query_id in dealt])
    search, guard = (_interleave(lists)[:queries] for lists in halves)
    if not search or not guard:
        raise DataError(
            "prompt search needs at least two dev queries with a relevant passage, one to search on and one to guard; "
            "raise search_prompts.max_queries or name more tasks under search_prompts.tasks"
        )
    return search, guard


def _interleave(lists: Sequence[Sequence[Item]]) -> list[Item]:
    return [item for turn in zip_longest(*lists) for item in turn if item is not None]
