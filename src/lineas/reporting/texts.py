"""Places for texts beside the points of curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

Place = tuple[float, float]
Box = tuple[float, float, float, float]
"""Smallest x, smallest y, largest x, largest y."""


def free_boxes(
    curves: Sequence[Sequence[Place]], texts: Iterable[str], letter: float, height: float, area: Box
) -> list[Box | None]:
    """Return a box for the text of each point, which covers no other text, no point, and as little line as possible.

    It is None if there is no space, or if the same text is already beside the same point.
    """
    points = [place for curve in curves for place in curve]
    pairs = [pair for curve in curves for pair in pairwise(curve)]
    lines = [(a + (c - a) * t / 20, b + (d - b) * t / 20) for (a, b), (c, d) in pairs for t in range(21)]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    seen, boxes_by_text = set(), []
    for (x, y), text in zip(points, texts):
        wide, key = letter * len(text), (round(x), round(y), text)
        corners = [(a, b) for b in (y - height - 6, y + 6, y - height / 2) for a in (x + 6, x - wide - 6, x - wide / 2)]
        boxes = [(a, b, a + wide, b + height) for a, b in corners if text and key not in seen]
        free = [box for box in boxes if _within(box, area) and not any(overlap(box, other) for other in taken)]
        best = min(
            free, key=lambda box: sum(box[0] < a < box[2] and box[1] < b < box[3] for a, b in lines), default=None
        )
        seen.add(key)
        boxes_by_text.append(best)
        taken += [best] if best else []
    return boxes_by_text


def overlap(one: Box, other: Box) -> bool:
    """Return whether two boxes share more than an edge."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _within(box: Box, area: Box) -> bool:
    return area[0] <= box[0] and area[1] <= box[1] and box[2] <= area[2] and box[3] <= area[3]
