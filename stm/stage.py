"""The thin shell around every stage script: argument parsing, error messages, exit codes.

Turns an `STMError` into one clear message without a traceback and exit code 1, and an interrupt into exit code 130.
Knows nothing of what a stage does.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable

from stm.errors import STMError


def run_stage(body: Callable[..., None], *arguments: str) -> None:
    """Run a stage's `body` with the named positional command-line arguments and exit.

    The module docstring of the body's script is its `--help`.
    """
    script = sys.modules[body.__module__]
    parser = argparse.ArgumentParser(description=script.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in arguments:
        parser.add_argument(name)
    values = vars(parser.parse_args())
    sys.exit(guard(lambda: body(**values)))


def guard(action: Callable[[], None]) -> int:
    """Run `action`; return the exit code and print a user's error in plain words on stderr."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        action()
    except STMError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; run the same command again to go on\n")
        return 130
    return 0
