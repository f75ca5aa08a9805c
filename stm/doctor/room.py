"""The checks of `stm doctor` on free disk and main memory, which grow with the backbone that the params name.

Each gives findings and never raises; nothing is changed.
"""

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stm.doctor.findings import Finding

GIGABYTE = 10**9
NEEDED_DISK, NEEDED_MEMORY = 5 * GIGABYTE, 4 * GIGABYTE  # of the embedded default, its backbone included
FULL_MODELS = ("models/backbone", "models/warm_up", "models/merged")
COPIES = 9  # see `check_disk`
LOADED = 4  # bytes of a parameter in float32


def check_room(root: Path, params: Mapping[str, Any]) -> Iterator[Finding]:
    """Free disk, then main memory and cores."""
    try:
        from stm.doctor.backbone import measure_backbone  # here, for it needs libraries
    except ImportError:
        measured: tuple[int, int | None] = (0, 0)
    else:
        measured = measure_backbone(root, params)
    yield check_disk(root, *measured)
    yield check_memory(measured[1])


def check_disk(root: Path, saved: int, count: int | None) -> Finding:
    """Free disk space for a backbone of `count` parameters (None: unknown) that is saved in `saved` bytes for each.

    Beside what the embedded default needs, nine times the backbone's size: three full models in models/, the same three
    in DVC's cache (a disk that shares the bytes of copies has them once), the merged one in the registry and, while
    MLflow saves it, in the folder for temporary files, and as much again for adapters and checkpoints. What models/ has
    of it by now is not needed again. Less than the three full models is certainly too little.
    """
    free, size = shutil.disk_usage(root).free, saved * (count or 0)
    others = NEEDED_DISK - (sum(_size(root / name) for name in FULL_MODELS) if size else 0)
    needed, found = others + COPIES * size, f"{free / GIGABYTE:.1f} GB free"
    if free < needed:
        step = f"free {math.ceil((needed - free) / GIGABYTE)} GB more; a run takes up to {needed / GIGABYTE:.0f} GB"
        return Finding("disk", "missing" if free < others + len(FULL_MODELS) * size else "note", found, step)
    if count is None:
        step = (
            "the backbone is not here, so its size is not known: each billion of its parameters takes up to "
            f"{COPIES * saved} GB of disk beside {NEEDED_DISK // GIGABYTE} GB, and {LOADED} GB of memory beside "
            f"{NEEDED_MEMORY // GIGABYTE} GB"
        )
        return Finding("disk", "note", found, step)
    return Finding("disk", "ok", found)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_memory(count: int | None) -> Finding:
    """Main memory and cores; every stage loads the backbone in float32, on its way to a GPU as well."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed, found = NEEDED_MEMORY + LOADED * (count or 0), f"{memory / GIGABYTE:.0f} GB memory, {os.cpu_count()} cores"
    if memory < needed:
        step = f"{needed / GIGABYTE:.0f} GB are needed with this backbone; use fewer layers, or close programs"
        return Finding("memory", "note", found, step)
    return Finding("memory", "ok", found)
