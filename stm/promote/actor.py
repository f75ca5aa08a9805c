"""Who acts and when: the name and the time for the history. The only place in the package that looks at a clock."""

import getpass
import os
import subprocess
from datetime import UTC, datetime

from stm.promote.history import Actor


def current_actor() -> Actor:
    """The person by STM_ACTOR, else by git's user name or the login; the time in UTC, to the second."""
    name = os.environ.get("STM_ACTOR", "").strip() or _git_name() or _login()
    return Actor(name, datetime.now(UTC).isoformat(timespec="seconds"))


def _git_name() -> str:
    try:
        done = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without an entry in the password file
        return "unknown"
