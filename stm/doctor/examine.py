"""All checks of `stm doctor`, in the order in which they are shown."""

from pathlib import Path

from stm.doctor import machine, project, room, services
from stm.doctor.findings import Finding


def examine(root: Path) -> list[Finding]:
    """Run all checks on the project in `root`."""
    params, readable = machine.check_params(root)
    findings = [machine.check_python(), machine.check_path(), readable, *machine.check_packages()]
    findings += [*machine.check_data(params), machine.check_writable(root), *room.check_room(root, params)]
    findings += [machine.check_accelerator(), *machine.check_compiler(params)]
    findings += [*project.check_git(root), *project.check_dvc(root), *services.check_endpoints(params)]
    return [*findings, *([services.check_registry(root, params)] if params else [])]
