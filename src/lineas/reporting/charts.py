"""Curves as inline SVG; the page colours them by their CSS classes, for light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

from markupsafe import Markup
from markupsafe import escape as escaped

from lineas.printable import in_a_line
from lineas.reporting.colours import CURVES
from lineas.reporting.texts import Place, free_boxes

WIDTH, HEIGHT, RIGHT, TOP, BOTTOM = 340, 220, 26, 12, 26
FONT, LETTER = 13, 0.65 * 13
"""Height and largest width of a letter, in units of the drawing."""
SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-4-4h8v8h-8z", "M0-5L5 4h-10z", "M0-5L5 0 0 5-5 0z")
"""Marks of the points, which distinguish curves without colour: a circle, a square, a triangle and a diamond."""
MOST = 30
"""Maximum number of marks on a curve."""
RIM = 0.04
"""Space beyond the lowest and the highest number, as a share of their difference."""


class _Point(NamedTuple):
    x: float
    y: float
    note: str
    span: tuple[float, float] | None


def lines(
    series: Mapping[str, Sequence[Place]],
    x: str,
    y: str,
    zero: bool = True,
    notes: Iterable[str] = repeat(""),
    spans: Iterable[tuple[float, float] | None] = repeat(None),
    hint: str = "",
) -> Markup:
    """Return a figure of curves with points.

    Args:
        series: points (x, y) by label, without those that are not finite; the order determines the colours.
        zero: whether the axis of y begins at 0.
        notes: text for each of all points in order; left out if there is no space.
        spans: interval of y for each of all points in order; None for none.
    """
    more = zip(notes, spans)
    curves = [[_Point(*p, *own) for p, own in zip(ps, more) if _finite(p)] for ps in series.values()]
    points = [p for curve in curves for p in curve]
    if not points:
        return Markup()
    heights = [height for p in points for height in (p.y, *(p.span or ())) if math.isfinite(height)]
    up, rise = _axis(heights, HEIGHT - BOTTOM, TOP, zero)
    left = 12 + LETTER * max(len(_label(tick)) for tick in up)
    across, along = _axis([p.x for p in points], left, WIDTH - RIGHT)
    bands, parts = [], [_grid(left, across, along, up, rise)]
    places = [[(along(p.x), rise(p.y)) for p in curve] for curve in curves]
    for i, (label, curve) in enumerate(zip(series, curves)):
        if ends := [(along(p.x), *map(rise, p.span)) for p in curve if p.span and _finite(p.span)]:
            around = [(a, low) for a, low, _ in ends] + [(a, high) for a, _, high in reversed(ends)]
            bands.append(f'<polygon points="{_path(around)}" class="band {_colour(i)}"/>')
        parts.append(f'<polyline points="{_path(places[i])}" class="curve {_colour(i)}"/>')
        for p in curve[:: max(1, -(-len(curve) // MOST))]:
            between = " [{:.4g}, {:.4g}]".format(*p.span) if p.span else ""
            title = escape(f"{label} {p.note}: {x} {p.x:.4g}, {y} {p.y:.4g}{between}")
            at = f"translate({along(p.x):.1f} {rise(p.y):.1f})"
            parts.append(f'<path transform="{at}" {_mark(i)}><title>{title}</title></path>')
    texts = [p.note for p in points]
    for text, box in zip(texts, free_boxes(places, texts, LETTER, FONT, (left, TOP, WIDTH, HEIGHT - BOTTOM))):
        if box:
            parts.append(f'<text x="{box[0]:.1f}" y="{box[1] + 0.8 * FONT:.1f}" class="note">{escape(text)}</text>')
    name = escape(f"{y} over {x}: {', '.join(series)}")
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
    drawn = f'{head}{"".join(bands + parts)}</svg><div class="across">{escape(x)}</div>'
    return Markup(f"<figure><figcaption>{escape(y + hint)}</figcaption>{drawn}</figure>")


def legend(labels: Iterable[str]) -> Markup:
    """Return the mark of each curve, in the order of `lines`; nothing for a single curve."""
    sign = '<span class="key"><svg viewBox="-6 -6 12 12" aria-hidden="true"><path {}/></svg>{}</span>'
    keys = [sign.format(_mark(i), escape(label)) for i, label in enumerate(labels)]
    return Markup(f'<div class="legend">{"".join(keys)}</div>' if len(keys) > 1 else "")


def escape(text: str) -> str:
    """Return a text for SVG and HTML, with its control characters made visible."""
    return str(escaped(in_a_line(text)))


def _finite(numbers: Iterable[float]) -> bool:
    return all(map(math.isfinite, numbers))


def _axis(values: Sequence[float], begin: float, end: float, zero: bool = False) -> tuple[list[float], Callable]:
    """Return the ticks of an axis, and the function from a number to its coordinate."""
    low, high = (min(0.0, *values), max(0.0, *values)) if zero else (min(values), max(values))
    rim = RIM * (high - low) or abs(high) or 1.0
    first, last = low - rim * (not zero or low < 0), high + rim
    return _ticks(low, high), lambda value: begin + (value - first) / (last - first) * (end - begin)


def _ticks(low: float, high: float) -> list[float]:
    """Return at most five round numbers from the lowest to the highest."""
    raw = (high - low) / 4
    if not 0 < raw < math.inf:
        return [low]
    size = 10 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    rim = RIM * (high - low)
    return [i * step for i in range(math.ceil((low - rim) / step), math.floor((high + rim) / step) + 1)]


def _label(tick: float) -> str:
    return f"{tick:.10g}"  # ticks are round, so ten digits hide the errors of floats


def _grid(left: float, across: list[float], along: Callable, up: list[float], rise: Callable) -> str:
    parts = []
    for tick in up:
        parts.append(f'<line x1="{left:.1f}" x2="{WIDTH}" y1="{rise(tick):.1f}" y2="{rise(tick):.1f}" class="grid"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{rise(tick) + 4.5:.1f}" text-anchor="end">{_label(tick)}</text>')
    for tick in across:
        parts.append(f'<text x="{along(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_label(tick)}</text>')
    return "".join(parts)


def _path(places: Sequence[Place]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in places)


def _colour(i: int) -> str:
    return f"c{i % len(CURVES)}"


def _mark(i: int) -> str:
    return f'd="{SHAPES[i % len(SHAPES)]}" class="mark {_colour(i)}"'
