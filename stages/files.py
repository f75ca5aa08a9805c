"""Record what a file or folder of the table `files` holds, so that the stage which reads it reruns when it changes.

usage: python -m stages.files NAME
"""

from pathlib import Path

from stm.stage import run_stage
from stm.errors import DataError
from stm.files import sha256_tree, write_json
from stm.params.base import load_row
from stm.params.files import FileRow


def main(name: str) -> None:
    """Write data/files/<stage>/<name>.json."""
    row = load_row("files", name, FileRow)
    if not Path(row.path).exists():
        raise DataError(f"files.{name}.path: there is no {row.path}; correct the path or bring the file")
    record = {"path": row.path, "sha256": sha256_tree(row.path)}
    write_json(Path("data/files") / row.read_by / f"{name}.json", record)


if __name__ == "__main__":
    run_stage(main)
