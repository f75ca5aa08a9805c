"""Going back to the state of a registered version: worktree, shared cache, compared bytes."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stm.errors import RegistryError
from stm.files import sha256_tree
from stm.promote.lineage import hash_lock, read_lineage
from stm.promote.registry import Version
from stm.promote.reproduce import find_revision, reproduce

PIPELINE = """\
stages:
  merge:
    cmd: python -c "import pathlib; p = pathlib.Path('models/merged'); p.mkdir(parents=True); p.joinpath('w').write_text(pathlib.Path('seed.txt').read_text())"
    deps: [seed.txt]
    outs: [models/merged]
"""  # noqa: E501


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two committed states of a one-stage pipeline, and only the second in the working tree."""
    root = tmp_path_factory.mktemp("project")
    git(root, "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "config", "core.analytics", "false")
    dvc(root, "remote", "add", "-d", "local", "remote-folder")
    (root / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (root / ".gitignore").write_text("/remote-folder\n/.stm\n/models\n", encoding="utf-8")
    for seed in ("one", "two"):
        (root / "seed.txt").write_text(seed, encoding="utf-8")
        dvc(root, "repro", "-q")
        git(root, "add", "-A")
        git(root, "commit", "-qm", seed)
    return root


def version(**tags: str) -> Version:
    return Version(3, datetime(2026, 1, 1, tzinfo=UTC), "", (), tags)


def first_state(project: Path) -> tuple[str, str]:
    """The first commit and the hash of its lock."""
    revision = git(project, "rev-parse", "HEAD~1")
    return revision, hash_lock(git(project, "show", f"{revision}:dvc.lock"))


def model_of(project: Path, seed: str, scratch: Path) -> str:
    (scratch / "model").mkdir(exist_ok=True)
    (scratch / "model" / "w").write_text(seed, encoding="utf-8")
    return sha256_tree(scratch / "model")


def test_an_earlier_state_comes_back_with_the_same_bytes_and_is_reused(project: Path, tmp_path: Path) -> None:
    revision, lock = first_state(project)
    old = version(**{"git.revision": revision, "dvc.lock": lock, "model": model_of(project, "one", tmp_path)})
    folder = tmp_path / "worktree"
    found = reproduce(old, project, folder, rebuild=False)
    assert (found.is_same, found.is_lock_same, found.revision) == (True, True, revision)
    assert "up to date" in found.status
    assert (folder / "models" / "merged" / "w").read_text(encoding="utf-8") == "one"
    assert (project / "models" / "merged" / "w").read_text(encoding="utf-8") == "two"
    assert "same bytes" in found.lines()[-1]
    (folder / "models" / "merged" / "w").unlink()
    again = reproduce(old, project, folder, rebuild=True)
    assert again.is_same
    assert git(project, "status", "--porcelain") == ""


def test_the_commit_that_holds_the_lock_is_found_from_the_one_before_it(project: Path) -> None:
    first, second = git(project, "rev-parse", "HEAD~1"), git(project, "rev-parse", "HEAD")
    lock = read_lineage(project).lock
    assert find_revision(version(**{"git.revision": first, "dvc.lock": lock}), project) == (second, True)
    assert find_revision(version(**{"git.revision": first, "dvc.lock": "lost"}), project) == (first, False)


def test_what_cannot_be_reproduced_is_said(project: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="not registered by stm"):
        reproduce(version(), project, tmp_path / "x", rebuild=False)
    with pytest.raises(RegistryError, match="has no revision 'feedface'"):
        reproduce(version(**{"git.revision": "feedface", "model": "m"}), project, tmp_path / "x", rebuild=False)
    (tmp_path / "taken").mkdir()
    revision, lock = first_state(project)
    with pytest.raises(RegistryError, match="is no worktree of revision"):
        reproduce(
            version(**{"git.revision": revision, "dvc.lock": lock, "model": "m"}),
            project,
            tmp_path / "taken",
            rebuild=False,
        )


@pytest.mark.parametrize("text", ["", "stages: {}", "- not\n- a lock", "a: [", "stages: 3"])
def test_what_is_no_lock_has_no_hash(text: str) -> None:
    assert hash_lock(text) == ""


def test_the_hash_of_a_lock_leaves_the_promotion_itself_out() -> None:
    plain = "schema: '2.0'\nstages:\n  merge: {cmd: x}\n"
    assert hash_lock(plain) == hash_lock(plain + "  promote: {cmd: y}\n") != hash_lock(plain + "  other: {cmd: y}\n")
