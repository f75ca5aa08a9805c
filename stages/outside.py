"""Score one model of the hub, a row of the table `outside`, on the test tasks.

usage: python -m stages.outside MODEL

Takes the model from the hub's local cache or fetches it there; reads data/tasks/test; writes the same files as
`stages.evaluate`. Where the hub is out of reach and the cache lacks the model, the report says so, in place of scores.
"""

from typing import TYPE_CHECKING, Any

from stm.stage import run_stage
from stm.evaluate.named import load_named_tasks
from stm.evaluate.record import write_results
from stm.evaluate.score import about_model, evaluate_folder
from stm.files import write_json
from stm.hub_models import UnreachableError, find_model
from stm.models import RETRIEVER
from stm.params.base import load_row, load_section
from stm.params.evaluate import EvaluateParams, OutsideEntry
from stm.progress import say

if TYPE_CHECKING:
    from mteb.results import TaskResult


def main(model: str) -> None:
    """Evaluate the model of that name."""
    params, entry = load_section("evaluate", EvaluateParams), load_row("outside", model, OutsideEntry)
    try:
        folder = find_model(entry.id, entry.revision, *RETRIEVER)
    except UnreachableError as error:
        reason = f"{error}; `dvc repro -f -s outside@{model}` tries again"
        say(f"outside {model}: not run; {reason}")
        report: dict[str, Any] = {**about_model(model, entry, ""), "tasks": {}, "not_run": reason}
        results: dict[str, TaskResult] = {}
    else:
        say(f"outside {model}: {entry.id} at {entry.revision[:12]}")
        report, results = evaluate_folder(model, folder, entry, params, "data/tasks/test", load_named_tasks(params))
    write_results(results, f"reports/evaluation/mteb/{model}", str(report.get("not_run", "")))
    write_json(f"reports/evaluation/{model}.json", report)


if __name__ == "__main__":
    run_stage(main)
