"""The strength that does what is wanted: found by bisection on what is measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lineas.errors import LineasError
from lineas.measures import measure as measure_of
from lineas.printable import shortened


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)


@dataclass(frozen=True)
class Goal:
    """A bound on one measure, such as "toxic-50%" or "ppl<=30".

    Args:
        measure: its name in a row of values.
        below: whether the value must be at most the bound, or at least.
        bound: a value, or where `relative`, a factor of the untouched model's.
        relative: which of both.
        text: as it was given.

    Raises:
        LineasError: when the bound is no finite number.
    """

    measure: str
    below: bool
    bound: float
    relative: bool
    text: str

    def __post_init__(self) -> None:
        if not _is_finite(self.bound):
            raise LineasError(f"the bound of '{self.text}' is no finite number, so it bounds nothing.")

    @classmethod
    def effect(cls, text: str) -> Goal:
        """What must be reached: "toxic-50%" is half of the untouched model's or less, "concept>=80%" a share of 0.8.

        Raises:
            LineasError: when it cannot be read.

        >>> Goal.effect("toxic-50%").met({"toxic": 0.1}, {"toxic": 0.3})
        True
        """
        return cls._read(text, reached=True)

    @classmethod
    def damage(cls, text: str) -> Goal:
        """What must not be exceeded: "ppl+5%" is 1.05 times the untouched model's or less, "likeness>=95%" is that.

        Raises:
            LineasError: when it cannot be read.

        >>> Goal.damage("ppl+5%").met({"perplexity": 21.5}, {"perplexity": 20.0})
        False
        """
        return cls._read(text, reached=False)

    @classmethod
    def _read(cls, text: str, reached: bool) -> Goal:
        if not isinstance(text, str):
            raise LineasError(f"a goal is a text such as 'toxic-50%', not {text!r}.")
        number = r"([0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)"
        absolute = re.fullmatch(rf"\s*(\w+)\s*(<=|>=)\s*{number}\s*(%?)\s*", text)
        relative = re.fullmatch(rf"\s*(\w+)\s*([+-])\s*{number}\s*%\s*", text)
        found = absolute or relative
        if found is not None and not math.isfinite(float(found[3])):
            raise LineasError(f"'{shortened(text)}' is no finite number, so it bounds nothing.")
        if found is None:
            raise LineasError(
                f"'{shortened(text)}' is no goal; write NAME-50% or NAME+5% for a change, NAME<=0.02 or NAME>=80% for "
                "a value."
            )
        one = measure_of(found[1])
        name = one.name
        if absolute:
            share = found[4] and one.unit not in ("percent", "points")
            return cls(name, found[2] == "<=", float(found[3]) / (100 if share else 1), False, text)
        change = float(found[3]) / 100 * (1 if found[2] == "+" else -1)
        if change < -1:
            raise LineasError(f"'{text}' asks for less than nothing; a measure can fall by 100 % at most.")
        return cls(name, (found[2] == "-") == reached, 1 + change, True, text)

    def met(self, values: dict[str, float], untouched: dict[str, float]) -> bool:
        """Whether values keep to it."""
        bound = self.bound * untouched[self.measure] if self.relative else self.bound
        value = values[self.measure]
        return value <= bound if self.below else value >= bound


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Args:
        strength: that was found.
        reached: whether it has the effect that was wanted; True where none was.
        curve: everything measured, by strength, the untouched model first.
    """

    strength: float
    reached: bool
    curve: list[dict[str, float]]


