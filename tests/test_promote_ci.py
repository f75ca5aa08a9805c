"""The workflow for users: well-formed, safe, and its shell parts do what they say in a small repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOW = Path(__file__).parents[1] / ".github" / "workflows" / "retriever.yml"
DOCS = WORKFLOW.parents[2] / "docs"


def steps() -> list[dict[str, Any]]:
    job = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["build"]
    return list(job["steps"])


def script(name: str) -> str:
    return next(str(step["run"]) for step in steps() if step.get("name") == name)


def shell(root: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a step's script as GitHub does: bash, stop at the first error."""
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", text]
    path = f"{root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, **environment}
    return subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clone with a small pipeline, its metrics committed on origin/main, and a stand-in for gh."""
    whole = tmp_path_factory.mktemp("template")
    root, bare = whole / "clone", whole / "bare"
    (root / "bin").mkdir(parents=True)
    for folder in ("reports", "data/files/prepare"):
        (root / folder).mkdir(parents=True)
    stand_in = root / "bin" / "gh"
    stand_in.write_text('#!/bin/sh\necho "$@" > gh.log\n', encoding="utf-8")
    stand_in.chmod(0o755)
    (root / "seed.txt").write_text("0.5", encoding="utf-8")
    (root / ".gitignore").write_text("/bin\n/gh.log\n/comment.md\n/runs.log\n", encoding="utf-8")
    own = "data/files/prepare/own.json"
    stages: dict[str, Any] = {
        "report": {
            "cmd": f"printf '{{\"ndcg_at_10\": %s}}' $(cat seed.txt) | tee {own} data/all.txt > reports/metrics.json",
            "deps": ["seed.txt"], "metrics": [{"reports/metrics.json": {"cache": False}}],
            "outs": ["data/all.txt", {own: {"cache": False}}],
        },
        "promote": {
            "cmd": f"git log -1 --format=%s origin/main -- {own} > reports/promotion.json && echo run >> runs.log",
            "deps": ["reports/metrics.json"],
            "outs": [{"reports/promotion.json": {"cache": False}}],
        },
    }  # fmt: skip
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    setup = f"""
        git init -q -b main . && git init -q --bare -b main {bare} && git remote add origin ../bare
        git config user.name A && git config user.email a@example.org
        dvc init -q && dvc config core.analytics false && dvc repro -q report
        git add -A && git commit -qm start && git push -qu origin main
    """
    done = shell(root, setup)
    assert done.returncode == 0, done.stderr
    return whole


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "copy")) / "clone"


def test_every_script_is_valid_shell_and_takes_no_untrusted_text() -> None:
    scripts = [str(step["run"]) for step in steps() if "run" in step]
    assert len(scripts) >= 5
    for text in scripts:
        assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0
        assert "${{" not in text  # values come through the environment, where they cannot become commands


def test_actions_are_official_and_pinned_to_a_release() -> None:
    used = [str(step["uses"]) for step in steps() if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)


def test_secrets_are_never_on_a_command_line_and_the_workflow_is_off_by_default() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert workflow["jobs"]["build"]["if"] == "vars.RETRIEVER_CI == 'on'"
    assert workflow["concurrency"]["cancel-in-progress"] is False
    assert not any("secrets." in str(step.get("run", "")) for step in steps())


def test_the_comment_shows_the_difference_to_the_base_branch(repository: Path) -> None:
    (repository / "seed.txt").write_text("0.625", encoding="utf-8")
    assert shell(repository, script("build")).returncode == 0
    done = shell(repository, script("metrics as a comment"), BASE="origin/main", NUMBER="7")
    assert done.returncode == 0, done.stderr
    comment = (repository / "comment.md").read_text(encoding="utf-8")
    assert "against `origin/main`" in comment
    assert re.search(r"ndcg_at_10 +\| 0\.5 +\| 0\.625 +\| 0\.125", comment)
    assert (repository / "gh.log").read_text(encoding="utf-8").startswith("pr comment 7 --body-file comment.md")


def test_results_are_committed_before_the_promotion_and_pushed(repository: Path) -> None:
    (repository / "seed.txt").write_text("0.7", encoding="utf-8")
    assert shell(repository, script("build")).returncode == 0
    assert shell(repository, "git add seed.txt && git commit -qm change").returncode == 0
    done = shell(repository, script("commit results and promote"))
    assert done.returncode == 0, done.stderr
    log = shell(repository, "git log origin/main --format=%s").stdout.splitlines()
    assert log == ["Promotion [skip ci]", "Results of the pipeline [skip ci]", "change", "start"]
    seen = (repository / "reports" / "promotion.json").read_text(encoding="utf-8").strip()
    assert seen == "Results of the pipeline [skip ci]"  # the revision that the promotion recorded
    assert shell(repository, "git status --porcelain").stdout == ""
    assert shell(repository, script("commit results and promote")).returncode == 0  # nothing new is no failure
    assert shell(repository, "git log origin/main --format=%s").stdout.splitlines() == log


def test_a_lock_that_says_promoted_on_another_machine_is_promoted_all_the_same(repository: Path) -> None:
    developer = "dvc repro -q && git add -A && git commit -qm 'by hand' && git push -q && rm runs.log"
    assert shell(repository, developer).returncode == 0
    done = shell(repository, script("commit results and promote"))
    assert done.returncode == 0, done.stderr
    assert (repository / "runs.log").read_text(encoding="utf-8") == "run\n"


def test_nothing_is_promoted_if_the_results_cannot_be_pushed(repository: Path) -> None:
    other = f"git clone -q {repository.parent / 'bare'} ../other && cd ../other && git config user.name B"
    other += " && git config user.email b@example.org && git commit -q --allow-empty -m faster && git push -q"
    (repository / "seed.txt").write_text("0.7", encoding="utf-8")
    assert shell(repository, f"dvc repro -q report && ({other})").returncode == 0
    done = shell(repository, script("commit results and promote"))
    assert done.returncode != 0
    assert "rejected" in done.stderr
    assert not (repository / "runs.log").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_data_is_pulled_or_where_the_remote_is_out_of_reach_built(repository: Path, is_there: bool) -> None:
    (repository.parent / "remote").mkdir()
    (variables := repository.parent / "variables").touch()
    shell(repository, "dvc remote add -d team ../remote && dvc push -q && rm -r .dvc/cache data/all.txt")
    if not is_there:
        shell(repository, "dvc remote modify team url s3://bucket/team")
    # Secrets that are not set are empty on GitHub.
    none = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "") | {"HOME": str(repository.parent)}
    none["AWS_EC2_METADATA_DISABLED"] = "true"
    done = shell(repository, script("pull"), GITHUB_ENV=str(variables), **none)
    assert done.returncode == 0, done.stderr
    assert ("the remote gave nothing" in done.stdout) != is_there
    assert (repository / "data" / "all.txt").exists() == is_there
    assert variables.read_text(encoding="utf-8") == ("PULL=--pull\n" if is_there else "")
    done = shell(repository, f"set -a; . {variables}; {script('build')}", **none)
    assert done.returncode == 0, done.stderr
    assert ("Running stage" in done.stdout) != is_there


def test_the_documented_check_fails_for_a_model_that_was_held_back(tmp_path: Path) -> None:
    text = (DOCS / "ci-for-users.md").read_text(encoding="utf-8")
    (check,) = re.findall(r"```bash\n(python .*?)\n```", text)
    (tmp_path / "reports").mkdir()
    for decision, code in (("held", 1), ("promoted", 0), ("unchanged", 0)):
        (tmp_path / "reports" / "promotion.json").write_text(f'{{"decision": "{decision}"}}', encoding="utf-8")
        assert shell(tmp_path, check).returncode == code


def test_the_crontab_line_builds_commits_promotes_and_leaves_a_clean_folder(repository: Path) -> None:
    text = (DOCS / "ci-for-users.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"```cron\n17 3 \* \* 1  (.*)\n```", text)
    (body,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    home = repository.parent
    (home / "retriever.sh").write_text(body, encoding="utf-8")
    (home / "remote").mkdir()
    root = repository.rename(home / "retriever")
    change = "echo 0.7 > seed.txt && dvc remote add -q -d team ../remote && git commit -qam change && git push -q"
    assert shell(root, f"{change} && git reset -q --hard HEAD~1").returncode == 0
    done = shell(root, line, HOME=str(home))
    assert done.returncode == 0, (home / "retriever.log").read_text(encoding="utf-8")
    subjects = shell(root, "git log origin/main --format=%s").stdout.splitlines()
    assert subjects == ["Promotion", "Results of the pipeline", "change", "start"]
    assert (root / "runs.log").read_text(encoding="utf-8") == "run\n"
    assert shell(root, "git status --porcelain").stdout == ""
