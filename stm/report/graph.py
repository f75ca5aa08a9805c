"""The stage graph as a drawing: which stages left results, and which of them ran this time.

Takes the stages' reports; knows the graph's shape, which a test compares with dvc.yaml, but not DVC.
"""

import math
from collections.abc import Mapping

from markupsafe import Markup, escape

from stm.report.collect import Reports

# stage -> column and row of its box; `outside` is drawn with `evaluate`; `check` and `files` are left out
PLACES: dict[str, tuple[int, float]] = {
    "prepare": (0, 0), "backbone": (0, 2), "mine": (1, 0), "warm_up": (1, 2), "synthesize": (2, 0), "train": (3, 1),
    "train_all": (3, 2), "search_prompts": (4, 0), "select": (4, 1), "merge": (5, 1), "bm25": (6, 0),
    "evaluate": (6, 1), "report": (7, 1), "promote": (8, 1),
}  # fmt: skip
# The dependencies that show how the data flows; those that follow from others are not drawn.
EDGES = (
    ("prepare", "mine"), ("prepare", "warm_up"), ("backbone", "warm_up"), ("mine", "synthesize"), ("mine", "train"),
    ("synthesize", "train"), ("warm_up", "train"), ("warm_up", "train_all"), ("train", "search_prompts"),
    ("search_prompts", "train"), ("train", "select"), ("select", "merge"), ("merge", "evaluate"),
    ("train_all", "select"), ("bm25", "report"), ("evaluate", "report"), ("report", "promote"),
)  # fmt: skip
BOX_WIDTH, BOX_HEIGHT, COLUMN, LINE = 116, 40, 138, 62
UNREPORTED = {"backbone": "", "report": "this page", "promote": "comes next"}


def _corner(stage: str) -> tuple[int, float]:
    """The upper left corner of the stage's box."""
    column, row = PLACES[stage]
    return 4 + column * COLUMN, 6 + row * LINE


def stage_files(reports: Reports) -> dict[str, list[str]]:
    """Return the report files of each stage, relative to the folder of reports."""
    each: dict[str, Mapping[str, object]] = {
        "mine": reports.mine, "synthesize": reports.synthesize, "train": reports.train,
        "search_prompts": reports.search_prompts,
    }  # fmt: skip
    files = {stage: [f"{stage}/{name}.json" for name in found] for stage, found in each.items()}
    for stage in ("prepare", "warm_up", "train_all", "select", "merge"):
        files[stage] = [f"{stage}.json"] if getattr(reports, stage) else []
    evaluated = [f"evaluation/{name}.json" for name in reports.evaluation]
    files["bm25"] = [name for name in evaluated if name == "evaluation/bm25.json"]
    files["evaluate"] = [name for name in evaluated if name not in files["bm25"]]
    return files


def stage_states(reports: Reports) -> dict[str, str]:
    """Return in words per stage whether it ran this time, or its result was reused, or there is none."""
    states = dict(UNREPORTED)
    for stage, files in stage_files(reports).items():
        ran = None if reports.fresh is None else sum(name in reports.fresh for name in files)
        if not files:
            states[stage] = "not run"
        elif ran is None:
            states[stage] = f"{len(files)} results" if len(files) > 1 else "done"
        elif ran in (0, len(files)):
            states[stage] = ("ran" if ran else "reused") + (f" \u00d7 {len(files)}" if len(files) > 1 else "")
        else:
            states[stage] = f"{ran} ran, {len(files) - ran} reused"
    return states


def draw_graph(states: Mapping[str, str]) -> Markup:
    """Draw the stages with their states; what ran stands out, what is missing is dashed."""
    parts: list[str] = []
    both = {(b, a) for a, b in EDGES} & set(EDGES)
    for first, second in EDGES:
        if (first, second) not in both or first < second:
            parts.append(_edge(first, second, (first, second) in both))
    for stage in PLACES:
        state = states.get(stage, "")
        kind = "ran" if state.startswith("ran") or " ran" in state else "absent" if state == "not run" else "kept"
        x, y = _corner(stage)
        parts.append(f'<rect x="{x}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" class="box {kind}"/>')
        parts += [_label(x, y + (17 if state else 24), stage, "strong"), _label(x, y + 32, state, "tick")]
    words = ", ".join(f"{stage}: {states[stage]}" for stage in PLACES if states.get(stage))
    width, height = 8 * COLUMN + BOX_WIDTH + 8, 2 * LINE + BOX_HEIGHT + 12
    name = escape(f"The stage graph. {words}")
    return Markup(  # labels are escaped
        f'<svg viewBox="0 0 {width} {height}" class="graph" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def _label(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x + BOX_WIDTH / 2:.0f}" y="{y:.0f}" text-anchor="middle" class="{kind}">{escape(text)}</text>'


def _edge(first: str, second: str, is_both: bool) -> str:
    (x, y), (to_x, to_y) = _corner(first), _corner(second)
    if x == to_x:
        out, into = (BOX_HEIGHT, 0) if y < to_y else (0, BOX_HEIGHT)
        ends = (x + BOX_WIDTH / 2, y + out, x + BOX_WIDTH / 2, to_y + into)
    else:
        out, into = (BOX_WIDTH, 0) if x < to_x else (0, BOX_WIDTH)
        ends = (x + out, y + BOX_HEIGHT / 2, to_x + into, to_y + BOX_HEIGHT / 2)
    heads = [_head(*ends)] + ([_head(*ends[2:], *ends[:2])] if is_both else [])
    x1, y1, x2, y2 = (f"{value:.1f}" for value in ends)
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="edge"/>' + "".join(heads)


def _head(x1: float, y1: float, x2: float, y2: float) -> str:
    """The arrow head at the end of a line."""
    turn = math.degrees(math.atan2(y2 - y1, x2 - x1))
    return f'<path d="M-7 -4 0 0 -7 4z" transform="translate({x2:.1f} {y2:.1f}) rotate({turn:.1f})" class="arrow"/>'
