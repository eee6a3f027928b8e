"""Goals: bounds on one measure, such as "toxic-50%" or "ppl<=30", read from text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from lineas.errors import LineasError
from lineas.measures import measure as measure_of
from lineas.printable import shortened


@dataclass(frozen=True)
class Goal:
    """A bound on one measure, such as "toxic-50%" or "ppl<=30".

    Args:
        measure: name of the measure in a row of values.
        below: True when the value must be at most the bound, False when it must be at least the bound.
        bound: a value, or where `relative`, a factor of the untouched model's value.
        relative: whether the bound is a factor.
        text: the goal as it was given.

    Raises:
        LineasError: when the bound is no finite number.
    """

    measure: str
    below: bool
    bound: float
    relative: bool
    text: str

    def __post_init__(self) -> None:
        if isinstance(self.bound, bool) or not isinstance(self.bound, (int, float)) or not math.isfinite(self.bound):
            raise LineasError(f"the bound of '{self.text}' is no finite number, so it bounds nothing.")

    @classmethod
    def effect(cls, text: str) -> Goal:
        """Read an effect to reach: "toxic-50%" is half of the untouched model's or less, "concept>=80%" a share of 0.8.

        Raises:
            LineasError: when it cannot be read.

        >>> Goal.effect("toxic-50%").met({"toxic": 0.1}, {"toxic": 0.3})
        True
        """
        return cls._read(text, reached=True)

    @classmethod
    def damage(cls, text: str) -> Goal:
        """Read a damage not to exceed: "ppl+5%" is 1.05 times the untouched model's or less, "likeness>=95%" is that.

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

    def bound_for(self, untouched: Mapping[str, float]) -> float:
        """Return the bound as a value of the measure, given the untouched model's values."""
        return self.bound * untouched[self.measure] if self.relative else self.bound

    def excess(self, values: Mapping[str, float], untouched: Mapping[str, float]) -> float:
        """Return how far values are beyond the bound; 0 or less where they keep to it."""
        over = values[self.measure] - self.bound_for(untouched)
        return over if self.below else -over

    def met(self, values: Mapping[str, float], untouched: Mapping[str, float]) -> bool:
        """Return whether values keep to the bound."""
        return self.excess(values, untouched) <= 0

    def value_text(self, values: Mapping[str, float]) -> str:
        """Return the value of the measure as people read it."""
        return measure_of(self.measure).text(values[self.measure])
