"""Params of the stage `mine`."""

from pydantic import Field, model_validator

from stm.params.base import Section
from stm.params.llm import Limits


class JudgeParams(Limits):
    """Who looks again at the negatives that mining would keep; nobody unless `cross_encoder` or `llm` is set."""

    cross_encoder: str = Field("", description="folder or hub id of a cross-encoder with one output; empty: none")
    revision: str = Field("", description="commit of the cross-encoder on the hub, 40 digits; unused for a folder")
    max_ratio: float = Field(
        0.95, gt=0, le=1, description="a negative's cross-encoder score must be below this share of the positive's"
    )
    llm: bool = Field(False, description="whether the endpoint is asked if a negative answers the query after all")
    max_passage_chars: int = Field(
        600, ge=50, le=100000, description="texts in the question are cut to this many characters"
    )


class MineParams(Section):
    """How hard negatives are found for each row."""

    negatives: int = Field(6, ge=1, le=64, description="most negatives per row")
    max_given: int = Field(
        3, ge=0, le=64, description="given negatives that come first; more only where retrieved ones lack"
    )
    rank_from: int = Field(2, ge=1, description="first rank of retrieved candidates that is considered, counted from 1")
    rank_to: int = Field(40, ge=1, le=1000, description="last rank of retrieved candidates that is considered")
    max_ratio: float = Field(
        0.95, gt=0, le=1, description="a negative's score must be below this share of the positive's score"
    )
    min_margin: float = Field(
        0.0, ge=0, description="and below the positive's score by at least this much (BM25 or cosine)"
    )
    check_given: bool = Field(False, description="whether the score margin holds for given negatives as well")
    dense_model: str = Field(
        "", description="model folder or hub id whose cosine proposes candidates and judges the margin; empty: BM25"
    )
    dense_revision: str = Field("", description="commit of the dense model on the hub, 40 digits; unused for a folder")
    judge: JudgeParams = Field(default_factory=JudgeParams, description="who looks again at the kept negatives")

    @model_validator(mode="after")
    def _check_window(self) -> "MineParams":
        if self.rank_to < self.rank_from:
            raise ValueError("rank_to must not be below rank_from")
        return self
