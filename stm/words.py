"""What counts as a word, and when two texts count as the same, in any script.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no spaces between words; there every character counts as a word,
so that lengths, n-grams and near copies mean something.
"""

import hashlib
import unicodedata
from functools import cache

import regex  # type: ignore[import-untyped]

# Scripts, as regex and Rust name them. By their places: Bopomofo, whose script has two signs of tone that stand in
# other texts too, and the long vowel of the kana, which is of no script.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}" + "\u3100-\u312f\u31a0-\u31bf\u30fc"
_WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}_--[{UNSPACED}]]+", regex.V1)
INVISIBLE = r"\p{Cf}+"  # soft hyphens, zero-width spaces, marks of direction: of the layout, not of the text
BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}]+"
_INVISIBLE, _BETWEEN_WORDS = regex.compile(INVISIBLE), regex.compile(BETWEEN_WORDS)


def words_of(text: str) -> list[str]:
    """Case-folded words, without punctuation."""
    return list(_WORD.findall(text.casefold()))


def normalise(text: str) -> str:
    """The form in which two texts count as the same: NFKC, without case, punctuation and invisible characters, words
    single-spaced.
    """
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    return str(_BETWEEN_WORDS.sub(" ", folded)).strip()


@cache
def case_folds() -> dict[str, str]:
    """The lower-case characters that `str.casefold` changes further, as ß to ss, each with what it becomes.

    Lowering and then replacing these is folding, for what knows no folding of its own.
    """
    return {c: c.casefold() for c in map(chr, range(0x10000)) if c.lower() == c != c.casefold()}


def fingerprint(text: str) -> int:
    """64 bits of BLAKE2b of the text's normal form: equal for texts that count as the same.

    Texts of signs alone have no words, and count as they are written.
    """
    form = normalise(text) or text
    return int.from_bytes(hashlib.blake2b(form.encode(), digest_size=8).digest(), "big")
