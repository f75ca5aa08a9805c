"""What the copy guard counts as copied: names of one word, and text in scripts without blanks between words."""

from collections.abc import Sequence

import pytest

from stm.search_prompts.copying import FEW_TEXTS, ONE_TEXT_IN, CopyGuard, shared_run, spread
from stm.tasks import Passage, Task

ZH = "高血压是一种常见的慢性疾病"  # 13 characters


def make_guard(
    texts: Sequence[str] = (), titles: Sequence[str] = (), queries: Sequence[str] = (), seed: str = "", words: int = 4
) -> CopyGuard:
    """A guard of one task; each title has a passage of its own, without text."""
    passages = [Passage("", text) for text in texts] + [Passage(title, "") for title in titles]
    corpus = {f"p{number}": passage for number, passage in enumerate(passages)}
    asked = {f"q{number}": query for number, query in enumerate(queries)}
    return CopyGuard([Task("t", "medical", corpus, asked, {})], seed, words)


@pytest.mark.parametrize("name", ["otosclerosis", "Otosclerosis", "The otosclerosis", "What is otosclerosis?"])
@pytest.mark.parametrize("is_title", [True, False])
def test_the_only_word_of_a_name_is_dev_content(name: str, is_title: bool) -> None:
    guard = make_guard(titles=[name] if is_title else [], queries=[] if is_title else [name])
    assert guard.copied("Find passages that define otosclerosis or similar ear words") == "otosclerosis"
    assert guard.copied("Find passages that define otosclerosises or similar ear words") is None
    assert guard.copied("Find what is asked with the words") is None


def test_a_word_that_is_no_name_is_no_dev_content() -> None:
    guard = make_guard(texts=["otosclerosis"], titles=["otosclerosis of the ear"])
    assert guard.copied("Find passages that define otosclerosis") is None
    assert guard.copied("Find passages on otosclerosis of the ear") == "otosclerosis of the ear"


@pytest.mark.parametrize(
    "name",
    ["Disease", "diseases", "Definition", "definitions", "term", "What is a term?", "relevant", "entries", "diagnosis"],
)
def test_everyday_words_are_no_dev_content_however_rare(name: str) -> None:
    text = f"Find the relevant entries of a disease: diseases, {name}, definition, definitions or term"
    assert make_guard(titles=[name], queries=[name], words=5).copied(text) is None


@pytest.mark.parametrize(("name", "found"), [("x", None), ("7", None), ("2019", None), ("b12", None), ("flu", "flu")])
def test_a_name_of_less_than_two_letters_is_no_dev_content(name: str, found: str | None) -> None:
    assert make_guard(queries=[name]).copied(f"Find passages on {name} in books") == found


def test_a_run_of_a_query_is_dev_content() -> None:
    guard = make_guard(queries=["my ears ring all night long"], words=3)
    assert guard.copied("Find why ears ring all day") == "ears ring all"


def test_a_name_of_two_words_is_dev_content_as_a_whole() -> None:
    guard = make_guard(titles=["Loss of hearing"], words=9)
    assert guard.copied("Find passages on loss of hearing") == "loss of hearing"
    assert guard.copied("Find passages on loss hearing") is None
    assert guard.copied("Find passages on gloss of hearing") is None
    assert guard.copied("Find passages on loss of hearings") is None


@pytest.mark.parametrize("text", ["bears ring all", "ears ring allotted"])
def test_parts_of_words_are_no_copy(text: str) -> None:
    guard = make_guard(queries=["ring", text], words=3)
    assert guard.copied("Find ears ring all together") == "ring"
    assert guard.copied("Find bring and rings") is None


def test_words_of_the_seed_are_no_dev_content() -> None:
    guard = make_guard(titles=["Otitis", "Vertigo"], seed="Find passages on otitis")
    assert guard.copied("Retrieve anything on otitis") is None
    assert guard.copied("Retrieve anything on otitis and vertigo") == "vertigo"


