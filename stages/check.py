"""Validate all of params.yaml before any work starts: values, names, pinned commits, files that must exist.

Every first stage depends on this one.
"""

from stm.stage import run_stage
from stm.files import write_text
from stm.params.all import load_params
from stm.params.complete import check_complete, find_leftovers, find_unread
from stm.progress import say


def main() -> None:
    """Run the stage; its output never changes, so that a changed value reruns only what reads it."""
    params = load_params()
    check_complete(params)
    for path in find_leftovers(params):
        say(
            f"check: {path} is of a row that params.yaml no longer has, and counts in the hash of its folder: "
            "delete it, or a fresh clone will make anew what is made from that folder"
        )
    for sentence in find_unread(params):
        say(f"check: {sentence}")
    write_text("data/params.ok", "params.yaml is valid\n")


if __name__ == "__main__":
    run_stage(main)
