"""Generic pools: what is kept of the replies of a good, a bad and a silent model."""

from collections.abc import Sequence

import pytest

from stm.errors import EndpointError
from stm.llm.answers import Answer, Failure, Request
from stm.search_prompts.instructions import generic_fault, key_of
from stm.search_prompts.ledger import Ask, Ledger
from stm.search_prompts.pool import write_pool

ADJECTIVES = "clear short precise full plain direct recent exact true brief strong simple".split()


def replying(text: str) -> Ask:
    """A model with one reply."""
    return lambda requests: [Answer(text, "stop", 10, 5, False) for _ in requests]


def numbered() -> Ask:
    """A model whose every reply is another good instruction."""
    counter = iter(range(10_000))

    def ask(requests: Sequence[Request]) -> list[Answer]:
        found = []
        for _ in requests:
            first, second = divmod(next(counter), len(ADJECTIVES))
            words = f"{ADJECTIVES[second]} and {ADJECTIVES[first % len(ADJECTIVES)]}x"
            found.append(Answer(f"Find {words} passages that answer the question.", "stop", 10, 5, False))
        return found

    return ask


@pytest.mark.parametrize("size", [10, 20, 50, 100])
def test_a_good_model_fills_the_pool_in_one_round(size: int) -> None:
    ledger = Ledger(numbered())
    pool = write_pool(size, 1, 3, ledger)
    assert len(pool.instructions) == size
    assert len({key_of(text) for text in pool.instructions}) == size
    assert all(generic_fault(text) is None for text in pool.instructions)
    assert ledger.requests == 3 * size // 2


def test_requests_differ_and_depend_on_the_seed_alone() -> None:
    seen: list[Request] = []

    def ask(requests: Sequence[Request]) -> list[Answer]:
        seen.extend(requests)
        return [Answer("no", "stop", 1, 1, False) for _ in requests]

    write_pool(100, 1, 3, Ledger(ask))
    keys = [(str(request.messages), request.attempt) for request in seen]
    assert len(set(keys)) == len(keys) == 450
    again = len(seen)
    write_pool(100, 1, 3, Ledger(ask))
    assert seen[again:] == seen[:again]


def test_one_reply_over_and_over_is_kept_once() -> None:
    pool = write_pool(5, 1, 2, Ledger(replying("Find passages that answer the question.")))
    assert pool.instructions == ["Find passages that answer the question."]
    report = pool.as_report()
    assert (report["asked"], report["kept"]) == (5, 1)
    assert report["refused"] == {"a near-duplicate": 13}


def test_a_model_without_sense_gives_an_empty_pool_and_the_reasons() -> None:
    ledger = Ledger(replying("As an AI I cannot search the web."))
    pool = write_pool(10, 1, 3, ledger)
    assert pool.instructions == []
    assert sum(pool.refused.values()) == ledger.requests == 45
    assert pool.samples[0]["reply"] == "As an AI I cannot search the web."
    assert len(pool.samples) == 12


def test_failed_requests_are_counted_and_an_endpoint_that_is_down_is_an_error() -> None:
    ledger = Ledger(lambda requests: [Failure("timeout", "after 120 s") for _ in requests])
    assert write_pool(2, 1, 1, ledger).instructions == []
    assert ledger.as_report() == {"requests": 3, "tokens_in": 0, "tokens_out": 0, "failures": {"timeout": 3}}

    def down(requests: Sequence[Request]) -> list[Answer]:
        raise EndpointError("no endpoint at 127.0.0.1:1")

    with pytest.raises(EndpointError):
        write_pool(2, 1, 1, Ledger(down))


def test_a_pool_of_none_asks_nothing() -> None:
    ledger = Ledger(replying("Find passages that answer the question."))
    assert write_pool(0, 1, 3, ledger).instructions == []
    assert ledger.requests == 0
