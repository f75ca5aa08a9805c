"""The report in headless Chromium: no console message, no harm from hostile text, accessible, fits a phone, prints.

Not collected by a plain `pytest`, since it needs a browser: `make test-browser` names this file. Screenshots go to the
folder in STM_SCREENSHOTS, or to a temporary one.
"""

import os
from pathlib import Path

import pytest

from stm.files import read_json, write_json
from stm.report.build import build_report
from stm.report.collect import collect
from tests import report_samples as made
from tests.browser.chromium import axe_script, probe, screenshot

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script></script></style>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    made.write_reports(root)
    tasks = made.tasks()
    target = root / "index.html"
    target.write_text(build_report(collect(root / "reports"), tasks, made.params()).page, encoding="utf-8")
    return target


@pytest.mark.parametrize("is_dark", [False, True])
def test_axe_finds_nothing_and_the_console_is_silent(page: Path, tmp_path: Path, is_dark: bool) -> None:
    script = (
        axe_script()
        + """
        for (const box of document.querySelectorAll("details")) box.open = true;
        const scheme = matchMedia("(prefers-color-scheme: dark)").matches;
        const found = await axe.run(document, { resultTypes: ["violations", "passes"] });
        return { scheme, passed: found.passes.length,
                 rules: found.violations.map((v) => [v.id, v.impact, v.nodes.slice(0, 3).map((n) => n.html)]) };
    """
    )
    value, messages = probe(page, script, tmp_path, is_dark=is_dark)
    assert value["rules"] == []
    assert value["passed"] > 20
    assert value["scheme"] is is_dark
    assert messages == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_only_tables_scroll_sideways(page: Path, tmp_path: Path, width: int) -> None:
    script = """
        const frame = document.createElement("iframe");  // a headless window is never narrower than 500 pixels
        frame.style.cssText = "width:%dpx;height:900px;border:0";
        frame.srcdoc = document.documentElement.outerHTML.replace(/<script>[^]*?<\\/script>/g, "");
        document.body.replaceChildren(frame);
        await new Promise((done) => frame.addEventListener("load", done));
        const inner = frame.contentDocument;
        for (const box of inner.querySelectorAll("details")) box.open = true;
        const wide = Array.from(inner.querySelectorAll("body *")).filter((node) => !node.closest(".scroll, .skip"));
        return { page: inner.documentElement.scrollWidth - inner.documentElement.clientWidth,
                 nodes: wide.filter((n) => n.getBoundingClientRect().right > %d + 1).map((n) => n.tagName) };
    """ % (width, width)  # noqa: UP031 - braces are JavaScript's
    value, _ = probe(page, script, tmp_path)
    assert value == {"page": 0, "nodes": []}


@pytest.mark.parametrize(
    "label", ["biomedical_retrieval_claims_and_evidence_of_trials", "WWWWMMMM @@@@ %%%%", "医学检索专家模型"]
)
def test_no_label_of_a_chart_is_clipped_and_no_two_lines_look_alike(label: str, tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    reports = tmp_path / "reports"
    for path in sorted((reports / "evaluation").glob("*.json")):
        row = read_json(path)
        write_json(path, {**row, "label": f"{label} {row['model']} {label}"})
    for number in range(12):
        write_json(reports / "train" / f"{label} {number}.json", read_json(reports / "train" / "search-ft.json"))
    target = tmp_path / "long.html"
    target.write_text(build_report(collect(reports), {}, made.params()).page, encoding="utf-8")
    script = """
        for (const box of document.querySelectorAll("details")) box.open = true;
        const clipped = [], alike = [];
        for (const svg of document.querySelectorAll("svg")) {
            const frame = svg.viewBox.baseVal;
            for (const text of svg.querySelectorAll("text")) {
                const box = text.getBBox();
                if (box.x < -1 || box.x + box.width > frame.width + 1) clipped.push(text.textContent);
            }
            const looks = (node) => getComputedStyle(node).stroke + getComputedStyle(node).strokeDasharray;
            const lines = Array.from(svg.querySelectorAll("polyline")).map(looks);
            if (new Set(lines).size < lines.length) alike.push(lines.length);
        }
        return { clipped, alike };
    """
    assert probe(target, script, tmp_path)[0] == {"clipped": [], "alike": []}


def test_headings_sort_the_table_by_keyboard(page: Path, tmp_path: Path) -> None:
    script = """
        const table = document.querySelector("#scores table");
        const heading = table.tHead.rows[0].cells[2];
        const values = () => Array.from(table.tBodies[0].rows).map((row) => Number(row.cells[2].dataset.value));
        heading.querySelector("button").focus();
        const focused = document.activeElement === heading.querySelector("button");
        heading.querySelector("button").click();
        const down = values(), mark = heading.getAttribute("aria-sort");
        heading.querySelector("button").click();
        return { focused, mark, down, up: values(), marks: table.querySelectorAll("[aria-sort]").length };
    """
    value, messages = probe(page, script, tmp_path)
    assert value["focused"] is True
    assert value["mark"] == "descending"
    assert value["down"] == sorted(value["down"], reverse=True)
    assert value["up"] == sorted(value["up"])
    assert value["marks"] == 1
    assert messages == []


def test_everything_is_open_on_paper(page: Path, tmp_path: Path) -> None:
    script = """
        dispatchEvent(new Event("beforeprint"));
        const open = document.querySelectorAll("details:not([open])").length;
        dispatchEvent(new Event("afterprint"));
        return [open, document.querySelectorAll("details[open]").length];
    """
    assert probe(page, script, tmp_path)[0] == [0, 0]


def test_hostile_text_runs_nothing(tmp_path: Path) -> None:
    made.write_reports(tmp_path)
    for path in sorted((tmp_path / "reports").rglob("*.json")):
        data = read_json(path)
        for key in ("instruction", "reason", "label", "path", "seed_instruction"):
            if key in data:
                data[key] = HOSTILE
        for row in data.get("tasks", {}).values() if path.parent.name == "evaluation" else []:
            row["data"] = HOSTILE
        write_json(path, data)
    target = tmp_path / "hostile.html"
    target.write_text(build_report(collect(tmp_path / "reports"), {}, made.params()).page, encoding="utf-8")
    script = """
        await new Promise((done) => setTimeout(done, 300));
        return { title: document.title, images: document.images.length, scripts: document.scripts.length,
                 shown: document.body.textContent.includes("onerror") };
    """
    value, messages = probe(target, script, tmp_path)
    assert value["title"] != "owned"
    assert (value["images"], value["scripts"], value["shown"]) == (0, 2, True)  # the page's own script and the probe
    assert messages == []


def test_it_reaches_for_nothing_outside(page: Path, tmp_path: Path) -> None:
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name);"
    assert probe(page, script, tmp_path)[0] == []


@pytest.mark.parametrize(
    ("name", "width", "is_dark"), [("light", 1280, False), ("dark", 1280, True), ("phone", 500, False)]
)
def test_screenshots_for_the_eye(page: Path, tmp_path: Path, name: str, width: int, is_dark: bool) -> None:
    folder = Path(os.environ.get("STM_SCREENSHOTS", str(tmp_path)))
    folder.mkdir(parents=True, exist_ok=True)
    picture = screenshot(page, folder / f"report-{name}.png", tmp_path, width, 2400, is_dark)
    assert picture.stat().st_size > 20_000
