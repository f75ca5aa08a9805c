"""Write hard negatives with an LLM for one split: data/mined/<split>.parquet -> data/synthetic/<split>.parquet.

Negatives that `prepare` took from a release (data/pairs/<split>.parquet) are used as they are.
Beside the rows it writes reports/synthesize/<split>.json and data/answers/<split>.parquet, the answers used, from which
another machine replays the stage without any endpoint.
"""

from pathlib import Path

from stm.stage import run_stage
from stm.files import write_json
from stm.llm.server import keep_serving
from stm.llm.store import tracked_answers
from stm.params.base import load_section
from stm.params.synthesize import SynthesizeParams
from stm.schema import read_rows, write_rows
from stm.synthesize.negatives import released_negatives, synthesize
from stm.tasks import read_tasks


def main(split: str) -> None:
    """Read the mined rows of `split`, synthesize, write rows, report and the answers used."""
    params = load_section("synthesize", SynthesizeParams)
    rows, pairs = (read_rows(Path("data") / kind / f"{split}.parquet") for kind in ("mined", "pairs"))
    parts = ("dev", "test") if params.queries.rows else ()
    tasks = [task for part in parts for task in read_tasks(f"data/tasks/{part}", part)]
    with tracked_answers(Path("data/answers") / f"{split}.parquet") as store, keep_serving():
        result = synthesize(rows, params, store, split, released_negatives(pairs), tasks)
    write_rows(result.rows, Path("data/synthetic") / f"{split}.parquet")
    write_json(Path("reports/synthesize") / f"{split}.json", result.report)


if __name__ == "__main__":
    run_stage(main)
