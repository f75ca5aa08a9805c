"""Going back to the state of a registered version: worktree, shared cache, compared bytes."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from stm.errors import RegistryError
from stm.files import sha256_tree
from stm.llm.answers import Answer, request_key
from stm.llm.store import STORE_FILE, AnswerStore
from stm.promote.lineage import hash_lock, read_lineage
from stm.promote.registry import Version
from stm.promote.reproduce import find_revision, reproduce

PIPELINE = """\
stages:
  synthesize:
    cmd: python make.py answer
    deps: [seed.txt]
    outs:
      - data/answers/qa.txt: {persist: true}
  merge:
    cmd: python make.py merge
    deps: [data/answers/qa.txt]
    outs: [models/merged]
"""
# "Asks" whoever stands in for the LLM, which never answers the same twice, unless the answers are there.
SCRIPT = """\
import os, pathlib, sys
answers, model = pathlib.Path("data/answers/qa.txt"), pathlib.Path("models/merged")
if sys.argv[1] == "merge":
    model.mkdir(parents=True)
    (model / "w").write_text(answers.read_text())
elif not answers.exists():
    asked = pathlib.Path(os.environ["ASKED"])
    asked.write_text(asked.read_text() + "x" if asked.exists() else "x")
    answers.parent.mkdir(parents=True, exist_ok=True)
    answers.write_text(pathlib.Path("seed.txt").read_text() + asked.read_text())
