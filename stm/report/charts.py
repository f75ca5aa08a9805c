"""Inline SVG charts: intervals, lines, a search trace, bars.

Takes labels and numbers and returns markup that is safe to insert: every label is escaped here. Colours are CSS
classes of the page, so that charts follow its light and dark themes. Each chart names itself to a screen reader, and
the page shows the same figures as a table.
"""

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup, escape

WIDTH = 480
LEFT = 44  # where the drawing area of curves and histograms begins
LABEL = 150  # width of the column of labels in charts of rows
SMALL_WIDTH, SMALL_LABEL = 300, 116  # of charts that stand four in a row
ROW = 22
SERIES, DASHES = 8, 3  # line colours and dash patterns that the page's style sheet has
EM, SMALL_EM = 12, 11  # font sizes of the page's style sheet, the smaller of class `tick`
NARROW, WIDE = frozenset("fijlrtI.,:;!'|()[]{}/ "), frozenset("mwMW@%\u2026")


@dataclass(frozen=True)
class Span:
    """A row of an interval chart."""

    label: str
    mean: float
    low: float
    high: float
    is_subject: bool = False


def _svg(height: float, title: str, parts: Sequence[str], width: int = WIDTH) -> Markup:
    name = escape(title)
    body = "".join(parts)
    return Markup(  # every label in the parts is escaped
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{name}"><title>{name}</title>{body}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "", room: float = math.inf) -> str:
    """A text; where it is wider than `room` its middle goes, and a title has the whole."""
    style = f' class="{kind}"' if kind else ""
    shown = cut_middle(text, room / (SMALL_EM if kind == "tick" else EM))
    title = f"<title>{escape(text)}</title>" if shown != text else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(shown)}{title}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _polyline(points: Sequence[tuple[float, float]], kind: str) -> str:
    listed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{listed}" class="{kind}"/>'


def _legend(index: int, y: float, name: str) -> list[str]:
    """The entry of the line with that index, in a row of three."""
    x = LEFT + index % 3 * 145
    return [_line(x, y - 4, x + 16, y - 4, _style(index)), _text(x + 21, y, name, kind="tick", room=120)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers that lie in [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw), default=10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "\u2212")


def _width(char: str) -> float:
    """The width of a character in em, as a wide sans-serif in bold has it."""
    if char in WIDE or unicodedata.east_asian_width(char) in "WF":
        return 1.1
    return 0.45 if char in NARROW else 0.8 if char.isupper() else 0.7


def cut_middle(label: str, room: float) -> str:
    """Return the label, without its middle where it would be wider than `room`, in em."""
    if sum(map(_width, label)) <= room:
        return label
    cut = (f"{label[: (size + 1) // 2]}\u2026{label[len(label) - size // 2 :]}" for size in range(len(label), 0, -1))
    return next((shown for shown in cut if sum(map(_width, shown)) <= room), "\u2026")


def _style(index: int) -> str:
    """The class of a line: when the colours are used up they come again, dashed."""
    dash = index // SERIES % DASHES
    return f"line s{index % SERIES}" + (f" d{dash}" if dash else "")


def spans(rows: Sequence[Span], title: str, zero: bool = False) -> Markup:
    """Draw a mean with its interval per row; with `zero` the axis includes 0 and marks it."""
    if not rows:
        return Markup("")
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    pad = (high - low or 1.0) * 0.05
    low, high = low - pad, high + pad
    height = ROW * len(rows) + 26

    def place(value: float) -> float:
        return LABEL + (value - low) / (high - low) * (WIDTH - LABEL - 12)

    parts = []
    for tick in ticks(low, high):
        kind = "axis" if zero and tick == 0 else "grid"
        parts.append(_line(place(tick), 4, place(tick), height - 20, kind))
        parts.append(_text(place(tick), height - 6, _number(tick), "middle", "tick"))
    for index, row in enumerate(rows):
        y = 4 + ROW * index + ROW / 2
        kind = "subject" if row.is_subject else "other"
        parts.append(_text(LABEL - 8, y + 4, row.label, "end", "strong" if row.is_subject else "", LABEL - 8))
        parts.append(_line(place(row.low), y, place(row.high), y, f"span {kind}"))
        parts.append(f'<circle cx="{place(row.mean):.1f}" cy="{y:.1f}" r="4.5" class="dot {kind}"/>')
    return _svg(height, title, parts)


def _smooth(values: Sequence[float], window: int) -> list[float]:
    out, total = [], 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        out.append(total / min(index + 1, window))
    return out


