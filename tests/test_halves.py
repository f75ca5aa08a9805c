"""Dev queries in two halves: evenly, and with no answer in both."""

from stm.halves import cut_in_halves
from stm.tasks import Passage, Task


def make_task(answers: dict[str, list[str]]) -> Task:
    """A task of the given relevant passages by query; `other` is judged for every query, as not relevant."""
    passages = {passage for found in answers.values() for passage in found}
    corpus = {name: Passage("", name) for name in sorted({*passages, "other"})}
    qrels = {query: {**dict.fromkeys(found, 1), "other": 0} for query, found in answers.items()}
    return Task("toy", "general", corpus, {query: query for query in answers}, qrels)


def test_queries_without_common_answers_are_dealt_out_in_turn() -> None:
    task = make_task({"a": ["1"], "b": ["2"], "c": ["3"], "d": ["4"], "e": ["5"]})
    assert cut_in_halves(task, "ebdac") == (["e", "d", "c"], ["b", "a"])


def test_queries_with_a_common_answer_stay_together_over_others_too() -> None:
    task = make_task({"a": ["1"], "b": ["1", "2"], "c": ["2"], "d": ["3"], "e": ["4"], "f": ["5"]})
    assert cut_in_halves(task, "adbefc") == (["a", "b", "c"], ["d", "e", "f"])
    assert cut_in_halves(task, "dcefab") == (["d", "e", "f"], ["c", "a", "b"])


def test_a_group_of_more_than_half_of_the_queries_is_dealt_out_as_others() -> None:
    task = make_task({"a": ["1"], "b": ["1"], "c": ["1"], "d": ["2"]})
    assert cut_in_halves(task, "abcd") == (["a", "c"], ["b", "d"])
    assert cut_in_halves(make_task({"a": ["1"], "b": ["1"]}), "ba") == (["b"], ["a"])
