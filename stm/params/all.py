"""The whole of `params.yaml` as one model, and what its sections must agree on.

Read by the stage `check` and by the command line only: a stage depends on its own section alone.
"""

from pathlib import Path

from pydantic import Field, model_validator

from stm.params.backbone import BackboneParams
from stm.params.base import PARAMS_FILE, Section, parse_section, read_params
from stm.params.evaluate import EvaluateParams, ModelEntry, OutsideEntry
from stm.params.experts import BASELINE, ExpertTable, Name
from stm.params.files import FileRow
from stm.params.merge import MergeParams
from stm.params.mine import MineParams
from stm.params.prepare import PrepareParams
from stm.params.promote import PromoteParams
from stm.params.report import ReportParams
from stm.params.rows import LEXICAL
from stm.params.search_prompts import SearchPromptsParams
from stm.params.select import SelectParams
from stm.params.synthesize import SynthesizeParams
from stm.params.train import TrainParams


class Params(Section):
    """Every table and section."""

    splits: list[Name] = Field(min_length=1, description="names of the training splits")
    synthesize_splits: list[Name] = Field(description="splits that get synthetic negatives")
    search_prompts_splits: list[Name] = Field(description="splits whose instruction is searched")
    experts: ExpertTable = Field(min_length=1, description="expert name -> how it is trained")
    models: dict[Name, ModelEntry] = Field(min_length=1, description="model name -> what is evaluated")
    outside: dict[Name, OutsideEntry] = Field({}, description="model name -> a model of the hub that is evaluated too")
    files: dict[Name, FileRow] = Field({}, description="file name -> a file or folder that a stage reads")
    backbone: BackboneParams
    prepare: PrepareParams
    mine: MineParams
    synthesize: SynthesizeParams
    warm_up: TrainParams
    train: TrainParams
    search_prompts: SearchPromptsParams
    select: SelectParams
    merge: MergeParams
    evaluate: EvaluateParams
    report: ReportParams
    promote: PromoteParams

    @model_validator(mode="after")
    def _agree(self) -> "Params":
        splits = set(self.splits)
        if len(splits) != len(self.splits):
            raise ValueError("splits names a split twice")
        if splits != set(self.prepare.splits):
            raise ValueError(
                f"splits has {sorted(splits)}, but prepare.splits has {sorted(self.prepare.splits)}; name the same"
            )
        taken = sorted({LEXICAL, *self.models} & set(self.outside) | {LEXICAL} & set(self.models))
        if taken:
            raise ValueError(
                f"two evaluated models are called {taken[0]!r}; names are unique over the tables models and outside, "
                f"and {LEXICAL} is the lexical baseline: give one another name"
            )
        if self.merge.with_baseline and BASELINE in splits:
            raise ValueError(
                f"merge.with_baseline is true, and a split is called {BASELINE!r}, as the baseline is; rename the split"
            )
        self._agree_on_lists(splits)
        if "pool" in (self.warm_up.instruction_from, self.train.instruction_from):
            raise ValueError(
                "instruction_from is 'pool', but only experts have a pool; say `instruction: pool` in a row of experts"
            )
        for name, row in self.experts.items():
            if row.split not in splits:
                raise ValueError(f"experts.{name}.split is {row.split!r}; the table splits has {sorted(splits)}")
        for split in self.splits:
            first = self.experts.get(f"{split}-ft")
            if first is None or (first.split, first.negatives, first.instruction) != (split, "mined", "seed"):
                raise ValueError(
                    f"the split {split!r} needs an expert '{split}-ft' with mined negatives and the seed instruction: "
                    "prompt search starts from it"
                )
        return self

    def _agree_on_lists(self, splits: set[str]) -> None:
        for table in ("synthesize_splits", "search_prompts_splits"):
            named = getattr(self, table)
            if len(set(named)) != len(named):
                raise ValueError(f"{table} names a split twice")
            if not set(named) <= splits:
                raise ValueError(f"{table} names {sorted(set(named) - splits)}; the table splits has {sorted(splits)}")
        if self.search_prompts_splits and "{instruction}" not in self.backbone.query_template:
            raise ValueError(
                "backbone.query_template has no {instruction}, so there is nothing to search; put it in, or set "
                "search_prompts_splits: []"
            )
        for name, row in self.experts.items():
            if row.instruction == "pool" and not self.search_prompts.pool_size:
                raise ValueError(f"experts.{name}.instruction is 'pool', and search_prompts.pool_size is 0; raise it")
            if row.negatives == "synthetic" and row.split not in self.synthesize_splits:
                raise ValueError(
                    f"experts.{name}.negatives is 'synthetic'; add its split {row.split!r} to synthesize_splits"
                )
            if row.instruction != "seed" and row.split not in self.search_prompts_splits:
                raise ValueError(
                    f"experts.{name}.instruction is {row.instruction!r}; add its split {row.split!r} to "
                    "search_prompts_splits"
                )


def load_params(path: Path | str = PARAMS_FILE) -> Params:
    """Load and validate everything; `ParamsError` with one line per fault."""
    return parse_section(read_params(path), Params, "")
