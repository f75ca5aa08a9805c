"""Training pairs of the embedded corpora: one generator per source, listed in `PAIRS`.

A corpus goes in, pairs with hard negatives from its hierarchy come out, all of the part "train". Does not sample or
decontaminate.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

from stm.prepare.embedded import Corpora, MedicalCorpus
from stm.prepare.ontologies import Concept
from stm.prepare.phrasing import (
    concept_passage,
    example_sentences,
    heading_query,
    lay_queries,
    question,
    sense_query,
    synonym_queries,
    term_card,
    vignette,
)
from stm.prepare.text import hashed_order, hashed_unit, normalise_name
from stm.prepare.wikipedia import Article, Paragraph

MAX_NEGATIVES = 8  # per pair, before decontamination
UNTITLED_SHARE = 0.3  # of the questions: their passage is the definition alone
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")


class Pair(NamedTuple):
    """A query, a passage that answers it, hard negatives from the hierarchy and the concept that both are about."""

    anchor: str
    positive: str
    negatives: list[str]
    concept: str


def _concept_pair(medical: MedicalCorpus, query: str, concept: Concept, titled: bool = True) -> Pair:
    # The negatives have the form of the positive, so that the form alone tells a model nothing.
    near = medical.hierarchy.neighbours(concept.id, MAX_NEGATIVES)
    negatives = [concept_passage(medical.concepts[key], titled).full_text() for key in near]
    return Pair(query, concept_passage(concept, titled).full_text(), negatives, medical.roots[concept.id])


def _named(limit: int, ontologies: tuple[str, ...], corpora: Corpora) -> Iterator[Pair]:
    """Up to `limit` lay terms and synonyms of a concept -> its definition."""
    medical = corpora.medical
    for concept in medical.defined("train", *ontologies):
        queries = dict.fromkeys(lay_queries(concept) + synonym_queries(concept))
        for query in hashed_order(queries, "name", concept.id)[:limit]:
            yield _concept_pair(medical, query, concept)


lay_terms = partial(_named, 4, ("HPO",))
disease_names = partial(_named, 2, ("MONDO",))
anatomy_names = partial(_named, 2, ("UBERON", "CL"))


def vignettes(corpora: Corpora) -> Iterator[Pair]:
    """Findings of a disease, in two draws -> its definition."""
    medical = corpora.medical
    for concept in medical.defined("train", "MONDO"):
        for variant in (0, 1) if concept.id in medical.findings else ():
            query = vignette(concept, medical.findings[concept.id], medical.concepts, variant)
            if query:
                yield _concept_pair(medical, query, concept)


def questions(corpora: Corpora) -> Iterator[Pair]:
    """Question that names a sign or a disease -> its definition."""
    for concept in corpora.medical.defined("train", "HPO", "MONDO"):
        titled = hashed_unit("untitled", concept.id) >= UNTITLED_SHARE
        yield _concept_pair(corpora.medical, question(concept), concept, titled)


def reverse_dictionary(corpora: Corpora) -> Iterator[Pair]:
    """Definition of a noun -> the words for it."""
    wordnet = corpora.wordnet
    for synset in wordnet.of_part("train", min_words=6):
        if synset.lexname.startswith("noun") and hashed_unit("reverse", synset.id) < 0.25:
            near = wordnet.hierarchy.siblings(synset.id, MAX_NEGATIVES)
            negatives = [term_card(wordnet.synsets[key], wordnet.synsets) for key in near]
            yield Pair(synset.gloss, term_card(synset, wordnet.synsets), negatives, synset.id)


def _other_sections(article: Article, paragraph: Paragraph) -> list[str]:
    texts = {other.id: other.text for other in article.paragraphs if other.headings != paragraph.headings}
    return [texts[key] for key in hashed_order(texts, "section", paragraph.id)[:MAX_NEGATIVES]]


def encyclopedia(corpora: Corpora) -> Iterator[Pair]:
    """Title and heading of an article -> a paragraph under it."""
    for article in corpora.encyclopedia.of_part("train"):
        for paragraph in article.paragraphs:
            section = "/".join(paragraph.headings)
            yield Pair(heading_query(paragraph), paragraph.text, _other_sections(article, paragraph), section)


def cloze(corpora: Corpora) -> Iterator[Pair]:
    """A sentence of a paragraph -> the rest of it."""
    for article in corpora.encyclopedia.of_part("train"):
        for paragraph in article.paragraphs:
            sentences = _SENTENCE_END.split(paragraph.text)
            if len(sentences) >= 4:
                taken = int(hashed_unit("cloze", paragraph.id) * len(sentences))
                rest = " ".join(sentences[:taken] + sentences[taken + 1 :])
                negatives = _other_sections(article, paragraph)
                yield Pair(sentences[taken], rest, negatives, "/".join(paragraph.headings))


def senses(corpora: Corpora) -> Iterator[Pair]:
    """Sentence with a word in quotes -> the sense of the word in it; its other senses are the negatives."""
    wordnet = corpora.wordnet
    for synset in wordnet.of_part("train"):
        for sentence in example_sentences(synset)[:2]:
            query, word = sense_query(synset, sentence)
            near = [*wordnet.senses[normalise_name(word)], *synset.targets("@", "~", "&", "!")]
            others = (key for key in dict.fromkeys(near) if key != synset.id and wordnet.part.get(key) == "train")
            negatives = [wordnet.synsets[key].gloss for key in islice(others, MAX_NEGATIVES)]
            yield Pair(query, synset.gloss, negatives, synset.id)


def hypernyms(corpora: Corpora) -> Iterator[Pair]:
    """Definition of a thing or an action -> the definition of what it is a kind of."""
    wordnet = corpora.wordnet
    for synset in wordnet.of_part("train"):
        if not synset.lexname.startswith(("noun", "verb")) or hashed_unit("hypernym", synset.id) >= 0.15:
            continue
        broader = [key for key in synset.targets("@") if wordnet.part.get(key) == "train"]
        if broader and len(wordnet.synsets[broader[0]].gloss.split()) >= 3:
            answer = wordnet.synsets[broader[0]]
            near = (key for key in wordnet.hierarchy.siblings(answer.id, MAX_NEGATIVES) if key not in broader)
            yield Pair(synset.gloss, answer.gloss, [wordnet.synsets[key].gloss for key in near], answer.id)


def paraphrases(corpora: Corpora) -> Iterator[Pair]:
    """Dictionary definition -> the medical definition of the same concept, without names."""
    medical = corpora.medical
    for synset, keys in corpora.glosses.items():
        if all(medical.part[key] == "train" for key in keys):
            concept = medical.concepts[keys[0]]
            yield _concept_pair(medical, corpora.wordnet.synsets[synset].gloss, concept, titled=False)


class PairSource(NamedTuple):
    """A generator of pairs and the instruction that its rows carry."""

    build: Callable[[Corpora], Iterator[Pair]]
    instruction: str


PAIRS: dict[str, PairSource] = {
    "lay_terms": PairSource(lay_terms, "Given a patient's words for a clinical sign, retrieve its medical definition"),
    "disease_names": PairSource(disease_names, "Given the name of a disease, retrieve the definition of that disease"),
    "anatomy_names": PairSource(anatomy_names, "Given the name of a body part or cell type, retrieve its definition"),
    "vignettes": PairSource(vignettes, "Given the findings of a patient, retrieve the disease that explains them"),
    "questions": PairSource(questions, "Given a medical question, retrieve the passage that answers it"),
    "reverse_dictionary": PairSource(reverse_dictionary, "Given a definition, retrieve the word that it defines"),
    "encyclopedia": PairSource(encyclopedia, "Given a topic, retrieve encyclopedia paragraphs about it"),
    "cloze": PairSource(cloze, "Given a sentence, retrieve the paragraph that it was taken from"),
    "senses": PairSource(senses, "Given a sentence and a word of it in quotes, retrieve the meaning of the word there"),
    "hypernyms": PairSource(hypernyms, "Given a definition, retrieve the definition of the broader concept"),
    "paraphrases": PairSource(
        paraphrases, "Given a short definition, retrieve a medical definition of the same concept"
    ),
}