def calibrate(
    measure: Callable[[float], dict[str, float]],
    effect: Goal | None = None,
    damage: Goal | None = None,
    largest: float = 1.0,
    tolerance: float = 0.02,
) -> Calibration:
    """The smallest strength that has the effect, unless its damage is too large: then the largest that is not.

    Effect and damage are taken to grow with the strength. Without an effect, the largest strength whose damage is
    within the bound.

    Args:
        measure: from a strength to values by name.
        effect: what is to be reached.
        damage: what is not to be exceeded.
        largest: strength to try.
        tolerance: how near, in strength.

    Raises:
        LineasError: without any goal, for a measure that is not taken, or when the effect is not reached even at the
            largest strength and no bound on the damage says what to do instead; and when the untouched model is beyond
            that bound.
    """
    if effect is None and damage is None:
        raise LineasError("calibrating needs a goal: an effect to reach, or a damage not to exceed.")
    for name, given in (("effect", effect), ("damage", damage)):
        if given is not None and not isinstance(given, Goal):
            raise LineasError(f"the {name} is a Goal, such as Goal.{name}('toxic-50%'), not {given!r}.")
    for name, number in (("largest", largest), ("tolerance", tolerance)):
        if not _is_finite(number):
            raise LineasError(f"{name} is a finite number, not {number!r}.")
    if not 0 < tolerance < largest < math.inf:
        raise LineasError(
            f"the tolerance is above 0 and below the largest strength, not {tolerance:g} with {largest:g}."
        )
    seen: dict[float, dict[str, float]] = {}

    def at(strength: float) -> dict[str, float]:
        if strength not in seen:
            seen[strength] = values = measure(strength)
            for goal in (effect, damage):
                if goal is not None and goal.measure not in values:
                    raise LineasError(f"'{goal.text}' is about {goal.measure}, and measured were {', '.join(values)}.")
        return seen[strength]

    untouched = at(0.0)
    for goal in (effect, damage):
        if goal is not None and goal.relative and untouched[goal.measure] == 0:
            raise LineasError(
                f"'{goal.text}' is relative to the untouched model, whose {goal.measure} is 0 here; give a value, such "
                f"as {goal.measure}<=0.1, or prompts at which it is not."
            )

    if damage is not None and not damage.met(untouched, untouched):
        raise LineasError(
            f"'{damage.text}' does not hold for the untouched model: its {damage.measure} is "
            f"{measure_text(damage, untouched)} here."
        )

    def first(met: Callable[[float], bool]) -> tuple[float, float]:
        """Neighbours within the tolerance, of which the second meets a condition and the first does not."""
        low, high = 0.0, largest
        while high - low > tolerance and low < (middle := (low + high) / 2) < high:
            low, high = (low, middle) if met(middle) else (middle, high)
        return low, high

    within = largest
    if damage is not None and not damage.met(at(largest), untouched):
        within = first(lambda s: not damage.met(at(s), untouched))[0]
    if effect is None:
        strength, reached = within, True
    elif effect.met(at(largest), untouched):
        strength = 0.0 if effect.met(untouched, untouched) else first(lambda s: effect.met(at(s), untouched))[1]
        reached = damage is None or damage.met(at(strength), untouched)
    elif damage is not None:
        strength, reached = within, False
    else:
        raise LineasError(
            f"'{effect.text}' is not reached: at strength {largest:g} {effect.measure} is "
            f"{measure_text(effect, at(largest))}, untouched {measure_text(effect, untouched)}; allow a larger "
            "strength, or a smaller effect."
        )
    if effect is not None and damage is not None and not reached:
        at(within)
        both = [s for s, values in seen.items() if all(goal.met(values, untouched) for goal in (effect, damage))]
        strength, reached = (min(both), True) if both else (within, False)  # measures are noisy: one may do both
    at(strength)
    return Calibration(strength, reached, [{"strength": s, **seen[s]} for s in sorted(seen)])


def measure_text(goal: Goal, values: dict[str, float]) -> str:
    """Return the value of a goal's measure as people read it."""
    return measure_of(goal.measure).text(values[goal.measure])


def told(found: Calibration, effect: Goal | None, damage: Goal | None) -> dict[str, Any]:
    """What an artifact records of it."""
    goals = {name: goal.text for name, goal in (("effect", effect), ("damage", damage)) if goal is not None}
    return {"strength": found.strength, "reached": found.reached, **goals}
