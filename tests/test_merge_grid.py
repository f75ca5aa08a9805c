"""The benchmark's exhaustive grid: what is left unevaluated, and that the best is the true one."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.merge_grid import MARGIN, Grid, Truth, measure_grid, spread_nodes
from stm.encode import Encoder
from stm.merge.dev import make_dev_set
from stm.merge.experts import read_experts
from stm.merge.mixer import Mixer
from stm.merge.space import Interval, Space
from stm.models import load_model
from stm.prompts import own_prompts
from stm.tasks import Passage, Task
from tests.pico import pico_adapter, pico_backbone

NAMES = ("a", "b")


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    base = pico_backbone(tmp_path / "base")
    experts = read_experts(base, {n: pico_adapter(base, tmp_path / n, seed=s, scale=0.2) for s, n in enumerate(NAMES)})
    corpus = {f"p{i}": Passage("", f"passage {i} about {chr(97 + i) * 3}") for i in range(14)}
    queries = {f"q{i}": f"what is {chr(97 + i) * 3}" for i in range(8)}
    task = Task("toy", "general", corpus, queries, {q: {f"p{i}": 1} for i, q in enumerate(queries)})
    dev, model = make_dev_set([task], [], 0, 0, 0), load_model(base)
    space = Space("task_arithmetic", NAMES, Interval(0.0, 1.0, 0.2), None, 1.0, 1.0, 0, "l1")
    truth = Truth(Mixer(model, experts), Encoder(model), dev, own_prompts(model.prompts), tmp_path / "truth")
    return Grid(space, dev, truth)


def test_what_stays_unevaluated_is_predicted_out_of_reach_by_more_than_the_error(grid: Grid) -> None:
    found = measure_grid(grid, count=8, checks=6, limit=1000)
    left = [row for row in range(len(grid.points)) if row not in grid.true]
    assert found["points"] == 36
    assert found["left_unevaluated"] == 0
    assert found["true_evaluations"] == 36 - len(left) >= 14
    bar = found["best"] - MARGIN - found["check"]["largest_error"]
    assert all(grid.values[row] < bar for row in left)
    assert all(grid.values[row] == grid.true[row] == grid.truth.value(grid.dev, grid.recipes[row]) for row in grid.true)


def test_with_every_point_a_node_the_best_is_the_true_one(grid: Grid) -> None:
    found = measure_grid(grid, count=30, checks=6, limit=0)
    every = np.array([grid.truth.value(grid.dev, recipe) for recipe in grid.recipes])
    assert found["best"] == every.max()
    assert found["points_that_reach"] == int((every >= every.max() - MARGIN).sum())
    assert found["best_point"] == grid.points[int(np.argmax(every))] or (every == every.max()).sum() > 1


def test_nodes_are_distinct_and_spread(grid: Grid) -> None:
    nodes = spread_nodes(grid.places, [0], 9)
    assert nodes[0] == 0
    assert len(set(nodes)) == 9
    corners = {(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}
    assert corners <= {tuple(grid.places.factors[row]) for row in nodes}
