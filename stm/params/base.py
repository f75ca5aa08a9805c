"""The base of all params sections and their loader.

A section is a frozen model that refuses unknown keys and values out of range, with one sentence per field. Loading
reads one section of `params.yaml`; it does not know which sections there are.
"""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from stm.errors import ParamsError

PARAMS_FILE = Path("params.yaml")
MERGED = "models/merged"  # the folder that `merge` makes and `promote` publishes
GIVEN_CHARS = 200  # longest value that an error repeats


class Section(BaseModel):
    """A frozen group of params; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        # Before pydantic's own refusal, which does not say what there is.
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = [str(key) for key in data if key not in known] if isinstance(data, dict) else []
        if unknown:
            raise ValueError(f"no such setting: {', '.join(unknown)}; there are {', '.join(known)}")
        return data


SectionType = TypeVar("SectionType", bound=Section)


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that names a key twice, of which YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [key.value for key in keys]
        again = next((key for index, key in enumerate(keys) if key.value in names[:index]), None)
        if again is not None:
            line = again.start_mark.line + 1
            raise ValueError(f"the name {again.value!r} stands twice, for the second time in line {line}")
        return super().construct_mapping(node, deep)


def read_params(path: Path | str = PARAMS_FILE) -> dict[str, Any]:
    """Return the whole params file as plain data; `ParamsError` if it is missing, not UTF-8 or not a YAML mapping."""
    try:
        data = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ParamsError(f"cannot read {path}: {error.strerror}; run from the project's root") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8: {error.reason} at byte {error.start}; save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is a date that does not exist
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ParamsError(f"{path} holds no sections; restore it with `git checkout {path}`")
    return data


ROW_NAME = r"^[a-z0-9][a-z0-9_.-]*$"
SPLIT_NAME = r"^[a-z][a-z0-9_]{0,39}$"
TASK_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
COMMIT = r"^[0-9a-f]{40}$"
IN_WORDS = {
    ROW_NAME: "a name has small letters, digits, _ . and -, a letter or digit first",
    SPLIT_NAME: "a name has small letters, digits and _, a letter first, 40 at most",
    TASK_NAME: "a name has letters, digits, . _ and -, a letter or digit first, 80 at most",
}


def explain(error: ValidationError, data: Any, where: str) -> str:
    """Turn a pydantic error into one line per fault: the dotted key, what is wrong, the value given."""
    lines = []
    for fault in error.errors():
        key = ".".join([where, *_keys(data, fault["loc"])]).strip(".")
        value = repr(fault["input"])
        # A rule over a whole section has been given the whole section, which is no help.
        is_whole = fault["type"] in ("missing", "value_error") and isinstance(fault["input"], dict)
        is_shown = not is_whole and len(value) <= GIVEN_CHARS
        given = f" (given: {value})" if is_shown else ""
        what = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "string_pattern_mismatch":
            what = IN_WORDS.get(fault["ctx"]["pattern"], what)
        lines.append(f"{key}: {what}{given}" if key else f"{what}{given}")
    return "\n".join(lines)


def _keys(data: Any, path: tuple[int | str, ...]) -> list[str]:
    """A path of pydantic's as keys of the file: without the `kind` of a row, which it adds behind the row's own key."""
    keys = []
    for part in path:
        if isinstance(data, dict) and part not in data and part == data.get("kind"):
            continue
        keys.append(str(part))
        is_there = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        data = data[part] if is_there else None
    return keys


def parse_section(data: Any, model: type[SectionType], where: str) -> SectionType:
    """Validate plain data as `model`; `ParamsError` with one line per fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ParamsError(f"params.yaml is wrong:\n{explain(error, data, where)}") from error


def load_row(table: str, name: str, model: type[SectionType], path: Path | str = PARAMS_FILE) -> SectionType:
    """Load and validate one row of a table of the params file; `ParamsError` with the known names for another."""
    rows = read_params(path).get(table) or {}
    if name not in rows:
        known = ", ".join(sorted(rows)) or "none"
        raise ParamsError(f"{path} has no row {name!r} in its table `{table}`; it has {known}")
    return parse_section(rows[name], model, f"{table}.{name}")


def load_section(name: str, model: type[SectionType], path: Path | str = PARAMS_FILE) -> SectionType:
    """Load and validate one top-level section of the params file."""
    data = read_params(path)
    if name not in data:
        raise ParamsError(f"{path} has no section {name!r}; it has {', '.join(sorted(data))}")
    return parse_section(data[name], model, name)
