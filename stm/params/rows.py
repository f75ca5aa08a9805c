"""The names of the rows that stages run for, by kind of report: DVC leaves the reports of removed rows behind.

Reads the tables as they are; `check` has judged them.
"""

from pathlib import Path

from stm.params.base import PARAMS_FILE, read_params

# folder of reports -> the tables whose rows have a report there
TABLES = {
    "evaluation": ("models", "outside"), "train": ("experts",), "mine": ("splits",),
    "synthesize": ("synthesize_splits",), "search_prompts": ("search_prompts_splits",),
}  # fmt: skip
LEXICAL = "bm25"  # an evaluation that has no row


def known_reports(path: Path | str = PARAMS_FILE) -> dict[str, frozenset[str]]:
    """Return the names by folder under reports/; a folder is left out where params have none of its tables."""
    params = read_params(path)
    known = {
        kind: frozenset(name for table in tables for name in params.get(table) or ())
        for kind, tables in TABLES.items()
        if any(table in params for table in tables)
    }
    if "evaluation" in known:
        known["evaluation"] |= {LEXICAL}
    return known
