"""Curves as inline SVG; their colours come from the page, so that they read in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

from markupsafe import Markup
from markupsafe import escape as escaped

from lineas.printable import in_a_line
from lineas.reporting.texts import Place, free_boxes

WIDTH, HEIGHT, RIGHT, TOP, BOTTOM = 340, 220, 26, 12, 26
FONT, LETTER = 13, 0.65 * 13
"""Height and width of a letter in units of the drawing, rather too wide than too narrow."""
COLOURS = ("#0068a8", "#c24e00", "#00785a", "#a8488f", "#856600", "#4a5568")
DARK = ("#56b4e9", "#f4935a", "#3cc9a0", "#e59aca", "#e3bd2f", "#b9c2cf")
"""The same on black; both after Okabe and Ito, for readers who see red and green alike."""
SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-4-4h8v8h-8z", "M0-5L5 4h-10z", "M0-5L5 0 0 5-5 0z")
"""Marks of the points, which tell curves apart without colour: a circle, a square, a triangle and a diamond."""
MOST = 30
"""Marks on a curve."""
RIM = 0.04
"""Room beyond the lowest and the highest number, in parts of what lies between."""


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
    """A figure of curves with points.

    Args:
        series: by label, points (x, y); those that are not finite are left out. The order decides the colours.
        zero: whether the side begins at 0.
        notes: texts beside the points, one each, in the order of all points; left out where there is no room.
        spans: intervals of y around the points, one each, in the order of all points; None where there is none.
    """
    beside = zip(notes, spans)
    curves = [[_Point(*p, *more) for p, more in zip(ps, beside) if _finite(p)] for ps in series.values()]
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
    """The mark of each curve, in the order of `lines`; nothing for one curve alone."""
    sign = '<span class="key"><svg viewBox="-6 -6 12 12" aria-hidden="true"><path {}/></svg>{}</span>'
    keys = [sign.format(_mark(i), escape(label)) for i, label in enumerate(labels)]
    return Markup(f'<div class="legend">{"".join(keys)}</div>' if len(keys) > 1 else "")


def escape(text: str) -> str:
    """Return a text as SVG and HTML show it, its control characters visible."""
    return str(escaped(in_a_line(text)))


def _finite(numbers: Iterable[float]) -> bool:
    return all(map(math.isfinite, numbers))


def _axis(values: Sequence[float], begin: float, end: float, zero: bool = False) -> tuple[list[float], Callable]:
    """Return the ticks of an axis, and the function from a number to its place."""
    low, high = (min(0.0, *values), max(0.0, *values)) if zero else (min(values), max(values))
    rim = RIM * (high - low) or abs(high) or 1.0
    first, last = low - rim * (not zero or low < 0), high + rim
    return _ticks(low, high), lambda value: begin + (value - first) / (last - first) * (end - begin)


def _ticks(low: float, high: float) -> list[float]:
    """At most five round numbers from the lowest to the highest."""
    raw = (high - low) / 4
    if not 0 < raw < math.inf:
        return [low]
    size = 10 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    rim = RIM * (high - low)
    return [i * step for i in range(math.ceil((low - rim) / step), math.floor((high + rim) / step) + 1)]


def _label(tick: float) -> str:
    return f"{tick:.10g}"  # ticks are round: these digits tell them apart and leave the error of floats out


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
    return f"c{i % len(COLOURS)}"


def _mark(i: int) -> str:
    return f'd="{SHAPES[i % len(SHAPES)]}" class="mark {_colour(i)}"'
