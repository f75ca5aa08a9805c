"""How concepts, senses and findings read as queries and passages, in one form for training and evaluation.

Values of the corpora go in, text comes out. Every choice depends on the key of its subject alone.
"""

from collections.abc import Mapping

from stm.prepare.ontologies import Concept
from stm.prepare.text import capitalise, hashed_random, hashed_unit, normalise_name
from stm.prepare.wikipedia import Paragraph
from stm.prepare.wordnet import Synset
from stm.tasks import Passage

MIN_FINDINGS = 4
_POOL = 12  # the most frequent findings of a disease, from which a vignette draws
_FREQUENCIES = {"HP:0040280": 5, "HP:0040281": 4, "HP:0040282": 3, "HP:0040283": 1, "HP:0040284": 0}
_UNKNOWN_FREQUENCY = 2
_VIGNETTES = (
    "Patient presents with {}.",
    "Which disease causes {}?",
    "{}: what is the diagnosis?",
    "Findings: {}.",
    "Clinical features include {}.",
)
_QUESTIONS = (
    "What is {}?",
    "Define {} in clinical terms.",
    "How is {} described medically?",
    "I was told I have {}. What does it mean?",
    "Explain the condition {}.",
)


def concept_passage(concept: Concept, titled: bool = True) -> Passage:
    """A concept's name and definition, or its definition alone."""
    return Passage(concept.name if titled else "", concept.definition)


def tells_more(query: str, concept: Concept) -> bool:
    """Whether a name is longer than three letters and no respelling of the concept's own name."""
    query = normalise_name(query)
    return len(query) > 3 and query != normalise_name(concept.name)


def lay_queries(concept: Concept) -> list[str]:
    """Lay terms that differ from the concept's name."""
    return [term for term in concept.lay_terms if tells_more(term, concept)]


def synonym_queries(concept: Concept) -> list[str]:
    """Synonyms that differ from the concept's name."""
    return [synonym for synonym in concept.synonyms if tells_more(synonym, concept)]


def distinct_synonyms(concept: Concept) -> list[str]:
    """Up to two synonyms that have a word which the concept's name lacks."""
    words = set(normalise_name(concept.name).split())
    found = [text for text in synonym_queries(concept) if not set(normalise_name(text).split()) <= words]
    return sorted(found, key=lambda text: (hashed_unit("synonym", concept.id, text), text))[:2]


def vignette(disease: Concept, findings: Mapping[str, str], concepts: Mapping[str, Concept], variant: int) -> str:
    """A sentence that lists four to six frequent findings, some in lay words; empty if fewer than four are known."""
    rng = hashed_random("vignette", disease.id, str(variant))
    known = sorted(key for key in findings if key in concepts)
    if len(known) < MIN_FINDINGS:
        return ""
    weights = {key: _FREQUENCIES.get(findings[key], _UNKNOWN_FREQUENCY) + rng.random() for key in known}
    frequent = sorted(known, key=lambda key: (-weights[key], key))[:_POOL]
    chosen = rng.sample(frequent, min(len(frequent), rng.randint(4, 6)))
    terms = []
    for key in chosen:
        lay_terms = concepts[key].lay_terms
        terms.append((rng.choice(lay_terms) if lay_terms and rng.random() < 0.5 else concepts[key].name).lower())
    return capitalise(rng.choice(_VIGNETTES).format(f"{', '.join(terms[:-1])} and {terms[-1]}"))


def question(concept: Concept) -> str:
    """A question that names the concept, by its own name or another one."""
    rng = hashed_random("question", concept.id)
    name = rng.choice(concept.names) if rng.random() < 0.7 else concept.name
    return capitalise(rng.choice(_QUESTIONS).format(name))


def sense_query(synset: Synset, sentence: str) -> tuple[str, str]:
    """An example sentence with the word in question in quotes behind it, and that word."""
    text = normalise_name(sentence)
    word = next((lemma for lemma in synset.lemmas if normalise_name(lemma) in text), synset.lemmas[0])
    return f'{sentence} ("{word}")', word


def example_sentences(synset: Synset) -> list[str]:
    """Examples of at least four words."""
    return [sentence for sentence in synset.examples if len(sentence.split()) >= 4]


def term_card(synset: Synset, synsets: Mapping[str, Synset]) -> str:
    """Up to four words of a sense, and what it is a kind of."""
    broader = [synsets[key] for key in synset.targets("@", "@i") if key in synsets]
    kind = f" (a kind of {broader[0].lemmas[0]})" if broader else ""
    return ", ".join(synset.lemmas[:4]) + kind


def heading_query(paragraph: Paragraph) -> str:
    """The article's title and the last two headings above the paragraph."""
    title, *headings = paragraph.headings
    return " ".join([title, *(heading.lower() for heading in headings[-2:])])
