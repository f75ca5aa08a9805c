"""Params of the `search_prompts` stage."""

from typing import Literal

from pydantic import Field

from stm.params.llm import Endpoint, Limits

BudgetName = Literal["small", "light", "medium", "heavy"]


class SearchPromptsParams(Limits):
    """How a query instruction is searched for each split."""

    budget: BudgetName = Field(
        description="effort: small (2 cores, seconds), or light / medium / heavy as in the paper"
    )
    pool_size: int = Field(
        ge=0, le=1000, description="generic instructions asked of the LLM; the paper: 10, 20, 50, 100"
    )
    pool_rounds: int = Field(
        ge=1, le=20, description="rounds of asking at most; each asks for 1.5 times what is missing"
    )
    samples: int = Field(ge=1, le=64, description="replies asked per reflection; the first valid one is taken")
    tasks: list[str] = Field([], description="names of the dev tasks that score an instruction; empty for all of them")
    max_queries: int = Field(ge=0, le=1_000_000, description="dev queries kept per task before halving; 0: no limit")
    max_passages: int = Field(
        ge=0, le=100_000_000, description="dev passages kept per task, judged ones first; 0: no limit"
    )
    min_gain: float = Field(ge=0, le=1, description="nDCG@10 by which a candidate must beat the seed on the guard half")
    copy_words: int = Field(
        ge=2,
        le=50,
        description="words in a row shared with dev text that make a candidate a copy; a Chinese character counts half",
    )
    feedback_characters: int = Field(ge=20, le=100_000, description="characters of a query or passage shown to the LLM")
    batch_tokens: int = Field(ge=0, le=4_194_304, description="padded tokens per forward pass; 0 chooses by device")
    seed: int = Field(ge=0, description="seed of the halves, the pool requests and GEPA")
    endpoint: Endpoint = Field(description="the LLM that writes the pool and reflects")
