"""Parsers of the embedded corpora on hand-written lines of the real formats."""

from typing import Any

import pytest

from stm.errors import DataError
from stm.prepare.ontologies import Concept, parse_annotations, parse_cellxgene, parse_obo, useful_definition
from stm.prepare.phrasing import (
    distinct_synonyms,
    heading_query,
    lay_queries,
    question,
    sense_query,
    term_card,
    vignette,
)
from stm.prepare.text import clean_definition, hashed_order, hashed_unit, normalise_name
from stm.prepare.wikipedia import hold_out_articles, parse_wikipedia, strip_markup
from stm.prepare.wordnet import hold_out_synsets, parse_wordnet, split_gloss, synsets_by_lemma

OBO = """format-version: 1.2
data-version: hp/releases/2025-01-16

[Term]
id: HP:0000001
name: All

[Term]
id: HP:0000118
name: Phenotypic abnormality
is_a: HP:0000001 ! All

[Term]
id: HP:0000504
name: Abnormality of vision
def: "Abnormality of \\"eyesight\\", that is of visual perception." [https://orcid.org/0000-0002-0736-9199]
synonym: "Vision issue" EXACT layperson [https://orcid.org/1]
synonym: "Vision issue" EXACT layperson []
synonym: "Sight disorder" EXACT []
synonym: "VD" EXACT abbreviation []
synonym: "Eye trouble" RELATED []
is_a: HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0000999
name: Gone
is_obsolete: true

[Typedef]
id: part_of
name: part of
"""


def test_obo() -> None:
    concepts, version = parse_obo(OBO.splitlines(keepends=True), "HPO")
    assert version == "hp/releases/2025-01-16"
    assert [concept.id for concept in concepts] == ["HP:0000001", "HP:0000118", "HP:0000504"]
    vision = concepts[2]
    assert vision.definition == 'Abnormality of "eyesight", that is of visual perception.'
    assert (vision.lay_terms, vision.synonyms) == (("Vision issue",), ("Sight disorder",))
    assert vision.parents == ("HP:0000118",)
    assert vision.ancestors == {"HP:0000504", "HP:0000118", "HP:0000001"}


def test_obo_with_windows_line_ends_and_a_cycle() -> None:
    text = "[Term]\r\nid: A:1\r\nname: a\r\nis_a: A:2\r\n[Term]\r\nid: A:2\r\nname: b\r\nis_a: A:1\r\n"
    concepts, _ = parse_obo(text.splitlines(keepends=True), "A")
    assert concepts[0].name == "a"
    assert concepts[0].ancestors == {"A:1", "A:2"}


def test_an_obo_file_without_terms_is_an_error() -> None:
    with pytest.raises(DataError, match="HPO file holds no terms"):
        parse_obo(["data-version: 1\n"], "HPO")


def test_cellxgene() -> None:
    terms: dict[str, dict[str, Any]] = {
        "MONDO:1": {"label": "old", "deprecated": True},
        "MONDO:2": {"label": "obsolete thing"},
        "MONDO:3": {
            "label": "disease",
            "description": "A disease of the eye that is in_the_left_side_of the head.[MP]",
            "synonyms": ["abcd", "illness", "illness"],
            "ancestors": {"MONDO:9": 1, "MONDO:8": 2},
        },
        "MONDO:4": {"label": ""},
    }
    (concept,) = parse_cellxgene(terms, "MONDO")
    assert concept.definition == "A disease of the eye that is in the left side of the head."
    assert (concept.synonyms, concept.parents) == (("illness",), ("MONDO:9",))
    assert concept.ancestors == {"MONDO:3", "MONDO:9", "MONDO:8"}


def annotation(disease: str, phenotype: str, qualifier: str = "", aspect: str = "P") -> str:
    return "\t".join([disease, "A name", qualifier, phenotype, "ref", "PCS", "", "1/2", "", "", aspect, "who"]) + "\n"


