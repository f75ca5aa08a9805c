"""Train the baseline that merging must beat: one adapter on the rows of all splits together, each row as often as the
expert of its split has it, in as many steps as the experts' in sum. The stage `select` gives it its prompts.
"""

from pathlib import Path

from stm.stage import run_stage
from stm.files import write_json
from stm.params.base import load_section
from stm.params.experts import BASELINE, load_splits
from stm.params.train import TrainParams
from stm.train.expert import Share, train_expert
from stm.train.processes import join_processes, launch


def main() -> None:
    """Run the stage, in one process per GPU."""
    if launch("stages.train_all"):
        return
    splits, params = load_splits(), load_section("train", TrainParams)
    shares = [Share(Path(f"data/mined/{s}.parquet"), Path(f"data/instructions/seed/{s}.json")) for s in splits]
    base, out = "models/warm_up", f"models/experts/{BASELINE}"
    report = train_expert(base, shares, params, out, ".stm/train_all", BASELINE)
    if join_processes().is_main:
        write_json("reports/train_all.json", report)


if __name__ == "__main__":
    run_stage(main)
