"""What every benchmark writes beside its results: the machine, library versions, medians with their spread."""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stm.files import write_json


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


def write_figures(path: Path | str, packages: Sequence[str], settings: Any, **results: Any) -> None:
    """Write the results as JSON with machine, versions and the settings of the run."""
    versions = {name: version(name) for name in packages}
    write_json(path, {"machine": describe_machine(), "versions": versions, "settings": settings, **results})
