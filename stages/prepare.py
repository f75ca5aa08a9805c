"""Make the training pairs, the warm-up mix and the evaluation tasks from the sources that params.yaml names.

Reads the section `prepare`; writes data/pairs, data/warm_up.parquet, data/instructions/seed, data/tasks and
reports/prepare.json.
"""

from pathlib import Path

from stm.stage import run_stage
from stm.files import atomic_directory, write_json
from stm.params.base import load_section
from stm.params.prepare import PrepareParams
from stm.prepare.build import prepare
from stm.schema import write_rows
from stm.tasks import write_task

DATA, REPORT = Path("data"), Path("reports/prepare.json")


def main() -> None:
    """Build everything, then write everything."""
    prepared = prepare(load_section("prepare", PrepareParams))
    with atomic_directory(DATA / "pairs") as folder:
        for split, rows in prepared.pairs.items():
            write_rows(rows, folder / f"{split}.parquet")
    write_rows(prepared.warm_up, DATA / "warm_up.parquet")
    with atomic_directory(DATA / "instructions" / "seed") as folder:
        for split, instruction in prepared.instructions.items():
            write_json(folder / f"{split}.json", {"instruction": instruction, "pool": []})
    for part, tasks in prepared.tasks.items():
        with atomic_directory(DATA / "tasks" / part) as folder:
            for task in tasks:
                write_task(task, folder / task.name, part)
    write_json(REPORT, prepared.report)


if __name__ == "__main__":
    run_stage(main)
