"""Generic pools: domain-free retrieval instructions written by the language model.

Each request asks for one sentence with another verb, object and relation, which gives variety even with a model of
135 M parameters. The same requests serve every split, so an answer store asks the model once. Nothing is invented
here: if too few replies hold up, the pool is smaller.
"""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from stm.llm.answers import Request
from stm.search_prompts.instructions import extract, generic_fault, key_of
from stm.search_prompts.ledger import Ledger
from stm.search_prompts.messages import generic_messages

_VERBS = ("Find", "Retrieve", "Search for", "Select", "Identify", "Return", "Locate", "Show")
_OBJECTS = ("passages", "documents", "texts", "paragraphs", "entries")
_RELATIONS = (
    "answer the question",
    "are relevant to the query",
    "explain what the query describes",
    "contain the information that the query asks for",
    "mean the same as the query",
    "support the statement in the query",
    "define the term in the query",
    "give the best evidence for the query",
)
_SAMPLE = 12  # refused replies shown in the report


@dataclass
class Pool:
    """What the model wrote: the instructions that hold up, and why the others do not."""

    asked: int
    instructions: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    samples: list[dict[str, str]] = field(default_factory=list)

    def as_report(self) -> dict[str, object]:
        """Counts, and a few refused replies with their reasons."""
        return {
            "asked": self.asked,
            "kept": len(self.instructions),
            "refused": dict(sorted(self.refused.items())),
            "refused_samples": self.samples,
        }

    def refuse(self, reply: str, reason: str) -> None:
        """Count a reply that gave nothing."""
        self.refused[reason] += 1
        if len(self.samples) < _SAMPLE:
            self.samples.append({"reply": reply[:300], "reason": reason})


def _combinations(seed: int) -> list[tuple[str, str, str]]:
    combinations = list(itertools.product(_VERBS, _OBJECTS, _RELATIONS))
    random.Random(seed).shuffle(combinations)
    return combinations


def _take(reply: str, pool: Pool, keys: set[str]) -> None:
    reason = "empty"
    for text in extract(reply):
        reason = generic_fault(text) or ("a near-duplicate" if key_of(text) in keys else "")
        if not reason:
            keys.add(key_of(text))
            pool.instructions.append(text)
            return
    pool.refuse(reply, reason)


def write_pool(size: int, seed: int, rounds: int, ledger: Ledger) -> Pool:
    """Ask for `size` distinct generic instructions in at most `rounds` rounds.

    Each round sends half as many requests again as instructions are missing, since some replies are refused. The
    replies are taken in the order of the requests. Raises what the endpoint raises; a model that writes nothing of
    use gives an empty pool.
    """
    pool, keys, sent = Pool(size), set[str](), 0
    combinations = _combinations(seed)
    for _ in range(rounds):
        missing = size - len(pool.instructions)
        if not missing:
            break
        numbers = range(sent, sent + missing + (missing + 1) // 2)
        sent += len(numbers)
        for reply in ledger.ask([_request(combinations, number) for number in numbers]):
            if len(pool.instructions) < size:
                _take(reply, pool, keys)
    return pool


def _request(combinations: Sequence[tuple[str, str, str]], number: int) -> Request:
    attempt, index = divmod(number, len(combinations))
    return Request(generic_messages(*combinations[index]), attempt=attempt)
