"""Params of the `merge` stage."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from stm.params.base import Section

MethodName = Literal["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"]
ThinningMethod = Literal["ties", "dare_linear", "dare_ties"]  # those that a density changes
SearchKind = Literal["grid", "random", "tpe", "cma", "multi_fidelity"]
Weight = Annotated[float, Field(ge=-2, le=2)]
Density = Annotated[float, Field(gt=0, le=1)]


class Interval(Section):
    """An interval of one coefficient."""

    low: float = Field(ge=-2, le=2, description="smallest value, a plain factor")
    high: float = Field(ge=-2, le=2, description="largest value, a plain factor")
    step: float = Field(ge=0, le=1, description="distance of neighbouring values, a plain factor; 0 is continuous")

    @model_validator(mode="after")
    def _ordered(self) -> "Interval":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class DensityInterval(Interval):
    """An interval of densities, the fractions kept."""

    low: float = Field(gt=0, le=1, description="smallest fraction kept")
    high: float = Field(gt=0, le=1, description="largest fraction kept")


class SearchParams(Section):
    """How coefficients are searched on the dev tasks."""

    kind: SearchKind = Field(description="grid, random, tpe, cma or multi_fidelity")
    trials: int = Field(
        ge=0, le=1_000_000, description="candidates evaluated per method beside the fixed rows; 0 is none"
    )
    seed: int = Field(ge=0, description="seed of the sampler, a whole number")
    weights: Interval = Field(description="interval of each expert's weight")
    densities: DensityInterval | None = Field(
        default=None, description="interval of each expert's density; null takes merge.density for all"
    )
    rungs: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=list,
        description="multi_fidelity: shares of the search half's queries on which candidates compete; empty is none",
    )
    storage: str = Field(
        default="",
        description="SQLite file or Optuna URL that processes share; empty takes a file of this search alone",
    )


class LearnParams(Section):
    """How coefficients are learned by gradient descent, beginning at the best that the search found."""

    granularity: Literal["expert", "layer"] = Field(description="one weight per expert, or per expert and layer")
    steps: int = Field(
        ge=1,
        le=100_000,
        description="optimizer steps; each takes one dev task's queries of the search half, at most passages / 2",
    )
    learning_rate: float = Field(gt=0, le=1, description="rate of Adam, in units of a weight per step")
    pull: float = Field(
        ge=0, le=1000, description="weight of the mean squared distance from the searched weights, a factor"
    )
    temperature: float = Field(default=0.05, gt=0, le=1, description="divisor of the cosine similarities in the loss")
    passages: int = Field(default=32, ge=2, description="passages per step, the relevant ones included")


class InteractionParams(Section):
    """A grid over the weights of two experts, for the report; it decides nothing."""

    experts: list[str] = Field(
        default_factory=list, description="names of two experts; empty takes the two of largest weight"
    )
    step: float = Field(ge=0.02, le=1, description="distance of neighbouring weights, a plain factor")
    source: Literal["surrogate", "model"] = Field(
        description="surrogate: predicted at no cost; model: one evaluation of dev per point"
    )

    @model_validator(mode="after")
    def _two(self) -> "InteractionParams":
        if self.experts and len(set(self.experts)) != 2:
            raise ValueError("experts names two different experts or none")
        return self


class NamedParams(Section):
    """Another method of mergekit, through SentenceTransformer.merge; it holds all full models in memory and is not
    searched.
    """

    method: str = Field(min_length=1, description="name of the method in mergekit, such as sce or karcher")
    parameters: dict[str, float | bool | dict[str, float]] = Field(
        default_factory=dict, description="mergekit's parameters by name; a mapping gives one value per expert"
    )


class MergeParams(Section):
    """How the selected experts become one model."""

    method: MethodName | list[MethodName] = Field(description="merge method, or the methods to be compared on dev")
    scale: float = Field(alias="lambda", gt=0, le=4, description="factor of the merged delta")
    density: Density = Field(description="fraction of each delta kept where densities are not searched")
    rescale: Literal["l1", "density"] = Field(
        default="l1",
        description="DARE: restore the L1 norm as mergekit does, or divide by the density as the paper does",
    )
    seed: int = Field(ge=0, description="seed of DARE masks, of the cut of dev and of the caps, a whole number")
    with_baseline: bool = Field(
        default=False, description="whether the model trained on all splits is one more expert, called all"
    )
    weights: dict[str, Weight] = Field(
        default_factory=dict, description="fixed weight per expert, a plain factor; empty searches them"
    )
    densities: dict[str, Density] = Field(
        default_factory=dict,
        description="fixed fraction kept per expert, with fixed weights and methods that thin only",
    )
    tasks: list[str] = Field(default_factory=list, description="names of the dev tasks that count; empty takes all")
    max_queries: int = Field(ge=0, description="queries per dev task, both halves together; 0 takes all")
    max_passages: int = Field(ge=0, description="passages per dev task, judged ones always stay; 0 takes all")
    search: SearchParams
    mergekit: NamedParams | None = Field(
        default=None, description="a further method in place of the search; null is none"
    )
    learn: LearnParams | None = Field(
        default=None, description="learned weights as one more candidate; null learns none"
    )
    interaction: InteractionParams | None = Field(
        default=None, description="scores over two experts' weights, for the report; null is none"
    )

    @property
    def methods(self) -> list[MethodName]:
        """The candidate methods in the order given."""
        return [self.method] if isinstance(self.method, str) else self.method

    @model_validator(mode="after")
    def _consistent(self) -> "MergeParams":
        if not self.methods:
            raise ValueError("method names no method")
        if len(set(self.methods)) != len(self.methods):
            raise ValueError("method names one method twice")
        if self.densities and not self.weights:
            raise ValueError("densities are fixed only together with weights")
        if self.weights and len(self.methods) != 1:
            raise ValueError("fixed weights need exactly one method")
        if self.weights and not any(self.weights.values()):
            raise ValueError("weights are all zero, which merges nothing; give one expert a weight, or none to search")
        if self.densities and self.methods[0] not in get_args(ThinningMethod):
            raise ValueError(
                f"densities change nothing under {self.methods[0]}, which keeps all of each delta; drop them, or take "
                f"one of {', '.join(get_args(ThinningMethod))}"
            )
        if self.weights and self.learn:
            raise ValueError("learn begins where a search ends, and fixed weights search nothing; drop one of them")
        if self.mergekit and (self.weights or self.learn):
            raise ValueError("mergekit takes the place of the search; it goes with neither weights nor learn")
        return self
