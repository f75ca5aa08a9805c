"""Where the project is: what its runs share (the registry, paid-for answers) belongs there.

DVC runs an experiment with `--temp` or `--queue` in a copy of the project below its own folder, and deletes the copy
afterwards.
"""

from pathlib import Path

EXPERIMENTS = "/.dvc/tmp/exps/"


def project_root(root: Path = Path()) -> Path:
    """The project that `root` is DVC's copy of for an experiment, or `root` itself if it is none."""
    project, marker, _ = f"{root.resolve()}/".partition(EXPERIMENTS)
    return Path(project) if marker else root
