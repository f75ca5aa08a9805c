"""Write hard negatives with an LLM for one split: data/mined/<split>.parquet -> data/synthetic/<split>.parquet.

Beside the rows it writes reports/synthesize/<split>.json and data/answers/<split>.parquet, the answers used, from which
another machine replays the stage without any endpoint.
"""

from pathlib import Path

from stm.files import write_json
from stm.llm.store import AnswerStore
from stm.params.base import load_section
from stm.params.synthesize import SynthesizeParams
from stm.schema import read_rows, write_rows
from stm.stage import run_stage
from stm.synthesize.negatives import synthesize


def main(split: str) -> None:
    """Read the mined rows of `split`, synthesize, write rows, report and the answers used."""
    params = load_section("synthesize", SynthesizeParams)
    rows = read_rows(Path("data/mined") / f"{split}.parquet")
    answers = Path("data/answers") / f"{split}.parquet"
    with AnswerStore() as store:
        if answers.exists():
            store.import_parquet(answers)
        result = synthesize(rows, params, store, split)
        store.export_parquet(answers, store.used)
    write_rows(result.rows, Path("data/synthetic") / f"{split}.parquet")
    write_json(Path("reports/synthesize") / f"{split}.json", result.report)


if __name__ == "__main__":
    run_stage(main, "split")
