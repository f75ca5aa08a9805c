"""Evaluation tasks of the embedded corpora: one builder per task, listed in `TASKS`, each for the part "dev" or "test".

A corpus goes in, a full task comes out; queries of equal text are one query. Does not cap and knows nothing of
training pairs.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from stm.prepare.embedded import Corpora
from stm.prepare.ontologies import Concept
from stm.prepare.phrasing import (
    concept_passage,
    distinct_synonyms,
    example_sentences,
    heading_query,
    lay_queries,
    sense_query,
    term_card,
    vignette,
)
from stm.prepare.text import normalise_name
from stm.tasks import Domain, Passage, Task


class Judged(NamedTuple):
    """A query and the ids of the passages that answer it."""

    id: str
    text: str
    passages: list[str]


class Content(NamedTuple):
    """A corpus and its queries."""

    corpus: dict[str, Passage]
    queries: Iterable[Judged]


def _concept_corpus(concepts: Iterable[Concept], titled: bool = True) -> dict[str, Passage]:
    return {concept.id: concept_passage(concept, titled) for concept in concepts}


def _named(names: Callable[[Concept], list[str]], ontologies: tuple[str, ...], corpora: Corpora, part: str) -> Content:
    """Another name -> definition of the concept."""
    concepts = list(corpora.medical.defined(part, *ontologies))
    queries = (Judged(f"{c.id}-{number}", name, [c.id]) for c in concepts for number, name in enumerate(names(c)))
    return Content(_concept_corpus(concepts), queries)


def vignettes(corpora: Corpora, part: str) -> Content:
    """Findings -> disease."""
    medical = corpora.medical
    diseases = list(medical.defined(part, "MONDO"))
    texts = ((c.id, vignette(c, medical.findings.get(c.id, {}), medical.concepts, 0)) for c in diseases)
    return Content(_concept_corpus(diseases), (Judged(key, text, [key]) for key, text in texts if text))


def paraphrases(corpora: Corpora, part: str) -> Content:
    """Dictionary definition -> medical definitions of the same concept, without names."""
    corpus = _concept_corpus(corpora.medical.defined(part), titled=False)
    queries = []
    for synset, keys in corpora.glosses.items():
        relevant = [key for key in keys if key in corpus]
        if relevant:
            queries.append(Judged(f"wordnet-{synset}", corpora.wordnet.synsets[synset].gloss, relevant))
    return Content(corpus, queries)


def encyclopedia(corpora: Corpora, part: str) -> Content:
    """Title and heading -> the paragraphs under it."""
    corpus: dict[str, Passage] = {}
    sections: dict[str, Judged] = {}
    for article in corpora.encyclopedia.of_part(part):
        for paragraph in article.paragraphs:
            corpus[paragraph.id] = Passage("", paragraph.text)
            key = "/".join(paragraph.headings).replace(" ", "_").replace("\t", "_")
            sections.setdefault(key, Judged(key, heading_query(paragraph), [])).passages.append(paragraph.id)
    return Content(corpus, sections.values())


def word_senses(corpora: Corpora, part: str) -> Content:
    """Sentence with a word in quotes -> the sense of the word in it."""
    synsets = list(corpora.wordnet.of_part(part))
    corpus = {synset.id: Passage("", synset.gloss) for synset in synsets}
    sentences = ((synset, example_sentences(synset)[:1]) for synset in synsets)
    return Content(
        corpus, (Judged(f"in-{s.id}", sense_query(s, text)[0], [s.id]) for s, found in sentences for text in found)
    )


def reverse_dictionary(corpora: Corpora, part: str) -> Content:
    """Definition -> the words for it."""
    synsets = corpora.wordnet.of_part(part, min_words=6)
    nouns = [synset for synset in synsets if synset.lexname.startswith("noun")]
    corpus = {synset.id: Passage("", term_card(synset, corpora.wordnet.synsets)) for synset in nouns}
    return Content(corpus, (Judged(f"of-{synset.id}", synset.gloss, [synset.id]) for synset in nouns))


class TaskBuilder(NamedTuple):
    """A builder and the average that its task counts in."""

    build: Callable[[Corpora, str], Content]
    domain: Domain


TASKS: dict[str, TaskBuilder] = {
    "med-hpo-lay": TaskBuilder(partial(_named, lay_queries, ("HPO",)), "medical"),
    "med-mondo-syn": TaskBuilder(partial(_named, distinct_synonyms, ("MONDO",)), "medical"),
    "med-vignette": TaskBuilder(vignettes, "medical"),
    "med-anatomy": TaskBuilder(partial(_named, distinct_synonyms, ("UBERON", "CL")), "medical"),
    "med-para": TaskBuilder(paraphrases, "medical"),
    "gen-wiki": TaskBuilder(encyclopedia, "general"),
    "gen-wsd": TaskBuilder(word_senses, "general"),
    "gen-revdict": TaskBuilder(reverse_dictionary, "general"),
}


def build_task(corpora: Corpora, name: str, kind: str, part: str) -> Task:
    """The full task `kind` of the part "dev" or "test" under the given name."""
    content = TASKS[kind].build(corpora, part)
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    known: dict[str, str] = {}  # normalised text -> the id of the first query that has it
    for judged in content.queries:
        key = known.setdefault(normalise_name(judged.text), judged.id)
        queries.setdefault(key, judged.text)
        qrels.setdefault(key, {}).update(dict.fromkeys(judged.passages, 1))
    return Task(name, TASKS[kind].domain, content.corpus, queries, qrels, {"kind": "embedded", "source": kind}).check()
