"""Merge the selected experts into models/merged with coefficients found on the dev tasks; the trace goes to
reports.
"""

from pathlib import Path

from stm.stage import run_stage
from stm.files import write_json
from stm.folders import describe_folder
from stm.merge.run import merge_experts
from stm.params.base import MERGED, load_section
from stm.params.experts import BASELINE
from stm.params.merge import MergeParams
from stm.tasks import read_tasks

SELECTED = Path("models/selected")


def main() -> None:
    """Run the stage."""
    params = load_section("merge", MergeParams)
    folders = {
        path.name: path for path in sorted(SELECTED.glob("*")) if path.is_dir() and not path.name.startswith(".")
    }
    if params.with_baseline:
        folders[BASELINE] = Path("models/baselines") / BASELINE
    tasks = read_tasks("data/tasks/dev", "dev")
    trace = merge_experts(params, "models/warm_up", folders, tasks, MERGED, ".stm/merge")
    write_json("reports/merge.json", {**trace, "model": describe_folder(Path(MERGED))})


if __name__ == "__main__":
    run_stage(main)
