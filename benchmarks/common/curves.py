"""Curves over strength: where one reaches a level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

Row = dict[str, Any]


def crossing(
    rows: Sequence[Row], measure: str, level: float, sign: int, names: Iterable[str]
) -> dict[str, float] | None:
    """Return numbers of the place where a measure first reaches a level, interpolated; None where it does not.

    Args:
        rows: the curve, by strength.
        measure: what is to reach the level.
        level: its value there.
        sign: 1 where the measure rises to it, -1 where it falls.
        names: numbers to return.
    """
    for before, after in pairwise(rows):
        if sign * (after[measure] - level) >= 0:
            apart = after[measure] - before[measure]
            share = max(0.0, (level - before[measure]) / apart) if apart else 0.0
            return {name: before[name] + share * (after[name] - before[name]) for name in names}
    return None


def never_rising(rows: Sequence[Row], measure: str) -> list[Row]:
    """Return the nearest curve whose measure never rises with strength: a dip of a noisy one is no crossing."""
    from lineas.evaluation.strength_search import growing

    return [{**row, measure: -value} for row, value in zip(rows, growing([-row[measure] for row in rows]))]
