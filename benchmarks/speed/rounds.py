"""Rounds: several ways timed between runs of a baseline, so that what drifts slowly on a machine drops out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, TypeVar

Run = TypeVar("Run")


def interleaved(
    ways: Mapping[str, Callable[[], Run]], baseline: Callable[[], float], rounds: int
) -> dict[str, list[tuple[Run, float]]]:
    """Run every way in every round, after one run of each to warm up.

    Args:
        ways: by name, what is run and gives what was measured.
        baseline: gives its seconds; run before and after each of them.
        rounds: number of rounds.

    Returns:
        by name, its runs, each with the mean seconds of the baseline before and after it.
    """
    for way in ways.values():
        way()
    runs: dict[str, list[tuple[Run, float]]] = {name: [] for name in ways}
    before = baseline()
    for _ in range(rounds):
        for name, way in ways.items():
            run, after = way(), baseline()
            runs[name].append((run, (before + after) / 2))
            before = after
    return runs


def row(way: str, ratios: list[float], **facts: Any) -> dict[str, Any]:
    """Return a way's line of a result: its facts, and the median and the quartiles of its ratios, one a round."""
    import numpy as np

    low, high = np.quantile(ratios, [0.25, 0.75])
    return {"way": way, **facts, "ratio": median(ratios), "quartiles": [float(low), float(high)]}
