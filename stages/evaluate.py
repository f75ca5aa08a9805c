"""Score one model of the table `models` on the test tasks, through mteb.

usage: python -m stages.evaluate MODEL

Reads the model's folder and data/tasks/test; writes reports/evaluation/MODEL.json and mteb's own result files into
reports/evaluation/mteb/MODEL.
"""

import time

from stm.evaluate.dense import open_model
from stm.evaluate.named import load_named_tasks
from stm.evaluate.record import Evaluation, describe, hash_model, read_local_tasks, run_hub, run_local, write_results
from stm.evaluate.robustness import score_kinds
from stm.files import write_json
from stm.params.base import load_section
from stm.params.evaluate import EvaluateParams, load_model_entry
from stm.progress import say
from stm.stage import run_stage


def main(model: str) -> None:
    """Evaluate the model of that name."""
    params, entry = load_section("evaluate", EvaluateParams), load_model_entry(model)
    started = time.monotonic()
    tasks, named = read_local_tasks("data/tasks/test"), load_named_tasks(params)
    model_hash = hash_model(entry.path)
    say(f"evaluate {model} on {len(tasks)} tasks" + (f" and {len(named)} of mteb" if named else ""))
    opened = open_model(model, entry.path, model_hash, params.batch_tokens, params.store_megabytes)
    evaluation = Evaluation()
    run_local(evaluation, opened, tasks)
    run_hub(evaluation, opened, named)
    slices = score_kinds(opened, [task for task, _ in tasks], params.slice_queries, params.slice_seed)
    write_results(evaluation.results, f"reports/evaluation/mteb/{model}")
    about = describe(model, entry.label, entry.role, entry.path, model_hash)
    seconds = round(time.monotonic() - started, 1)
    scores = {**evaluation.as_json(), "robustness": slices}
    write_json(f"reports/evaluation/{model}.json", {**about, **scores, "seconds": seconds})


if __name__ == "__main__":
    run_stage(main, "model")
