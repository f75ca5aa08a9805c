"""Validate the whole of params.yaml before any work starts; every first stage depends on this one."""

from stm.files import write_text
from stm.params.all import load_params
from stm.params.hub import check_hub
from stm.stage import run_stage


def main() -> None:
    """Run the stage; its output never changes, so that a changed value reruns only what reads it."""
    check_hub(load_params())
    write_text("data/params.ok", "params.yaml is valid\n")


if __name__ == "__main__":
    run_stage(main)
