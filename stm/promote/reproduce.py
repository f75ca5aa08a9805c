"""Brings back the state that a registered version was made of: a git worktree, its data from the DVC cache or remote.

The worktree shares the project's DVC cache and remotes, so that nothing is stored twice; a rebuild starts with the LLM
answers that were given then, so that none is asked for again. Compares the model with the registered one by content;
does not touch the registry or the project's own files.
"""

import configparser
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stm.cache import cache_folder
from stm.errors import RegistryError
from stm.files import atomic_file, sha256_tree
from stm.llm.store import STORE_FILE
from stm.params.base import MERGED
from stm.progress import say
from stm.promote.lineage import hash_lock, locked_outs, run_git
from stm.promote.registry import Version
from stm.promote.versions import CONTENT

REBUILD_STAGE = "merge"
ANSWERS = "data/answers/"
COMMITS_SEARCHED = 2000
FETCH = (
    "`git fetch --all` and try again (in a shallow clone `git fetch --unshallow origin "
    "'+refs/heads/*:refs/remotes/origin/*'`, for a colleague's experiment `dvc exp pull REMOTE NAME`)"
)


@dataclass(frozen=True)
class Reproduction:
    """What was found in the project's folder of the worktree; `model` is the hash of its merged model, empty where
    there is none.
    """

    folder: Path
    revision: str
    is_lock_same: bool
    status: str
    model: str
    expected: str
    dirty: str  # true, false or unknown: the tag git.dirty, where no revision holds the version's dvc.lock

    @property
    def is_same(self) -> bool:
        """Whether the model has the same bytes as the one that was registered."""
        return self.model == self.expected

    def lines(self) -> list[str]:
        """The result in words."""
        lock = "the same dvc.lock" if self.is_lock_same else "another dvc.lock than the version was made with"
        lines = [f"{self.folder}: revision {self.revision[:12]}, {lock}"]
        if not self.is_lock_same:
            lines.append(f"no commit here holds that dvc.lock; perhaps it was not fetched: {FETCH}")
        if self.dirty == "true":
            lines.append("the version was made with uncommitted changes, which no revision holds")
        elif self.dirty == "unknown":
            lines.append("whether the version was made with uncommitted changes is not known: git could not tell then")
        lines.append(f"dvc status: {self.status}")
        if self.is_same:
            lines.append(f"{MERGED} has the same bytes as the registered model")
        else:
            lines.append(f"{MERGED} is missing" if not self.model else f"{MERGED} differs from the registered model")
        return lines


def reproduce(version: Version, root: Path, folder: Path, *, rebuild: bool) -> Reproduction:
    """Check the version's state out into `folder` (reused if it is that state's worktree) and fill it.

    `RegistryError` where the version names no revision that this repository has, or `folder` holds something else.
    """
    expected = version.tags.get(CONTENT, "")
    if not expected:
        raise RegistryError(f"version {version.number} was not registered by stm: it names no model content")
    revision, is_lock_same = find_revision(version, root)
    if not is_lock_same and not run_git(root, "show", f"{revision}:./dvc.lock"):
        raise RegistryError(
            f"no commit holds the results that version {version.number} was made with; commit dvc.lock, params.yaml, "
            "reports and data/files as they were then, run `stm promote` and try again"
        )
    _check_out(root, folder, revision)
    folder /= run_git(root, "rev-parse", "--show-prefix").rstrip("\n")  # the project may be a part of its repository
    _share_cache(root, folder)
    if rebuild:
        _bring_answers(root, folder)
        _run_dvc(folder, "repro", "--force", REBUILD_STAGE)
    elif _dvc(folder, "checkout").returncode != 0:
        say("not everything is in the cache; pulling from the remote")
        _run_dvc(folder, "pull")
    status = " ".join(_dvc(folder, "status").stdout.split())
    model = folder / MERGED
    found = sha256_tree(model) if model.is_dir() else ""
    dirty = "false" if is_lock_same else version.tags.get("git.dirty", "unknown")
    return Reproduction(folder, revision, is_lock_same, status, found, expected, dirty)


