"""Train the backbone shortly on all splits and fold the result into models/warm_up, the base of every expert."""

from stm.stage import run_stage
from stm.files import write_json
from stm.params.base import load_section
from stm.params.train import TrainParams
from stm.train.processes import join_processes, launch
from stm.warm_up import warm_up


def main() -> None:
    """Run the stage, in one process per GPU."""
    if launch("stages.warm_up"):
        return
    params = load_section("warm_up", TrainParams)
    report = warm_up("models/backbone", "data/warm_up.parquet", params, "models/warm_up", ".stm/warm_up")
    if join_processes().is_main:
        write_json("reports/warm_up.json", report)


if __name__ == "__main__":
    run_stage(main)
