"""Validate the whole of params.yaml, that its files are there and its hub ids pinned, before any work starts.

Every first stage depends on this one.
"""

from stm.files import write_text
from stm.params.all import load_params
from stm.params.files import require_files
from stm.params.hub import check_hub
from stm.stage import run_stage


def main() -> None:
    """Run the stage; its output never changes, so that a changed value reruns only what reads it."""
    params = load_params()
    require_files(params.files)
    check_hub(params)
    write_text("data/params.ok", "params.yaml is valid\n")


if __name__ == "__main__":
    run_stage(main)