def find_revision(version: Version, root: Path) -> tuple[str, bool]:
    """The commit that holds the version's dvc.lock, and whether one does; else the commit that was checked out then.

    A pipeline runs before its dvc.lock is committed, so the recorded revision is often one commit too early.
    """
    recorded, lock = version.tags.get("git.revision", ""), version.tags.get("dvc.lock", "")
    for revision in _candidates(root, recorded):
        if lock and hash_lock(run_git(root, "show", f"{revision}:./dvc.lock")) == lock:
            return revision, True
    if recorded in ("", "unknown"):
        raise RegistryError(
            f"version {version.number} names no revision: it was promoted outside a git repository, or before the "
            "first commit, so there is no state to go back to"
        )
    if not run_git(root, "rev-parse", "--verify", "--quiet", f"{recorded}^{{commit}}").strip():
        raise RegistryError(
            f"this repository has no revision {recorded!r}, of which version {version.number} was made; "
            f"{FETCH}; or run it in the repository that promoted it"
        )
    return recorded, False


def _candidates(root: Path, recorded: str) -> Iterator[str]:
    if recorded:
        yield recorded
    listed = run_git(root, "log", "--all", f"--max-count={COMMITS_SEARCHED}", "--format=%H", "--", "dvc.lock")
    yield from listed.split()


def _check_out(root: Path, folder: Path, revision: str) -> None:
    if folder.exists():
        inside = run_git(folder, "rev-parse", "--show-toplevel").strip()
        there = run_git(folder, "rev-parse", "HEAD").strip()
        is_ours = inside == str(folder.resolve())
        if is_ours and there != revision and not run_git(folder, "status", "--porcelain", "--untracked-files=no"):
            run_git(folder, "checkout", "--detach", revision)  # of a try before the right commit was fetched
            there = run_git(folder, "rev-parse", "HEAD").strip()
        if not is_ours or there != revision:
            what = f"a worktree of revision {there[:12]}" if is_ours else "no worktree"
            raise RegistryError(
                f"{folder} is {what}, and version and data are of {revision[:12]}; remove it with `git worktree remove "
                f"--force {folder}` or `rm -r`, or give another --folder"
            )
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    run_git(root, "worktree", "prune")
    command = ["git", "-C", str(root), "worktree", "add", "--detach", str(folder.resolve()), revision]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        reason = " ".join(made.stderr.split("fatal: ")[-1].split())
        raise RegistryError(f"git could not make a worktree in {folder}: {reason}; mend that and try again")


def _share_cache(root: Path, folder: Path) -> None:
    """Point the worktree's DVC at the project's cache and remotes, whose paths may be relative to the project."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([root / ".dvc" / "config", root / ".dvc" / "config.local"], encoding="utf-8")
    base = (root / ".dvc").resolve()
    for section in config.sections():
        url = config[section].get("url", "")
        if "remote" in section and url and "://" not in url:
            config[section]["url"] = str((base / url).resolve())
    if not config.has_section("cache"):
        config.add_section("cache")
    config["cache"]["dir"] = str(cache_folder(root).resolve())
    target = folder / ".dvc" / "config.local"
    target.parent.mkdir(exist_ok=True)
    target.touch(mode=0o600)  # a remote's credentials may be in it
    with target.open("w", encoding="utf-8") as stream:
        config.write(stream)


def _bring_answers(root: Path, folder: Path) -> None:
    """Fetch the answers that the lock file names and copy the project's own store of answers, unless there is one.

    DVC keeps outputs marked `persist` through a forced run, but only where they are in place when it starts.
    """
    lock = folder / "dvc.lock"
    stages = _dvc(folder, "stage", "list", "--name-only").stdout.split()
    outs = locked_outs(lock.read_text(encoding="utf-8"), stages) if lock.exists() else {}
    answers = sorted(path for path in outs if path.startswith(ANSWERS))
    if answers and _dvc(folder, "checkout", *answers).returncode != 0:
        say("not all answers of the LLM are in the cache; pulling them from the remote")
        _run_dvc(folder, "pull", *answers)
    store, copy = root / STORE_FILE, folder / STORE_FILE
    if not store.exists() or copy.exists():
        return
    with (
        atomic_file(copy) as scratch,
        contextlib.closing(sqlite3.connect(store)) as source,
        contextlib.closing(sqlite3.connect(scratch)) as target,
    ):
        source.backup(target)


def _dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def _run_dvc(folder: Path, *arguments: str) -> None:
    """Run a DVC command whose progress the user sees; its failure is a `RegistryError`."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, check=False, stdout=sys.stderr)
    if done.returncode != 0:
        raise RegistryError(
            f"`dvc {' '.join(arguments)}` failed in {folder}; mend what it says (a remote out of reach, missing "
            "credentials) and run the same command again"
        )
