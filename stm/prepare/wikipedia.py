"""Parser of a MediaWiki export: articles as paragraphs under headings, and which articles are held out.

XML text with wiki markup goes in, plain paragraphs come out. Knows nothing of the package that ships the file.
"""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stm.prepare.text import hashed_order, squeeze

MIN_WORDS, MAX_WORDS = 25, 180  # of a paragraph; longer ones are cut
MIN_PARAGRAPHS = 5  # of an article
TEST_ARTICLES, DEV_ARTICLES = 25, 10
_PAGE = re.compile(r"<page>(.*?)</page>", re.DOTALL)
_TITLE = re.compile(r"<title>(.*?)</title>")
_TEXT = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)
_HEADING = re.compile(r"^(=+)\s*(.*?)\s*=+$")
_REMOVED = (
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"<ref[^>/]*/>"),
    re.compile(r"<ref[^>]*>.*?</ref>", re.DOTALL),
    re.compile(r"<(math|gallery|timeline|table|imagemap|score|nowiki|pre|source|code)[^>]*>.*?</\1>", re.DOTALL),
)
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_NO_TEXT_LINK = re.compile(r"(file|image|category|[a-z\-]{2,12}):", re.IGNORECASE)
_NAMED_URL = re.compile(r"\[https?://\S+ ([^\]]*)\]")
_URL = re.compile(r"\[https?://\S+\]")
_QUOTES = re.compile(r"'{2,}")
_TAG = re.compile(r"<[^>]+>")
_HOLLOW = re.compile(r"\((?:\s*[;,])+\s*")  # what a removed template leaves in brackets: "Apollo ( ; , Apollon)"
_EMPTY_BRACKETS = re.compile(r"\s*\(\s*\)")
_LEFTOVER = re.compile(r"\[\[|\]\]|\{\{|\}\}|<ref|\|thumb")  # markup that was broken in the source
_END_MATTER = frozenset(
    "references|external links|further reading|see also|notes|bibliography|sources|footnotes|citations".split("|")
)


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph, its id and the headings above it, the article's title first."""

    id: str
    headings: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Article:
    """An article and its paragraphs in reading order."""

    title: str
    paragraphs: tuple[Paragraph, ...]


def _remove_nested(pattern: re.Pattern[str], text: str, rounds: int) -> str:
    """The text without the matches, which nest: the innermost go first, round by round."""
    for _ in range(rounds):
        text, count = pattern.subn("", text)
        if not count:
            break
    return text


def _link_text(match: re.Match[str]) -> str:
    return "" if _NO_TEXT_LINK.match(match.group(1)) else match.group(1).split("|")[-1]


def strip_markup(text: str) -> str:
    """Wiki markup as plain text; headings and line breaks stay."""
    text = html.unescape(text)
    for pattern in _REMOVED:
        text = pattern.sub("", text)
    text = _remove_nested(_TABLE, _remove_nested(_TEMPLATE, text, 8), 4)
    for _ in range(4):
        text = _LINK.sub(_link_text, text)
    text = _URL.sub("", _NAMED_URL.sub(r"\1", text))
    text = _TAG.sub("", _QUOTES.sub("", text))
    return _EMPTY_BRACKETS.sub("", _HOLLOW.sub("(", text))


def _paragraphs(title: str, text: str) -> Iterator[Paragraph]:
    headings, count = [title], 0
    for line in text.split("\n"):
        line = line.strip()
        heading = _HEADING.match(line)
        if heading:
            headings = [*headings[: len(heading.group(1)) - 1], heading.group(2)]
        elif line and line[0] not in "*#:;|!{}" and headings[-1].lower() not in _END_MATTER:
            words = squeeze(line).split(" ")
            if len(words) >= MIN_WORDS and not _LEFTOVER.search(line):
                yield Paragraph(f"{title.replace(' ', '_')}#{count}", tuple(headings), " ".join(words[:MAX_WORDS]))
                count += 1


def parse_wikipedia(export: str) -> list[Article]:
    """Articles with at least five paragraphs, without redirects and disambiguations, in file order."""
    articles = []
    for page in _PAGE.findall(export):
        title, text = _TITLE.search(page), _TEXT.search(page)
        if "<redirect" in page or not title or not text:
            continue
        name = html.unescape(title.group(1))
        if ":" in name or "disambiguation" in name:
            continue
        paragraphs = tuple(_paragraphs(name, strip_markup(html.unescape(text.group(1)))))
        if len(paragraphs) >= MIN_PARAGRAPHS:
            articles.append(Article(name, paragraphs))
    return articles


def hold_out_articles(titles: Iterable[str]) -> dict[str, str]:
    """Part of every article: "test" for 25, "dev" for the next 10 in hashed order, "train" for the rest."""
    order = hashed_order(set(titles), "wikipedia")
    limits = (TEST_ARTICLES, TEST_ARTICLES + DEV_ARTICLES)
    return {title: "test" if i < limits[0] else "dev" if i < limits[1] else "train" for i, title in enumerate(order)}
