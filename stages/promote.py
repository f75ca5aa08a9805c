"""Publish the run to MLflow, register the merged model and let the gates decide whether it becomes the champion.

A model that is held back is a result and no failure: the stage ends well, and reports/promotion.json says why.
"""

from pathlib import Path

from stm.stage import run_stage
from stm.files import write_json
from stm.params.base import load_section
from stm.params.promote import PromoteParams
from stm.progress import say
from stm.promote.actor import current_actor
from stm.promote.promotion import promote

REPORT = Path("reports/promotion.json")


def main() -> None:
    """Run the stage in the project's root."""
    outcome = promote(load_section("promote", PromoteParams), current_actor())
    write_json(REPORT, outcome.as_json())
    say(f"promote: {outcome.line()}")


if __name__ == "__main__":
    run_stage(main)
