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
        below: True if the value must be at most the bound, False if it must be at least the bound.
        bound: bound as a value, or as a factor of the untouched model's value if `relative`.
        relative: whether the bound is a factor.
        text: goal as the user wrote it.

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
        """Return the effect to reach that a text names.

        "toxic-50%" is at most half of the untouched model's share; "concept>=80%" is a share of at least 0.8.

        Raises:
            LineasError: when the text is no goal.

        >>> Goal.effect("toxic-50%").met({"toxic": 0.1}, {"toxic": 0.3})
        True
        """
        return cls._read(text, reached=True)

    @classmethod
    def damage(cls, text: str) -> Goal:
        """Return the damage not to exceed that a text names.

        "ppl+5%" is at most 1.05 times the untouched model's perplexity; "likeness>=95%" is at least 95 %.

        Raises:
            LineasError: when the text is no goal.

        >>> Goal.damage("ppl+5%").met({"perplexity": 21.5}, {"perplexity": 20.0})
        False
        """
        return cls._read(text, reached=False)

    @classmethod
    def _read(cls, text: str, reached: bool) -> Goal:
        if not isinstance(text, str):
            raise LineasError(f"a goal is a text such as 'toxic-50%', not {text!r}.")
        number = r"((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
        absolute = re.fullmatch(rf"\s*(\w+)\s*(<=|>=)\s*{number}\s*(%?)\s*", text)
        relative = re.fullmatch(rf"\s*(\w+)\s*([+-])\s*{number}\s*%\s*", text)
        match = absolute or relative
        if match is None:
            raise LineasError(
                f"'{shortened(text)}' is no goal; write NAME-50% or NAME+5% for a change, NAME<=0.02 or NAME>=80% for "
                "a value."
            )
        one, size = measure_of(match[1]), float(match[3])
        if not math.isfinite(size):
            raise LineasError(f"'{shortened(text)}' is no finite number, so it bounds nothing.")
        if absolute:
            is_share = match[4] and one.unit not in ("percent", "points")
            return cls(one.name, match[2] == "<=", size / (100 if is_share else 1), False, text)
        change = size / 100 * (1 if match[2] == "+" else -1)
        if change < -1:
            raise LineasError(f"'{text}' is not possible; a measure can fall by 100 % at most.")
        return cls(one.name, (match[2] == "-") == reached, 1 + change, True, text)

    def bound_for(self, untouched: Mapping[str, float]) -> float:
        """Return the bound as a value of the measure, for these values of the untouched model."""
        return self.bound * untouched[self.measure] if self.relative else self.bound

    def excess(self, values: Mapping[str, float], untouched: Mapping[str, float]) -> float:
        """Return by how much values exceed the bound; 0 or less if they meet the goal."""
        over = values[self.measure] - self.bound_for(untouched)
        return over if self.below else -over

    def met(self, values: Mapping[str, float], untouched: Mapping[str, float]) -> bool:
        """Return whether values meet the goal."""
        return self.excess(values, untouched) <= 0

    def value_text(self, values: Mapping[str, float]) -> str:
        """Return the value of the measure with its unit, for people."""
        return measure_of(self.measure).text(values[self.measure])
