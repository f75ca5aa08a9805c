"""What the report adds to the table: seeds, contaminated queries, mteb's tasks, models that did not run, the graph."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from scipy import stats

import stages.report
from stm.errors import DataError
from stm.evaluate.record import average_tasks
from stm.files import read_json, write_json
from stm.report.build import build_report
from stm.report.cautions import HUB_UNTESTED
from stm.report.collect import Reports, collect
from stm.report.compare import verdict
from stm.report.contaminated import clean_analysis, contaminated_metrics, contaminated_view
from stm.report.graph import EDGES, PLACES, draw_graph, stage_states
from stm.report.hub import NotRun, hub_analysis, join_parts, not_run
from stm.report.scores import build_table, without_queries
from stm.report.seeds import groups, seed_differences, seed_metrics, seed_rows
from stm.significance import seed_difference, seed_interval
from tests import report_samples as made
from tests.closure import ROOT, stage_body
from tests.test_report import Page


def seeded() -> dict[str, Any]:
    """Three seeds of two methods."""
    found = {}
    for role in ("merged", "all"):
        for seed in range(3):
            name = role if not seed else f"{role}-{seed}"
            found[name] = {**made.evaluation(role, seed), "model": name, "label": name, "group": role}
    return found


def test_seeds_of_a_method_get_a_mean_and_students_interval() -> None:
    analysis = made.analysis(seeded(), resamples=200)
    rows = seed_rows(analysis)
    assert [row["group"] for row in rows] == ["merged", "all"]
    assert list(groups(analysis)) == ["merged", "all"]
    values = [analysis.mean("all", name) for name in ("merged", "merged-1", "merged-2")]
    interval = rows[0]["cells"]["all"]["interval"]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert [interval.mean, interval.low, interval.high] == pytest.approx([np.mean(values), low, high])
    assert rows[0]["cells"]["all"]["deviation"] == pytest.approx(stats.tstd(values))
    [difference] = seed_differences(analysis)
    rest = [analysis.mean("all", name) for name in ("all", "all-1", "all-2")]
    assert difference["interval"].mean == pytest.approx(np.mean(values) - np.mean(rest))
    assert seed_metrics(analysis)["merged"]["seeds"] == 3


def test_single_models_make_no_group() -> None:
    evaluations = made.evaluations("all", "merged")
    evaluations["merged"]["group"] = "alone"
    analysis = made.analysis(evaluations, resamples=200)
    assert seed_rows(analysis) == seed_differences(analysis) == []


def test_seed_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(0.6, 0.01, (1500, 3)), rng.normal(0.58, 0.02, (1500, 4))
    alone = [seed_interval(list(values)) for values in first]
    assert 0.93 <= np.mean([row.low <= 0.6 <= row.high for row in alone]) <= 0.97
    both = [seed_difference(list(a), list(b)) for a, b in zip(first, second, strict=True)]
    assert 0.93 <= np.mean([row.low <= 0.02 <= row.high for row in both]) <= 0.98


def test_seed_intervals_of_equal_or_single_seeds() -> None:
    assert vars(seed_interval([0.5, 0.5])) == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert vars(seed_difference([0.5, 0.5], [0.25, 0.25])) == {"mean": 0.25, "low": 0.25, "high": 0.25}
    with pytest.raises(DataError, match="at least two"):
        seed_interval([0.5])
    with pytest.raises(DataError, match="at least two"):
        seed_difference([0.5, 0.6], [0.5])


def test_limits_over_seeds_lie_between_0_and_1() -> None:
    rows = seeded()
    for row in rows.values():
        for task in row["tasks"].values():
            level = 0.9 if row["model"].endswith("2") else 1.0
            task["per_query"] = {metric: dict.fromkeys(scores, level) for metric, scores in task["per_query"].items()}
    found = seed_metrics(made.analysis(rows))["merged"]["all"]
    assert found["high"] == 1.0
    assert found["low"] < found["mean"] < 1.0


def test_seeds_are_on_the_page(tmp_path: Path) -> None:
    for name, row in seeded().items():
        write_json(tmp_path / "evaluation" / f"{name}.json", row)
    built = build_report(collect(tmp_path), {}, made.params())
    page = Page(built.page)
    assert "From seed to seed" in page.text
    assert "merged minus all" in page.text
    assert set(built.statistics["seeds"]) == {"merged", "all"}


def contaminated(ids: dict[str, list[str]]) -> Reports:
    evaluations = made.evaluations("base", "all", "merged")
    return Reports(evaluations, prepare={"tasks": {"test": {k: {"contaminated_queries": v} for k, v in ids.items()}}})


def test_scores_without_contaminated_queries_are_those_of_the_others() -> None:
    reports = contaminated({"med-lay": ["q1", "q2", "q3"], "gen-wiki": ["q9", "unknown"]})
    analysis = made.analysis(reports.evaluation, resamples=200)
    cleaned = clean_analysis(analysis, reports, made.params())
    assert cleaned.count == 4
    scores = reports.evaluation["merged"]["tasks"]["med-lay"]["per_query"]["ndcg_at_10"]
    rest = [value for key, value in scores.items() if key not in ("q1", "q2", "q3")]
    view = contaminated_view(analysis, cleaned)
    row = next(row for row in view["tasks"] if row["task"] == "med-lay")
    assert row["clean"] == pytest.approx(np.mean(rest))
    assert (row["contaminated"], row["queries"]) == (3, made.QUERIES)
    assert [r["model"].name for r in view["models"]] == ["merged", "all", "base"]
    figures = contaminated_metrics(cleaned)
    means = []
    for name, task in reports.evaluation["all"]["tasks"].items():
        left = cleaned.queries[name]
        means.append(np.mean([v for k, v in task["per_query"]["ndcg_at_10"].items() if k not in left]))
    assert figures["averages"]["all"]["all"] == pytest.approx(np.mean(means), abs=1e-6)


def test_without_contamination_nothing_changes_and_without_clean_queries_nothing_is_left() -> None:
    clean = contaminated({})
    analysis = made.analysis(clean.evaluation, resamples=200)
    cleaned = clean_analysis(analysis, clean, made.params())
    assert cleaned.analysis is analysis
    assert contaminated_view(analysis, cleaned)["models"] == []
    whole = contaminated({name: [f"q{i}" for i in range(made.QUERIES)] for name in made.TASKS})
    nothing = clean_analysis(analysis, whole, made.params())
    assert nothing.analysis is None
    assert contaminated_metrics(nothing) == {"queries": 3 * made.QUERIES, "averages": {}}
    page = build_report(whole, {}, made.params()).page
    assert "No query would be left" in page
    assert (
        without_queries(analysis.table, {"med-lay": [f"q{i}" for i in range(made.QUERIES)]}).tasks[0].name == "med-syn"
    )


def with_hub(name: str, tasks: tuple[str, ...] = ("NFCorpus", "SCIDOCS")) -> dict[str, Any]:
    row = made.evaluation(name)
    rows = dict(zip(tasks, row["tasks"].values(), strict=False))
    return {**row, "hub": {"tasks": rows, "averages": {}, "not_run": {"CUREv1": "the hub does not answer"}}}


def test_tasks_of_mteb_get_the_same_table_of_their_own() -> None:
    reports = Reports({name: with_hub(name) for name in ("all", "merged", "bm25")})
    found = hub_analysis(reports, made.params())
    assert found is not None
    assert [task.name for task in found.table.tasks] == ["NFCorpus", "SCIDOCS"]
    built = build_report(reports, {}, made.params())
    page = Page(built.page)
    assert "nDCG@10 on tasks of mteb" in page.text
    assert "CUREv1 was not run: the hub does not answer" in page.text
    assert built.metrics["hub"]["merged"]["all"]["ndcg_at_10"] == pytest.approx(found.mean("all", "merged"), abs=1e-6)
    own = found.intervals["NFCorpus"][found.table.column("merged")]
    assert "On tasks of mteb, by its own runner." in built.card
    assert f"| {own.mean:.3f} | {own.low:.3f} to {own.high:.3f} |" in built.card
    plotted = [line.split(",") for line in built.plots["scores.csv"].splitlines()]
    shown = {row[1] for row in plotted if row[1].startswith("mteb ")}
    assert shown == {"mteb all", "mteb medical", "mteb NFCorpus", "mteb SCIDOCS"}
    [row] = [row for row in plotted if row[:2] == ["merged", "mteb NFCorpus"]]
    assert [float(value) for value in row[2:]] == pytest.approx([own.mean, own.low, own.high], abs=1e-6)
    assert len({tuple(row[:2]) for row in plotted}) == len(plotted)
    assert built.metrics["models"]["merged"]["tasks"].keys() == made.TASKS.keys()
    assert HUB_UNTESTED in page.text
    assert HUB_UNTESTED in built.card
    alone = Reports({"all": with_hub("all"), "merged": made.evaluation("merged")})
    assert hub_analysis(alone, made.params()) is None
    assert build_report(alone, {}, made.params()).page
    some = Reports({"all": with_hub("all", ("NFCorpus",)), "merged": with_hub("merged")})
    assert "all is not in this table" in Page(build_report(some, {}, made.params()).page).text


def hub_without(name: str, task: str) -> dict[str, Any]:
    """A model that could not be run on one of the two tasks."""
    row = with_hub(name)
    rows = {key: value for key, value in row["hub"]["tasks"].items() if key != task}
    return {**row, "hub": {"tasks": rows, "averages": {}, "not_run": {task: "the hub does not answer"}}}


def hub_section(reports: Reports) -> str:
    page = build_report(reports, {}, made.params()).page
    start = page.index("<h3>Tasks of mteb</h3>")
    return Page(page[start : page.index("</section>", start)]).text


def test_a_task_of_mteb_that_one_model_lacks_costs_that_model_alone() -> None:
    others = {name: with_hub(name) for name in ("merged", "base", "bm25")}
    far = {
        **hub_without("all", "SCIDOCS"),
        "model": "far",
        "label": "far",
        "role": "outside",
        "path": "a/b@0123456789ab",
    }
    reports = Reports({**others, "all": hub_without("all", "SCIDOCS"), "far": far})
    found = hub_analysis(reports, made.params())
    assert found is not None
    assert [task.name for task in found.table.tasks] == ["NFCorpus", "SCIDOCS"]
    assert list(found.table.left_out) == ["all", "far"]
    assert NotRun("SCIDOCS", ["all", "far"], "the hub does not answer") in not_run(reports)
    text = hub_section(reports)
    assert "SCIDOCS was not run for all, far: the hub does not answer" in text
    assert "`dvc repro -f -s evaluate@all` and `dvc repro` to score it again" in text
    assert "`dvc repro -f -s outside@far`" in text
    assert "dvc repro -f -s evaluate@all evaluate@base bm25 outside@far evaluate@merged tries" in text


def test_a_task_of_mteb_that_the_subject_or_most_models_lack_leaves_the_others_compared() -> None:
    names = ("all", "base", "bm25", "warm_up")
    lacking = Reports({"merged": hub_without("merged", "SCIDOCS"), **{name: with_hub(name) for name in names}})
    found = hub_analysis(lacking, made.params())
    assert found is not None
    assert [task.name for task in found.table.tasks] == ["NFCorpus"]
    assert found.table.left_out == {}
    alone = Reports({"merged": with_hub("merged"), **{name: hub_without(name, "SCIDOCS") for name in names}})
    found = hub_analysis(alone, made.params())
    assert found is not None
    assert [task.name for task in found.table.tasks] == ["NFCorpus"]
    assert len(found.table.models) == 5
    assert "SCIDOCS is not in this table: fewer than half of the models" in hub_section(alone)
    apart = {"merged": hub_without("merged", "SCIDOCS"), **{name: hub_without(name, "NFCorpus") for name in names}}
    found = hub_analysis(Reports(apart), made.params())
    assert found is not None
    assert [model.name for model in found.table.models] == ["merged"]
    assert sorted(found.table.left_out) == sorted(names)


def test_splits_and_languages_of_a_task_of_mteb_count_as_one_task() -> None:
    def part(scores: dict[str, float], **same_answers: str) -> dict[str, Any]:
        metrics = {"ndcg_at_10": scores, "recall_at_10": scores}
        means = {metric: float(np.mean(list(scores.values()))) for metric in metrics}
        return {**means, "task": "CUREv1", "domain": "medical", "queries": len(scores), "passages": 9, "data": "r",
                "per_query": metrics, "same_answers": same_answers}  # fmt: skip

    skin, eye = {"q1": 1.0, "q2": 0.5, "q3": 0.0}, {"q4": 0.2}
    # What skin says of q1 and q2, the part of all does not; q4 and q3 stand together in it alone.
    parts = {"skin": part(skin, q2="q1"), "eye": part(eye), "all": part(skin | eye, q4="q3")}
    rows = {f"CUREv1 ({name})": row for name, row in parts.items()}
    rows["SCIDOCS"] = {**part({"s1": 0.9, "s2": 0.7}), "task": "SCIDOCS", "domain": "general"}
    joined = join_parts(rows)
    assert list(joined) == ["CUREv1", "SCIDOCS"]
    assert joined["SCIDOCS"] == rows["SCIDOCS"]
    assert joined["CUREv1"]["queries"] == 4
    assert joined["CUREv1"]["same_answers"] == {"q4": "q3"}
    agreed = {"a": part(skin, q2="q1", q3="q1"), "b": part(skin | eye, q3="q2", q4="q2")}
    assert join_parts(agreed)["CUREv1"]["same_answers"] == {"q3": "q2", "q4": "q2"}
    scores = joined["CUREv1"]["per_query"]["ndcg_at_10"]
    mean = np.mean([0.5, 0.2, 1.7 / 4])
    assert np.mean(list(scores.values())) == pytest.approx(mean)
    assert scores["q3"] == 0.0
    assert average_tasks(rows)["all"]["ndcg_at_10"] == pytest.approx((mean + 0.8) / 2)
    assert average_tasks(rows)["medical"]["ndcg_at_10"] == pytest.approx(mean)


def test_a_model_that_could_not_run_is_named_and_never_compared() -> None:
    evaluations = made.evaluations("all", "merged")
    absent = {"model": "far", "label": "Far", "role": "outside", "path": "a/b@1", "tasks": {}, "not_run": "no hub"}
    built = build_report(Reports({**evaluations, "far": absent}), {}, made.params())
    assert "far is not in the table: not run; no hub." in Page(built.page).text
    assert "far" not in built.metrics["models"]
    with pytest.raises(DataError, match="no model was evaluated; far: no hub"):
        build_table({"far": absent}, "merged")


def test_the_verdict_owns_up_when_an_outside_model_is_ahead() -> None:
    evaluations = made.evaluations("all", "merged")
    evaluations["far"] = {**made.evaluation("merged"), "model": "far", "label": "Far", "role": "outside"}
    for row in evaluations["far"]["tasks"].values():
        row["per_query"]["ndcg_at_10"] = dict.fromkeys(row["per_query"]["ndcg_at_10"], 0.9)
    assert verdict(made.analysis(evaluations, resamples=200)).endswith("; Far scores more, 0.900.")


def graph_of_dvc() -> tuple[set[str], set[tuple[str, str]]]:
    """Stages of dvc.yaml, and which depends directly on which: a dep lies in an out, or an out in a dep."""
    stages_ = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs: dict[str, list[str]] = {}
    for name, stage in stages_.items():
        body = stage_body(stage)
        listed = [*body.get("outs", []), *body.get("metrics", []), *body.get("plots", [])]
        outs[name] = [(next(iter(out)) if isinstance(out, dict) else out).split("${")[0].rstrip("/") for out in listed]
    outs["backbone"], outs["warm_up"] = ["models/backbone"], [*outs["warm_up"]]
    paths = {"evaluate": [row["path"] for row in yaml.safe_load((ROOT / "params.yaml").read_text())["models"].values()]}
    edges = set()
    for name, stage in stages_.items():
        for dep in [*stage_body(stage)["deps"], *paths.get(name, [])]:
            dep = dep.split("${")[0].rstrip("/")
            for other, made_ in outs.items():
                if any(
                    dep and (dep == out or f"{dep}/".startswith(f"{out}/") or f"{out}/".startswith(f"{dep}/"))
                    for out in made_
                ):
                    edges.add((other, name))
    return set(stages_), edges


def test_the_graph_is_that_of_dvc() -> None:
    names, edges = graph_of_dvc()
    assert set(PLACES) == names - {"check", "files", "outside"}
    assert [edge for edge in EDGES if edge not in edges] == []


def test_the_graph_says_what_ran_and_what_was_reused(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    reports = tmp_path / "reports"
    began = time.time() - 100
    for path in reports.rglob("*.json"):
        os.utime(path, (began - 50, began - 50))
    for name in ("merge.json", "evaluation/merged.json", "train/search-ft.json", "train/med_real-ft.json"):
        os.utime(reports / name)
    states = stage_states(collect(reports, began))
    assert states["merge"] == "ran"
    assert states["prepare"] == states["bm25"] == "reused"
    assert states["train"] == "ran \u00d7 2"
    assert states["evaluate"] == "1 ran, 5 reused"
    (reports / "merge.json").unlink()
    assert stage_states(collect(reports, began))["merge"] == "not run"
    unknown = stage_states(collect(reports))
    assert (unknown["train"], unknown["select"]) == ("2 results", "done")
    drawn = str(draw_graph(states))
    Page(drawn)
    assert "merge: ran" in drawn
    assert 'class="box ran"' in drawn


def test_the_start_of_the_run_is_that_of_dvc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    class Parent:
        def __init__(self, *words: str) -> None:
            self.words = list(words)

        def cmdline(self) -> list[str]:
            if not self.words:
                raise psutil.AccessDenied
            return self.words

        def create_time(self) -> float:
            return 12.0

    chain = [Parent("/bin/sh", "-c", "python -m stages.report"), Parent(), Parent("python", "/x/bin/dvc", "repro")]
    monkeypatch.setattr(psutil.Process, "parents", lambda self: chain)
    assert stages.report.run_start() == 12.0
    monkeypatch.setattr(psutil.Process, "parents", lambda self: chain[:2])
    assert stages.report.run_start() is None
    monkeypatch.setattr(psutil.Process, "parents", lambda self: chain)
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ".dvc" / "tmp")
    assert stages.report.run_start() is None


def test_cost_counts_money_and_the_reports_stay_as_they_are(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    path = tmp_path / "reports" / "synthesize" / "search.json"
    write_json(path, {**read_json(path), "cost": 1.5, "tokens_in": 1000})
    page = Page(build_report(collect(tmp_path / "reports"), {}, made.params()).page)
    assert "1.50" in page.text
    assert "Energy is not estimated" in page.text
