"""Summary of a sweep: one line for each method and gamma, and the choice of the sparsest that is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any

from lineas.measures import LEARNED, first_of, measure
from lineas.printable import as_label
from lineas.sweeping.jobs import UNTOUCHED


@dataclass(frozen=True)
class Line:
    """The results of a method at a gamma and a strength, over all draws.

    Args:
        method: name of the method.
        gamma: weight of the penalty; None if the method has none.
        refit: whether it was learned again without the penalty, on the same neurons.
        strength: strength at which it was judged.
        seeds: number of draws.
        values: means over draws of support (0 to 1), sites touched, cost, unmet (see `learning.gamma_path`), steps,
            seconds, and all measures.
        deviations: standard deviations of the same over draws, if there are several.
        share: effect as a share of the largest effect of any line, below 0 for an opposite effect; None if no effect
            was measured.
    """

    method: str
    gamma: float | None
    refit: bool
    strength: float
    seeds: int
    values: dict[str, float] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)
    share: float | None = None

    @property
    def label(self) -> str:
        """The name of the line in tables."""
        gamma = "" if self.gamma is None else f" {as_label(self.gamma)}"
        strength = "" if self.strength == 1 else f" at {as_label(self.strength)}"
        return f"{self.method}{gamma}{' refitted' if self.refit else ''}{strength}"


def effect_of(rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the name of the first measure of effect in the points; None if there is none."""
    effect = first_of("effect", (row["values"] for row in rows))
    return None if effect is None else effect.name


def aim_of(effect: str) -> tuple[str, int]:
    """Return the name of a measure, and whether it should rise (1), fall (-1), or either (0).

    >>> aim_of("toxic_score"), aim_of("+toxic"), aim_of("concept")
    (('toxic_score', -1), ('toxic', 1), ('concept', 0))
    """
    one = measure(effect.removeprefix("+"))
    return one.name, 1 if effect.startswith("+") else {"lower": -1, "higher": 1, "either": 0}[one.better]


def summary(rows: Sequence[dict[str, Any]], effect: str | None = None) -> list[Line]:
    """Return one line for each method, gamma, refit and strength, in the order of the points.

    `effect` is the measure that should change, with "+" before it if it should rise; default: the first of the points.
    """
    name_of_effect, aim = aim_of(effect or effect_of(rows) or "")
    lines = []
    for kind in dict.fromkeys(map(_kind, rows)):
        points = [row for row in rows if _kind(row) == kind]
        by_name: dict[str, list[float]] = {}
        for row in points:
            for name, value in ({key: row[key] for key in LEARNED if key in row} | row["values"]).items():
                by_name.setdefault(name, []).append(value)
        deviations = {name: stdev(values) for name, values in by_name.items() if len(values) > 1}
        means = {name: mean(values) for name, values in by_name.items()}
        lines.append(Line(*kind, len(points), means, deviations))
    untouched = next((line for line in lines if line.method == UNTOUCHED), None)
    changes = [_change(line, untouched, name_of_effect) for line in lines]
    right_way = [change for change in changes if change is not None and change * aim >= 0]
    largest = max(right_way, key=abs, default=None)
    shares = [change / largest if change is not None and largest else None for change in changes]
    return [replace(line, share=share) for line, share in zip(lines, shares)]


def choose(lines: Sequence[Line], tolerance: float) -> Line | None:
    """Return the line of the smallest support, and of those the smallest strength, whose effect is large enough.

    A tolerance of 0.2 asks for at least 80 % of the largest effect.
    """
    enough = [line for line in lines if line.share is not None and line.share >= 1 - tolerance]
    learned = [line for line in enough if "support" in line.values]
    return min(learned, key=lambda line: (line.values["support"], abs(line.strength)), default=None)


def chosen_point(rows: Sequence[dict[str, Any]], line: Line, effect: str) -> dict[str, Any]:
    """Return the point of a line whose effect is nearest to the mean over draws, so neither a lucky nor a bad one."""
    points = [row for row in rows if _kind(row) == (line.method, line.gamma, line.refit, line.strength)]
    return min(points, key=lambda row: abs(row["values"].get(effect, float("inf")) - line.values[effect]))


def _kind(row: dict[str, Any]) -> tuple[str, float | None, bool, float]:
    """Return the values that all points of one line share."""
    return row["method"], row["gamma"], row["refit"], row["strength"]


def _change(line: Line, untouched: Line | None, effect: str) -> float | None:
    if untouched is None or effect not in line.values or effect not in untouched.values:
        return None
    return line.values[effect] - untouched.values[effect]