def test_annotations_keep_present_phenotypes_only() -> None:
    lines = ["#version: 2025-01-16\n", "database_id\tdisease_name\n", annotation("O:1", "HP:1")]
    lines += [
        annotation("O:1", "HP:2", qualifier="NOT"),
        annotation("O:1", "HP:3", aspect="I"),
        annotation("O:1", "HP:4"),
    ]
    diseases, version = parse_annotations(lines)
    assert version == "2025-01-16"
    assert diseases["O:1"].findings == {"HP:1": "1/2", "HP:4": "1/2"}
    with pytest.raises(DataError, match="line 1: 2 columns"):
        parse_annotations(["O:1\tname\n"])


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Text. [PMID:12, HPO:abc]", "Text."),
        ("Text <b>bold</b>\\n more", "Text bold more"),
        ("A [1-3] range", "A [1-3] range"),
        ("End [Wikipedia:Heart].", "End."),
    ],
)
def test_clean_definition(raw: str, clean: str) -> None:
    assert clean_definition(raw) == clean


@pytest.mark.parametrize(
    "text", ["Too short a definition.", "Any syndrome in which the cause of the disease is a mutation in the X gene."]
)
def test_definitions_that_tell_nothing_are_left_out(text: str) -> None:
    assert useful_definition(text) == ""


def test_names_are_compared_in_one_spelling() -> None:
    assert normalise_name("Tumour-like  Oedema, anaemia") == "tumor like edema anemia"
    assert normalise_name("Ménière_disease") == "ménière disease"


def test_hashes_depend_on_the_key_and_the_item_alone() -> None:
    assert hashed_unit("a", "bc") != hashed_unit("ab", "c")
    assert 0 <= hashed_unit("x") < 1
    whole = hashed_order(map(str, range(50)), "key")
    assert hashed_order(reversed(whole), "key") == whole
    assert hashed_order(whole[::2], "key") == whole[::2]


NOUNS = [
    "  1 This software and database is being provided\n",
    "00000001 01 n 02 dog 0 domestic_dog 0 002 @ 00000002 n 0000 ~ 00000003 n 0000 "
    '| a barking animal; "the dog barked all night"; "walk the dog"\n',
    "00000002 01 n 01 canine 0 001 ~ 00000001 n 0000 | any of various mammals; with teeth  \n",
]
ADJECTIVES = ["00000001 00 s 01 good(p) 0 001 & 00000005 a 0000 | of moral worth\n"]


def test_wordnet() -> None:
    synsets = parse_wordnet([NOUNS, ADJECTIVES], ["adj.all", "noun.animal"])
    dog, canine, good = synsets.values()
    assert (dog.id, dog.lemmas, dog.gloss, dog.lexname) == (
        "00000001n",
        ("dog", "domestic dog"),
        "a barking animal",
        "noun.animal",
    )
    assert dog.examples == ("the dog barked all night", "walk the dog")
    assert (dog.targets("@"), dog.targets("~")) == (["00000002n"], ["00000003n"])
    assert canine.gloss == "any of various mammals; with teeth"
    assert (good.id, good.lemmas, good.pointers) == ("00000001a", ("good",), (("&", "00000005a"),))
    assert synsets_by_lemma(synsets)["domestic dog"] == ["00000001n"]
    assert term_card(dog, synsets) == "dog, domestic dog (a kind of canine)"
    assert sense_query(dog, "walk the dog") == ('walk the dog ("dog")', "dog")


def test_a_broken_wordnet_line_is_an_error() -> None:
    with pytest.raises(DataError, match="line 1 is no synset"):
        parse_wordnet([["00000001 01 n xx dog\n"]], ["noun"])


def test_a_gloss_may_hold_examples_only() -> None:
    assert split_gloss('"one"; "two"') == ("", ("one", "two"))
    assert split_gloss("") == ("", ())


