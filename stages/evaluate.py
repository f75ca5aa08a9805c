"""Score one model of the table `models` on the test tasks, through mteb.

usage: python -m stages.evaluate MODEL

Reads the model's folder and data/tasks/test; writes reports/evaluation/MODEL.json and mteb's own result files into
reports/evaluation/mteb/MODEL.
"""

from stm.stage import run_stage
from stm.evaluate.named import load_named_tasks
from stm.evaluate.record import write_results
from stm.evaluate.score import evaluate_folder
from stm.files import write_json
from stm.params.base import load_row, load_section
from stm.params.evaluate import EvaluateParams, ModelEntry
from stm.progress import say


def main(model: str) -> None:
    """Evaluate the model of that name."""
    params, entry = load_section("evaluate", EvaluateParams), load_row("models", model, ModelEntry)
    named = load_named_tasks(params)
    say(f"evaluate {model}" + (f", also on {len(named)} tasks of mteb" if named else ""))
    report, results = evaluate_folder(model, entry.path, entry, params, "data/tasks/test", named)
    write_results(results, f"reports/evaluation/mteb/{model}")
    write_json(f"reports/evaluation/{model}.json", report)


if __name__ == "__main__":
    run_stage(main)
