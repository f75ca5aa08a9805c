"""Params of the stage `synthesize`."""

from typing import Literal

from pydantic import Field, model_validator

from stm.params.base import Section
from stm.params.llm import Limits


class Validation(Section):
    """When an LLM-written passage is refused."""

    min_words: int = Field(4, ge=1, le=1000, description="shortest passage, in words")
    max_words: int = Field(200, ge=2, le=5000, description="longest passage, in words")
    ngram: int = Field(4, ge=1, le=20, description="length of the word n-grams that show a copy")
    max_copy: float = Field(
        0.5, gt=0, le=1, description="largest share of n-grams in common with positive or mined negative"
    )
    max_repeat: float = Field(0.3, gt=0, le=1, description="largest share of n-grams that repeat within the passage")
    min_topic: float = Field(0.05, ge=0, le=1, description="least similarity to the positive, as a share of its own")
    min_ratio: float = Field(
        0.0, ge=0, le=2, description="the query's score must be at least this share of the positive's score"
    )
    max_ratio: float = Field(1.0, gt=0, le=2, description="and below this share of the positive's score")
    min_ratio_to_mined: float = Field(
        0.0, ge=0, le=2, description="and at least this share of the mined negative's score"
    )
    judge: bool = Field(False, description="whether the LLM is asked if the passage answers the query after all")
    dense_model: str = Field(
        "", description="model folder or hub id whose cosine gives these scores; empty: BM25 over the split's passages"
    )
    dense_revision: str = Field("", description="commit of the dense model on the hub, 40 digits; unused for a folder")

    @model_validator(mode="after")
    def _check_lengths(self) -> "Validation":
        if self.max_words < self.min_words:
            raise ValueError("max_words must not be below min_words")
        return self


class QueryParams(Section):
    """How an LLM writes further queries for the passages of a split; off unless `rows` is set."""

    rows: int = Field(
        0, ge=0, description="rows per split, from the first, whose passage gets written queries; 0: none"
    )
    replace_rows: bool = Field(
        False, description="whether a row goes whose passage got a query, as one made from a mere corpus should"
    )
    kinds: tuple[Literal["question", "keywords", "situation", "statement"], ...] = Field(
        ("question", "keywords"), min_length=1, description="kinds of query; each passage gets one of each"
    )
    max_tokens: int = Field(40, ge=4, le=1000, description="longest query, in tokens")
    max_words: int = Field(40, ge=1, le=500, description="longest query, in words")
    max_copy: float = Field(
        0.5, gt=0, le=1, description="largest share of n-grams that a query may copy from its passage"
    )
    max_rank: int = Field(
        10, ge=1, le=1000, description="the passage must be found for its query at this rank or better"
    )
    max_overlap: float = Field(
        0.5, ge=0, lt=1, description="share of 8-grams above which a query is one of an evaluation task, and refused"
    )


class SynthesizeParams(Limits):
    """How many hard negatives an LLM writes, how it is asked and what is taken."""

    rows: int = Field(32, ge=0, description="rows per split, from the first, that get a synthetic negative; 0: all")
    prompt: Literal["short", "full"] = Field(
        "short", description="short: for models of less than a billion weights; full: others"
    )
    max_passage_chars: int = Field(
        600, ge=50, le=100000, description="texts in the prompt are cut to this many characters"
    )
    max_regenerations: int = Field(1, ge=0, le=20, description="further attempts after a refused answer")
    samples: int = Field(3, ge=0, le=50, description="texts per outcome that the report shows")
    queries: QueryParams = Field(default_factory=QueryParams, description="further queries for the split's passages")
    validation: Validation = Field(default_factory=Validation, description="when an answer is refused")
