"""Compare all evaluated models and write the report.

Reads the reports of all stages and data/tasks/test; writes metrics.json, statistics.json, plots, model_card.md
and index.html to reports/.
"""

from pathlib import Path

import psutil

from stm.stage import run_stage
from stm.files import atomic_directory, write_json, write_text
from stm.params.base import load_section
from stm.params.report import ReportParams
from stm.params.rows import known_reports
from stm.progress import say
from stm.report.build import build_report
from stm.report.collect import collect
from stm.tasks import read_tasks

REPORTS, TASKS = Path("reports"), Path("data/tasks/test")


def run_start() -> float | None:
    """When the `dvc` process began that runs this stage, in seconds since the epoch; None outside of DVC.

    None as well for an experiment in a copy of the project, where every file is as new as the copy.
    """
    if ".dvc" in Path.cwd().parts:
        return None
    for process in psutil.Process().parents():
        try:
            if any(Path(word).name == "dvc" for word in process.cmdline()[:4]):
                return float(process.create_time())
        except psutil.Error:
            continue
    return None


def main() -> None:
    """Run the stage."""
    params = load_section("report", ReportParams)
    tasks = {task.name: task for task in read_tasks(TASKS, "test")} if TASKS.exists() else {}
    built = build_report(collect(REPORTS, run_start(), known_reports()), tasks, params)
    with atomic_directory(REPORTS / "plots") as scratch:
        for name, text in built.plots.items():
            write_text(scratch / name, text)
    write_json(REPORTS / "metrics.json", built.metrics)
    write_json(REPORTS / "statistics.json", built.statistics)
    write_text(REPORTS / "model_card.md", built.card)
    write_text(REPORTS / "index.html", built.page)
    for line in [*built.summary, f"report: {REPORTS / 'index.html'}"]:
        say(line)


if __name__ == "__main__":
    run_stage(main)
