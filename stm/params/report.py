"""Params of the `report` stage."""

from pydantic import Field

from stm.params.base import Section


class ReportParams(Section):
    """How results are compared and how much of them the page shows."""

    subject: str = Field(min_length=1, description="name of the evaluated model that the verdict is about")
    level: float = Field(ge=0.5, lt=1, description="confidence level of all intervals, a probability")
    resamples: int = Field(ge=100, le=1_000_000, description="bootstrap resamples and randomisation rounds, as a count")
    seed: int = Field(ge=0, le=2**31, description="seed of the resampling")
    failures: int = Field(ge=0, le=200, description="queries shown where the subject loses most, as a count")
    samples: int = Field(ge=0, le=200, description="training samples shown per split")
