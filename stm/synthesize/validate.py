"""Why an LLM-written passage is no hard negative: a table of rules over its text, and margins over similarity scores.

Takes answers and triplets, returns a reason per answer (empty: accepted). Knows nothing of endpoints or files.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from stm.llm.answers import Answer
from stm.params.synthesize import Validation
from stm.synthesize.language import main_script, probable_language
from stm.synthesize.prompt import Triplet, strip_controls
from stm.synthesize.similarity import Similarity
from stm.words import words_of

REFUSAL = re.compile(
    r"\b(?:i (?:can ?not|can'?t|won't|apologi[sz]e|am (?:unable|not able|sorry))|i'm (?:sorry|unable|not able)|"
    r"as an? (?:ai|(?:large )?language model)|(?:unable|not able) to (?:assist|help|provide|comply|fulfil)|"
    r"i (?:do not|don't) have (?:access|enough|any))\b",
    re.IGNORECASE,
)
META = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|absolutely)\b[,!.:]|^(?:here(?:'s| is| are)|below is|the following is)\b|"
    r"\b(?:hard negative|negative (?:passage|example|document)|(?:the|this|your|given|original) (?:query|prompt)|"
    r"(?:passage|document|sentence|text) (?:above|provided|you (?:gave|provided))|similar sentence|let me know|"
    r"original (?:text|passage)|"
    r"i hope (?:this|that)|(?:the|this|an?|new|revised|corrected) (?:\w+ )?(?:sentence|version) (?:is|could|of)|"
    r"grammar)\b|"
    r"^(?:passage|document|note|answer|sentence)\s*:",
    re.IGNORECASE,
)
# Talk about the task or of oneself, unless the row's own texts talk like that.
TALK = re.compile(
    r"\b(?:sentences?|paragraph|phrasing|wording|rewritten|rephrased?|paraphrased?|grammar|grammatical|smollm)\b",
    re.IGNORECASE,
)
SELF = re.compile(rf"\bI(?:'m|'ll|'d|'ve| am| will| would| can| could| have| think| do| hope)\b|(?i:{TALK.pattern})")
TAG = re.compile(r"</?[a-z_]+>|<\|[^|>]*\|>|^```", re.IGNORECASE | re.MULTILINE)
SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f\u061f](?=[\"'\u201d\u2019)]*(?:\s|$))")
QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb*"


def tidy(text: str, is_cut: bool) -> str:
    """Clean an answer without changing what it says: controls, wrapping quotes, a torn last sentence."""
    text = strip_controls(text)
    while len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
        text = text[1:-1].strip()
    if is_cut:
        ends = [match.end() for match in SENTENCE_END.finditer(text)]
        text = text[: ends[-1]] if ends else text
    return text


@lru_cache(maxsize=8)  # the rules ask for the same four texts of a row again and again
def _words(text: str) -> tuple[str, ...]:
    return tuple(words_of(text))


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All word n-grams in order; a shorter text counts as one n-gram."""
    return [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))] if words else []


def copied_share(text: str, source: str, n: int) -> float:
    """Share of one text's n-grams that the other has, the larger of both ways; n shrinks to the shorter text."""
    left, right = _words(text), _words(source)
    n = min(n, len(left), len(right))
    if not n:
        return 0.0
    ours, theirs = ngrams(left, n), ngrams(right, n)
    ours_set, theirs_set = set(ours), set(theirs)
    if ours_set.isdisjoint(theirs_set):  # nearly always
        return 0.0
    inside, covered = sum(g in theirs_set for g in ours) / len(ours), sum(g in ours_set for g in theirs) / len(theirs)
    return max(inside, covered)