"""


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with two committed states of a small pipeline, and only the second in the working tree."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASKED", str(root.parent / "asked"))
        yield make_project(root)


def make_project(root: Path, repository: Path | None = None) -> Path:
    git(repository or root, "init", "-q")
    dvc(root, "init", "-q", "--subdir")
    dvc(root, "config", "core.analytics", "false")
    dvc(root, "remote", "add", "-d", "local", "remote-folder")
    (root / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (root / "make.py").write_text(SCRIPT, encoding="utf-8")
    (root / ".gitignore").write_text("/remote-folder\n/.stm\n/models\n/data\n", encoding="utf-8")
    for seed in ("one", "two"):
        (root / "seed.txt").write_text(seed, encoding="utf-8")
        (root / "data" / "answers" / "qa.txt").unlink(missing_ok=True)
        dvc(root, "repro", "-q")
        keep_entry_of_a_removed_row(root / "dvc.lock")
        git(root, "add", "-A")
        git(root, "commit", "-qm", seed)
    return root


def keep_entry_of_a_removed_row(path: Path) -> None:
    """As DVC keeps it in the lock file, whose outputs no stage makes any more."""
    lock = yaml.safe_load(path.read_text(encoding="utf-8"))
    out = {"path": "data/answers/gone.txt", "hash": "md5", "md5": "0" * 32, "size": 1}
    lock["stages"]["search_prompts@gone"] = {"cmd": "python make.py gone", "outs": [out]}
    path.write_text(yaml.safe_dump(lock), encoding="utf-8")


def version(**tags: str) -> Version:
    return Version(3, datetime(2026, 1, 1, tzinfo=UTC), "", (), tags)


def first_state(project: Path) -> tuple[str, str]:
    """The first commit and the hash of its lock."""
    revision = git(project, "rev-parse", "HEAD~1")
    return revision, hash_lock(git(project, "show", f"{revision}:dvc.lock"))


def model_of(text: str, scratch: Path) -> str:
    (scratch / "model").mkdir(exist_ok=True)
    (scratch / "model" / "w").write_text(text, encoding="utf-8")
    return sha256_tree(scratch / "model")


def test_an_earlier_state_comes_back_with_the_same_bytes_and_is_reused(project: Path, tmp_path: Path) -> None:
    revision, lock = first_state(project)
    old = version(**{"git.revision": revision, "dvc.lock": lock, "model": model_of("onex", tmp_path)})
    folder = tmp_path / "worktree"
    found = reproduce(old, project, folder, rebuild=False)
    assert (found.is_same, found.is_lock_same, found.revision) == (True, True, revision)
    assert "up to date" in found.status
    assert (folder / "models" / "merged" / "w").read_text(encoding="utf-8") == "onex"
    assert (project / "models" / "merged" / "w").read_text(encoding="utf-8") == "twoxx"
    assert "same bytes" in found.lines()[-1]
    assert git(project, "status", "--porcelain") == ""


def test_a_project_that_is_a_part_of_its_repository_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    part = tmp_path / "repository" / "a part"
    part.mkdir(parents=True)
    project = make_project(part, repository=part.parent)
    revision = git(project, "rev-parse", "HEAD~1")
    lock = hash_lock(git(project, "show", f"{revision}:./dvc.lock"))
    old = version(**{"git.revision": revision, "dvc.lock": lock, "model": model_of("onex", tmp_path)})
    for _ in range(2):  # the second takes the worktree that is there
        found = reproduce(old, project, tmp_path / "worktree", rebuild=False)
        assert (found.is_same, found.is_lock_same, found.folder) == (True, True, tmp_path / "worktree" / "a part")
        assert "up to date" in found.status


def test_what_the_cache_lacks_is_pulled_from_the_remote(project: Path, tmp_path: Path) -> None:
    revision, lock = first_state(project)
    old = version(**{"git.revision": revision, "dvc.lock": lock, "model": model_of("onex", tmp_path)})
    cache, remote = project / ".dvc" / "cache" / "files", project / "remote-folder"
    shutil.move(cache, remote / "files")  # as `dvc push` of both states leaves it
    try:
        assert reproduce(old, project, tmp_path / "worktree", rebuild=False).is_same
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        shutil.move(remote / "files", cache)


def test_a_rebuild_asks_the_llm_for_nothing_again(project: Path, tmp_path: Path) -> None:
    revision, lock = first_state(project)
    old = version(**{"git.revision": revision, "dvc.lock": lock, "model": model_of("onex", tmp_path)})
    asked = (project.parent / "asked").read_text(encoding="utf-8")
    with AnswerStore(project / STORE_FILE) as store:
        store.put("{}", Answer("kept", "stop", 1, 1))
    cache = project / ".dvc" / "cache" / "files"
    shutil.copytree(cache, project / "remote-folder" / "files")  # as `dvc push` of both states leaves it
    shutil.rmtree(cache)
    found = reproduce(old, project, tmp_path / "worktree", rebuild=True)
    assert found.is_same
    assert (project.parent / "asked").read_text(encoding="utf-8") == asked == "xx"
    with AnswerStore(tmp_path / "worktree" / STORE_FILE) as copy:
        assert [answer.text for answer in copy.get([request_key("{}")]).values()] == ["kept"]


def test_the_commit_that_holds_the_lock_is_found_from_the_one_before_it(project: Path) -> None:
    first, second = git(project, "rev-parse", "HEAD~1"), git(project, "rev-parse", "HEAD")
    lock = read_lineage(project).lock
    assert find_revision(version(**{"git.revision": first, "dvc.lock": lock}), project) == (second, True)
    assert find_revision(version(**{"git.revision": first, "dvc.lock": "lost"}), project) == (first, False)


def test_what_cannot_be_reproduced_is_said(project: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="not registered by stm"):
        reproduce(version(), project, tmp_path / "x", rebuild=False)
    with pytest.raises(RegistryError, match=r"has no revision 'feedface'.*unshallow"):
        reproduce(version(**{"git.revision": "feedface", "model": "m"}), project, tmp_path / "x", rebuild=False)
    with pytest.raises(RegistryError, match="names no revision: it was promoted outside a git repository"):
        reproduce(version(**{"git.revision": "unknown", "model": "m"}), project, tmp_path / "x", rebuild=False)
    tree = git(project, "hash-object", "-w", "-t", "tree", "/dev/null")
    tags = {
        "git.revision": git(project, "commit-tree", tree, "-m", "before any results"),
        "dvc.lock": "x",
        "model": "m",
    }
    with pytest.raises(RegistryError, match=r"no commit holds the results that version .*; commit dvc\.lock"):
        reproduce(version(**tags), project, tmp_path / "new", rebuild=False)
    assert not (tmp_path / "new").exists()
    (tmp_path / "taken").mkdir()
    revision, lock = first_state(project)
    with pytest.raises(RegistryError, match="is no worktree, and version and data are of"):
        reproduce(
            version(**{"git.revision": revision, "dvc.lock": lock, "model": "m"}),
            project,
            tmp_path / "taken",
            rebuild=False,
        )


def test_why_git_makes_no_worktree_is_said(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    project = make_project(tmp_path / "project")
    revision, lock = first_state(project)
    tags = {"git.revision": revision, "dvc.lock": lock, "model": "m"}
    (project / ".git/worktrees").write_text("no folder")
    with pytest.raises(RegistryError, match=r"git could not make a worktree in .*: .*worktrees.*; mend that"):
        reproduce(version(**tags), project, tmp_path / "new", rebuild=False)


@pytest.mark.parametrize(
    ("dirty", "said"),
    [
        ("true", "was made with uncommitted changes, which"),
        ("unknown", "uncommitted changes is not known"),
        ("false", ""),
    ],
)
def test_what_is_known_of_uncommitted_changes_is_said_where_no_revision_holds_the_lock(
    project: Path, tmp_path: Path, dirty: str, said: str
) -> None:
    revision, lock = first_state(project)
    tags = {"git.revision": revision, "git.dirty": dirty, "model": model_of("onex", tmp_path)}
    lines = reproduce(version(**tags, **{"dvc.lock": "lost"}), project, tmp_path / "w", rebuild=False).lines()
    assert [line for line in lines if "uncommitted" in line] == [line for line in lines if said and said in line]
    assert ("uncommitted" in "".join(lines)) == bool(said)
    same = reproduce(version(**tags, **{"dvc.lock": lock}), project, tmp_path / "w", rebuild=False)
    assert "uncommitted" not in "".join(same.lines())


@pytest.mark.parametrize("text", ["", "stages: {}", "- not\n- a lock", "a: [", "stages: 3"])
def test_what_is_no_lock_has_no_hash(text: str) -> None:
    assert hash_lock(text) == ""


def test_the_hash_of_a_lock_leaves_the_promotion_itself_out() -> None:
    plain = "schema: '2.0'\nstages:\n  merge: {cmd: x}\n"
    assert hash_lock(plain) == hash_lock(plain + "  promote: {cmd: y}\n") != hash_lock(plain + "  other: {cmd: y}\n")


def test_a_worktree_of_a_try_before_the_right_commit_was_there_moves_on(project: Path, tmp_path: Path) -> None:
    first, second = git(project, "rev-parse", "HEAD~1"), git(project, "rev-parse", "HEAD")
    tags, folder = {"git.revision": first, "model": model_of("twoxx", tmp_path)}, tmp_path / "w"
    early = reproduce(version(**tags, **{"dvc.lock": "not fetched"}), project, folder, rebuild=False)
    assert (early.is_same, early.revision) == (False, first)
    assert any("perhaps it was not fetched: `git fetch --all`" in line for line in early.lines())
    lock = hash_lock(git(project, "show", f"{second}:dvc.lock"))
    later = reproduce(version(**tags, **{"dvc.lock": lock}), project, folder, rebuild=False)
    assert (later.is_same, later.is_lock_same, later.revision) == (True, True, second)
    (folder / "dvc.lock").write_text("changed", encoding="utf-8")
    with pytest.raises(RegistryError, match="is a worktree of revision"):
        reproduce(version(**tags, **{"dvc.lock": "not fetched"}), project, folder, rebuild=False)
