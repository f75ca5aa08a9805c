"""The tables `splits` and `experts`: which parts the data has, and which adapters are trained on them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from stm.params.base import ROW_NAME, Section, parse_section, read_params

Name = Annotated[str, Field(pattern=ROW_NAME, max_length=64)]

BASELINE = "all"  # the model of all splits, which is trained beside the experts


class ExpertRow(Section):
    """One row of the table `experts`: a variant of one split."""

    split: Name = Field(description="split that it is trained on")
    negatives: Literal["mined", "synthetic"] = Field(description="whose hard negatives it is trained with")
    instruction: Literal["seed", "searched", "pool"] = Field(
        description="which query instruction it is trained with; pool: one of the split's generic pool, drawn per row"
    )


def _without_baseline(table: dict[str, ExpertRow]) -> dict[str, ExpertRow]:
    if BASELINE in table:
        raise ValueError(f"{BASELINE!r} is the baseline on all splits, which `train_all` makes; choose another name")
    return table


ExpertTable = Annotated[dict[Name, ExpertRow], AfterValidator(_without_baseline)]


class Tables(Section):
    """The two tables as one."""

    splits: list[Name] = Field(min_length=1, description="names of the training splits")
    experts: ExpertTable = Field(min_length=1, description="expert name -> how it is trained")


def load_tables() -> Tables:
    """Load both tables."""
    data = read_params()
    return parse_section({key: data.get(key) for key in Tables.model_fields}, Tables, "")


def load_splits() -> list[str]:
    """The names of the splits, in the order of the table."""
    return load_tables().splits


def load_experts() -> dict[str, ExpertRow]:
    """The whole table of experts, by name."""
    return load_tables().experts
