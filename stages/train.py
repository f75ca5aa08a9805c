"""Train one expert of the table `experts` from models/warm_up.

usage: python -m stages.train EXPERT
"""

from pathlib import Path

from stm.stage import run_stage
from stm.files import write_json
from stm.params.base import load_row, load_section
from stm.params.experts import ExpertRow
from stm.params.train import TrainParams
from stm.train.expert import Share, train_expert
from stm.train.processes import join_processes, launch


def main(expert: str) -> None:
    """Run the stage for one expert, in one process per GPU."""
    if launch("stages.train", expert):
        return
    row, params = load_row("experts", expert, ExpertRow), load_section("train", TrainParams)
    rows = Path(f"data/{row.negatives}/{row.split}.parquet")
    if row.instruction != "seed":  # the rows' own instructions would hide the pool's or the searched one
        sources = {"pool": "pool", "searched": "instruction"}
        params = params.model_copy(update={"instruction_from": sources[row.instruction]})
    share = Share(rows, Path(f"data/instructions/{row.instruction}/{row.split}.json"))
    report = train_expert("models/warm_up", [share], params, f"models/experts/{expert}", f".stm/train/{expert}", expert)
    if join_processes().is_main:
        write_json(f"reports/train/{expert}.json", {**report, **row.model_dump()})


if __name__ == "__main__":
    run_stage(main)
