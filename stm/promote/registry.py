"""The model registry as this project uses it: versions with tags, the aliases champion and challenger.

Wraps an MLflow client: opens it quietly, without telemetry, and turns its failures into errors with a next step. Does
not know why an alias moves.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from stm.errors import RegistryError, redact
from stm.files import atomic_file
from stm.root import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION, CHALLENGER = "champion", "challenger"
SQLITE = "sqlite:///"
# Set before MLflow is imported: it decides then whether to phone home and how much to print.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Version:
    """One version of the registered model."""

    number: int
    created: datetime
    run_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


def resolve_uri(configured: str) -> str:
    """The tracking URI in force: MLFLOW_TRACKING_URI if it is set, else the one of the params.

    In DVC's copy of the project for an experiment, the relative path of a local store leads to that of the project.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or configured
    project = project_root()
    return uri if project == Path() or local_database(uri) is None else f"{SQLITE}{project / uri.removeprefix(SQLITE)}"


def local_database(uri: str) -> Path | None:
    """The file of a local SQLite store; None for any other store."""
    return Path(uri.removeprefix(SQLITE).split("?")[0]) if uri.startswith(SQLITE) else None


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn failures of MLflow, its store or the network inside the block into one `RegistryError`."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        reason = redact(" ".join(str(error).split()))[:300]
        raise RegistryError(
            f"MLflow at {redact(uri)} failed: {reason}. All results are safe in models/ and reports/; "
            "once MLflow answers, `stm promote` publishes them"
        ) from error


@contextlib.contextmanager
def no_leftovers() -> Iterator[None]:
    """Remove what MLflow leaves in the temporary folder: the copies it downloads, a whole model among them (3.x)."""
    former = tempfile.tempdir
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        tempfile.tempdir = scratch
        try:
            yield
        finally:
            tempfile.tempdir = former


def quiet_mlflow() -> None:
    """Keep MLflow from phoning home, printing and unpickling; to be called before it is imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401  its import sets the loggers that are turned down here

    for name in ("alembic", "mlflow", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def connect(uri: str) -> "MlflowClient":
    """Open the store quietly and make it MLflow's current one; a missing local database is created."""
    quiet_mlflow()
    import mlflow

    database = local_database(uri)
    if database is not None:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryError(f"cannot create {database.parent}: {error.strerror}; check its permissions") from error
    with explained(uri):
        if database is not None and not database.exists():
            _create_database(database)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        return mlflow.MlflowClient(uri, uri)


def _create_database(database: Path) -> None:
    """Make an empty store, whole or not at all: MLflow cannot take up its migrations where they were cut off."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with atomic_file(database) as scratch:
        SqlAlchemyStore(f"{SQLITE}{scratch}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


class Registry:
    """Versions, tags and aliases of one registered model."""

    def __init__(self, client: "MlflowClient", name: str, uri: str) -> None:
        self.client, self.name, self.uri = client, name, uri

    @classmethod
    def open(cls, configured_uri: str, name: str, *, create: bool = False) -> "Registry":
        """Open the registry; unless `create`, a local database that does not exist is a `RegistryError`."""
        uri = resolve_uri(configured_uri)
        database = local_database(uri)
        if not create and database is not None and not database.exists():
            raise RegistryError(f"there is no registry yet at {redact(uri)}; the first run makes it, or `stm promote`")
        return cls(connect(uri), name, uri)

    def model(self) -> "RegisteredModel | None":
        """The registered model, or None before its first version."""
        from mlflow.exceptions import MlflowException

        with explained(self.uri):
            try:
                return self.client.get_registered_model(self.name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def aliases(self) -> dict[str, int]:
        """Version number by alias."""
        model = self.model()
        return {alias: int(number) for alias, number in sorted(model.aliases.items())} if model else {}

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        aliases = self.aliases()
        with explained(self.uri):
            found = self.client.search_model_versions(f"name = '{self.name}'", max_results=10_000)
        return sorted((_version(item, aliases) for item in found), key=lambda item: -item.number)

    def version(self, number: int) -> Version:
        """One version; `RegistryError` with the existing numbers if there is none of that number."""
        versions = self.versions()
        for version in versions:
            if version.number == number:
                return version
        known = ", ".join(str(version.number) for version in reversed(versions)) or "none"
        raise RegistryError(f"{self.name!r} has no version {number}; its versions are: {known}")

    def by_alias(self, alias: str) -> Version | None:
        """The version that an alias names, or None."""
        number = self.aliases().get(alias)
        return self.version(number) if number is not None else None

    def require(self, alias: str) -> Version:
        """The version that an alias names; `RegistryError` with the next step if it names none."""
        version = self.by_alias(alias)
        if version is None:
            known = ", ".join(self.aliases()) or "none"
            raise RegistryError(
                f"{self.name!r} has no {alias!r} (its aliases are: {known}); `stm promote` registers a model, and "
                "`stm promote --force --reason TEXT` makes it the champion in spite of its gates"
            )
        return version

    def tag(self, number: int, tags: Mapping[str, str], known: Mapping[str, str] | None = None) -> None:
        """Set tags of a version, except those that are `known` to have the value already."""
        changed = {key: value for key, value in sorted(tags.items()) if (known or {}).get(key) != value}
        with explained(self.uri):
            for key, value in changed.items():
                self.client.set_model_version_tag(self.name, str(number), key, value)

    def point(self, alias: str, number: int) -> None:
        """Let an alias name a version; one step that happens or does not."""
        with explained(self.uri):
            self.client.set_registered_model_alias(self.name, alias, str(number))

    def drop(self, alias: str) -> None:
        """Remove an alias."""
        with explained(self.uri):
            self.client.delete_registered_model_alias(self.name, alias)


def _version(item: "ModelVersion", aliases: Mapping[str, int]) -> Version:
    number = int(item.version)
    created = datetime.fromtimestamp(item.creation_timestamp / 1000, UTC)
    names = tuple(sorted(alias for alias, other in aliases.items() if other == number))
    return Version(number, created, item.run_id or "", names, dict(item.tags))
