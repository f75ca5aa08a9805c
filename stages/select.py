"""Score every expert on the dev tasks and copy the best variant of each split to models/selected; give the baseline the
best of their prompts, and write it to models/baselines.
"""

from stm.stage import run_stage
from stm.files import write_json
from stm.merge.dev import make_dev_set
from stm.params.base import load_section
from stm.params.experts import BASELINE, load_experts
from stm.params.select import SelectParams
from stm.select import prompt_baseline, select_experts
from stm.tasks import read_tasks


def main() -> None:
    """Run the stage."""
    params, experts = load_section("select", SelectParams), load_experts()
    tasks = read_tasks("data/tasks/dev", "dev")
    dev = make_dev_set(tasks, params.tasks, params.max_queries, params.max_passages, params.seed)
    report = select_experts(experts, "models/experts", dev, "models/selected")
    baseline = prompt_baseline(BASELINE, list(report["selected"].values()), "models/experts", dev, "models/baselines")
    write_json("reports/select.json", {**report, "baseline": baseline})


if __name__ == "__main__":
    run_stage(main)
