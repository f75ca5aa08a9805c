"""Mine hard negatives for one split: data/pairs/<split>.parquet -> data/mined/<split>.parquet and a report.

Where an LLM judges, data/answers/mine/<split>.parquet holds its answers, from which another machine replays the stage.
"""

from pathlib import Path

from stm.stage import run_stage
from stm.files import write_json
from stm.llm.server import keep_serving
from stm.llm.store import tracked_answers
from stm.mine.judges import LIMIT_REACHED, describe_cost, make_judges
from stm.mine.rows import mine
from stm.params.base import load_section
from stm.params.mine import MineParams
from stm.progress import say
from stm.schema import read_rows, write_rows


def main(split: str) -> None:
    """Read the pairs of `split`, mine, write rows, report and the judge's answers."""
    params = load_section("mine", MineParams)
    rows = read_rows(Path("data/pairs") / f"{split}.parquet")
    with tracked_answers(Path("data/answers/mine") / f"{split}.parquet") as store, keep_serving():
        if params.judge.llm:
            say(f"mine {split}: {describe_cost(rows, params.negatives, params.judge)}")
        mined, report = mine(rows, params, make_judges(params.judge, store))
    if report["judges"].get("llm", {}).get("unasked"):
        say(f"mine {split}: {LIMIT_REACHED}")
    write_rows(mined, Path("data/mined") / f"{split}.parquet")
    write_json(Path("reports/mine") / f"{split}.json", report)


if __name__ == "__main__":
    run_stage(main)
