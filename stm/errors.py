"""The one error root of the project.

Everything that a user can cause or mend is raised as an `STMError` whose message names what is wrong, where, what would
be allowed and the next step. Stages and the command line print that message without a traceback and exit with 1.
"""

import re


class STMError(Exception):
    """Base of every error that is meant to be read by a user."""


class ParamsError(STMError):
    """`params.yaml` is missing, unreadable or out of range."""


class DataError(STMError):
    """A pair file, a task or a source does not have the promised form."""


class ModelError(STMError):
    """A model folder, an adapter or a backbone cannot be used as asked."""


class EndpointError(STMError):
    """An LLM endpoint is unreachable, refuses or answers with something else."""


class RegistryError(STMError):
    """The model registry cannot do what was asked."""


def brief(error: Exception) -> str:
    """What a library's error says, on one line of 300 characters at most."""
    return " ".join(str(error).split())[:300]


def redact(text: str) -> str:
    """The text with nothing before the last @ of each URL in it, so that no message shows a user name or a password.

    A password may hold @ and / although a URL must not; where one of them stands in a path, too much is left out.
    """
    return re.sub(r"(?<=://)\S*@", "", text)
