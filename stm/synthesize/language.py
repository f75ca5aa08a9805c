"""A cheap guess at the script and language of a text, good enough to refuse an answer in the wrong one.

Scripts come from Unicode names, languages from their commonest function words; short texts get no guess rather than a
wrong one.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

FUNCTION_WORDS = {
    "en": "the of and to in is that for with as by on are from which or be an this was were it at not",
    "de": "der die das und ist von zu den mit des im dem ein eine nicht auf als auch bei oder wird sind durch",
    "fr": "le la les des est une dans du et en qui par pour que au sur avec ou sont il ne pas aux cette",
    "es": "el la los las de que en y es un una por con para del se como al o su son no lo más",
    "it": "il di che la e un una in per con del della è da non le dei si nel sono alla gli o come",
    "pt": "o a os as de que em e um uma do da por com para não se no na é dos ou como ao são",
    "nl": "de het een van en is in dat op te met voor zijn niet door aan die wordt of bij als ook uit",
}
SETS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}
KANA = ("HIRAGANA", "KATAKANA")
LEAST_KANA = 0.05  # share of a Japanese text's letters; the others are Chinese characters, of which Chinese is all
LEAST_HITS, LEAST_LEAD = 4, 2.0
LOOKED_AT = 4000  # characters


@lru_cache(maxsize=65536)
def _script(char: str) -> str:
    return unicodedata.name(char, "UNKNOWN").split()[0].split("-")[0]


def main_script(text: str) -> str:
    """The script of most letters (LATIN, CYRILLIC, CJK, ARABIC, ...), HIRAGANA for Japanese; empty without letters."""
    counts: Counter[str] = Counter()
    for char, count in Counter(text[:LOOKED_AT]).items():  # a text has far fewer letters than places
        if char.isalpha():
            counts[_script(char)] += count
    kana = sum(counts.pop(script, 0) for script in KANA)
    if kana:
        is_japanese = kana >= LEAST_KANA * (kana + counts["CJK"])
        counts["HIRAGANA"] = kana + (counts.pop("CJK", 0) if is_japanese else 0)
    return min(counts, key=lambda script: (-counts[script], script)) if counts else ""


def probable_language(text: str) -> str:
    """ISO 639-1 code of a European language if function words make it clear, else the empty string."""
    words = re.findall(r"\w+", text[:LOOKED_AT].casefold())
    hits = sorted(((sum(map(known.__contains__, words)), language) for language, known in SETS.items()), reverse=True)
    (most, language), (second, _) = hits[0], hits[1]
    return language if most >= LEAST_HITS and most >= LEAST_LEAD * second else ""
