"""Refuses candidates that repeat dev content: an instruction is to name the task, not to smuggle in queries or
answers.

Takes the texts that the search sees and an instruction; returns the run of words that was copied, if any. Knows
nothing of models or scores.
"""

from collections.abc import Iterable

from stm.search_prompts.instructions import words_of
from stm.tasks import Task

_FUNCTION = frozenset(
    """a an and any are as at be best by for from in into is it of on or other that the their them these
    this those to which whose with you your
    """.split()
)


def spread(text: str) -> str:
    """The words of a text between single blanks, with one at either end: what runs of words are looked up in."""
    return f" {' '.join(words_of(text))} "


def shared_run(instruction: str, text: str, length: int, allowed: str = "") -> str | None:
    """Return the first run of `length` words that also stands in `text` and not in `allowed`, both spread, or None.

    A run with fewer than two words of content is everybody's.
    """
    words = words_of(instruction)
    for start in range(len(words) - length + 1):
        run = words[start : start + length]
        found = f" {' '.join(run)} "
        if sum(word not in _FUNCTION for word in run) > 1 and found in text and found not in allowed:
            return found.strip()
    return None


class CopyGuard:
    """Finds dev content in instructions.

    Copied is a run of `copy_words` words that also stands in a query or passage, or a whole query of two words or more.
    What the seed instruction says itself may be said again.
    """

    def __init__(self, tasks: Iterable[Task], seed_instruction: str, copy_words: int) -> None:
        queries, passages = [], []
        for task in tasks:
            queries += [spread(text) for text in task.queries.values()]
            passages += [spread(passage.full_text()) for passage in task.corpus.values()]
        self._copy_words = copy_words
        self._text = "\n".join(queries + passages)
        self._queries = sorted({query for query in queries if len(query.split()) > 1})
        self._seed = spread(seed_instruction)

    def copied(self, instruction: str) -> str | None:
        """Return the first copied run of words, or None."""
        if run := shared_run(instruction, self._text, self._copy_words, self._seed):
            return run
        whole = spread(instruction)
        return next((query.strip() for query in self._queries if query in whole and query not in self._seed), None)
