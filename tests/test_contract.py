"""dvc.yaml says what the code does: deps are the import closure, params the sections read, imports point one way."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from stm.evaluate.store import ENCODING
from stm.merge.plan import SCORING
from stm.params.all import load_params
from stm.params.names import KEYED
from stm.params.rows import TABLES
from stm.train.adapter import TRAINING
from tests.closure import ROOT, closure, imported_modules, is_code, stage_body, stage_script

STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Results that are taken over from an earlier run: the modules whose source is part of their key, the one that computes
# them, and what it imports without any effect on a number (or reads what is part of the key by itself, as rows).
HANDLES = {"deltas", "errors", "files", "folders", "model_hash", "progress", "prompts", "text_encoder"}
COMPUTED = {
    "trainings": (TRAINING, "train/loop", HANDLES | {"schema", "params/base", "params/train"}),
    "embeddings": (ENCODING, "encode", HANDLES),
    "scores of a merge": (
        SCORING, "merge/evaluator",
        HANDLES | {"halves", "stage", "tasks", "merge/experts", "merge/memory", "merge/shards", "merge/trials"},
    ),
}  # fmt: skip
# How a stage's code names the params that it reads: by the loader's first argument, or by the loader itself.
TABLE_LOADERS = {"load_splits": "splits", "load_experts": "experts"}


def sections_read(path: Path) -> set[str]:
    """The top-level params that a script loads by name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "load_section" and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
            elif node.func.id in TABLE_LOADERS:
                found.add(TABLE_LOADERS[node.func.id])
            elif node.func.id == "known_reports":
                found |= {table for tables in TABLES.values() for table in tables}
    return found


@pytest.mark.parametrize("name", STAGES)
def test_code_deps_are_exactly_the_import_closure(name: str) -> None:
    declared = [dep for dep in stage_body(STAGES[name]).get("deps", []) if is_code(dep)]
    assert declared == closure(stage_script(STAGES[name])), "run `python -m tests.closure` to rewrite dvc.yaml"


@pytest.mark.parametrize("name", STAGES)
def test_params_are_exactly_the_sections_read(name: str) -> None:
    # A row of a table (models.${key}) is read through its own loader, by the name on the command line.
    declared = {param for param in stage_body(STAGES[name]).get("params", []) if "." not in param}
    evaluated = set(TABLES["evaluation"]) if name == "promote" else set()  # read_candidate takes their names
    assert declared == sections_read(stage_script(STAGES[name])) | evaluated


def test_names_with_a_dot_are_refused_in_each_table_whose_rows_are_params() -> None:
    rows = [param for stage in STAGES.values() for param in stage_body(stage).get("params", []) if "." in param]
    assert sorted(rows) == sorted(f"{table}.${{key}}" for table in KEYED)


@pytest.mark.parametrize("name", STAGES)
def test_one_name_for_stage_script_and_module(name: str) -> None:
    script = stage_script(STAGES[name])
    assert script.stem == name
    has_module = (ROOT / "stm" / f"{name}.py").exists() or (ROOT / "stm" / name).is_dir()
    assert has_module or name in ("check", "train_all", "outside")  # made of other stages' modules
    assert len(script.read_text().splitlines()) <= 60


def test_every_file_of_the_source_is_reached_by_a_stage_or_the_command_line() -> None:
    reached = {path for stage in STAGES.values() for path in closure(stage_script(stage))}
    reached |= set(closure(ROOT / "stm/cli.py"))
    everything = {p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("stm/**/*.py"), *ROOT.glob("stages/*.py")]}
    assert everything - reached == set()


def test_imports_point_one_way() -> None:
    """The core never imports stages, params never the core, only promotion and the command line know MLflow."""
    for path in sorted((ROOT / "stm").rglob("*.py")):
        modules, name = imported_modules(path), path.relative_to(ROOT).as_posix()
        assert not [m for m in modules if m.split(".")[0] == "stages"], name
        if name.startswith("stm/params/"):
            assert not [
                m for m in modules if m.startswith("stm.") and not m.startswith(("stm.params", "stm.errors"))
            ], name
        if "mlflow" in {m.split(".")[0] for m in modules}:
            assert name.startswith(("stm/promote/", "stm/cli.py", "stm/doctor/", "stm/search.py")), name


def test_no_stage_reads_another_stages_params() -> None:
    families = ({"warm_up", "train", "train_all"}, {"bm25", "evaluate", "outside"})
    for name, stage in STAGES.items():
        for dep in closure(stage_script(stage)):
            if dep.startswith("stm/params/") and Path(dep).stem in STAGES and name != "check":
                owner = Path(dep).stem
                assert owner == name or any({owner, name} <= family for family in families), (
                    f"{name} imports the params of {owner}"
                )


def test_the_shipped_params_are_valid_and_commented() -> None:
    params = load_params(ROOT / "params.yaml")
    assert set(params.splits) == set(params.prepare.splits)
    lines = (ROOT / "params.yaml").read_text().splitlines()
    bare = [line for line in lines if line.strip() and "#" not in line and not line.rstrip().endswith(":")]
    assert bare == [], "every value in params.yaml carries a comment with its unit"


def test_a_key_that_is_left_out_means_what_the_shipped_params_say() -> None:
    """Only where one model serves several sections, which differ, can that not be."""
    params = load_params(ROOT / "params.yaml")
    told = set(_other_than_default(params, yaml.safe_load((ROOT / "params.yaml").read_text()), ""))
    assert told == {"prepare.instructions", "warm_up.must_learn", "search_prompts.endpoint.max_tokens"}


def _other_than_default(model: BaseModel, written: dict[str, Any], where: str) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        key, value = field.alias or name, getattr(model, name)
        if isinstance(value, BaseModel) and isinstance(written.get(key), dict):
            yield from _other_than_default(value, written[key], f"{where}{key}.")
        elif not field.is_required() and key in written and value != field.get_default(call_default_factory=True):
            yield where + key


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_result_is_taken_over_only_from_the_same_code(kind: str) -> None:
    modules, entry, others = COMPUTED[kind]
    imported = {path.removeprefix("stm/").removesuffix(".py") for path in closure(ROOT / f"stm/{entry}.py")}
    shaping = {name for name in imported - others if not name.endswith("__init__")}
    assert shaping <= set(modules), "add these to the key, or to the handles above if they shape no number"
    assert all((ROOT / f"stm/{name}.py").exists() for name in modules)


def test_init_files_hold_a_docstring_only() -> None:
    for path in [*ROOT.glob("stm/**/__init__.py"), *ROOT.glob("stages/__init__.py")]:
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


def test_sizes_stay_readable() -> None:
    """Files of at most 300 lines and functions of at most 60."""
    for path in [*ROOT.glob("stm/**/*.py"), *ROOT.glob("stages/*.py")]:
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
