"""All checks of `stm doctor`, in the order in which they are shown."""

from pathlib import Path

from stm.doctor.findings import Finding
from stm.doctor.machine import (
    check_accelerator,
    check_compiler,
    check_data,
    check_disk,
    check_memory,
    check_packages,
    check_params,
    check_path,
    check_python,
    check_writable,
)
from stm.doctor.project import check_dvc, check_git
from stm.doctor.services import check_endpoints, check_registry


def examine(root: Path) -> list[Finding]:
    """Run all checks on the project in `root`."""
    params, readable = check_params(root)
    findings = [check_python(), check_path(), readable, *check_packages(), *check_data(params), check_writable(root)]
    findings += [check_disk(root), check_memory(), check_accelerator(), *check_compiler(params)]
    findings += [*check_git(root), *check_dvc(root)]
    return [*findings, *check_endpoints(params), *([check_registry(root, params)] if params else [])]
