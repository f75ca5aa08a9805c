"""Several processes that train one adapter together: who is who, sums over all, and the launch of one per GPU.

Processes are joined through accelerate, so `accelerate launch` and `torchrun` work as well. Does not know what is
trained.
"""

import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from stm.errors import ModelError, ParamsError
from stm.progress import say

COUNT_VARIABLE = "STM_PROCESSES"
LAUNCHER_VARIABLE = "STM_LAUNCHER"


@dataclass(frozen=True)
class Processes:
    """This process's place among `count`; the one of rank 0 alone writes and reports."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> Tensor:
        """Replace the tensor in every process by the sum of all processes' tensors, and return it."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def add_up_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give every process the sum of all processes' gradients, in one message; a missing gradient counts as 0."""
        if self.count == 1:
            return
        owners = list(parameters)
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in owners]
        total = self.add_up(torch.cat(parts))
        for owner, part in zip(owners, torch.split(total, [p.numel() for p in owners]), strict=True):
            owner.grad = part.view_as(owner).clone()

    def agree(self, what: str, value: object) -> None:
        """Wait for all processes; `ModelError` in each of them unless they have the same value, which is plain data."""
        if self.count == 1:
            return
        values: list[object] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        if any(other != values[0] for other in values):
            found = ", ".join(f"{rank}: {other}" for rank, other in enumerate(values))
            raise ModelError(f"{what} differs between the processes ({found}); they must share one project folder")

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()


def join_processes() -> Processes:
    """Join the processes that a launcher started beside this one; alone without a launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.process_index, state.num_processes)


def wanted_processes() -> int:
    """How many processes train: the environment variable STM_PROCESSES, else one per visible GPU, one on a CPU."""
    text = os.environ.get(COUNT_VARIABLE, "").strip()
    if not text:
        return max(1, torch.cuda.device_count())
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ParamsError(f"{COUNT_VARIABLE} is {text!r}; it must be a whole number from 1 to 1024, or unset")
    return int(text)


def end_with_launcher() -> None:
    """Have this process end soon after the one that launched it, which may have been killed; if `launch` did that."""
    launcher = os.environ.get(LAUNCHER_VARIABLE, "")

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(0.5)
        os._exit(1)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


def launch(script: str, *arguments: str) -> bool:
    """Run `python -m script` once per wanted process and wait for all; False, and nothing done, where one is enough.

    Inside a launched process it is False as well, so that a script may begin with it. `ModelError` if a process fails.
    """
    if "WORLD_SIZE" in os.environ:
        end_with_launcher()
        return False
    count = wanted_processes()
    if count == 1:
        return False
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    say(f"{script}: {count} processes")
    from accelerate.utils import check_cuda_p2p_ib_support

    if torch.cuda.is_available() and not check_cuda_p2p_ib_support():  # as `accelerate launch` does for such GPUs
        for variable in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE"):
            os.environ.setdefault(variable, "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, max_restarts=0, run_id=script, rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
    )  # fmt: skip
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    try:
        elastic_launch(config, sys.executable)("-m", script, *arguments)
    except ChildFailedError as error:
        raise ModelError(f"{script} failed in one of {count} processes, for the reason above") from error
    except SignalException as error:
        raise KeyboardInterrupt from error
    finally:
        del os.environ[LAUNCHER_VARIABLE]
    return True
