"""What counts as an instruction: one imperative sentence of 4 to 30 words, no placeholders, no talk about the task.

Takes raw replies of a language model of any quality and returns clean sentences, or the reason why there is none.
Does not know which instruction is good; only that it is one.
"""

import re
from collections.abc import Iterator

MIN_WORDS, MAX_WORDS = 4, 30
MAX_CHARACTERS = 300
MIN_DISTINCT = 0.6  # distinct words over words; below it a small model is going round in circles

_VERBS = frozenset(
    """choose collect consider detect determine discover extract fetch find gather get give identify judge
    list locate look match pick point provide rank read represent retrieve return search select show spot
    supply suggest surface use
    """.split()
)
_OPENINGS = frozenset("after based before for from given if using when with".split())
_AFTER_SEARCH = frozenset("across and for in out the this these through within".split())
# Singular forms: what a retrieval instruction may ask for without naming a domain, and words that name one.
_OBJECTS = frozenset(
    """answer article content definition description document entries entry evidence explanation fact
    information material page paragraph passage piece record result section sentence snippet source
    statement text
    """.split()
)
_DOMAINS = frozenset(
    """anatomy bank biology book chemistry clinical company court disease doctor drug economy film finance
    financial game gene health history hospital law legal medical medicine money movie music patient physic
    politic product protein recipe science scientific software sport stock symptom therapy treatment weather
    wikipedia
    """.split()
)
_META = re.compile(
    r"\b(instructions?|prompts?|assistant|language model|search engines?|as an ai|sorry|certainly|rewrit\w+|"
    r"for example|e\.g|the following|here (is|are)|sure|i'm|i'll|my|we|our)\b|"
    r"(?<!type )(?<!stage )(?<!phase )(?<!class )(?<!grade )\bi\b",  # a pronoun, and no numeral
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"[\[\]{}<>|\"_\\^~#]|\.\.\.|\u2026|\b(x{2,}|xyz|lorem|placeholder|insert)\b|https?:|www\.", re.IGNORECASE
)
_DANGLING = frozenset(
    "a an and as because but by if into of or than that the their this to which whose with your".split()
)
_FUNCTION = _DANGLING | frozenset("all any are at for from in is it on these those".split())
_QUOTES = "\"'\u201c\u201d\u2018\u2019"
_LEAD = re.compile(r"^(?:[-*\u2022\u2013\u2014>]+|\(?\d{1,3}[.):])\s*")
_LABEL = re.compile(
    r"^(?:new |better |improved |final )?(?:instruction|prompt|answer|sentence|output)s?\s*\d*\s*[:=-]\s*",
    re.IGNORECASE,
)
_POLITE = re.compile(r"^(?:please|you (?:should|must|want to|need to|can)|kindly|always|then|just)[, ]+", re.IGNORECASE)
_QUOTED = re.compile(r"[\"\u201c\u201d]([^\"\u201c\u201d]{8,300})[\"\u201c\u201d]")


def words_of(text: str) -> list[str]:
    """Case-folded words; punctuation separates them."""
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text.casefold())


def tidy(text: str) -> str:
    """Strip bullets, numbers, labels, quotes and courtesies; collapse white space; begin with a capital."""
    text = " ".join(text.replace("*", " ").replace("`", " ").split())
    for pattern in (_LEAD, _LABEL, _POLITE):
        text = pattern.sub("", text.strip().strip(_QUOTES).strip())
    text = re.sub(r",? please(?=[.!]?$)", "", text, flags=re.IGNORECASE).strip()
    return text[:1].upper() + text[1:]


def _segments(reply: str) -> Iterator[str]:
    for line in re.split(r"[\r\n]+", reply):
        yield line
        yield from _QUOTED.findall(line)
        if ":" in line:
            yield line.split(":", 1)[1]
        yield from re.split(r"(?<=[.!?])\s+", line)


def extract(reply: str) -> list[str]:
    """Return the tidied lines, quotations and sentences of a reply, any of which may be an instruction, each once."""
    return [text for text in dict.fromkeys(tidy(segment) for segment in _segments(reply[:8000])) if text]


def _is_imperative(text: str) -> bool:
    heads = [words[0] for clause in text.split(",") if (words := words_of(clause))]
    first, second = (*words_of(text)[:2], "", "")[:2]
    if not heads or (first == "search" and second not in _AFTER_SEARCH):  # "Search results are ..."
        return False
    return heads[0] in _VERBS or (heads[0] in _OPENINGS and any(head in _VERBS for head in heads[1:]))


def fault(text: str) -> str | None:
    """Return why `text` is no instruction, or None if it is one: a reason fit for a table of counts."""
    words = words_of(text)
    checks = (
        (not text.isprintable() or not text.strip(), "not plain text"),
        (len(words) < MIN_WORDS, f"fewer than {MIN_WORDS} words"),
        (len(words) > MAX_WORDS, f"more than {MAX_WORDS} words"),
        (len(text) > MAX_CHARACTERS, f"more than {MAX_CHARACTERS} characters"),
        (bool(_PLACEHOLDER.search(text)), "a placeholder or markup"),
        (text.rstrip().endswith("?"), "a question"),
        (bool(re.search(r"[.!?:;]\s+\S|\s[-\u2013\u2014]+\s", text)), "more than one sentence"),
        (bool(_META.search(text)), "talk about the task"),
        (not _is_imperative(text), "not imperative"),
        (bool(words) and words[-1] in _DANGLING, "unfinished"),
        (len(set(words)) < MIN_DISTINCT * len(words), "repeats itself"),
    )
    return next((reason for is_bad, reason in checks if is_bad), None)


def generic_fault(text: str) -> str | None:
    """Return why `text` is no domain-free retrieval instruction, or None."""
    words = {form for word in words_of(text) for form in (word, word.removesuffix("s"))}
    if reason := fault(text):
        return reason
    if not words & _OBJECTS:
        return "does not say what to retrieve"
    if words & _DOMAINS or re.search(r"\d", text) or re.search(r"\s[A-Z][a-z]", text):
        return "names a domain"
    return None


def key_of(text: str) -> str:
    """A key that near-duplicates share: the sorted words without function words, plural endings cut."""
    content = {word.removesuffix("s") for word in words_of(text) if word not in _FUNCTION}
    return " ".join(sorted(content))