def repeated_share(text: str, n: int) -> float:
    """Share of n-grams that occurred before in the same text."""
    grams = ngrams(_words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


Rule = Callable[[str, Triplet, Validation], bool]


def _is_meta(text: str, row: Triplet, _params: Validation) -> bool:
    text = text.replace("\u2019", "'")
    is_self = bool(SELF.search(text)) and not SELF.search(f"{row.query} {row.positive} {row.mined}")
    return is_self or bool(META.search(text) or TAG.search(text))


def _copies_query(text: str, row: Triplet, params: Validation) -> bool:
    query, words = _words(row.query), _words(text)
    # A query of two words may well occur in a hard negative; one that is nothing else may not.
    return words == query or (
        len(query) >= params.ngram and copied_share(text, row.query, params.ngram) > params.max_copy
    )


def _is_other_language(text: str, row: Triplet, _params: Validation) -> bool:
    if main_script(row.positive) not in ("", main_script(text)):  # "1945" is of no script
        return True
    ours = probable_language(text)
    return bool(ours) and probable_language(f"{row.positive} {row.query}") not in ("", ours)


RULES: tuple[tuple[str, Rule], ...] = (
    ("empty", lambda text, _row, _params: not _words(text)),
    ("refusal", lambda text, _row, _params: bool(REFUSAL.search(text.replace("\u2019", "'")))),
    ("meta_text", _is_meta),
    ("copies_query", _copies_query),
    ("copies_positive", lambda text, row, params: copied_share(text, row.positive, params.ngram) > params.max_copy),
    ("copies_mined", lambda text, row, params: copied_share(text, row.mined, params.ngram) > params.max_copy),
    ("too_short", lambda text, _row, params: len(_words(text)) < params.min_words),
    ("too_long", lambda text, _row, params: len(_words(text)) > params.max_words),
    ("repeats_itself", lambda text, _row, params: repeated_share(text, params.ngram) > params.max_repeat),
    ("other_language", _is_other_language),
)


def check_text(text: str, row: Triplet, params: Validation) -> str:
    """Return the first rule that the text breaks, or the empty string."""
    return next((reason for reason, is_broken in RULES if is_broken(text, row, params)), "")


def check_margins(
    topic: float, score: float, positive_score: float, mined_score: float | None, params: Validation
) -> str:
    """Return why the scores forbid the text: off topic (far from the positive's topic or from the query), as near to
    the query as the positive, easier than the mined, where there is one (not `None`).

    Where the retriever sees no relation of query and positive at all, it cannot judge nearness and only the topic
    counts.
    """
    if topic < params.min_topic or score < params.min_ratio * positive_score:
        return "off_topic"
    if positive_score > 0 and score >= params.max_ratio * positive_score:
        return "too_close"
    if mined_score is not None and score < params.min_ratio_to_mined * mined_score:
        return "too_easy"
    return ""


def validate(
    answers: Sequence[Answer], rows: Sequence[Triplet], params: Validation, similarity: Similarity
) -> list[tuple[str, str]]:
    """Return (tidied text, reason) per answer; the reason is empty for an accepted one."""
    texts = [tidy(answer.text, answer.finish_reason == "length") for answer in answers]
    reasons = [
        "filtered" if answer.finish_reason == "content_filter" else check_text(text, row, params)
        for answer, text, row in zip(answers, texts, rows, strict=True)
    ]
    open_ = [index for index, reason in enumerate(reasons) if not reason]
    queries = [rows[i].query for i in open_]
    positives = [rows[i].positive for i in open_]
    candidates = [texts[i] for i in open_]
    # In an order in which what one call has cut into words is still there for the next. A limit of 0 needs no score.
    positive_scores = similarity.query_to_passage(queries, positives)
    topics = similarity.passage_to_passage(positives, candidates) if params.min_topic else [0.0] * len(open_)
    scores = similarity.query_to_passage(queries, candidates)
    mined_scores = [0.0] * len(open_)
    if params.min_ratio_to_mined:
        mined_scores = similarity.query_to_passage(queries, [rows[i].mined for i in open_])
    for place, index in enumerate(open_):
        reasons[index] = check_margins(
            topics[place], scores[place], positive_scores[place],
            mined_scores[place] if rows[index].mined else None, params,
        )  # fmt: skip
    return list(zip(texts, reasons, strict=True))
