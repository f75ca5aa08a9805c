"""What no part of the source may do: unpickle, run foreign code, listen beyond loopback, take a path for a name."""

import ast
import copy
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from stm.errors import ParamsError
from stm.params.all import Params, load_params
from stm.params.base import parse_section
from tests.closure import ROOT, imported_modules

SOURCES = sorted([*ROOT.glob("stm/**/*.py"), *ROOT.glob("stages/*.py")])
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
EXECUTING = {"eval", "exec", "compile", "__import__"}
SAFE_YAML = {"SafeLoader", "CSafeLoader", "_Loader"}  # the last is a SafeLoader that refuses doubled keys
EVERYWHERE = {"0.0.0.0", "::", "[::]"}
NO_NAMES = ("../../x", "..", ".hidden", "a/b", "/etc/x", "a\\b", "~x", "a\0b", "a\nb", "", "🫀", "$(x)", "${x}")


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def name_of(call: ast.Call) -> str:
    """The dotted name that is called, `torch.load`."""
    return ast.unparse(call.func)


def refused(call: ast.Call) -> str:
    """Why a call could run code that came as data; empty where it cannot."""
    name, given = name_of(call), {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in EXECUTING:
        return "runs text as code"
    if given.get("trust_remote_code", "False") != "False":
        return "trusts remote code"
    if given.get("shell", "False") != "False" or name in ("os.system", "os.popen"):
        return "passes text to a shell"
    if given.get("allow_pickle", "False") != "False":
        return "allows pickles"
    if name == "torch.load" and given.get("weights_only") != "True":
        return "unpickles"
    if name in ("yaml.unsafe_load", "yaml.full_load", "torch.save"):
        return "writes or reads objects"
    if name == "yaml.load":
        loaders = [ast.unparse(item) for item in (*call.args[1:], *(k.value for k in call.keywords))]
        return "" if loaders and loaders[0].rpartition(".")[2] in SAFE_YAML else "loads objects"
    return ""


def test_the_scan_finds_what_it_looks_for() -> None:
    bad = ("eval(x)", "f(trust_remote_code=True)", "run(c, shell=True)", "torch.load(p)", "yaml.load(t, yaml.Loader)",
           "np.load(p, allow_pickle=flag)", "os.system(c)", "torch.save(m, p)")  # fmt: skip
    good = ("yaml.load(t, _Loader)", "torch.load(p, weights_only=True)", "f(trust_remote_code=False)", "model.eval()")
    calls = {text: ast.parse(text, mode="eval").body for text in (*bad, *good)}
    assert [text for text, call in calls.items() if refused(call)] == list(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_unpickles_or_runs_data(path: Path) -> None:
    assert not {module.split(".")[0] for module in imported_modules(path)} & PICKLING
    found = [(node.lineno, reason) for node in nodes(path) if isinstance(node, ast.Call) and (reason := refused(node))]
    assert found == []


def test_nothing_listens_beyond_loopback() -> None:
    for path in SOURCES:
        texts = [node.value for node in nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        assert not EVERYWHERE & set(texts), path
    pages = [*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob(".github/workflows/*"), ROOT / "Makefile"]
    for path in pages:
        hosts = re.findall(r"--host[= ](\S+)", path.read_text(encoding="utf-8"))
        assert set(hosts) <= {"127.0.0.1"}, path


def with_name(table: str, name: str) -> dict[str, Any]:
    """The shipped params with one more entry of that name."""
    params: dict[str, Any] = copy.deepcopy(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")))
    if table == "splits":
        params["splits"].append(name)
        params["prepare"]["splits"][name] = params["prepare"]["splits"]["nlu"]
        params["experts"]["extra-ft"] = {"split": name, "negatives": "mined", "instruction": "seed"}
    elif table in ("dev", "test"):
        tasks = params["prepare"]["tasks"][table]
        tasks[name] = next(iter(tasks.values()))
    elif table == "outside":
        params["outside"][name] = {"id": "owner/name", "revision": "0" * 40}
    else:
        params[table][name] = next(iter(params[table].values()))
    return params


TABLES = ("splits", "experts", "models", "outside", "dev", "test")


@pytest.mark.parametrize("table", TABLES)
def test_names_that_become_paths_hold_no_path(table: str) -> None:
    base = load_params(ROOT / "params.yaml")
    assert base.splits
    for name in NO_NAMES:
        with pytest.raises(ParamsError, match=re.escape(table)):
            parse_section(with_name(table, name), Params, "")


@pytest.mark.parametrize("table", TABLES[1:])
def test_an_ordinary_name_is_taken(table: str) -> None:
    assert parse_section(with_name(table, "fine-2.x" if table in ("dev", "test") else "fine-ft2"), Params, "")


def test_the_lock_names_every_dependency_at_an_exact_version() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = {}
    for line in lines:
        if not line.startswith("#"):
            found = re.fullmatch(r"([a-z0-9][a-z0-9.-]*)==([0-9][0-9a-z.+!]*)(  # files only)?", line)
            assert found, line
            assert found[1] not in pinned, line
            pinned[found[1]] = found[2]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name.lower().replace("_", "-")]), text
