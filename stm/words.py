"""What counts as a word, and when two texts count as the same, in any script.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no spaces between words; there every character counts as a word,
so that lengths, n-grams and near copies mean something.
"""

import hashlib
import unicodedata

import regex  # type: ignore[import-untyped]

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # scripts, as regex and Rust name them
_WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}_--[{UNSPACED}]]+", regex.V1)
_BETWEEN_WORDS = regex.compile(r"[^\p{L}\p{M}\p{N}]+")


def words_of(text: str) -> list[str]:
    """Case-folded words, without punctuation."""
    return list(_WORD.findall(text.casefold()))


def normalise(text: str) -> str:
    """The form in which two texts count as the same: NFKC, without case and punctuation, words single-spaced."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return str(_BETWEEN_WORDS.sub(" ", folded)).strip()


def fingerprint(text: str) -> int:
    """64 bits of BLAKE2b of the text's normal form: equal for texts that count as the same.

    Texts of signs alone have no words, and count as they are written.
    """
    form = normalise(text) or text
    return int.from_bytes(hashlib.blake2b(form.encode(), digest_size=8).digest(), "big")
