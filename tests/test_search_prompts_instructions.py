"""What is accepted as an instruction, whatever a small model writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm.search_prompts.instructions import MAX_WORDS, MIN_WORDS, extract, fault, generic_fault, key_of, tidy, words_of

GOOD = [
    "Find the passage that answers the question.",
    "Retrieve documents that are relevant to the query",
    "Given a lay phrase, retrieve the medical definition that it stands for.",
    "Search for texts with the same meaning as the statement.",
    "Using the findings of a patient, identify the disease that explains them.",
    "Find passages on type I diabetes and its complications",
    "Retrieve questions that rephrase the given question.",
]


@pytest.mark.parametrize("text", GOOD)
def test_plain_instructions_pass(text: str) -> None:
    assert fault(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not plain text"),
        ("Find it now", "fewer than 4 words"),
        ("Find " + " ".join(f"word{i}" for i in range(40)), "more than 30 words"),
        ("Find passages about [topic] in the corpus", "a placeholder or markup"),
        ("Find passages about {query} in the corpus", "a placeholder or markup"),
        ("Retrieve the passages that answer...", "a placeholder or markup"),
        ("Find the passage that answers the question?", "a question"),
        ("Find the passage. Then show it to the user.", "more than one sentence"),
        ("Find a better instruction for the search engine", "talk about the task"),
        ("Find the text that I asked you for", "talk about the task"),
        (f"Find the {'a' * 300} of it", "more than 300 characters"),
        ("The passage that answers the question is best", "not imperative"),
        ("Given a phrase, the definition of the phrase", "not imperative"),
        ("Search engines show the best content for a query", "talk about the task"),
        ("To demonstrate, 'show' will take a query", "not imperative"),
        ("Search results are shown for a query", "not imperative"),
        ('Search "Retrieve" passages that answer it', "a placeholder or markup"),
        ("List it down - the passage that explains it", "more than one sentence"),
        ("Find the passages that answer the", "unfinished"),
        ("Find find find find the passages passages passages", "repeats itself"),
        ("Find the passages\x00that answer", "not plain text"),
    ],
)
def test_everything_else_is_refused_with_its_reason(text: str, reason: str) -> None:
    assert fault(text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Find passages about heart disease for the query", "names a domain"),
        ("Find passages that Darwin wrote about the query", "names a domain"),
        ("Find the 10 passages that answer the question", "names a domain"),
        ("Find everything that is needed for a good day", "does not say what to retrieve"),
        ("Find the passages that answer the", "unfinished"),
    ],
)
def test_generic_instructions_name_no_domain(text: str, reason: str) -> None:
    assert generic_fault(text) == reason
    assert generic_fault("Find passages that answer the question.") is None


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("Find texts that answer it.", "Find texts that answer it."),
        ("1. Find texts that answer it.\n2. Show", "Find texts that answer it."),
        ("- **find texts that answer it.**", "Find texts that answer it."),
        ('Sure! Here is one: "Find texts that answer it."', "Find texts that answer it."),
        ("Instruction: please find texts that answer it.", "Find texts that answer it."),
        ("Please find texts that answer it, please.", "Find texts that answer it."),
        ("```\nFind texts that answer it.\n```", "Find texts that answer it."),
        ("It is easy. Find texts that answer it. Thank you!", "Find texts that answer it."),
        ("A better one could be: find texts that answer it.", "Find texts that answer it."),
    ],
)
def test_an_instruction_is_found_in_the_chatter(reply: str, wanted: str) -> None:
    valid = [text for text in extract(reply) if fault(text) is None]
    assert valid[0] == wanted


def test_near_duplicates_share_a_key() -> None:
    assert key_of("Find the passage that answers the question.") == key_of("Find passages that answer all questions")
    assert key_of("Find passages that answer the question") != key_of("Find passages that define the term")


@given(st.text(max_size=300))
def test_any_text_is_taken_apart_without_error_and_what_passes_is_an_instruction(reply: str) -> None:
    for text in extract(reply):
        assert tidy(text)
        if fault(text) is None:
            assert MIN_WORDS <= len(words_of(text)) <= MAX_WORDS
            assert "\n" not in text
            assert "{" not in text


PIECES = 'find retrieve passages texts that answer the query, a . : " * 1. please'.split(" ")


@given(st.lists(st.sampled_from(PIECES), max_size=20))
def test_extract_gives_each_text_once_and_is_stable(words: list[str]) -> None:
    texts = extract(" ".join(words))
    assert len(texts) == len(set(texts))
    assert extract(" ".join(words)) == texts
