"""What a check of `stm doctor` gives, and the asking of other programs that several checks need."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "missing"]
INSTALL = "run `make repro` or `make test`, which install the locked environment"


@dataclass(frozen=True)
class Finding:
    """The result of one check; "missing" means that the pipeline cannot run, "note" that something is worth knowing."""

    name: str
    state: State
    found: str
    next_step: str = ""


def ask_program(*command: str, root: Path | None = None) -> tuple[bool, str]:
    """Return whether the command succeeds, and what it prints, or complains of on one line where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False, cwd=root
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, f"{command[0]}: {error.strerror if isinstance(error, OSError) else 'no answer in a minute'}"
    if done.returncode:
        return False, " ".join(done.stderr.split()) or f"it exits with {done.returncode}"
    return True, done.stdout
