"""What a sweep says: a line a method and gamma, the sparsest one that does the job, a table and a plot."""

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
    """A method at a gamma and a strength, over seeds.

    Args:
        method: its name.
        gamma: None where the method has none.
        refit: whether its support was learned once more without a penalty.
        strength: at which it was judged.
        seeds: how many there are.
        values: means over seeds: support (0 to 1), sites touched, cost, unmet (see `learning.gamma_path`), steps,
            seconds, and everything measured.
        deviations: over seeds, of the same, where there are several.
        share: of the largest effect that any line has, what this one has, below 0 where it has the opposite one; None
            without a measure of effect.
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
        """As it stands in tables."""
        gamma = "" if self.gamma is None else f" {as_label(self.gamma)}"
        strength = "" if self.strength == 1 else f" at {as_label(self.strength)}"
        return f"{self.method}{gamma}{' refitted' if self.refit else ''}{strength}"


def effect_of(rows: Sequence[dict[str, Any]]) -> str | None:
    """The measure that should change: the concept or toxicity, where there is one."""
    found = first_of("effect", (row["values"] for row in rows))
    return None if found is None else found.name


def aim_of(effect: str) -> tuple[str, int]:
    """The name of a measure, and whether it should rise (1), fall (-1), or either (0).

    >>> aim_of("toxic_score"), aim_of("+toxic"), aim_of("concept")
    (('toxic_score', -1), ('toxic', 1), ('concept', 0))
    """
    one = measure(effect.removeprefix("+"))
    return one.name, 1 if effect.startswith("+") else {"lower": -1, "higher": 1, "either": 0}[one.better]


def summary(rows: Sequence[dict[str, Any]], effect: str | None = None) -> list[Line]:
    """Lines of points: the untouched model first, then methods in the order in which they come, by gamma.

    Args:
        rows: the points of all jobs, as their files hold them.
        effect: the measure that should change, with "+" before it where it should rise; by default the share of the
            concept, or of toxic texts, which should fall.
    """
    aimed, aim = aim_of(effect or effect_of(rows) or "")
    kinds = dict.fromkeys(map(_kind, rows))
    lines = []
    for kind in kinds:
        mine = [row for row in rows if _kind(row) == kind]
        found: dict[str, list[float]] = {}
        for row in mine:
            for name, value in ({key: row[key] for key in LEARNED if key in row} | row["values"]).items():
                found.setdefault(name, []).append(value)
        deviations = {name: stdev(values) for name, values in found.items() if len(values) > 1}
        means = {name: mean(values) for name, values in found.items()}
        lines.append(Line(*kind, len(mine), means, deviations))
    untouched = next((line for line in lines if line.method == UNTOUCHED), None)
    changes = [_change(line, untouched, aimed) for line in lines]
    wanted = [change for change in changes if change is not None and change * aim >= 0]
    most = max(wanted, key=abs, default=None)
    shares = [change / most if change is not None and most else None for change in changes]
    return [replace(line, share=share) for line, share in zip(lines, shares)]


def choose(lines: Sequence[Line], tolerance: float) -> Line | None:
    """The line of the smallest support among those whose effect is within a tolerance of the best; the weakest of it.

    Args:
        lines: of `summary`.
        tolerance: 0.2 keeps at least 80 % of the largest effect.
    """
    enough = [line for line in lines if line.share is not None and line.share >= 1 - tolerance]
    learned = [line for line in enough if "support" in line.values]
    return min(learned, key=lambda line: (line.values["support"], abs(line.strength)), default=None)


def chosen_point(rows: Sequence[dict[str, Any]], line: Line, effect: str) -> dict[str, Any]:
    """Of a line's seeds the one whose effect is nearest to their mean: neither the luckiest nor the unluckiest."""
    mine = [row for row in rows if _kind(row) == (line.method, line.gamma, line.refit, line.strength)]
    return min(mine, key=lambda row: abs(row["values"].get(effect, float("inf")) - line.values[effect]))


def _kind(row: dict[str, Any]) -> tuple[str, float | None, bool, float]:
    """What the points of one line share."""
    return row["method"], row["gamma"], row["refit"], row["strength"]


def _change(line: Line, untouched: Line | None, effect: str) -> float | None:
    if untouched is None or effect not in line.values or effect not in untouched.values:
        return None
    return line.values[effect] - untouched.values[effect]
