"""The thin shell around every stage script: argument parsing, error messages, exit codes.

Turns an `STMError`, a full disk or a lack of permission into one clear message without a traceback and exit code 1, and
an interrupt into exit code 130. Knows nothing of what a stage does. A stage script imports it before anything heavy,
for the setting of the garbage collector and for interrupts while the rest is imported.
"""

import argparse
import atexit
import errno
import functools
import gc
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec

from stm.errors import STMError, brief

# torch, transformers and mteb make millions of objects that live to the end. With Python's default threshold the
# collector walks them hundreds of times while they are imported, and again at exit: together 6 of 17 s per stage.
gc.set_threshold(50_000)
atexit.register(gc.freeze)

Arguments = ParamSpec("Arguments")
INTERRUPTED = "interrupted; run the same command again to go on\n"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large", "disk is full")
FREE_SPACE = (
    "nothing half-written counts as a result. Free space (`dvc gc --workspace` drops what no current file refers to) "
    "and run the same command again"
)
MOUNT = "mount it writable, or work on a copy of the project elsewhere, and run the same command again"
ASK_ACCESS = "give yourself access to it, or run the same command as the user who owns it"


def _stop_at_once(_number: int, _frame: FrameType | None) -> None:
    os.write(2, INTERRUPTED.encode())
    os._exit(130)


def _is_stage() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("stages.")


# An interrupt while a stage script still imports would print the frames of all the imports under way. One that is
# ignored, as in the background of a shell, stays so.
if _is_stage() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop_at_once)


def run_stage(body: Callable[..., None]) -> None:
    """Run a stage's `body` with the command-line arguments that it takes and exit.

    The module docstring of the body's script is its `--help`.
    """
    script = sys.modules[body.__module__]
    parser = argparse.ArgumentParser(description=script.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in inspect.signature(body).parameters:
        parser.add_argument(name)
    values = vars(parser.parse_args())
    sys.exit(guard(lambda: body(**values)))


def guard(action: Callable[[], None]) -> int:
    """Run `action`; return the exit code and print a user's error in plain words on stderr."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        if signal.getsignal(signal.SIGINT) is _stop_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        action()
    except STMError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED)
        return 130
    except PermissionError as error:
        what = error.filename or brief(error)
        sys.stderr.write(f"error: no permission for {what}; {ASK_ACCESS}\n")
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            sys.stderr.write(f"error: {error.filename or 'the folder'} lies on a read-only file system; {MOUNT}\n")
        elif is_disk_full(error):
            sys.stderr.write(f"error: the disk or the quota is full ({brief(error)}); {FREE_SPACE}\n")
        else:
            raise
        return 1
    return 0


def guarded(body: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Make `body` a command that exits with the code of `guard` unless that is 0."""

    @functools.wraps(body)
    def command(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if code := guard(lambda: body(*args, **kwargs)):
            sys.exit(code)

    return command


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that nothing more can be written.

    Libraries in Rust and C have errors of their own for it, which carry the system's words.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        if any(words in str(error) for words in DISK_FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
