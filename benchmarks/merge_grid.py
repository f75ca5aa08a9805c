"""The exhaustive grid of merge weights: true evaluations, interpolated embeddings, and the error of these measured.

Used by `benchmarks.merge_search`, whose docstring says how. True embeddings are files, so that an interrupted run goes
on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stm.encode import Encoder
from stm.merge.dev import DevSet, embed, score_embeddings
from stm.merge.fidelity import rank_correlation
from stm.merge.interpolation import REACH, Places, cardinal_weights, kernel, places_of
from stm.merge.mixer import Mixer
from stm.merge.recipe import Recipe
from stm.merge.space import Space
from stm.merge.surrogate import Surrogate
from stm.progress import Meter
from stm.text_encoder import Floats

MARGIN = 0.001  # nDCG@10 below the best of the grid that counts as reached


class Truth:
    """True embeddings of mixes, computed once and kept as files."""

    def __init__(self, mixer: Mixer, encoder: Encoder, dev: DevSet, prompts: dict[str, str], folder: Path) -> None:
        self._mixer, self._encoder, self._dev, self._prompts, self._folder = mixer, encoder, dev, prompts, folder
        folder.mkdir(parents=True, exist_ok=True)

    def embeddings(self, recipe: Recipe) -> tuple[Floats, Floats]:
        """Queries and passages of the model of `recipe`."""
        path = self._folder / f"{recipe.key()[:24]}.npz"
        if not path.exists():
            self._mixer.mix(recipe)
            queries, passages = embed(self._dev, self._encoder, self._prompts)
            scratch = path.with_suffix(".part.npz")
            np.savez(scratch, queries=queries, passages=passages)
            scratch.rename(path)
        with np.load(path) as found:
            return found["queries"], found["passages"]

    def value(self, dev: DevSet, recipe: Recipe) -> float:
        """Mean nDCG@10 of the search half of `dev`, which has the texts of this truth."""
        return score_embeddings(dev, *self.embeddings(recipe)).mean("search")


def spread_nodes(places: Places, first: Sequence[int], count: int) -> list[int]:
    """Greedy points of largest kernel variance given those before (pivoted Cholesky), beginning with `first`."""
    rows = np.zeros((count, len(places.factors)))
    variance, chosen = np.ones(len(places.factors)), []
    scale = np.sqrt(np.exp((places.factors**2).sum(axis=1) / REACH))  # correlations, not covariances
    for index in range(count):
        pivot = first[index] if index < len(first) else int(np.argmax(variance))
        one = Places(places.factors[[pivot]], places.densities[[pivot]])
        row = kernel(one, places)[0] / scale / scale[pivot]
        row -= rows[:index].T @ rows[:index, pivot]
        rows[index] = row / np.sqrt(max(variance[pivot], 1e-12))
        variance = np.maximum(variance - rows[index] ** 2, 0.0)
        variance[pivot] = 0.0
        chosen.append(pivot)
    return chosen


class Grid:
    """All points of the grid with their scores on one objective: true where evaluated, interpolated elsewhere."""

    def __init__(self, space: Space, dev: DevSet, truth: Truth) -> None:
        self.space, self.dev, self.truth = space, dev, truth
        self.points = [dict.fromkeys(space.intervals(), 0.0), *space.grid()]
        self.recipes = [space.recipe(point) for point in self.points]
        self.row_of = {recipe.key(): row for row, recipe in enumerate(self.recipes)}
        self.places = places_of(self.recipes, space.experts)
        self.true: dict[int, float] = {}
        self.values = np.zeros(len(self.points))

    def evaluate(self, rows: Sequence[int], note: str) -> None:
        """Evaluate points truly."""
        with Meter(note, len(rows)) as meter:
            for row in rows:
                if row not in self.true:
                    self.true[row] = self.truth.value(self.dev, self.recipes[row])
                    self.values[row] = self.true[row]
                meter.advance()

    def interpolate(self, nodes: Sequence[int]) -> None:
        """Predict every point from the nodes' embeddings."""
        embeddings = [self.truth.embeddings(self.recipes[row]) for row in nodes]
        anchors = Places(self.places.factors[list(nodes)], self.places.densities[list(nodes)])
        self.values = Surrogate(self.dev, embeddings).score(cardinal_weights(self.places, anchors))

    def check(self, rows: Sequence[int]) -> dict[str, float]:
        """Evaluate points truly and compare with what was predicted of them."""
        predicted = self.values[list(rows)].copy()
        self.evaluate(rows, "check the interpolation")
        error = np.abs(self.values[list(rows)] - predicted)
        return {
            "points": len(rows), "mean_error": float(error.mean()), "largest_error": float(error.max()),
            "share_exact": float((error < 1e-6).mean()),
            "spearman": rank_correlation(predicted, self.values[list(rows)]),
        }  # fmt: skip

    def close(self, error: float, limit: int) -> dict[str, Any]:
        """Evaluate truly whatever could still be within the margin of the best, until nothing is left or `limit`."""
        evaluated = 0
        while True:
            best = max(self.true.values())
            left = [r for r in np.flatnonzero(self.values >= best - MARGIN - error) if int(r) not in self.true]
            if not left or evaluated >= limit:
                break
            rows = sorted(left, key=lambda row: -self.values[row])[:25]  # the best first: the bar rises as they come
            self.evaluate([int(row) for row in rows], f"evaluate what could be the best, of {len(left)}")
            evaluated += len(rows)
        top = max(self.true, key=lambda row: self.true[row])
        reached = sum(value >= best - MARGIN for value in self.true.values())
        return {
            "best": best, "best_point": self.points[top], "points_that_reach": reached, "evaluated": evaluated,
            "left_unevaluated": len(left),
        }  # fmt: skip


def measure_grid(grid: Grid, count: int, checks: int, limit: int) -> dict[str, Any]:
    """Make the grid exhaustive from `count` nodes and say how; `checks` random points measure the interpolation."""
    corners = [0, *(grid.row_of[grid.space.recipe(grid.space.point({e: 1.0})).key()] for e in grid.space.experts)]
    nodes = spread_nodes(grid.places, corners, count)
    grid.evaluate(nodes, "evaluate the nodes")
    grid.interpolate(nodes)
    known = dict(grid.true)
    rng = np.random.default_rng(0)
    others = [row for row in rng.permutation(len(grid.points)).tolist() if row not in known]
    check = grid.check(others[:checks])
    for row, value in known.items():
        grid.values[row] = value
    closing = grid.close(check["largest_error"], limit)
    return {
        "points": len(grid.points), "true_evaluations": len(grid.true), "nodes": len(nodes), "check": check,
        **closing,
    }  # fmt: skip