def _thin(points: Sequence[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    step = max(1, math.ceil(len(points) / most))
    return [point for index, point in enumerate(points) if index % step == 0 or index == len(points) - 1]


def curves(
    series: Mapping[str, Sequence[float]],
    title: str,
    x_label: str,
    smooth: bool = True,
    ends: tuple[float, float] = (0, 0),
) -> Markup:
    """Draw one line per series over 1, 2, 3, ..., or over equal steps between two `ends`.

    Lines are smoothed by a running mean over a twentieth of their length.
    """
    drawn = {name: list(values) for name, values in series.items() if values}
    if not drawn:
        return Markup("")
    lines = {name: _smooth(values, max(1, len(values) // 20)) if smooth else values for name, values in drawn.items()}
    longest = max(len(values) for values in lines.values())
    low, high = min(min(v) for v in lines.values()), max(max(v) for v in lines.values())
    legend_rows = math.ceil(len(lines) / 3)
    height, top, bottom = 260 + 18 * legend_rows, 8, 44 + 18 * legend_rows

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - 1) / max(1, longest - 1) * (WIDTH - LEFT - 10)
        down = (high - y) / ((high - low) or 1.0) * (height - top - bottom)
        return LEFT + across, top + down

    parts = []
    for tick in ticks(low, high):
        y = place(1, tick)[1]
        parts += [_line(LEFT, y, WIDTH - 10, y, "grid"), _text(LEFT - 6, y + 4, _number(tick), "end", "tick")]
    first, last = ends if ends[0] < ends[1] else (1.0, float(longest))
    for tick in ticks(first, last):
        position = 1 + (tick - first) / ((last - first) or 1.0) * (longest - 1)
        parts.append(_text(place(position, low)[0], height - bottom + 16, _number(tick), "middle", "tick"))
    parts.append(_text(WIDTH - 10, height - bottom + 30, x_label, "end", "tick"))
    for index, (name, values) in enumerate(lines.items()):
        parts.append(_polyline(_thin([place(x, y) for x, y in enumerate(values, 1)]), _style(index)))
        parts += _legend(index, height - 18 * legend_rows + 18 * (index // 3) + 8, name)
    return _svg(height, title, parts)


def trace(values: Sequence[float], taken: int | None, title: str) -> Markup:
    """Draw one dot per trial in the order of the search, the best so far as a step line, and a ring around the taken
    one.
    """
    if not values:
        return Markup("")
    low, high = min(values), max(values)
    height, left, top, bottom = 220, 48, 12, 34

    def place(index: int, value: float) -> tuple[float, float]:
        across = index / max(1, len(values) - 1) * (WIDTH - left - 16)
        return left + 6 + across, top + (high - value) / ((high - low) or 1.0) * (height - top - bottom)

    parts = []
    for tick in ticks(low, high):
        y = place(0, tick)[1]
        parts += [_line(left, y, WIDTH - 6, y, "grid"), _text(left - 6, y + 4, _number(tick), "end", "tick")]
    steps: list[tuple[float, float]] = []
    for index, best in enumerate(accumulate(values, max)):
        x, y = place(index, best)
        steps += [(x, steps[-1][1])] if steps else []
        steps.append((x, y))
    parts.append(_polyline(steps, _style(0)))
    for index, value in enumerate(values):
        x, y = place(index, value)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot other"/>')
    if taken is not None:
        x, y = place(taken, values[taken])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" class="ring"/>')
    parts.append(_text(WIDTH - 6, height - 8, f"trial, 1 to {len(values)}", "end", "tick"))
    return _svg(height, title, parts)


def histogram(series: Mapping[str, Sequence[float]], width: float, title: str) -> Markup:
    """Draw shares per bin as one outline per series; bins have that width and start at 0."""
    drawn = {name: list(values) for name, values in series.items() if values}
    if not drawn:
        return Markup("")
    count, high = max(len(values) for values in drawn.values()), max(max(values) for values in drawn.values())
    height, top, bottom = 190, 8, 52

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / count * (WIDTH - LEFT - 10), top + (high - y) / (high or 1.0) * (height - top - bottom)

    parts = []
    for tick in ticks(0, high, 3):
        y = place(0, tick)[1]
        parts += [_line(LEFT, y, WIDTH - 10, y, "grid"), _text(LEFT - 6, y + 4, f"{tick:.0%}", "end", "tick")]
    for index in range(0, count + 1, 2):
        parts.append(_text(place(index, 0)[0], height - bottom + 16, _number(index * width), "middle", "tick"))
    for number, (name, values) in enumerate(drawn.items()):
        corners = [place(index + side, value) for index, value in enumerate(values) for side in (0, 1)]
        parts.append(_polyline([place(0, 0), *corners, place(len(values), 0)], _style(number)))
        parts += _legend(number, height - 8, name)
    return _svg(height, title, parts)


def bars(values: Mapping[str, float], title: str) -> Markup:
    """Draw a horizontal bar per label from 0 to its value, with the value at its end; negative ones go left."""
    return _bars(values, title, max(0.0, *values.values()) if values else 0.0, WIDTH, LABEL, _number)


def small_bars(values: Mapping[str, float], title: str, reach: float, subject: str) -> Markup:
    """Draw one of several bar charts of scores that stand side by side: all axes end at `reach`, the subject's bar
    stands out.
    """
    return _bars(values, title, reach, SMALL_WIDTH, SMALL_LABEL, lambda value: f"{value:.3f}", subject)


def _bars(
    values: Mapping[str, float], title: str, reach: float, width: int, left: int, form: Callable[[float], str],
    subject: str | None = None,
) -> Markup:  # fmt: skip
    if not values:
        return Markup("")
    low = min(0.0, *values.values())
    scale = (width - left - 60) / ((reach - low) or 1.0)
    parts = []
    for index, (label, value) in enumerate(values.items()):
        y, kind = ROW * index + 4, "bar" if subject in (None, label) else "bar other"
        start, end = sorted((left + (0.0 - low) * scale, left + (value - low) * scale))
        size = f'width="{max(1.0, end - start):.1f}" height="14"'
        parts.append(_text(left - 8, y + 13, label, "end", room=left - 8))
        parts.append(f'<rect x="{start:.1f}" y="{y + 2}" {size} class="{kind}"/>')
        parts.append(_text(end + 6, y + 13, form(value), kind="tick"))
    return _svg(ROW * len(values) + 8, title, parts, width)