def test_senses_of_one_head_word_stay_together() -> None:
    lines = [f"{i:08d} 00 n 02 word{i % 40} 0 other{i} 0 000 | gloss {i}" for i in range(400)]
    held = hold_out_synsets(parse_wordnet([lines], ["noun"]))
    parts = {i: {held[f"{j:08d}n"] for j in range(i, 400, 40)} for i in range(40)}
    assert all(len(part) == 1 for part in parts.values())
    assert len({min(part) for part in parts.values()}) > 1


PARAGRAPH = " ".join(f"word{i}" for i in range(30))
PAGE = f"""<page><title>A &amp; B</title><text xml:space="preserve">{{{{Infobox|{{{{x}}}}}}}}
'''A''' is &lt;b&gt;bold&lt;/b&gt; [[Target|link]] [[File:x.png|thumb]]&lt;ref name="r"&gt;cited&lt;/ref&gt; {PARAGRAPH}
* a list item {PARAGRAPH}
too short
== History ==
{PARAGRAPH} {PARAGRAPH * 8}
=== Early days ===
{PARAGRAPH}
== Uses ==
{PARAGRAPH}

{PARAGRAPH} again
== See also ==
{PARAGRAPH}
</text></page>"""


def test_wikipedia() -> None:
    (article,) = parse_wikipedia(
        f"{PAGE}<page><title>R</title><redirect/></page><page><title>Talk:x</title><text>y</text></page>"
    )
    assert article.title == "A & B"
    assert [p.headings for p in article.paragraphs] == [
        ("A & B",),
        ("A & B", "History"),
        ("A & B", "History", "Early days"),
        ("A & B", "Uses"),
        ("A & B", "Uses"),
    ]
    assert article.paragraphs[0].text == f"A is bold link {PARAGRAPH}"
    assert len(article.paragraphs[1].text.split()) <= 180
    assert [p.id for p in article.paragraphs] == [f"A_&_B#{i}" for i in range(5)]
    assert [heading_query(p) for p in article.paragraphs[:3]] == ["A & B", "A & B history", "A & B history early days"]


def test_markup_is_stripped() -> None:
    text = "[http://x.org name] [http://x.org] <!-- no -->{| t |} ''it'' [[Category:x]]a<ref>b</ref> B ( ; , c) ({{x}})"
    assert strip_markup(text).split() == ["name", "it", "a", "B", "(c)"]


def test_articles_are_held_out_by_title_alone() -> None:
    titles = [f"title {i}" for i in range(60)]
    held = hold_out_articles(titles)
    assert held == hold_out_articles(reversed(titles))
    assert sorted(held.values()) == ["dev"] * 10 + ["test"] * 25 + ["train"] * 25


def make_concept(**changes: object) -> Concept:
    fields = {
        "id": "M:1",
        "ontology": "MONDO",
        "name": "eye disease",
        "definition": "d",
        "lay_terms": ("Eye  disease", "bad eyes"),
        "synonyms": ("disease of eye", "ophthalmopathy", "oculopathy", "eye illness"),
        "parents": (),
        "ancestors": frozenset({"M:1"}),
    }
    return Concept(**{**fields, **changes})  # type: ignore[arg-type]


def test_queries_are_other_names() -> None:
    concept = make_concept()
    assert lay_queries(concept) == ["bad eyes"]
    found = distinct_synonyms(concept)
    assert len(found) == 2
    assert set(found) < {"disease of eye", "ophthalmopathy", "oculopathy", "eye illness"}
    assert any(name.lower() in question(concept).lower() for name in concept.names)


def test_vignettes_list_four_to_six_known_findings() -> None:
    concepts = {f"H:{i}": make_concept(id=f"H:{i}", name=f"sign{i}", lay_terms=()) for i in range(9)}
    findings = dict.fromkeys([*concepts, "H:unknown"], "HP:0040281")
    text = vignette(make_concept(), findings, concepts, 0)
    assert 4 <= text.lower().count("sign") <= 6
    assert text == vignette(make_concept(), dict(reversed(findings.items())), concepts, 0)
    assert vignette(make_concept(), dict.fromkeys(["H:1", "H:2", "H:3"], ""), concepts, 0) == ""
