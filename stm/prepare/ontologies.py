"""Parsers of the medical ontologies: HPO (OBO text), its disease annotations (tab-separated) and CELLxGENE's JSON.

Lines or decoded JSON go in, `Concept`s and `Disease`s come out. Knows nothing of where the files lie or of training
and evaluation.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stm.errors import DataError
from stm.prepare.text import clean_definition

MIN_WORDS = 7  # a shorter definition rarely tells its concept from its neighbours
_BOILERPLATE = re.compile(
    r"^(Any .{0,120} in which the cause|An? .{0,90} that has_material_basis_in"
    r"|.{0,60}caused by (a )?mutations? in (the )?\S+( gene)?\.?$)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SYNONYM = re.compile(r'"((?:[^"\\]|\\.)*)" (\w+) ?([\w:]*)')
_SKIPPED_TYPES = ("obsolete_synonym", "plural_form", "uk_spelling", "abbreviation")
_ANNOTATION_COLUMNS = 11


@dataclass(frozen=True, slots=True)
class Concept:
    """A term of an ontology; `definition` is empty where there is none that tells the concept apart."""

    id: str
    ontology: str
    name: str
    definition: str
    lay_terms: tuple[str, ...]
    synonyms: tuple[str, ...]
    parents: tuple[str, ...]
    ancestors: frozenset[str]  # includes the concept itself

    @property
    def names(self) -> tuple[str, ...]:
        """The name, lay terms and synonyms, each once."""
        return tuple(dict.fromkeys((self.name, *self.lay_terms, *self.synonyms)))


@dataclass(frozen=True, slots=True)
class Disease:
    """A disease of the annotations with the frequency term of each of its phenotypes."""

    name: str
    findings: dict[str, str]


@dataclass(slots=True)
class _Term:
    id: str = ""
    name: str = ""
    definition: str = ""
    lay_terms: list[str] = field(default_factory=list)
    synonyms: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    obsolete: bool = False

    def read(self, key: str, value: str) -> None:
        """Take over one `key: value` line of an OBO stanza."""
        if key == "id":
            self.id = value
        elif key == "name":
            self.name = value
        elif key == "def" and (quoted := _QUOTED.match(value)):
            self.definition = useful_definition(quoted.group(1))
        elif key == "is_a":
            self.parents.append(value.split(" ", 1)[0])
        elif key == "is_obsolete":
            self.obsolete = value.startswith("true")
        elif key == "synonym" and (found := _SYNONYM.match(value)):
            text, scope, kind = found.groups()
            if kind == "layperson":
                self.lay_terms.append(text)
            elif kind not in _SKIPPED_TYPES and scope == "EXACT":
                self.synonyms.append(text)


def useful_definition(text: str) -> str:
    """The cleaned definition, or an empty string if it is too short or says no more than a gene's name."""
    text = clean_definition(text)
    return "" if len(text.split()) < MIN_WORDS or _BOILERPLATE.match(text) else text


def parse_obo(lines: Iterable[str], ontology: str) -> tuple[list[Concept], str]:
    """Concepts of an OBO file in file order, without obsolete ones, and the file's data-version."""
    terms: dict[str, _Term] = {}
    term, version = None, ""
    for line in lines:
        key, separator, value = line.rstrip("\r\n").partition(": ")
        if key.startswith("["):
            term = _Term() if key == "[Term]" else None
        elif not separator:
            continue
        elif term is not None:
            term.read(key, value)
            terms[term.id] = term
        elif key == "data-version":
            version = value
    live = {key: term for key, term in terms.items() if not term.obsolete and term.name}
    if not live:
        raise DataError(f"the {ontology} file holds no terms; reinstall its package with `make repro`")
    ancestors = _ancestors({key: term.parents for key, term in live.items()})
    return [_freeze(term, ontology, ancestors[key]) for key, term in live.items()], version


def _freeze(term: _Term, ontology: str, ancestors: frozenset[str]) -> Concept:
    lay_terms, synonyms = tuple(dict.fromkeys(term.lay_terms)), tuple(dict.fromkeys(term.synonyms))
    return Concept(term.id, ontology, term.name, term.definition, lay_terms, synonyms, tuple(term.parents), ancestors)


def _ancestors(parents: Mapping[str, list[str]]) -> dict[str, frozenset[str]]:
    """Every id with all that it is a kind of, itself included."""
    known: dict[str, frozenset[str]] = {}

    def climb(key: str, below: tuple[str, ...]) -> frozenset[str]:
        if key not in known:
            above = (climb(parent, (*below, key)) for parent in parents.get(key, ()) if parent not in below)
            known[key] = frozenset({key}).union(*above)
        return known[key]

    for key in parents:
        climb(key, ())
    return known


def parse_cellxgene(terms: Mapping[str, Mapping[str, Any]], ontology: str) -> list[Concept]:
    """Concepts of one ontology of the CELLxGENE guide, without deprecated ones."""
    concepts = []
    for key, term in terms.items():
        name = term.get("label") or ""
        if term.get("deprecated") or not name or name.startswith("obsolete"):
            continue
        distances = term.get("ancestors", {})
        synonyms = tuple(dict.fromkeys(text for text in term.get("synonyms", ()) if len(text) > 4))
        parents = tuple(parent for parent, distance in distances.items() if distance == 1)
        definition = useful_definition(term.get("description") or "")
        concepts.append(Concept(key, ontology, name, definition, (), synonyms, parents, frozenset({key, *distances})))
    return concepts


def parse_annotations(lines: Iterable[str]) -> tuple[dict[str, Disease], str]:
    """Diseases of a phenotype.hpoa file by id, with their present phenotypes, and the file's version."""
    diseases: dict[str, Disease] = {}
    version = ""
    for number, line in enumerate(lines, 1):
        if line.startswith(("#", "database_id")):
            version = line.removeprefix("#version: ").strip() if line.startswith("#version: ") else version
            continue
        cells = line.rstrip("\r\n").split("\t")
        if len(cells) < _ANNOTATION_COLUMNS:
            raise DataError(
                f"phenotype.hpoa, line {number}: {len(cells)} columns; expected at least {_ANNOTATION_COLUMNS}"
            )
        if cells[2] != "NOT" and cells[10] == "P":
            diseases.setdefault(cells[0], Disease(cells[1], {})).findings[cells[3]] = cells[7]
    return diseases, version
