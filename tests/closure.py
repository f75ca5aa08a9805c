"""Which project files a stage's script imports, directly or not, read from the source; and dvc.yaml's lists brought in
line with that.

`python -m tests.closure` rewrites the code deps in dvc.yaml, keeping comments and data deps.
"""

import ast
import shlex
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("stm", "stages")


def module_files(module: str) -> list[Path]:
    """The file of a project module, the `__init__` files above it, and the data files of its package.

    [] for foreign modules.
    """
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return []
    base = ROOT.joinpath(*parts)
    own = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    if not own.exists():
        return []
    above = [ROOT.joinpath(*parts[:depth]) / "__init__.py" for depth in range(1, len(parts))]
    data = (
        [p for p in own.parent.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")]
        if own.parent != ROOT / "stm"
        else []
    )
    return [own, *above, *data]


def imported_modules(path: Path) -> list[str]:
    """Every module that a file imports anywhere, also within functions.

    Names imported from a package count as modules too.
    """
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def closure(script: Path) -> list[str]:
    """The sorted project files that `script` runs on, itself included, relative to the root."""
    seen: set[Path] = set()
    waiting = [script, *module_files("stages")]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if path.suffix == ".py":
            for module in imported_modules(path):
                waiting += module_files(module)
    return sorted(path.relative_to(ROOT).as_posix() for path in seen)


def stage_body(stage: dict[str, Any]) -> dict[str, Any]:
    """The definition itself, of a plain or a foreach stage."""
    return stage.get("do", stage)


def stage_script(stage: dict[str, Any]) -> Path:
    """The script that the stage's command runs."""
    words = shlex.split(stage_body(stage)["cmd"])
    return ROOT / (words[words.index("-m") + 1].replace(".", "/") + ".py")


def is_code(dep: str) -> bool:
    """Whether a dep is a file of the project's own source."""
    return dep.startswith(tuple(f"{package}/" for package in PACKAGES))


def main() -> None:
    """Rewrite dvc.yaml."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 160, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = ROOT / "dvc.yaml"
    document = yaml.load(path)
    for stage in document["stages"].values():
        body = stage_body(stage)
        body["deps"] = [dep for dep in body.get("deps", []) if not is_code(dep)] + closure(stage_script(stage))
    yaml.dump(document, path)


if __name__ == "__main__":
    main()
