"""Only what changed rebuilds: the real graph of dvc.yaml, each command replaced by one that hashes its inputs."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from stm.params.files import Reader
from tests.closure import ROOT, is_code, stage_body

# Writes each out as a digest of the deps that it may see; `prepare` writes one fixed file per split and task instead,
# as the real stage does when a split or a task is added, and `backbone` one that no package of this test changes.
STUB = """
import hashlib, json, pathlib, sys
plan = json.loads(pathlib.Path("plans.json").read_text())[sys.argv[1]]
digest = hashlib.sha256()
for dep in plan["deps"]:
    path = pathlib.Path(dep)
    for file in sorted(p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file()):
        digest.update(file.read_bytes())
digest.update(plan["params"].encode())
for out in plan["outs"]:
    path = pathlib.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    if plan["name"] == "check":
        path.write_text("ok")
    elif out in plan["folders"]:
        path.mkdir(exist_ok=True)
        for name in plan["folders"][out]:
            (path / name).write_text(name)
    elif plan["name"] in ("prepare", "backbone"):
        path.write_text("fixed")
    else:
        path.write_text(out + digest.hexdigest())
with open("ran.txt", "a") as stream:
    stream.write(plan["name"] + "\\n")
"""

SPLITS = ("one", "two")


def table(splits: tuple[str, ...]) -> dict[str, Any]:
    """Small tables over the shipped sections."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["splits"], params["prepare"]["splits"] = list(splits), dict.fromkeys(splits, "any")
    params["experts"] = {f"{s}-ft": {"split": s, "negatives": "mined", "instruction": "seed"} for s in splits}
    params["synthesize_splits"], params["search_prompts_splits"] = list(splits), list(splits)
    params["experts"]["one-po"] = {"split": "one", "negatives": "mined", "instruction": "searched"}
    params["experts"]["two-pool"] = {"split": "two", "negatives": "mined", "instruction": "pool"}
    params["files"] = {"notes": {"path": "own/notes.jsonl", "read_by": "prepare"}}
    params["models"] = {"base": {"path": "models/backbone"}, "merged": {"path": "models/merged"}}
    return params


def resolve(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace("${" + key + "}", value)
    return text


def items(stage: dict[str, Any], params: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    """The suffix and the template values of every instance of a stage."""
    if "foreach" not in stage:
        return [("", {})]
    rows = params[stage["foreach"].strip("${}")]
    if isinstance(rows, list):
        return [(f"--{row}", {"item": row}) for row in rows]
    return [(f"--{key}", {"key": key, **{f"item.{k}": str(v) for k, v in row.items()}}) for key, row in rows.items()]


def write_project(folder: Path, params: dict[str, Any]) -> None:
    """Write params and a flat dvc.yaml whose commands are stubs with the real deps, params and outs."""
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    flat: dict[str, Any] = {}
    plans = {}
    files = [f"{s}.parquet" for s in params["splits"]], [f"{s}.json" for s in params["splits"]]
    folders = {
        "data/pairs": files[0],
        "data/instructions/seed": files[1],
        "data/tasks/dev": ["t"],
        "data/tasks/test": ["t"],
    }
    for name, stage in graph.items():
        body = stage_body(stage)
        for suffix, values in items(stage, params):
            deps = [resolve(dep, values) for dep in body["deps"] if not is_code(dep)]
            outs = [resolve(next(iter(o)) if isinstance(o, dict) else o, values) for o in body["outs"]]
            outs += [next(iter(o)) for key in ("metrics", "plots") for o in body.get(key, [])]
            sections = [resolve(param, values) for param in body.get("params", [])]
            seen = yaml.safe_dump([params.get(section) for section in sections])
            plan = {"name": name + suffix, "deps": deps, "outs": outs, "params": seen, "folders": folders}
            plans[name + suffix] = plan if name != "check" else {**plan, "deps": []}
            command = shlex.join([sys.executable, "stub.py", name + suffix])
            flat[name + suffix] = {"cmd": command, "deps": deps, "outs": outs}
            if sections:
                flat[name + suffix]["params"] = sections
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": flat}, sort_keys=False, width=10**6))
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    (folder / "plans.json").write_text(json.dumps(plans))
    for reader in get_args(Reader):
        (folder / "data/files" / reader).mkdir(parents=True, exist_ok=True)
        (folder / "data/files" / reader / ".gitkeep").touch()
    (folder / "own").mkdir(exist_ok=True)
    if not (folder / "own/notes.jsonl").exists():
        (folder / "own/notes.jsonl").write_text("one row")
    (folder / "requirements.lock").write_text("wn==1\n")
    (folder / "stub.py").write_text(STUB)


def repro(folder: Path) -> list[str]:
    """Run `dvc repro` and return the names of the stages that ran, in order."""
    (folder / "ran.txt").write_text("")
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "ran.txt").read_text().split()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=folder, check=True)
    write_project(folder, table(SPLITS))
    ran = repro(folder)
    assert ran[0] == "check"
    assert set(ran) >= {"prepare", "mine--one", "train--one-po", "merge", "evaluate--merged", "promote"}
    assert ran.index("search_prompts--two") < ran.index("train--two-pool")
    return folder


def test_nothing_runs_twice(project: Path) -> None:
    assert repro(project) == []


def test_a_changed_file_of_ones_own_reruns_its_stage_and_nothing_where_the_rows_stay(project: Path) -> None:
    (project / "own/notes.jsonl").write_text("another row")
    assert sorted(repro(project)) == ["files--notes", "prepare"]


def test_another_package_reruns_what_reads_installed_data_and_nothing_where_these_stay(project: Path) -> None:
    (project / "requirements.lock").write_text("wn==2\n")
    assert sorted(repro(project)) == ["backbone", "prepare"]
    (project / "requirements.lock").write_text("wn==1\n")
    repro(project)


def test_a_merge_param_reruns_merge_and_what_follows(project: Path) -> None:
    params = table(SPLITS)
    params["merge"]["lambda"] = 0.5
    write_project(project, params)
    assert sorted(repro(project)) == ["check", "evaluate--merged", "merge", "promote", "report"]


def test_a_further_split_trains_that_expert_and_merges_again(project: Path) -> None:
    write_project(project, table((*SPLITS, "three")))
    ran = set(repro(project))
    assert ran >= {
        "check",
        "prepare",
        "mine--three",
        "train--three-ft",
        "train_all",
        "select",
        "merge",
        "evaluate--merged",
    }
    assert not ran & {
        "backbone",
        "warm_up",
        "mine--one",
        "train--one-ft",
        "train--two-ft",
        "search_prompts--one",
        "evaluate--base",
    }


def test_an_outside_model_is_evaluated_alone(project: Path) -> None:
    params = table((*SPLITS, "three"))
    params["outside"] = {"far": {"id": "own/pico", "revision": "0" * 40}}
    write_project(project, params)
    assert sorted(repro(project)) == ["check", "outside--far", "promote", "report"]
