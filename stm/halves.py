"""Cuts the queries of a dev task in two, so that what a search has seen says nothing about the other half's answers.

Does not know models, prompts or weights.
"""

from collections.abc import Sequence

from scipy.cluster.hierarchy import DisjointSet

from stm.tasks import Task


def cut_in_halves(task: Task, ordered: Sequence[str]) -> tuple[list[str], list[str]]:
    """Deal the query ids `ordered` out to two halves in turn, the first one beginning.

    Queries with a common relevant passage, directly or over other queries, stay together, and each group goes to the
    half that is smaller by then. Only one that holds more than half of all is dealt out like single queries, as where
    most queries hang together over passages that answer many (NFCorpus). Two queries or more leave neither half empty.
    """
    groups = _group(task, ordered)
    halves: tuple[list[str], list[str]] = ([], [])
    for group in groups:
        parts = [group] if 2 * len(group) <= len(ordered) else [[query] for query in group]
        for part in parts:
            min(halves, key=len).extend(part)
    return halves


def _group(task: Task, ordered: Sequence[str]) -> list[list[str]]:
    """The queries in groups that share answers; groups, and queries within them, in the given order."""
    sets = DisjointSet()
    for query_id in ordered:
        sets.add(("query", query_id))
        for passage_id in task.relevant(query_id):
            sets.add(("passage", passage_id))
            sets.merge(("query", query_id), ("passage", passage_id))
    groups: dict[tuple[str, str], list[str]] = {}
    for query_id in ordered:
        groups.setdefault(sets[("query", query_id)], []).append(query_id)
    return list(groups.values())
