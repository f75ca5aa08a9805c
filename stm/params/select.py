"""Params of the `select` stage."""

from pydantic import Field

from stm.params.base import Section


class SelectParams(Section):
    """How much of the dev tasks a variant is scored on."""

    tasks: list[str] = Field(default_factory=list, description="names of the dev tasks that count; empty takes all")
    max_queries: int = Field(ge=0, description="queries per dev task; 0 takes all")
    max_passages: int = Field(ge=0, description="passages per dev task, judged ones always stay; 0 takes all")
    seed: int = Field(ge=0, description="seed of the caps, a whole number")
