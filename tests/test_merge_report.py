"""The interaction of two merge weights on the report's page."""

from pathlib import Path
from typing import Any

import pytest

from stm.files import read_json, write_json
from stm.report.build import build_report
from stm.report.collect import Reports, collect
from stm.report.stages import _same_recipe, merge_view
from tests import report_samples as made


def interaction(**changes: Any) -> dict[str, Any]:
    values = [0.0, 0.5, 1.0]
    scores = [[0.30 + 0.1 * a - 0.05 * b + 0.02 * a * b for b in values] for a in values]
    return {"method": "task_arithmetic", "experts": ["med_real", "<b>nlu"], "source": "surrogate", "values": values,
            "held": {"search": 0.4}, "scores": scores, "share": 0.125, **changes}  # fmt: skip


def view(found: Any) -> dict[str, Any]:
    return merge_view(Reports(evaluation={}, merge={**made.merge_report(), "interaction": found}))


def test_a_line_per_weight_of_the_second_expert_and_the_same_figures_as_rows() -> None:
    found = view(interaction())["interaction"]
    assert str(found["chart"]).count("<polyline") == 3
    assert "&lt;b&gt;nlu 0.5" in found["chart"]
    assert found["columns"] == [0.0, 0.5, 1.0]
    assert found["rows"][2] == (1.0, pytest.approx([0.4, 0.385, 0.37]))
    assert found["share"] == 0.125


def test_many_weights_are_thinned_to_a_few_lines() -> None:
    values = [index / 10 for index in range(11)]
    found = view(interaction(values=values, scores=[[0.5] * 11] * 11))["interaction"]
    assert found["columns"] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert len(found["rows"]) == 11


def test_the_point_without_any_weight_may_lack_a_score() -> None:
    scores = interaction()["scores"]
    scores[0][0] = None
    found = view(interaction(scores=scores))["interaction"]
    assert str(found["chart"]).count("<polyline") == 3
    assert found["rows"][0][1][0] is None


def test_weights_that_cancel_out_leave_no_lines_to_draw() -> None:
    scores = interaction()["scores"]
    for index in range(3):
        scores[index][2 - index] = None
    assert view(interaction(scores=scores))["interaction"] == {}


@pytest.mark.parametrize("found", [None, {}, interaction(values=["<x>"] * 3), interaction(experts=["one"]), "text"])
def test_what_is_no_interaction_is_left_out(found: Any) -> None:
    assert view(found)["interaction"] == {}


def test_the_page_says_that_weights_are_means_over_layers_and_names_parameters(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    path = tmp_path / "reports/merge.json"
    report = read_json(path)
    assert "means over layers" not in build_report(collect(tmp_path / "reports"), {}, made.params()).page
    further = {"layers": {"0": {"search": 1.0}}, "parameters": {"top<b>": {"nlu": 0.5}, "flag": True}}
    report["decision"]["taken"] = {**report["trials"][3], **further}
    report["trials"].append({**report["decision"]["taken"], "origin": "learned"})
    write_json(path, report)
    page = build_report(collect(tmp_path / "reports"), {}, made.params()).page
    assert page.count("These weights are means over layers: each layer has weights of its own") == 1
    assert "Parameters of the method: flag true, top&lt;b&gt; (nlu 0.5)." in page
    assert page.count("(means over layers)") == 1  # in the table of trials, in the one row that has layers


def test_the_ring_marks_the_trial_that_was_taken_and_not_one_of_the_same_mean_weights() -> None:
    taken = {"method": "task_arithmetic", "weights": {"a": 0.5}, "lambda": 1.0, "layers": {"0": {"a": 1.0}}}
    assert _same_recipe(dict(taken), taken)
    assert not _same_recipe({key: value for key, value in taken.items() if key != "layers"}, taken)


def test_the_page_shows_it(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    path = tmp_path / "reports/merge.json"
    write_json(path, {**read_json(path), "interaction": interaction()})
    page = build_report(collect(tmp_path / "reports"), {}, made.params()).page
    assert "Two weights together, as a table" in page
    assert "12.5 % of the variance" in page
    assert "<b>nlu" not in page
