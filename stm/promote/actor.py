"""Who acts and when: the name and the time for the history. The only place of the package that asks for the date."""

import getpass
import os
from datetime import UTC, datetime
from pathlib import Path

from stm.promote.history import Actor
from stm.promote.lineage import run_git


def current_actor() -> Actor:
    """The person by STM_ACTOR, else by git's user name or the login; the time in UTC, to the second."""
    name = os.environ.get("STM_ACTOR", "").strip() or run_git(Path(), "config", "user.name").strip() or _login()
    return Actor(name, datetime.now(UTC).isoformat(timespec="seconds"))


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in the password file
        return "unknown"
