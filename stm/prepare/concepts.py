"""Which medical concepts may be trained on: the same concept is joined across ontologies, organ systems are held out.

Concepts go in; a shared root per concept and a part ("train", "dev", "test" or "drop") come out. Pure; knows no files.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from scipy.cluster.hierarchy import DisjointSet

from stm.prepare.ontologies import Concept
from stm.prepare.text import normalise_name

# Organ systems held out in all ontologies at once. Test: eye, skin, heart and vessels. Dev: ear, lungs.
HELD_OUT: Mapping[str, frozenset[str]] = {
    "test": frozenset(
        """HP:0000478 HP:0001574 HP:0001626 MONDO:0024458 MONDO:0002051 MONDO:0004995 UBERON:0002104 UBERON:0002416
        UBERON:0004535 UBERON:0000970 UBERON:0002097 UBERON:0001009
        """.split()
    ),
    "dev": frozenset(
        "HP:0000598 HP:0002086 MONDO:0005087 MONDO:0002409 MONDO:0021205 UBERON:0001004 UBERON:0001690".split()
    ),
}
MIN_KEY = 5  # letters; shorter names are mostly abbreviations that mean several things
MAX_SHARED = 12  # concepts; a name that more of them share identifies none
DEFINITION_LETTERS = 160


def _keys(concept: Concept) -> set[str]:
    names = {normalise_name(name) for name in concept.names}
    keys = {f"name {name}" for name in names if len(name) >= MIN_KEY}
    if concept.definition:
        keys.add(f"definition {normalise_name(concept.definition)[:DEFINITION_LETTERS]}")
    return keys


def join_concepts(concepts: Iterable[Concept]) -> dict[str, str]:
    """The root of every concept, the smallest id of those joined with it: two concepts that share a name, a synonym or
    a definition have the same.
    """
    sharers: dict[str, list[str]] = defaultdict(list)
    sets = DisjointSet()
    for concept in concepts:
        sets.add(concept.id)
        for key in _keys(concept):
            sharers[key].append(concept.id)
    for members in sharers.values():
        for member in members[1:] if len(members) <= MAX_SHARED else ():
            sets.merge(members[0], member)
    roots: dict[str, str] = {}
    for joined in sets.subsets():
        roots |= dict.fromkeys(joined, min(joined))
    return roots


def _own_part(concept: Concept) -> str:
    return next((part for part, roots in HELD_OUT.items() if concept.ancestors & roots), "train")


def hold_out_concepts(concepts: Sequence[Concept], roots: Mapping[str, str]) -> dict[str, str]:
    """The part of every concept, by organ system and by what its equals in other ontologies belong to.

    A concept of a held-out system stays there. One that is trained on has no equal in a held-out system, and one of
    dev none in test; those that would break this are "drop".
    """
    own = {concept.id: _own_part(concept) for concept in concepts}
    together: dict[str, set[str]] = defaultdict(set)
    for key, part in own.items():
        together[roots[key]].add(part)

    def decide(key: str) -> str:
        parts = together[roots[key]]
        if own[key] == "test" or parts == {own[key]}:
            return own[key]
        return "dev" if own[key] == "dev" and "test" not in parts else "drop"

    return {key: decide(key) for key in own}
