"""The checks of `stm doctor` on the checkout: git, DVC and the results that DVC's lock file names.

Each gives findings and never raises; nothing is changed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stm.doctor.findings import INSTALL, Finding, ask_program
from stm.errors import DataError


def check_git(root: Path) -> Iterator[Finding]:
    """The repository that DVC works in, and the state that a promotion would record."""
    folder = root.resolve()
    if not any((place / ".git").exists() for place in (folder, *folder.parents)):
        yield _without_git(root)
        return
    is_listed, problem = ask_program("git", "status", "--porcelain", root=root)
    if not is_listed:
        yield Finding("git", "note", f"`git status` fails: {problem}", "mend it, so that models can be traced back")
        return
    has_commit, revision = ask_program("git", "rev-parse", "--short", "HEAD", root=root)
    if not has_commit:
        yield Finding("git", "note", "no commit", "commit, so that models can be traced back")
        return
    try:
        from stm.promote.lineage import OUTPUTS, changed_files, name_files  # here, for they need libraries
    except ImportError as error:
        yield Finding("git", "note", f"changes are not looked for: {error}", INSTALL)
        return
    at, files = f"at {revision.strip()}", changed_files(root)
    if files:
        step = "commit before promoting, so that the model can be rebuilt"
        yield Finding("git", "note", f"{at}, not committed: {name_files(files)}", step)
    else:
        yield Finding("git", "ok", f"{at}, all committed ({', '.join(OUTPUTS)} aside)")


def _without_git(root: Path) -> Finding:
    """DVC refuses to work outside of a repository where its config does not say otherwise."""
    try:
        from dvc.config import Config, ConfigError
    except ImportError:
        return Finding("git", "note", "no repository", INSTALL)
    try:
        is_allowed = Config(root / ".dvc").get("core", {}).get("no_scm", False)
    except ConfigError as error:
        return Finding("git", "missing", f"no repository; {error}", "mend .dvc/config")
    if is_allowed:
        return Finding("git", "note", "no repository", "`git init` and commit, so that models can be traced back")
    step = "`git init` and commit, or `dvc config core.no_scm true`: DVC runs in a repository only"
    return Finding("git", "missing", "no repository", step)


def check_dvc(root: Path) -> Iterator[Finding]:
    """Whether DVC is set up here, and whether the results that its lock file names are here."""
    if not (root / ".dvc").is_dir():
        yield Finding("dvc project", "missing", "no .dvc folder", "run in a clone of the project, or `dvc init`")
        return
    try:
        results = _locked_results(root)
    except ImportError as error:
        yield Finding("dvc project", "note", f"dvc.lock is not read: {error}", INSTALL)
        return
    except DataError as error:
        from stm.promote.lineage import lock_remedy  # here, for it needs libraries, whose lack is a finding of its own

        yield Finding("dvc project", "missing", str(error), lock_remedy(root / "dvc.lock"))
        return
    absent = [path for path in results if not (root / path).exists()]
    if not results:
        yield Finding("dvc project", "note", "nothing run yet", "`make repro`")
    elif absent:
        found = f"{len(absent)} of {len(results)} results in dvc.lock are not here, {absent[0]} for example"
        yield Finding("dvc project", "note", found, "`dvc pull`, or `make repro` where no remote has them")
    else:
        yield Finding("dvc project", "ok", "has results")


def _locked_results(root: Path) -> list[str]:
    """The outputs of the project's stages that the lock file names, none without one; `DataError` for a file that is
    damaged. DVC leaves the entries of rows there that params.yaml has no more.
    """
    import yaml  # here, for its lack is a finding of its own

    path = root / "dvc.lock"
    is_listed, listing = ask_program("dvc", "stage", "list", "--name-only", root=root)
    try:
        lock: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        stages = {n: s for n, s in lock.get("stages", {}).items() if not is_listed or n in listing.split()}
        return [str(out["path"]) for stage in stages.values() for out in stage.get("outs", [])]
    except (yaml.YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from error
