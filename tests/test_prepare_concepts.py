"""Joining of concepts across ontologies, the held-out organ systems and the hierarchy's negatives."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from stm.prepare.concepts import HELD_OUT, MAX_SHARED, hold_out_concepts, join_concepts
from stm.prepare.hierarchy import Hierarchy
from stm.prepare.ontologies import Concept

EYE, EAR = "HP:0000478", "HP:0000598"  # a root of test, a root of dev


def make(key: str, name: str, *above: str, synonyms: tuple[str, ...] = (), definition: str = "") -> Concept:
    return Concept(key, key.split(":")[0], name, definition, (), synonyms, above, frozenset({key, *above}))


def parts_of(*concepts: Concept) -> dict[str, str]:
    return hold_out_concepts(concepts, join_concepts(concepts))


def test_concepts_are_joined_by_name_synonym_and_definition() -> None:
    concepts = [
        make("A:1", "Heart tumour"),
        make("B:1", "other", synonyms=("heart tumor",)),
        make("C:1", "third", definition="the same long definition"),
        make("D:1", "fourth", definition="The same, long definition!", synonyms=("OTHER",)),
        make("E:1", "alone"),
    ]
    assert join_concepts(concepts) == {"A:1": "A:1", "B:1": "A:1", "C:1": "A:1", "D:1": "A:1", "E:1": "E:1"}


def test_short_and_overused_names_join_nothing() -> None:
    short = [make("A:1", "abc"), make("B:1", "ABC")]
    assert len(set(join_concepts(short).values())) == 2
    overused = [make(f"A:{i:02d}", "common name") for i in range(MAX_SHARED + 1)]
    assert len(set(join_concepts(overused).values())) == len(overused)


def test_an_equal_in_a_held_out_system_keeps_a_concept_out_of_training() -> None:
    parts = parts_of(
        make("A:1", "red eyes", EYE),
        make("B:1", "red eyes"),
        make("A:2", "ear ache", EAR),
        make("B:2", "ear ache"),
        make("A:3", "dizziness", EYE),
        make("B:3", "dizziness", EAR),
        make("A:4", "headache"),
    )
    assert parts == {
        "A:1": "test",
        "B:1": "drop",
        "A:2": "dev",
        "B:2": "drop",
        "A:3": "test",
        "B:3": "drop",
        "A:4": "train",
    }


def test_a_concept_under_both_systems_is_for_test() -> None:
    assert parts_of(make("A:1", "both", EYE, EAR)) == {"A:1": "test"}
    assert not HELD_OUT["dev"] & HELD_OUT["test"]


CONCEPTS = st.lists(
    st.tuples(
        st.sampled_from(["first", "second", "third", "fourth"]), st.sampled_from([(), (EYE,), (EAR,), (EYE, EAR)])
    ),
    max_size=12,
)


@given(CONCEPTS)
@settings(max_examples=80, deadline=None)
def test_no_joined_concept_is_in_two_parts(drawn: list[tuple[str, tuple[str, ...]]]) -> None:
    concepts = [make(f"A:{i:02d}", name, *above) for i, (name, above) in enumerate(drawn)]
    roots = join_concepts(concepts)
    parts = hold_out_concepts(concepts, roots)
    for root in set(roots.values()):
        used = {parts[key] for key in roots if roots[key] == root} - {"drop"}
        assert len(used) <= 1


@given(CONCEPTS, st.randoms())
@settings(max_examples=80, deadline=None)
def test_roots_do_not_depend_on_the_order(drawn: list[tuple[str, tuple[str, ...]]], rng: Random) -> None:
    concepts = [make(f"A:{i:02d}", name, *above) for i, (name, above) in enumerate(drawn)]
    roots = join_concepts(concepts)
    assert all(root == min(key for key in roots if roots[key] == root) for root in roots.values())
    rng.shuffle(concepts)
    assert join_concepts(concepts) == roots


PARENTS = {"top": [], "a": ["top"], "b": ["top"], "a1": ["a"], "a2": ["a"], "a3": ["a"], "b1": ["b"]}


def test_siblings_come_before_parents_and_children() -> None:
    hierarchy = Hierarchy(PARENTS, set(PARENTS), {})
    near = hierarchy.neighbours("a1", 9)
    assert set(near[:2]) == {"a2", "a3"}
    assert near[2:] == ["a"]
    assert hierarchy.neighbours("a", 9)[:2] == ["b", "top"]
    assert set(hierarchy.neighbours("a", 9)[2:]) == {"a1", "a2", "a3"}
    assert hierarchy.neighbours("a", 1) == ["b"]
    assert set(hierarchy.siblings("a1", 9)) == {"a2", "a3"}
    assert hierarchy.siblings("top", 9) == []


def test_equals_and_unusable_nodes_are_no_negatives() -> None:
    hierarchy = Hierarchy(PARENTS, {"a", "a1", "a2", "a3"}, {"a1": "x", "a2": "x"})
    assert hierarchy.neighbours("a1", 9) == ["a3", "a"]
    assert hierarchy.neighbours("b1", 9) == []
