"""What is asked of the language model: a generic instruction, or a better one than the present.

Builds chat messages from plain values. The form of an answer is shown with examples that have nothing to do
with retrieval, which small models need, so that no retrieval instruction is put into the model's mouth.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_ERRANDS = (
    (
        'kitchen helper. It starts with "Bring" and asks for tools that cut vegetables.',
        "Bring the sharpest tools that cut these vegetables cleanly.",
    ),
    (
        'gardener. It starts with "Plant" and asks for trees that give shade.',
        "Plant tall trees that give deep shade to the whole yard.",
    ),
)
WISH = (
    "Write one better instruction for the search engine, for all searches of this kind, without words of these cases. "
    "Say what is asked with and what is to be found, in 8 to 25 words. Answer with one sentence."
)


def _demonstrations() -> list[dict[str, str]]:
    turns = []
    for errand, sentence in _ERRANDS:
        turns.append({"role": "user", "content": f"Write one instruction for a {errand} Answer with one sentence."})
        turns.append({"role": "assistant", "content": sentence})
    return turns


def generic_messages(verb: str, thing: str, relation: str) -> list[dict[str, str]]:
    """Ask for one domain-free instruction that starts with `verb` and asks for `thing` that `relation`."""
    wish = f'It starts with "{verb}" and asks for {thing} that {relation}.'
    request = f"Write one instruction for a search engine. {wish} Answer with one sentence."
    return [*_demonstrations(), {"role": "user", "content": request}]


def reflection_messages(instruction: str, records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Ask for a better instruction, given the present one and what a person would look at."""
    cases = "\n\n".join(
        f"Query: {record['query']}\nWanted: {record['wanted']}\nFound instead: {record['found']}\n{record['feedback']}"
        for record in records
    )
    present = f'The instruction is: "{instruction}"' if instruction else "There is no instruction yet."
    request = f"A search engine gets an instruction. {present}\nThese searches went wrong:\n\n{cases}\n\n{WISH}"
    return [*_demonstrations(), {"role": "user", "content": request}]
