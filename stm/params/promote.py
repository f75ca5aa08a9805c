"""Params of promotion: where MLflow keeps runs and models, and the gates that a merged model has to pass.

Holds bounds and meanings only; no figure is read here.
"""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from stm.params.base import Section

Average = Literal["all", "medical", "general"]
# Kept out of names: what MLflow forbids in a registered model (/ and :) and what would need escaping in its searches.
REGISTERED_NAME = r"^[^/:'\"`\\%\s][^/:'\"`\\%]*$"
# What the names of MLflow's tags may hold on every system; a tag's name is longer by "gate." and at most 250.
GateName = Annotated[str, Field(pattern=r"^[\w.\- ]+$", max_length=200)]
CHAMPION = "@champion"  # the opponent that is the registered champion
LEAST_TAIL = 5  # resamples below a confidence bound; with fewer a bound is hardly more than their smallest
WITHDRAWN = "not_withdrawn"  # the gate that keeps out what was rolled back


class Comparison(Section):
    """The model under test must not fall short of an opponent on one average of nDCG@10."""

    against: tuple[str, ...] = Field(
        min_length=1,
        description="roles, names or patterns of models, whose best is the opponent; '@champion' is allowed",
    )
    average: Average = Field(
        description="the named average of nDCG@10 that is compared: all tasks, medical or general ones"
    )
    min_gain: float = Field(
        ge=-1,
        le=1,
        description="least gain over the opponent, in nDCG@10 of 0 to 1; a negative value is a tolerated loss",
    )
    significance: float = Field(
        ge=0, lt=0.5, description="one-sided level of the paired bootstrap, a probability; 0 compares the means alone"
    )
    required: bool = Field(description="whether the gate holds a promotion back, or is only recorded")


class Limit(Section):
    """A measured figure must not exceed a bound."""

    at_most: float = Field(
        ge=0, allow_inf_nan=False, description="largest value that passes, in the unit of the gate's name"
    )
    required: bool = Field(description="whether the gate holds a promotion back, or is only recorded")


class Gates(Section):
    """All gates; each is judged and recorded, the required ones decide."""

    comparisons: dict[GateName, Comparison] = Field(
        description="comparisons with other models, by gate name: letters, digits, blanks, _ . and -"
    )
    task_loss: Limit = Field(description="largest loss of any single task against the champion, in nDCG@10 of 0 to 1")
    contamination: Limit = Field(description="texts shared by training and evaluation data that are left, as a count")
    reload_difference: Limit = Field(
        description="largest absolute difference of a vector component after the round trip"
    )
    megabytes: Limit = Field(description="size of the model folder in megabytes of 10^6 bytes")
    query_milliseconds: Limit = Field(description="median time to encode one short query on the CPU, in milliseconds")
    changed_files: Limit = Field(description="files changed in the git tree since the recorded revision, as a count")

    @model_validator(mode="after")
    def _own_names(self) -> "Gates":
        others = {*type(self).model_fields, WITHDRAWN} - {"comparisons"}
        if taken := sorted(others & set(self.comparisons)):
            raise ValueError(f"comparisons has {taken[0]!r}, the name of another gate; take another name")
        return self


class PromoteParams(Section):
    """Publishing to MLflow and promotion in its model registry."""

    tracking_uri: str = Field(
        min_length=1, description="MLflow store or server; MLFLOW_TRACKING_URI in the environment wins"
    )
    artifact_folder: str = Field(
        min_length=1, description="folder of the artifacts where the store is a local database"
    )
    experiment: str = Field(min_length=1, max_length=500, description="name of the MLflow experiment")
    registered_model: str = Field(
        pattern=REGISTERED_NAME,
        max_length=250,
        description="name of the registered model, without slash, colon or quotes",
    )
    model: str = Field(min_length=1, description="name under which the promoted model was evaluated")
    resamples: int = Field(ge=100, le=1_000_000, description="bootstrap resamples per comparison, as a count")
    seed: int = Field(ge=0, le=2**32 - 1, description="seed of the bootstrap")
    max_trials: int = Field(
        ge=0, le=10_000, description="merge trials that get an MLflow run of their own, best first, as a count"
    )
    gates: Gates = Field(description="the gates")

    @model_validator(mode="after")
    def _enough_resamples(self) -> "PromoteParams":
        levels = [(row.significance, name) for name, row in self.gates.comparisons.items() if row.significance]
        level, name = min(levels, default=(1.0, ""))
        if round(self.resamples * level, 3) < LEAST_TAIL:
            raise ValueError(
                f"{self.resamples:,} resamples are too few for gates.comparisons.{name}.significance, which is "
                f"{level:g}; set resamples to at least {math.ceil(round(LEAST_TAIL / level, 3)):,}, or the "
                f"significance to at least {LEAST_TAIL / self.resamples:g}"
            )
        return self
