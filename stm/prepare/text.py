"""Small pure functions on text and hashes that the parsers and builders share.

All choices that look random are functions of a key, never of an order, so that one more concept changes nothing about
the others.
"""

import hashlib
import random
import re
from collections.abc import Iterable
from functools import lru_cache

_WORD = re.compile(r"[^\W_]+")
_JOINED = re.compile(r"(?<=[a-z])_(?=[a-z])")  # relation names inside definitions: "in_the_left_side_of"
_TAG = re.compile(r"<[^>]+>")
_SPACES = re.compile(r"\s+")
# Citations that ontology editors leave at the end of a definition: "[PMID:123]", "[MP]", "[Wikipedia:Heart]".
_CITATION = re.compile(
    r"\s*\[(?:[^\[\]]*(?:https?:|url:|PMID|DOI|MESH|wikipedia|NCIT|ISBN|SNOMED|UMLS|CSP|GC_ID|MedGen|ORCID)[^\[\]]*|[A-Z]{2,6})\]\s*(\.?)\s*$",
    re.IGNORECASE,
)
_SPELLING = (("tumour", "tumor"), ("aemia", "emia"), ("oedema", "edema"))


@lru_cache(maxsize=1 << 18)  # the joins ask for the names of the same concepts again and again
def normalise_name(name: str) -> str:
    """Lower-case words in one spelling, for comparing names of concepts."""
    name = name.lower()
    for british, american in _SPELLING:
        name = name.replace(british, american)
    return " ".join(_WORD.findall(name))


def clean_definition(text: str) -> str:
    """A definition without escapes, markup and trailing citations."""
    for escaped, plain in (("\\n", " "), ('\\"', '"'), ("\\,", ","), ("\\:", ":")):
        text = text.replace(escaped, plain)
    text = _JOINED.sub(" ", _TAG.sub("", text))
    for _ in range(3):
        text = _CITATION.sub(r"\1", text)
    return squeeze(text)


def squeeze(text: str) -> str:
    """Every run of white space as one space."""
    return _SPACES.sub(" ", text).strip()


def hashed_unit(*parts: str) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def hashed_order(items: Iterable[str], *key: str) -> list[str]:
    """The items in an order that looks random and depends on the items and the key alone."""
    return sorted(items, key=lambda item: (hashed_unit(*key, item), item))


def hashed_random(*parts: str) -> random.Random:
    """A generator seeded by the parts."""
    return random.Random("\0".join(parts))


def capitalise(text: str) -> str:
    """The text with its first letter in upper case and the rest as it is."""
    return text[:1].upper() + text[1:]
