"""Train one expert of the table `experts` from models/warm_up.

usage: python -m stages.train EXPERT
"""

from pathlib import Path

from stm.files import write_json
from stm.params.base import load_section
from stm.params.experts import load_expert
from stm.params.train import TrainParams
from stm.stage import run_stage
from stm.train.expert import Share, train_expert


def main(expert: str) -> None:
    """Run the stage for one expert."""
    row, params = load_expert(expert), load_section("train", TrainParams)
    rows = Path(f"data/{row.negatives}/{row.split}.parquet")
    share = Share(rows, Path(f"data/instructions/{row.instruction}/{row.split}.json"))
    report = train_expert("models/warm_up", [share], params, f"models/experts/{expert}", f".stm/train/{expert}", expert)
    write_json(f"reports/train/{expert}.json", {**report, **row.model_dump()})


if __name__ == "__main__":
    run_stage(main, "expert")
