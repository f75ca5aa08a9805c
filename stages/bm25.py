"""Score BM25 on the test tasks, through mteb: the baseline that needs no model.

Reads data/tasks/test; writes reports/evaluation/bm25.json and mteb's result files into reports/evaluation/mteb/bm25.
"""

import time

from stm.stage import run_stage
from stm.evaluate.lexical import REVISION, LexicalModel
from stm.evaluate.named import load_named_tasks
from stm.evaluate.record import Evaluation, describe, read_local_tasks, run_hub, run_local, write_results
from stm.files import sha256_text, write_json
from stm.params.base import load_section
from stm.params.evaluate import EvaluateParams
from stm.params.rows import LEXICAL
from stm.progress import say


def main() -> None:
    """Run the stage."""
    params = load_section("evaluate", EvaluateParams)
    started = time.monotonic()
    tasks, named, model = read_local_tasks("data/tasks/test"), load_named_tasks(params), LexicalModel(LEXICAL)
    say("evaluate BM25" + (f", also on {len(named)} tasks of mteb" if named else ""))
    evaluation = Evaluation()
    run_local(evaluation, model, tasks)
    run_hub(evaluation, model, named)
    write_results(evaluation.results, f"reports/evaluation/mteb/{LEXICAL}")
    about = describe(LEXICAL, "BM25", "lexical", "", sha256_text(REVISION))
    seconds = round(time.monotonic() - started, 1)
    write_json(f"reports/evaluation/{LEXICAL}.json", {**about, **evaluation.as_json(), "seconds": seconds})


if __name__ == "__main__":
    run_stage(main)
