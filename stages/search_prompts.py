"""Search the query instruction of one split: models/experts/<split>-ft and data/tasks/dev ->
data/instructions/{searched,pool}/<split>.json.

data/answers/search_prompts/<split>.parquet holds the LLM's answers, from which another machine replays the stage.
"""

from pathlib import Path

from stm.stage import run_stage
from stm.encode import Encoder
from stm.files import write_json
from stm.llm.answers import Budget
from stm.llm.client import complete_all
from stm.llm.server import keep_serving
from stm.llm.store import tracked_answers
from stm.models import load_model
from stm.params.base import load_section
from stm.params.search_prompts import SearchPromptsParams
from stm.progress import say
from stm.prompts import read_prompts, render
from stm.search_prompts.ledger import Ledger
from stm.search_prompts.search import search_instruction
from stm.tasks import choose_tasks, read_tasks


def main(split: str) -> None:
    """Run the stage for one split."""
    params = load_section("search_prompts", SearchPromptsParams)
    expert = Path("models/experts") / f"{split}-ft"
    prompts = read_prompts(expert)
    dev = read_tasks("data/tasks/dev", "dev")
    tasks = choose_tasks(dev, params.tasks, params.max_queries, params.max_passages, params.seed)
    encoder = Encoder(load_model(expert), params.batch_tokens)
    answers = Path("data/answers/search_prompts") / f"{split}.parquet"
    with tracked_answers(answers) as store, keep_serving():
        budget = Budget.of(params)
        ledger = Ledger(lambda asked: complete_all(asked, params.endpoint, store, "write instructions", budget), budget)
        found = search_instruction(
            tasks, prompts.instruction, encoder, lambda text: render(prompts.template, text).query, ledger, params
        )
    write_json(Path("reports/search_prompts") / f"{split}.json", {"split": split, **found.report})
    for kind, instruction in (("searched", found.instruction), ("pool", prompts.instruction)):
        content = {"instruction": instruction, "pool": found.pool}
        write_json(Path("data/instructions") / kind / f"{split}.json", content)
    say(f"{split}: {found.report['reason']}; instruction: {found.instruction!r}")


if __name__ == "__main__":
    run_stage(main)
