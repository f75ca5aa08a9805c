"""Halves, copies and scores of an instruction; and the fakes that the other tests of prompt search share."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from stm.errors import DataError
from stm.metrics import ndcg_at_k, rank
from stm.search_prompts.copying import CopyGuard
from stm.search_prompts.halves import Item, split_halves
from stm.search_prompts.scoring import Scorer
from stm.tasks import Passage, Task, choose_tasks

QUERIES = 20


def make_task(name: str = "colours", queries: int = QUERIES) -> Task:
    """Query number i wants passage number i, and no two texts are alike."""
    text = "kind {1} of {0} lies in drawer {1}"
    corpus = {f"p{i:02d}": Passage(f"Card {name} {i}", text.format(name, i)) for i in range(queries)}
    asked = {f"q{i:02d}": f"{name} wish {i}" for i in range(queries)}
    return Task(name, "general", corpus, asked, {f"q{i:02d}": {f"p{i:02d}": 1} for i in range(queries)})


class FakeEncoder:
    """A query finds its passage if `answers(prompt, query)` says so, and ranks it last otherwise; keeps a log."""

    def __init__(self, tasks: Sequence[Task], answers: Callable[[str, str], bool]) -> None:
        self.answers = answers
        self.passages: list[str] = []
        self.queries: list[tuple[str, str]] = []
        self._wanted = {
            task.queries[query_id]: task.corpus[next(iter(judged))].full_text()
            for task in tasks
            for query_id, judged in task.qrels.items()
        }

    def encode_passages(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """A random unit row per text."""
        self.passages += texts
        return np.stack([self._row(text) for text in texts])

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "encode") -> npt.NDArray[np.float32]:
        """The row of the wanted passage, or its opposite."""
        self.queries += [(prompt, text) for text in texts]
        signs = [1 if self.answers(prompt, text) else -1 for text in texts]
        return np.stack([sign * self._row(self._wanted[text]) for sign, text in zip(signs, texts, strict=True)])

    @staticmethod
    def _row(text: str) -> npt.NDArray[np.float32]:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        row = np.random.default_rng(seed).standard_normal(16).astype(np.float32)
        normalised: npt.NDArray[np.float32] = row / np.linalg.norm(row)
        return normalised


def always(prompt: str, query: str) -> bool:
    """Every query finds its passage."""
    return True


def test_halves_are_disjoint_even_and_decided_by_the_seed() -> None:
    tasks = [make_task("colours"), make_task("shapes", 7)]
    search, guard = split_halves(tasks, 100, seed=1)
    assert not set(search) & set(guard)
    assert len(search) + len(guard) == QUERIES + 7
    assert [sum(item.task == "shapes" for item in half) for half in (search, guard)] == [4, 3]
    assert (search, guard) == split_halves(tasks[::-1], 100, seed=1)
    assert search != split_halves(tasks, 100, seed=2)[0]


def test_a_query_with_judgements_of_no_relevance_beside_a_relevant_one_is_used() -> None:
    task = make_task("colours", 4)
    judged = {**task.qrels, "q00": {"p01": 0, "p00": 1}, "q01": {"p01": 0}}
    halves = split_halves([Task("colours", "general", task.corpus, task.queries, judged)], 100, seed=1)
    assert {item.query_id for half in halves for item in half} == {"q00", "q02", "q03"}


def test_a_limit_takes_the_tasks_in_turn() -> None:
    search, guard = split_halves([make_task("colours"), make_task("shapes")], 6, seed=1)
    assert [item.task for item in search] == ["colours", "shapes"] * 3
    assert len(guard) == 6


def test_one_query_cannot_be_halved() -> None:
    with pytest.raises(DataError, match="at least two dev queries"):
        split_halves([make_task("colours", 1)], 10, seed=1)


def test_tasks_are_chosen_by_name_and_capped() -> None:
    tasks = [make_task("colours"), make_task("shapes")]
    (chosen,) = choose_tasks(tasks, ["shapes"], 4, 6, seed=0)
    assert (chosen.name, len(chosen.queries), len(chosen.corpus)) == ("shapes", 4, 6)
    assert len(choose_tasks(tasks, [], 4, 6, seed=0)) == 2
    with pytest.raises(DataError, match="no dev task 'sounds'; there are colours, shapes"):
        choose_tasks(tasks, ["sounds"], 4, 6, seed=0)


def test_passages_are_encoded_once_and_only_new_queries_are_encoded() -> None:
    tasks = [make_task("colours"), make_task("shapes")]
    encoder = FakeEncoder(tasks, always)
    scorer = Scorer(tasks, encoder, lambda text: f"{text}\nQuery: ")
    search, guard = split_halves(tasks, 100, seed=1)
    for instruction in ("Find it", "Show it", "Find it"):
        assert scorer.mean(instruction, search) == 1
    assert len(encoder.passages) == len(set(encoder.passages)) == 2 * QUERIES == scorer.encoded_passages
    assert len(encoder.queries) == 2 * len(search) == scorer.encoded_queries
    in_order = [scorer.tasks[item.task].queries[item.query_id] for item in sorted(search)]
    assert [query for _, query in encoder.queries] == 2 * in_order, "what is encoded together is the same in every run"
    scorer.mean("Find it", [*search[:3], *guard[:2]])
    assert len(encoder.queries) == 2 * len(search) + 2
    assert {prompt for prompt, _ in encoder.queries} == {"Find it\nQuery: ", "Show it\nQuery: "}


def test_a_passage_that_tasks_share_is_encoded_once() -> None:
    task = make_task("colours")
    twin = Task("twin", "general", task.corpus, task.queries, task.qrels)
    scorer = Scorer([task, twin], FakeEncoder([task], always), str)
    assert scorer.encoded_passages == QUERIES


def test_scores_are_those_of_the_metrics_module() -> None:
    task = make_task("colours")
    encoder = FakeEncoder([task], lambda _, query: query.endswith(("1", "2", "3")))
    scorer = Scorer([task], encoder, str)
    items = [Item("colours", query_id) for query_id in task.queries]
    outcomes = scorer.outcomes("Find it", items)
    rows = encoder.encode(list(task.queries.values()), "Find it")
    texts = [passage.full_text() for passage in task.corpus.values()]
    run = rank(rows, encoder.encode_passages(texts), list(task.queries), list(task.corpus), 10)
    assert [outcome.score for outcome in outcomes] == list(ndcg_at_k(task.qrels, run, 10).values())
    assert outcomes[1].position == 1
    assert outcomes[1].top[0] == "p01"
    assert outcomes[0].position == QUERIES
    assert outcomes[0].wanted == "p00"
    assert 0 < scorer.mean("Find it", items) < 1
    assert scorer.by_task("Find it", items) == {"colours": scorer.mean("Find it", items)}
    asked = sum(len("Find it") + len(text) for text in task.queries.values())
    assert scorer.reencoding_ratio("Find it", items) == (asked + sum(map(len, texts))) / asked


def test_what_was_wanted_is_the_first_relevant_passage_that_another_precedes() -> None:
    task = make_task("colours", 6)
    task = Task(task.name, task.domain, task.corpus, task.queries, {"q00": {"p00": 1, "p05": 1}, "q01": {"p01": 1}})
    encoder = FakeEncoder([task], always)
    (both, alone) = Scorer([task], encoder, str).outcomes("Find it", [Item("colours", "q00"), Item("colours", "q01")])
    rows = encoder.encode_passages([passage.full_text() for passage in task.corpus.values()])
    place = 1 + int((rows @ rows[0] > rows[5] @ rows[0]).sum())
    assert place > 2
    assert (both.top[0], both.wanted, both.position) == ("p00", "p05", place)
    assert (alone.wanted, alone.position, alone.score) == ("p01", 1, 1)


def test_what_was_wanted_may_be_preceded_by_a_less_relevant_passage() -> None:
    task = make_task("colours", 6)
    near = {"p00": 1, "p01": 2, "p02": 2}
    rows = FakeEncoder([task], always).encode_passages([passage.full_text() for passage in task.corpus.values()])
    best = max(("p01", "p02"), key=lambda name: rows[int(name[1:])] @ rows[0])
    task = Task(task.name, task.domain, task.corpus, task.queries, {"q00": near})
    (outcome,) = Scorer([task], FakeEncoder([task], always), str).outcomes("Find it", [Item("colours", "q00")])
    assert outcome.top[0] == "p00"
    assert outcome.wanted == best
    assert outcome.score < 1


def test_a_query_is_not_its_own_answer_where_the_task_says_so() -> None:
    task = make_task("colours", 6)
    corpus = {**task.corpus, "q00": Passage("", task.queries["q00"])}
    notes = {"ignore_identical_ids": True}
    plain, ignoring = (Task("t", "general", corpus, task.queries, {"q00": {"p01": 1}}, n) for n in ({}, notes))

    class Same(FakeEncoder):
        def encode(self, texts: Sequence[str], prompt: str = "", description: str = "") -> npt.NDArray[np.float32]:
            return np.stack([self._row(text) for text in texts])

    outcomes = [
        Scorer([t], Same([t], always), str).outcomes("Find it", [Item("t", "q00")])[0] for t in (plain, ignoring)
    ]
    assert outcomes[0].top[0] == "q00"
    assert "q00" not in outcomes[1].top
    assert outcomes[1].position == outcomes[0].position - 1


def test_titles_and_compounds_are_dev_content_and_everyday_words_are_not() -> None:
    corpus = {"p": Passage("Acute otitis media", "an inflammation"), "r": Passage("Answer", "beta-blocker overdose")}
    guard = CopyGuard([Task("t", "medical", corpus, {"q": "the answer"}, {"q": {"p": 1}})], "", 3)
    assert guard.copied("Find passages about acute otitis media or the like") == "acute otitis media"
    assert guard.copied("Find passages on beta blocker overdose cases") == "beta blocker overdose"
    assert guard.copied("Find the passage with the answer") is None


def test_a_copy_in_other_letters_is_a_copy() -> None:
    corpus = {"p": Passage("Crohn\u2019s disease", "x"), "r": Passage("Sjo\u0308gren disease", "y")}
    guard = CopyGuard([Task("t", "medical", corpus, {"q": "z"}, {"q": {"p": 1}})], "", 5)
    assert guard.copied("Find passages on Crohn's disease") == "crohn's disease"
    assert guard.copied("Find passages on Sj\u00f6gren disease") == "sj\u00f6gren disease"


def test_copies_of_dev_content_are_found() -> None:
    task = make_task("colours")
    guard = CopyGuard([task], "Find the kind of colours that is meant", copy_words=4)
    assert guard.copied("Find what lies in drawer seven of the desk") is None
    assert guard.copied("Find kind 3 of colours for me") == "kind 3 of colours"
    assert guard.copied("Retrieve passages on COLOURS wish 7 please") == "colours wish 7"
    assert guard.copied("Find passages that answer the question") is None


def test_words_of_the_seed_and_function_words_are_no_copy() -> None:
    passage = Passage("", "it is one of the best passages that answer the question in the book")
    task = Task("t", "general", {"p": passage}, {"q": "one"}, {"q": {"p": 1}})
    text, seed = "Find passages that answer the question", "Retrieve passages that answer the question"
    assert CopyGuard([task], "", 4).copied(text) == "passages that answer the"
    assert CopyGuard([task], seed, 4).copied(text) is None
    assert CopyGuard([task], "", 4).copied("Show that it is one of the texts") is None
