"""Seed to seed: what the page shows of methods that were trained with several seeds.

Takes the analysis; the models of one group are the seeds of one method. Says how far the mean over seeds can be
trusted, which the intervals over queries do not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stm.metrics import NDCG
from stm.report.compare import Analysis, clip
from stm.report.metrics import DECIMALS
from stm.significance import seed_difference, seed_interval


def groups(analysis: Analysis) -> dict[str, list[int]]:
    """Return the columns of each group of at least two models, the subject's group first."""
    found: dict[str, list[int]] = {}
    for column, model in enumerate(analysis.table.models):
        if model.group:
            found.setdefault(model.group, []).append(column)
    several = {group: columns for group, columns in found.items() if len(columns) > 1}
    return dict(sorted(several.items(), key=lambda item: (item[0] != analysis.subject.group, item[0])))


def _averages(analysis: Analysis, columns: Sequence[int], scope: str) -> list[float]:
    """A group's average nDCG@10 over the tasks of a scope, per seed."""
    means_TM = analysis.table.task_means(NDCG)[analysis.table.scopes[scope]]
    return [float(value) for value in means_TM[:, list(columns)].mean(axis=0)]


def seed_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """Return a row per group: seeds, and per average the mean, the standard deviation and the interval over seeds."""
    rows = []
    for group, columns in groups(analysis).items():
        cells = {}
        for scope in analysis.table.scopes:
            values = _averages(analysis, columns, scope)
            deviation = float(np.std(values, ddof=1))
            cells[scope] = {"interval": clip([seed_interval(values, analysis.level)])[0], "deviation": deviation}
        names = [analysis.table.models[column].name for column in columns]
        rows.append({"group": group, "seeds": names, "cells": cells})
    return rows


def seed_differences(analysis: Analysis) -> list[dict[str, Any]]:
    """Return the subject's group minus every other group; none where the subject has a single seed."""
    found = groups(analysis)
    own = found.pop(analysis.subject.group, None)
    if own is None:
        return []
    values = {group: _averages(analysis, columns, "all") for group, columns in found.items()}
    first = _averages(analysis, own, "all")
    return [{"group": name, "interval": seed_difference(first, row, analysis.level)} for name, row in values.items()]


def seed_metrics(analysis: Analysis) -> Mapping[str, Any]:
    """Return the rows as plain data for statistics.json."""
    return {
        row["group"]: {
            "seeds": len(row["seeds"]),
            **{scope: {key: round(value, DECIMALS) for key, value in vars(cell["interval"]).items()}
               for scope, cell in row["cells"].items()},
        }
        for row in seed_rows(analysis)
    }  # fmt: skip
