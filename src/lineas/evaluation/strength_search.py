"""The search for a strength: bisection on curves that only grow, fitted to noisy measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lineas.errors import LineasError
from lineas.evaluation.goals import Goal

Values = dict[str, float]
"""By name, what was measured at a strength."""


@dataclass(frozen=True)
class Found:
    """The strength that a search found.

    Args:
        strength: the strength.
        reached: whether the fitted curve has the wanted effect there; True where none was wanted.
        curve: everything measured, by strength, the untouched model first.
        fitted: by measure of a goal, the value of the fitted curve at the strength.
    """

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
) -> Found:
    """Find the smallest strength that has an effect, or the largest that does not damage too much, by bisection.

    Measures are noisy, and effect and damage grow with the strength. So what decides is not one measurement but the
    curve through all of them that is nearest to them and only grows (isotonic regression, Barlow et al. 1972), and the
    next strength lies between the neighbours where that curve passes the goal.

    Args:
        measure: from a strength to values by name.
        effect: what is to be reached.
        damage: what is not to be exceeded.
        largest: largest strength to try.
        tolerance: how exactly the strength is found.

    Raises:
        LineasError: without any goal, for a measure that is not taken, or when the effect is not reached even at the
            largest strength and no bound on the damage says what to do instead; and when the untouched model is beyond
            that bound.
    """
    _check(effect, damage, largest, tolerance)
    seen: dict[float, Values] = {}
    goals = [goal for goal in (effect, damage) if goal is not None]

    def look(strength: float) -> None:
        seen[strength] = values = measure(strength)
        for goal in goals:
            if goal.measure not in values:
                raise LineasError(f"'{goal.text}' is about {goal.measure}, and measured were {', '.join(values)}.")

    look(0.0)
    untouched = seen[0.0]
    for goal in goals:
        if goal.relative and untouched[goal.measure] == 0:
            raise LineasError(
                f"'{goal.text}' is relative to the untouched model, whose {goal.measure} is 0 here; give a value, such "
                f"as {goal.measure}<=0.1, or prompts at which it is not."
            )
    if damage is not None and not damage.met(untouched, untouched):
        raise LineasError(
            f"'{damage.text}' does not hold for the untouched model: its {damage.measure} is "
            f"{damage.value_text(untouched)} here."
        )

    def curve(goal: Goal) -> tuple[list[float], list[float]]:
        """Return the strengths seen, and how far the fitted curve is beyond the goal at each."""
        at = sorted(seen)
        excess = [goal.excess(seen[s], untouched) for s in at]
        return at, growing(excess) if goal is damage else [-e for e in growing([-e for e in excess])]

    def gap(goal: Goal) -> tuple[float, float] | None:
        """Return the neighbours between which the curve passes the goal; None where it does not."""
        at, beyond = curve(goal)
        return next(((a, b) for a, b, x, y in zip(at, at[1:], beyond, beyond[1:]) if (x > 0) != (y > 0)), None)

    def middle(goal: Goal) -> float | None:
        """Return the strength to look at next; None where the place is found.

        One lucky measurement decides nothing: two strengths further on must agree with it, on the curve.
        """
        if (found := gap(goal)) is None:
            return None
        low, high = found
        half = (low + high) / 2
        if high - low > tolerance and low < half < high:
            return half
        further = [high + k * tolerance if goal is effect else low - k * tolerance for k in (1, 2)]
        return next((s for s in further if 0 < s < largest and s not in seen), None)

    def holds(goal: Goal, strength: float) -> bool:
        at, beyond = curve(goal)
        return beyond[at.index(strength)] <= 0

    look(largest)
    while True:
        strength, reached = largest, True
        if effect is not None:
            step = middle(effect)
            reached = holds(effect, largest)
            strength = 0.0 if holds(effect, 0.0) else (gap(effect) or (0.0, largest))[1]
            if step is None and not reached and damage is None:
                raise LineasError(
                    f"'{effect.text}' is not reached: at strength {largest:g} {effect.measure} is "
                    f"{effect.value_text(seen[largest])}, untouched {effect.value_text(untouched)}; allow a larger "
                    "strength, or a smaller effect."
                )
            if step is not None:
                look(step)
                continue
        if damage is not None and not (reached and holds(damage, strength)):
            step = middle(damage)
            if step is not None:
                look(step)
                continue
            strength, reached = (gap(damage) or (largest, largest))[0], effect is None
        break
    fitted = {}
    for goal in goals:
        at, beyond = curve(goal)
        over = beyond[at.index(strength)]
        fitted[goal.measure] = goal.bound_for(untouched) + (over if goal.below else -over)
    return Found(strength, reached, [{"strength": s, **seen[s]} for s in sorted(seen)], fitted)


def growing(values: Sequence[float]) -> list[float]:
    """Return the numbers that never fall and are nearest to the given ones: isotonic least squares by pooling.

    Args:
        values: n numbers, in order.

    >>> growing([1.0, 3.0, 2.0, 4.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, int]] = []  # mean and number of neighbours that share it
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [value for value, count in pools for _ in range(count)]


def _check(effect: Any, damage: Any, largest: Any, tolerance: Any) -> None:
    if effect is None and damage is None:
        raise LineasError("calibrating needs a goal: an effect to reach, or a damage not to exceed.")
    for name, given in (("effect", effect), ("damage", damage)):
        if given is not None and not isinstance(given, Goal):
            raise LineasError(f"the {name} is a Goal, such as Goal.{name}('toxic-50%'), not {given!r}.")
    for name, number in (("largest", largest), ("tolerance", tolerance)):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise LineasError(f"{name} is a finite number, not {number!r}.")
    if not 0 < tolerance < largest:
        raise LineasError(
            f"the tolerance is above 0 and below the largest strength, not {tolerance:g} with {largest:g}."
        )
