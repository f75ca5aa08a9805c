"""Refuses candidates that repeat dev content: an instruction is to name the task, not to smuggle in queries or
answers.

Takes the texts that the search sees and an instruction; returns what was copied, if anything. Knows nothing of
models or scores.
"""

import unicodedata
from collections.abc import Iterable
from itertools import accumulate

import regex  # type: ignore[import-untyped]

from stm.search_prompts.instructions import words_of
from stm.tasks import Task
from stm.words import UNSPACED

# A name of one word is rare if at most so many dev texts hold it, or one in so many where that is more.
FEW_TEXTS, ONE_TEXT_IN = 3, 200

_FUNCTION = frozenset(
    """a an and any are as at be best by for from in into is it of on or other that the their them these
    this those to which whose with you your
    """.split()
)
_ASKING = frozenset("can do does how what when where who why".split())
# What instructions of any task are made of, in the singular. Few dev texts may hold such a word, for it is of the
# trade and not of the topic; a title that is just this word gives nothing away.
_EVERYDAY = frozenset(
    """abstract all answer appropriate article ask book case category choose claim clinical concept condition contain
    content context correct data define definition describe description detail diagnosis disease disorder document
    domain drug entity entries entry evidence exact example explain explanation expression fact find general give
    given health idea identify important information item kind list locate look match matching mean meaning medical
    medicine message name need not one page paragraph paraphrase passage patient phrase piece precise product
    provide query question rank record related relevant report represent request result retrieve return same
    scientific search section select sense sentence short show similar snippet source specific state statement
    subject suggest summary support symptom synonym term text title topic treatment type use useful user word
    """.split()
)
# Characters of scripts without blanks between words are the units there.
_CHARACTER = regex.compile(f"([{UNSPACED}])")
_BLANK_BETWEEN = regex.compile(f"(?<=[{UNSPACED}]) (?=[{UNSPACED}])")


def _words(text: str) -> list[str]:
    # One form of letters and of the apostrophe, which models write straight whatever the source has.
    plain = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    return words_of(" ".join(_CHARACTER.split(plain.replace("-", " "))))


def _spaced(words: Iterable[str]) -> str:
    return f" {' '.join(words)} "


def _plain(found: str) -> str:
    """What was found, as one writes it."""
    return str(_BLANK_BETWEEN.sub("", found.strip()))


def spread(text: str) -> str:
    """The words of a text between single blanks, with one at either end: what runs of words are looked up in. Parts of
    compounds are words; characters of scripts without blanks between words stand alone.
    """
    return _spaced(_words(text))


def _weight(word: str) -> float:
    """What a unit adds to a length in words: a character of a script without blanks is half a word."""
    return 0.5 if _CHARACTER.match(word) else 1.0


def _says_something(words: Iterable[str]) -> bool:
    """Whether there are two words of content; anything less is everybody's."""
    return sum(_weight(word) for word in words if word not in _FUNCTION) >= 2


def shared_run(instruction: str, text: str, length: int, allowed: str = "") -> str | None:
    """Return the first run of `length` words, two of them of content, that also stands in `text` and not in `allowed`,
    both spread, or None; two characters of a script without blanks are as long as a word.
    """
    words = _words(instruction)
    for start in range(len(words)):
        lengths = accumulate(_weight(word) for word in words[start:])
        end = next((end for end, reached in enumerate(lengths, start + 1) if reached >= length), None)
        if end is None:
            break
        run = words[start:end]
        found = _spaced(run)
        if _says_something(run) and found in text and found not in allowed:
            return _plain(found)
    return None


def _core(name: str) -> str:
    """What of a query or title is looked for, spread: all of it, or its only word of content, or "" for nothing."""
    words = _words(name)
    content = [word for word in words if word not in _FUNCTION | _ASKING]
    if _says_something(content):
        return _spaced(words)
    core = " ".join(content)
    is_everyday = not _EVERYDAY.isdisjoint((core, core.removesuffix("s")))
    return "" if is_everyday or sum(map(str.isalpha, core)) < 2 else f" {core} "


class CopyGuard:
    """Finds dev content in instructions.

    Copied is
    - a run of `copy_words` words, two of them of content, that also stands in a query or passage,
    - a whole query or title with two words of content, where words that only ask ("what", "how") are none,
    - the only word of content of a query or title, if it is rare: at most `FEW_TEXTS` dev texts (queries and passages,
      equal ones counted once) hold it, or one in `ONE_TEXT_IN` where that is more. What instructions are commonly made
      of ("term", "disease"), and what has fewer than two letters, is not counted.
    A character of a script without blanks between words (`stm.words.UNSPACED`) is half a word
    everywhere. What the seed instruction says itself may be said again.
    """

    def __init__(self, tasks: Iterable[Task], seed_instruction: str, copy_words: int) -> None:
        names, texts = set[str](), dict[str, None]()
        for task in tasks:
            names.update(task.queries.values(), (passage.title for passage in task.corpus.values()))
            texts |= dict.fromkeys(map(spread, task.queries.values()))
            texts |= dict.fromkeys(spread(passage.full_text()) for passage in task.corpus.values())
        self._copy_words = copy_words
        self._text = "\n".join(texts)
        self._few = max(FEW_TEXTS, len(texts) // ONE_TEXT_IN)
        self._names = sorted(set(map(_core, names)) - {""})
        self._seed = spread(seed_instruction)

    def copied(self, instruction: str) -> str | None:
        """Return the first copied run of words, or else the first copied name, or None."""
        if run := shared_run(instruction, self._text, self._copy_words, self._seed):
            return run
        whole = spread(instruction)
        said = (name for name in self._names if name in whole and name not in self._seed)
        return next((_plain(name) for name in said if self._is_telling(name)), None)

    def _is_telling(self, name: str) -> bool:
        return _says_something(name.split()) or sum(name in text for text in self._text.split("\n")) <= self._few
