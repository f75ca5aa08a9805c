"""The page's section on negatives: guards of mining, outcomes of synthesis, hardness side by side, samples."""

import html
import re
from pathlib import Path
from typing import Any

import pytest

from stm.files import read_json, write_json
from stm.report.build import build_report
from stm.report.collect import collect
from stm.report.negatives import GUARDS, negatives_view
from stm.report.stages import cost_view
from tests.report_samples import params, write_reports

MADE = Path("synthesize/search.json")
MINED = Path("mine/search.json")


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    write_reports(tmp_path)
    return tmp_path / "reports"


def view(reports: Path, count: int = 2) -> dict[str, Any]:
    (row,) = negatives_view(collect(reports), count)
    return row


def section(reports: Path) -> str:
    """The section as a reader sees it, without tags."""
    page = build_report(collect(reports), {}, params(resamples=100)).page
    part = page[page.index('id="negatives"') : page.index('id="training"')]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", part)).split())


def test_every_guard_is_counted_by_origin(reports: Path) -> None:
    guarded = view(reports)["guarded"]
    assert guarded["origins"] == ["bm25", "given"]
    assert guarded["rows"] == [
        (GUARDS["same_concept"], [41, 0]), (GUARDS["duplicate"], [0, 7]), (GUARDS["too_close"], [2100, 0]),
    ]  # fmt: skip
    assert guarded["sum"] == 2148
    shown = section(reports)
    assert "2,148 candidates were kept out" in shown
    assert f"{GUARDS['too_close']} 2,100 0" in shown
    assert f"{GUARDS['duplicate']} 0 7" in shown


def test_the_guards_are_those_that_mining_knows() -> None:
    """A guard without words here would stand on the page under its inner name."""
    from stm.mine import judges, pool
    from stm.synthesize import judge

    source = "".join(Path(module.__file__ or "").read_text() for module in (pool, judges, judge))
    returned = set(re.findall(r'(?:return |\[\s+|else )"([a-z_]+)"', source)) - {"budget"}
    assert returned == set(GUARDS)


def test_acceptance_reasons_hardness_samples_queries_and_failures_are_shown(reports: Path) -> None:
    row = view(reports)
    assert ("acceptance rate", 0.6) in row["synthesize"]
    assert [kind["reason"] for kind in row["samples"]] == ["accepted", "copy"]
    assert len(row["samples"][0]["rows"]) == 2
    charts = {"rejected": ["copy", "refusal"], "hardness": ["synthetic", "mined"], "refused": ["round_trip"]}
    for chart, series in charts.items():
        assert all(word in str(row[chart]) for word in series)
    shown = section(reports)
    for words in ("acceptance rate 0.6", "queries asked for 30", "of these accepted 11", "timeout 4", "it is those"):
        assert words in shown


def test_bars_of_hardness_are_shares_of_their_own_series(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stm.report.negatives.histogram", lambda series, *_: series)
    series = view(reports)["hardness"]
    assert series["synthetic"] == [count / 20 for count in (0, 0, 1, 2, 4, 6, 4, 2, 1, 0, 0, 0)]
    assert all(sum(bars) == pytest.approx(1) for bars in series.values())


def test_what_the_judge_of_the_mined_negatives_cost_is_shown(reports: Path) -> None:
    assert "Judged by the language model" not in section(reports)
    judged = {"asked": 1200, "unasked": 37, "tokens_in": 90000, "tokens_out": 2400, "cost": 1.75,
              "is_budget_exhausted": True}  # fmt: skip
    write_json(reports / MINED, {**read_json(reports / MINED), "judges": {"llm": judged}, "seconds": 4.0})
    shown = section(reports)
    for words in ("negatives asked about 1,200", "kept unjudged at the limit 37", "tokens sent 90,000", "cost 1.75",
                  "The judge's limit of tokens or money was reached"):  # fmt: skip
        assert words in shown, words
    row = next(row for row in cost_view(collect(reports)) if row["stage"] == "mine")
    assert (row["seconds"], row["tokens_in"], row["tokens_out"], row["cost"]) == (4.0, 90000, 2400, 1.75)
    judged["is_budget_exhausted"] = False
    write_json(reports / MINED, {**read_json(reports / MINED), "judges": {"llm": judged}})
    assert "limit of tokens or money" not in section(reports)


@pytest.mark.parametrize("odd", [None, [], "text", {"bm25": None}, {"bm25": {"too_close": "many"}}, {"bm25": {}}])
def test_reports_without_counts_say_so_or_stay_silent(reports: Path, odd: Any) -> None:
    write_json(reports / MINED, {**read_json(reports / MINED), "guarded_out": odd, "judges": odd})
    write_json(reports / MADE, {**read_json(reports / MADE), "queries": odd, "failed": odd})
    assert view(reports)["guarded"]["rows"] == []
    assert "No candidate was kept out." in section(reports)
