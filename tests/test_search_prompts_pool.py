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


def test_refused_requests_are_counted_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    good = replying("Find passages that answer the question.")
    ledger = Ledger(lambda requests: [*good(requests[:1]), *(Failure("rejected", "a filter") for _ in requests[1:])])
    assert write_pool(2, 1, 1, ledger).instructions == ["Find passages that answer the question."]
    expected = {"requests": 3, "tokens_in": 10, "tokens_out": 5, "failures": {"rejected": 2}}
    assert ledger.as_report() == {**expected, "cost": 0, "is_budget_exhausted": False}
    assert capsys.readouterr().err.count("the endpoint refused a request") == 1


@pytest.mark.parametrize(
    ("reason", "message"),
    [("rejected", r"refuses what it is asked \(no max_tokens"), ("timeout", "no answer .* run the same command")],
)
def test_an_endpoint_that_answers_nothing_is_an_error_and_no_empty_pool(reason: str, message: str) -> None:
    with pytest.raises(EndpointError, match=message):
        write_pool(2, 1, 1, Ledger(lambda requests: [Failure(reason, "no max_tokens") for _ in requests]))


@pytest.mark.parametrize("place", [0, 1, 5])
def test_a_refused_request_is_one_empty_reply_wherever_it_stands(place: int) -> None:
    def ask(requests: Sequence[Request]) -> list[Answer | Failure]:
        texts = [Answer(f"Find the texts about number {i}.", "stop", 10, 5) for i, _ in enumerate(requests)]
        return [*texts[:place], Failure("rejected", "a filter"), *texts[place + 1 :]]

    ledger = Ledger(ask)
    replies = ledger.ask([Request(())] * 6)
    assert [not reply for reply in replies] == [i == place for i in range(6)]
    assert (ledger.requests, ledger.answered, ledger.tokens_in, ledger.failures) == (6, 5, 50, {"rejected": 1})


@pytest.mark.parametrize("answers", [0, 1])
def test_a_failure_that_may_pass_is_an_error_after_all_is_counted(answers: int) -> None:
    failures = Failure("timeout", "silence"), Failure("rejected", "a filter")
    ledger = Ledger(lambda requests: [*failures, *[Answer("Find it.", "stop", 10, 5)] * answers])
    with pytest.raises(EndpointError, match=r"no answer .*silence"):
        ledger.ask([Request(())] * (2 + answers))
    assert (ledger.requests, ledger.answered, ledger.tokens_in) == (2 + answers, answers, 10 * answers)
    assert ledger.failures == {"rejected": 1, "timeout": 1}


def test_a_reply_that_the_limit_cut_ends_with_its_last_sentence() -> None:
    def cut(text: str) -> list[str]:
        return Ledger(lambda requests: [Answer(text, "length", 1, 1)]).ask([Request(())])

    assert cut("Find the passages that answer. Show the texts that best describe the overall") == [
        "Find the passages that answer."
    ]
    assert cut("Find the passages that best describe the overall") == [""]


def test_an_endpoint_that_is_down_is_an_error() -> None:
    def down(requests: Sequence[Request]) -> list[Answer]:
        raise EndpointError("no endpoint at 127.0.0.1:1")

    with pytest.raises(EndpointError):
        write_pool(2, 1, 1, Ledger(down))


def test_a_pool_of_none_asks_nothing() -> None:
    ledger = Ledger(replying("Find passages that answer the question."))
    assert write_pool(0, 1, 3, ledger).instructions == []
    assert ledger.requests == 0