@pytest.mark.parametrize(("more", "found"), [(0, "asthma"), (1, None)])
@pytest.mark.parametrize("others", [0, ONE_TEXT_IN * FEW_TEXTS - 20, ONE_TEXT_IN * 5 - 20])
def test_a_word_that_more_than_a_few_texts_hold_is_everybodys(others: int, more: int, found: str | None) -> None:
    holding = max(FEW_TEXTS, (others + 20) // ONE_TEXT_IN) + more
    held = [f"asthma or asthma {number}" for number in range(holding - 1)]
    rest = [f"other {number}" for number in range(others and others + 20 - holding)]
    assert make_guard(held + rest, titles=["Asthma"]).copied("Find passages on asthma") == found


def test_equal_texts_are_counted_once() -> None:
    held = ["asthma is here"] * 9 + ["asthma is there"]
    assert make_guard(held, queries=["asthma"] * 9).copied("Find passages on asthma") == "asthma"


def test_a_name_of_two_words_is_dev_content_however_common() -> None:
    held = [f"lung disease number {number}" for number in range(50)]
    assert make_guard(held, titles=["Lung disease"]).copied("Find passages on lung disease") == "lung disease"


def test_words_that_ask_count_in_runs_and_not_in_names() -> None:
    assert make_guard(queries=["what is disease"], words=5).copied("Find what is disease") is None
    assert make_guard(texts=["say what is the name"]).copied("Find what is the name") == "what is the name"


def test_a_sentence_without_blanks_is_dev_content() -> None:
    guard = make_guard(texts=[f"前言。{ZH}。后记"], words=4)
    assert guard.copied(f"Find passages about {ZH} and others") == ZH[:8]
    assert guard.copied(f"Find passages about {ZH[3:11]} and others") == ZH[3:11]
    assert guard.copied(f"Find passages about {ZH[3:10]} and others") is None
    assert guard.copied(f"Find passages about{ZH[5:]}and others") == ZH[5:]
    assert make_guard(texts=[ZH], words=6).copied(f"Find {ZH}") == ZH[:12]
    assert make_guard(texts=[ZH], words=7).copied(f"Find {ZH}") is None
    assert make_guard(texts=[ZH], seed=f"Find {ZH}").copied(f"Show {ZH}") is None


def test_words_and_characters_of_one_run_add_up() -> None:
    guard = make_guard(texts=["新型冠状病毒COVID vaccine"], words=3)
    assert guard.copied("Find 状病毒covid vaccine now") == "状病毒 covid vaccine"  # 3.5: no 3 words end earlier
    assert guard.copied("Find 病毒COVID vaccine now") == "病毒 covid vaccine"
    assert guard.copied("Find 毒COVID vaccine now") is None


@pytest.mark.parametrize(
    "text",
    [
        "めまいがするのはなぜですか",
        "コレステロールトニコレラ",
        "慢性的な腎臓病の症状と治療",
        "ปวดหวและไอมานานสามวน",
        "ຂອງປະເທດລາວແລະຄນລາວ",
        "ကလေးများအတွက်ဆေးဝါးနှင့်အစားအစာ",
        "កូនខ្មែរនិងថ្នាំពេទ្យសម្រាប់ជំងឺ",
        "ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏ",
        "𠀀𠀁𠀂𠀃𠀄𠀅𠀆𠀇𠀈𠀉",
        "㐀㐁㐂㐃㐄㐅㐆㐇㐈㐉",
        "佐々木佐々木佐々木",
        "ㇰㇱㇲㇳㇴㇵㇶㇷㇸㇹ",
        "\ufa0e\ufa0f\ufa11\ufa13\ufa14\ufa1f\ufa21\ufa23\ufa24",  # these stay what they are under NFKC
    ],
)
def test_every_script_without_blanks_is_read_by_character(text: str) -> None:
    units = spread(text).split()
    assert all(len(unit) == 1 for unit in units)
    assert shared_run(f"Find {text} now", spread(f"ก{text}中"), 4) == "".join(units[:8])


def test_other_scripts_are_read_by_word() -> None:
    assert spread("고혈압은 흔한 질환") == " 고혈압은 흔한 질환 "
    assert spread("Гипертония 2-го типа") == " гипертония 2 го типа "
    assert shared_run("Find гипертония это частая here", spread("гипертония это частая болезнь"), 4) is None


@pytest.mark.parametrize(
    ("name", "held", "found"),
    [
        ("高血压病", 9, "高血压病"),  # four characters are two words
        ("高血压", 0, "高血压"),
        ("高血压", 9, None),
        ("肺炎", 0, "肺炎"),
        ("肺炎", 9, None),
        ("癌", 0, None),
        ("B型", 0, "b 型"),
        ("3型", 0, None),
    ],
)
def test_names_without_blanks_are_dev_content_as_words_are(name: str, held: int, found: str | None) -> None:
    guard = make_guard([f"有{name}的人{number}" for number in range(held)], queries=[name])
    assert guard.copied(f"Find passages on {name} and others") == found


def test_a_run_is_found_before_a_name() -> None:
    guard = make_guard(texts=["sudden loss of hearing"], titles=["Anosmia", "Vertigo"])
    assert guard.copied("Find vertigo, anosmia or sudden loss of hearing") == "sudden loss of hearing"
    assert guard.copied("Find vertigo or anosmia") == "anosmia"


def test_several_tasks_are_guarded_together() -> None:
    names = ("otitis", "vertigo")
    tasks = [Task(name, "medical", {"p": Passage(name, "x")}, {}, {}) for name in names]
    guard = CopyGuard(tasks, "", 4)
    assert [guard.copied(f"Find passages on {name}") for name in names] == list(names)
