"""Refuses candidates that repeat dev content: an instruction is to name the task, not to smuggle in queries or
answers.

Takes the texts that the search sees and an instruction; returns the run of words that was copied, if any. Knows
nothing of models or scores.
"""

import unicodedata
from collections.abc import Iterable

from stm.search_prompts.instructions import words_of
from stm.tasks import Task

_FUNCTION = frozenset(
    """a an and any are as at be best by for from in into is it of on or other that the their them these
    this those to which whose with you your
    """.split()
)


def _words(text: str) -> list[str]:
    # One form of letters and of the apostrophe, which models write straight whatever the source has.
    plain = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    return words_of(plain.replace("-", " "))


def spread(text: str) -> str:
    """The words of a text between single blanks, with one at either end: what runs of words are looked up in; the parts
    of a compound are words.
    """
    return f" {' '.join(_words(text))} "


def _says_something(words: Iterable[str]) -> bool:
    """Whether there are two words of content; anything less is everybody's."""
    return sum(word not in _FUNCTION for word in words) > 1


def shared_run(instruction: str, text: str, length: int, allowed: str = "") -> str | None:
    """Return the first run of `length` words, two of them of content, that also stands in `text` and not in `allowed`,
    both spread, or None.
    """
    words = _words(instruction)
    for start in range(len(words) - length + 1):
        run = words[start : start + length]
        found = f" {' '.join(run)} "
        if _says_something(run) and found in text and found not in allowed:
            return found.strip()
    return None


class CopyGuard:
    """Finds dev content in instructions.

    Copied is a run of `copy_words` words that also stands in a query or passage, or a whole query or title with two
    words of content. What the seed instruction says itself may be said again.
    """

    def __init__(self, tasks: Iterable[Task], seed_instruction: str, copy_words: int) -> None:
        names, passages = [], []
        for task in tasks:
            names += [spread(text) for text in task.queries.values()]
            names += [spread(passage.title) for passage in task.corpus.values()]
            passages += [spread(passage.full_text()) for passage in task.corpus.values()]
        self._copy_words = copy_words
        self._text = "\n".join(names + passages)
        self._names = sorted({name for name in names if _says_something(name.split())})
        self._seed = spread(seed_instruction)

    def copied(self, instruction: str) -> str | None:
        """Return the first copied run of words, or None."""
        if run := shared_run(instruction, self._text, self._copy_words, self._seed):
            return run
        whole = spread(instruction)
        return next((name.strip() for name in self._names if name in whole and name not in self._seed), None)
