"""The table `files`: files and folders of one's own that a stage reads, each a DVC dependency of that stage."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from stm.params.base import Section

Reader = Literal["backbone", "prepare", "mine", "synthesize", "evaluate"]


class FileRow(Section):
    """One file or folder."""

    path: str = Field(min_length=1, description="path from the project's root")
    read_by: Reader = Field(description="the stage whose section names it")

    def holds(self, path: str) -> bool:
        """Whether `path` is this one or lies below it."""
        return Path(path).is_relative_to(Path(self.path))
