"""Curves as inline SVG; their colours come from the page, so that they read in light and in dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from markupsafe import escape as escaped

from lineas.printable import in_a_line

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40
SERIES = 6
"""Colours the page has, `--c0` to `--c5`."""


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    zero: bool = True,
    notes: Sequence[str] | None = None,
) -> Markup:
    """Curves with points.

    Args:
        series: by label, points (x, y); those that are not finite are left out.
        x: what lies along the bottom.
        y: what lies along the side.
        zero: whether the side begins at 0.
        notes: written beside the points, one each, where there is one curve.
    """
    everything = [p for points in series.values() for p in points]
    notes = [note for note, p in zip(notes or (), everything) if _finite(p)]
    series = {label: list(filter(_finite, points)) for label, points in series.items()}
    everything = [p for points in series.values() for p in points]
    if not everything:
        return Markup()
    across = _ticks(min(p[0] for p in everything), max(p[0] for p in everything))
    up = _ticks(0.0 if zero else min(p[1] for p in everything), max(p[1] for p in everything))
    parts = [_axes(across, up, x, y)]
    for i, (label, points) in enumerate(series.items()):
        colour = f"var(--c{i % SERIES})"
        places = [(_at(px, across, LEFT, WIDTH - RIGHT), _at(py, up, HEIGHT - BOTTOM, TOP)) for px, py in points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(places) <= 30:
            for j, ((a, b), (px, py)) in enumerate(zip(places, points)):
                note = f"{notes[j]}: " if notes and j < len(notes) else ""
                title = escape(f"{label} {note}{x} {px:.4g}, {y} {py:.4g}")
                parts.append(
                    f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"><title>{title}</title></circle>'
                )
                if notes and j < len(notes):
                    parts.append(f'<text x="{a + 6:.1f}" y="{b - 6:.1f}" class="small">{escape(notes[j])}</text>')
    legend = "".join(
        f'<span class="key"><i style="background:var(--c{i % SERIES})"></i>{escape(label)}</span>'
        for i, label in enumerate(series)
        if label
    )
    return Markup(_svg("".join(parts)) + (f'<div class="legend">{legend}</div>' if legend else ""))


def escape(text: str) -> str:
    """Return a text as SVG and HTML show it, its control characters visible."""
    return str(escaped(in_a_line(text)))


def _finite(point: tuple[float, float]) -> bool:
    return all(map(math.isfinite, point))


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from at or below the lowest to at or above the highest."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / 4
    size = 10 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _at(value: float, ticks: list[float], begin: float, end: float) -> float:
    return begin + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - begin)


def _axes(across: list[float], up: list[float], x: str, y: str) -> str:
    parts = []
    for tick in up:
        at = _at(tick, up, HEIGHT - BOTTOM, TOP)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in across:
        at = _at(tick, across, LEFT, WIDTH - RIGHT)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:.4g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle" class="title">{escape(x)}</text>')
    half = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(13 {half}) rotate(-90)" text-anchor="middle" class="title">{escape(y)}</text>'
    )
    return "".join(parts)


def _svg(inside: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{inside}</svg>'
