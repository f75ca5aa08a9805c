"""Params of the `evaluate` stage, and of the tables `models` and `outside` that name what is evaluated."""

from typing import Literal

from pydantic import Field, field_validator

from stm.params.base import COMMIT, Section

Role = Literal["base", "warm_up", "expert", "all_data", "merged", "outside"]


class _Entry(Section):
    """What every row of a table of models may say."""

    label: str = Field("", description="its name in the report; empty for its name in this table")
    group: str = Field("", description="rows of one group are one method trained with several seeds; empty: a single")
    query_prompt: str | None = Field(None, description="text before a query; null: the model's own prompt")
    passage_prompt: str | None = Field(None, description="text before a passage; null: the model's own prompt")


class ModelEntry(_Entry):
    """A row of the table `models`: one model folder to evaluate."""

    path: str = Field(min_length=1, description="a sentence-transformers folder or a PEFT adapter folder")
    role: Role = Field("outside", description="what the model is in the comparison; 'outside' for any other model")


class OutsideEntry(_Entry):
    """A row of the table `outside`: one model of the hub to evaluate."""

    id: str = Field(pattern=r"^\w[\w.-]*/\w[\w.-]*$", description="its id on the hub, owner/name")
    revision: str = Field(pattern=COMMIT, description="the commit, 40 hexadecimal digits; a branch may move")


class HubTask(Section):
    """A retrieval task of mteb, loaded from the hub or its local cache."""

    name: str = Field(min_length=1, description="name of the task in mteb, for example NFCorpus")
    subsets: list[str] = Field([], description="subsets to run, for example [en]; empty for all of them")
    splits: list[str] = Field([], description="splits to run, for example [all]; empty for the task's own choice")
    domain: Literal["", "medical", "general"] = Field("", description="empty: medical if mteb lists it as Medical")


class EvaluateParams(Section):
    """How models are scored on the test tasks."""

    batch_tokens: int = Field(ge=0, le=4_194_304, description="padded tokens per forward pass; 0 chooses by device")
    compile: bool = Field(
        False, description="have torch compile the layers of decoders; for large corpora, needs a C++ compiler"
    )
    store_megabytes: int = Field(ge=0, le=1_000_000, description="megabytes of embeddings kept on disk; 0 keeps none")
    slice_queries: int = Field(8, ge=0, le=10_000, description="queries per task also asked with typos etc.; 0: none")
    slice_seed: int = Field(7, ge=0, description="seed of these queries and of their typos")
    benchmarks: list[str] = Field([], description="mteb benchmarks to run beside the test tasks, by name")
    hub_tasks: list[HubTask] = Field([], description="mteb tasks to run beside the test tasks")
    hub_folder: str = Field(
        "", description="folder with copies of mteb's data sets under their ids (owner/name); empty: hub and its cache"
    )

    @field_validator("hub_tasks")
    @classmethod
    def _once(cls, tasks: list[HubTask]) -> list[HubTask]:
        names = [task.name for task in tasks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"names {twice[0]!r} twice; give one row all its subsets and splits")
        return tasks
