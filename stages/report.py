"""Compare all evaluated models and write the report.

Reads the reports of all stages and data/tasks/test; writes reports/metrics.json, reports/plots and
reports/index.html.
"""

from pathlib import Path

from stm.files import atomic_directory, write_json, write_text
from stm.params.base import load_section
from stm.params.report import ReportParams
from stm.progress import say
from stm.report.build import build_report
from stm.report.collect import collect
from stm.stage import run_stage
from stm.tasks import read_tasks

REPORTS, TASKS = Path("reports"), Path("data/tasks/test")


def main() -> None:
    """Run the stage."""
    params = load_section("report", ReportParams)
    tasks = {task.name: task for task in read_tasks(TASKS, "test")} if TASKS.exists() else {}
    built = build_report(collect(REPORTS), tasks, params)
    with atomic_directory(REPORTS / "plots") as scratch:
        for name, text in built.plots.items():
            write_text(scratch / name, text)
    write_json(REPORTS / "metrics.json", built.metrics)
    write_text(REPORTS / "model_card.md", built.card)
    write_text(REPORTS / "index.html", built.page)
    for line in [*built.summary, f"report: {REPORTS / 'index.html'}"]:
        say(line)


if __name__ == "__main__":
    run_stage(main)
