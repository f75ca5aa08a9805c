"""The table `files`: files and folders of one's own that a stage reads, each a DVC dependency of that stage."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from stm.errors import ParamsError
from stm.params.base import PARAMS_FILE, Section, parse_section, read_params

Reader = Literal["backbone", "prepare", "mine", "synthesize", "evaluate"]


class FileRow(Section):
    """One file or folder."""

    path: str = Field(min_length=1, description="path from the project's root")
    read_by: Reader = Field(description="the stage whose section names it")

    def holds(self, path: str) -> bool:
        """Whether `path` is this one or lies below it."""
        return Path(path).is_relative_to(Path(self.path))


def load_file_row(name: str, path: Path | str = PARAMS_FILE) -> FileRow:
    """The row `name` of the table `files`; `ParamsError` with the known names for another."""
    rows = read_params(path).get("files") or {}
    if name not in rows:
        raise ParamsError(f"{path} has no file {name!r}; the table `files` has {', '.join(sorted(rows)) or 'none'}")
    return parse_section(rows[name], FileRow, f"files.{name}")
