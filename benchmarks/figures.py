"""What benchmarks share: the option for their output, processes for their runs, medians with their spread, and the file
of results with machine and library versions.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from stm.files import write_json

Result = TypeVar("Result")


def make_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the option `--output`, the file of that name among the results if it is not given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=f"benchmarks/results/{name}.json")
    return parser


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory in gigabytes (of 2^30 bytes), system, Python, and the GPU where one computes."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    torch = sys.modules.get("torch")  # imported already by whatever computes with it
    has_memory = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if has_memory else 0.0
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(size, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **({"gpu": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_available() else {}),
    }


def peak_megabytes() -> float:
    """The peak memory of this process in megabytes of 2^20 bytes.

    Linux's VmHWM: the ru_maxrss of a fresh process starts at the peak of the one that forked it.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest and the values themselves."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": list(values)}


def spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The spread of each figure over runs."""
    return {key: spread([run[key] for run in runs]) for key in runs[0]}


def run_worker(module: str, *arguments: str) -> dict[str, Any]:
    """Run a module in a process of its own; the JSON that it prints last, nothing where it prints nothing."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    return dict(json.loads(lines[-1])) if lines else {}


def print_result(result: Any) -> None:
    """Print a result as JSON on one line, which `run_worker` reads."""
    sys.stdout.write(json.dumps(result) + "\n")


def run_sides(module: str, sides: Sequence[str], runs: int, *arguments: str) -> dict[str, Any]:
    """The spreads of each side's figures over `runs` worker processes, the sides in turn."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(runs):
        for side, figures in found.items():
            figures.append(run_worker(module, "--worker", side, *arguments))
    return {side: spreads(figures) for side, figures in found.items()}


def measure_run(run: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """What a run returns; its seconds by the clock and of all threads, the peak memory of the process, and the peak
    before the run, which is that of the imports.
    """
    at_start = peak_megabytes()
    started, used = time.perf_counter(), time.process_time()
    result = run()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
    return result, {
        "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_megabytes(), "imports_mb": at_start,
    }  # fmt: skip


def write_figures(path: Path | str, packages: Sequence[str], settings: Any, **results: Any) -> None:
    """Write the results as JSON with machine, versions and the settings of the run."""
    versions = {name: version(name) for name in packages}
    write_json(path, {"machine": describe_machine(), "versions": versions, "settings": settings, **results})
