"""The search for a strength: bisection on increasing curves that are fitted to noisy measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lineas.checks import as_number
from lineas.errors import LineasError
from lineas.evaluation.goals import Goal

Values = dict[str, float]
"""Measured values at one strength, by name."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search for a strength; `lineas.evaluation.Calibration` says what each part is."""

    strength: float
    reached: bool
    curve: list[Values]
    fitted: Values


def find_strength(
    measure: Callable[[float], Values],
    effect: Goal | None = None,
    damage: Goal | None = None,
    largest: float = 1.0,
    tolerance: float = 0.02,
) -> SearchResult:
    """Find the smallest strength that has an effect, or the largest that does not damage too much, by bisection.

    Measurements are noisy, but effect and damage grow with the strength. So no single measurement decides: an
    increasing curve is fitted to all of them (isotonic regression, Barlow et al. 1972). The next strength to measure
    lies between the two neighbours where that curve crosses the goal.

    Args:
        measure: function from a strength to values by name.
        effect: goal to reach.
        damage: goal not to exceed.
        largest: largest strength to try; default: 1.
        tolerance: largest error of the strength; default: 0.02.
    """
    _check(effect, damage, largest, tolerance)
    measured: dict[float, Values] = {}
    goals = [goal for goal in (effect, damage) if goal is not None]

    def measure_at(strength: float) -> None:
        measured[strength] = values = measure(strength)
        for goal in goals:
            if goal.measure not in values:
                raise LineasError(
                    f"'{goal.text}' is about {goal.measure}, but the measures here are {', '.join(values)}."
                )

    measure_at(0.0)
    untouched = measured[0.0]
    for goal in goals:
        if goal.relative and untouched[goal.measure] == 0:
            raise LineasError(
                f"'{goal.text}' is relative to the untouched model, whose {goal.measure} is 0 here; give a value, such "
                f"as {goal.measure}<=0.1, or other prompts."
            )
    if damage is not None and not damage.met(untouched, untouched):
        raise LineasError(
            f"'{damage.text}' does not hold for the untouched model: its {damage.measure} is "
            f"{damage.value_text(untouched)} here. Allow more damage."
        )

    def curve(goal: Goal) -> dict[float, float]:
        """Return by how much the fitted curve exceeds the goal, by increasing strength."""
        sign = 1 if goal is damage else -1
        at = sorted(measured)
        return dict(zip(at, [sign * e for e in growing([sign * goal.excess(measured[s], untouched) for s in at])]))

    def crossing(goal: Goal) -> tuple[float, float] | None:
        """Return the neighbours between which the curve crosses the goal; None if it does not."""
        points = pairwise(curve(goal).items())
        return next(((low, high) for (low, x), (high, y) in points if (x > 0) != (y > 0)), None)

    def next_strength(goal: Goal) -> float | None:
        """Return the strength to measure next; None when the crossing is found.

        A single lucky measurement is not enough: two further strengths must confirm the crossing on the curve.
        """
        if (neighbours := crossing(goal)) is None:
            return None
        low, high = neighbours
        middle = (low + high) / 2
        if high - low > tolerance and low < middle < high:
            return middle
        further = [high + k * tolerance if goal is effect else low - k * tolerance for k in (1, 2)]
        return next((s for s in further if 0 < s < largest and s not in measured), None)

    step: float | None = largest
    strength, reached = largest, True
    while step is not None:
        measure_at(step)
        strength, reached, step = largest, True, None
        if effect is not None and (step := next_strength(effect)) is None:
            reached = curve(effect)[largest] <= 0
            strength = 0.0 if curve(effect)[0.0] <= 0 else (crossing(effect) or (0.0, largest))[1]
            if not reached and damage is None:
                raise LineasError(
                    f"'{effect.text}' is not reached: at strength {largest:g} {effect.measure} is "
                    f"{effect.value_text(measured[largest])}, untouched {effect.value_text(untouched)}; allow a larger "
                    "strength, or ask for a smaller effect."
                )
        if step is None and damage is not None and not (reached and curve(damage)[strength] <= 0):
            step = next_strength(damage)
            strength, reached = (crossing(damage) or (largest, largest))[0], effect is None
    fitted = {}
    for goal in goals:
        over = curve(goal)[strength]
        fitted[goal.measure] = goal.bound_for(untouched) + (over if goal.below else -over)
    return SearchResult(strength, reached, [{"strength": s, **measured[s]} for s in sorted(measured)], fitted)


def growing(values: Sequence[float]) -> list[float]:
    """Return the numbers nearest to the values that never decrease: isotonic least squares by pooling.

    >>> growing([1.0, 3.0, 2.0, 4.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, int]] = []  # the mean of neighbours, and their number
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [value for value, count in pools for _ in range(count)]


def _check(effect: Any, damage: Any, largest: Any, tolerance: Any) -> None:
    if effect is None and damage is None:
        raise LineasError("calibrating needs a goal: an effect to reach, or a damage not to exceed.")
    for name, goal in (("effect", effect), ("damage", damage)):
        if goal is not None and not isinstance(goal, Goal):
            raise LineasError(f"the {name} is a Goal, such as Goal.{name}('toxic-50%'), not {goal!r}.")
    for name, number in (("largest", largest), ("tolerance", tolerance)):
        as_number(number, name)
    if not 0 < tolerance < largest:
        raise LineasError(
            f"the tolerance is above 0 and below the largest strength, not {tolerance:g} with {largest:g}."
        )
