"""Params of the `evaluate` stage, and of the table `models` that names what it runs on."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from stm.errors import ParamsError
from stm.params.base import PARAMS_FILE, Section, parse_section, read_params

Role = Literal["base", "warm_up", "expert", "all_data", "merged", "outside"]


class ModelEntry(Section):
    """A row of the table `models`: one model to evaluate."""

    path: str = Field(min_length=1, description="a sentence-transformers folder or a PEFT adapter folder")
    role: Role = Field("outside", description="what the model is in the comparison; 'outside' for any other model")
    label: str = Field("", description="its name in the report; empty for its name in this table")


class HubTask(Section):
    """A retrieval task of mteb, loaded from the hub or its local cache."""

    name: str = Field(min_length=1, description="name of the task in mteb, for example NFCorpus")
    subsets: list[str] = Field([], description="subsets to run, for example [en]; empty for all of them")
    splits: list[str] = Field([], description="splits to run, for example [all]; empty for the task's own choice")
    domain: Literal["", "medical", "general"] = Field("", description="empty: medical if mteb lists it as Medical")


class EvaluateParams(Section):
    """How models are scored on the test tasks."""

    batch_tokens: int = Field(ge=0, le=4_194_304, description="padded tokens per forward pass; 0 chooses by device")
    store_megabytes: int = Field(ge=0, le=1_000_000, description="megabytes of embeddings kept on disk; 0 keeps none")
    slice_queries: int = Field(40, ge=0, le=10_000, description="queries per task also asked with typos etc.; 0: none")
    slice_seed: int = Field(7, ge=0, description="seed of these queries and of their typos")
    benchmarks: list[str] = Field([], description="mteb benchmarks to run beside the test tasks, by name")
    hub_tasks: list[HubTask] = Field([], description="mteb tasks to run beside the test tasks")


def load_model_entry(name: str, path: Path | str = PARAMS_FILE) -> ModelEntry:
    """Return the row `name` of the table `models`; `ParamsError` if there is none."""
    table = read_params(path).get("models") or {}
    if name not in table:
        known = ", ".join(sorted(table)) or "none"
        raise ParamsError(f"{path} has no model {name!r} in its table models; it has {known}")
    return parse_section(table[name], ModelEntry, f"models.{name}")
