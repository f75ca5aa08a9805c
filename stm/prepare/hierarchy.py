"""Hard negatives from a hierarchy: what stands beside, above and below a node.

Ids with the ids of their parents go in, ids of neighbours come out. Knows nothing of what the ids stand for.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain

from stm.prepare.text import hashed_order


class Hierarchy:
    """Neighbours of a node among the usable ones, never an equal of the node itself."""

    def __init__(self, parents: Mapping[str, Sequence[str]], usable: Collection[str], roots: Mapping[str, str]) -> None:
        """`roots` names equals: two nodes of the same root are one thing; a node that it lacks is its own root."""
        self._parents, self._usable, self._roots = parents, usable, roots
        children: dict[str, list[str]] = defaultdict(list)
        for key in hashed_order(usable, "hierarchy"):
            for parent in parents[key]:
                children[parent].append(key)
        self._children = dict(children)
        self._place = {parent: {key: i for i, key in enumerate(keys)} for parent, keys in children.items()}

    def _siblings(self, key: str) -> Iterator[str]:
        # The children of a parent form a ring in hashed order; each sees those that follow it. Parents of few children
        # are the more specific ones and come first.
        parents = [parent for parent in self._parents[key] if parent in self._children]
        for parent in sorted(parents, key=lambda parent: (len(self._children[parent]), parent)):
            ring, start = self._children[parent], self._place[parent].get(key, 0)
            yield from (ring[(start + step) % len(ring)] for step in range(len(ring)))

    def _choose(self, key: str, near: Iterator[str], limit: int) -> list[str]:
        root = self._roots.get(key, key)
        found: dict[str, None] = {}
        for other in near:
            if other in self._usable and self._roots.get(other, other) != root:
                found[other] = None
                if len(found) == limit:
                    break
        return list(found)

    def siblings(self, key: str, limit: int) -> list[str]:
        """Up to `limit` other children of the node's parents, each once."""
        return self._choose(key, self._siblings(key), limit)

    def neighbours(self, key: str, limit: int) -> list[str]:
        """Up to `limit` siblings, then parents, then children, each once."""
        return self._choose(key, chain(self._siblings(key), self._parents[key], self._children.get(key, ())), limit)
