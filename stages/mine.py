"""Mine hard negatives for one split: data/pairs/<split>.parquet -> data/mined/<split>.parquet and a report."""

from pathlib import Path

from stm.files import write_json
from stm.mine import mine
from stm.params.base import load_section
from stm.params.mine import MineParams
from stm.schema import read_rows, write_rows
from stm.stage import run_stage


def main(split: str) -> None:
    """Read the pairs of `split`, mine, write rows and report."""
    params = load_section("mine", MineParams)
    rows, report = mine(read_rows(Path("data/pairs") / f"{split}.parquet"), params)
    write_rows(rows, Path("data/mined") / f"{split}.parquet")
    write_json(Path("reports/mine") / f"{split}.json", report)


if __name__ == "__main__":
    run_stage(main, "split")
