"""From views to one self-contained HTML page.

Takes plain values; every text is escaped by the template engine, only the page's own style, script and charts are
markup. Knows no files but its own template.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stm.report.collect import is_number
from stm.report.compare import signed

FOLDER = Path(__file__).parent
SECTIONS = (
    ("scores", "Scores"), ("robustness", "Robustness"), ("failures", "Failures"), ("data", "Data and contamination"),
    ("merge", "Merge"), ("prompts", "Prompts"), ("negatives", "Negatives"), ("training", "Training"),
    ("cost", "Run and cost"), ("provenance", "Provenance"),
)  # fmt: skip
NOTHING = "\u2013"


def format_score(value: Any) -> str:
    """Three decimals; a dash for anything that is no number."""
    return f"{value:.3f}".replace("-", "\u2212") if is_number(value) else NOTHING


def format_count(value: Any) -> str:
    """A whole number with separators; a dash for anything that is no number."""
    return f"{round(value):,}" if is_number(value) else NOTHING


def format_plain(value: Any) -> str:
    """A number as short as it can be; any other value as text."""
    if is_number(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return str(value)


def render_page(views: dict[str, Any]) -> str:
    """Return the page; a view that the template needs and does not get is an error of the program, not an empty
    space.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=format_score, count=format_count, plain=format_plain, signed=signed)
    own = {
        "style": Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        "script": Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        "sections": SECTIONS,
    }
    return environment.get_template("page.html.j2").render({**views, **own})
