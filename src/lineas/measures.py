"""Measures: the meaning of each number of an evaluation, its unit, and which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["share", "percent", "points", "number"]
Role = Literal["effect", "damage", "variety"]
Better = Literal["higher", "lower", "either"]
SHARES = ("acc", "acc_norm", "exact_match", "em", "f1", "mcc")
"""The metrics of lm-eval that are shares."""


@dataclass(frozen=True)
class Measure:
    """One number of an evaluation.

    Args:
        name: key in rows, in JSON and in goals.
        label: heading for people.
        unit: "share" for 0 to 1, which is written in percent; "percent" for 0 to 100; "points" for 0 to 100
            without a sign; "number" for everything else.
        better: direction that is better; "either" if the user decides.
        role: "effect" if an intervention should change it, "damage" if not, "variety" for the form of continuations.
        digits: number of digits after the decimal point.
        aliases: other names in goals and on the command line.
    """

    name: str
    label: str
    unit: Unit = "number"
    better: Better = "either"
    role: Role = "effect"
    digits: int = 3
    aliases: tuple[str, ...] = ()

    def text(self, value: float, spread: float | None = None, between: tuple[float, float] | None = None) -> str:
        """Return a value with its unit, and the standard deviation and the interval, which are in the same unit.

        >>> measure("toxic").text(0.058), measure("clip_score").text(25.1), measure("ppl").text(20.04, 0.31)
        ('5.8 %', '25.1', '20.0 ± 0.3')
        >>> measure("toxic").text(0.058, between=(0.02, 0.1))
        '5.8 % [2.0, 10.0]'
        """
        factor, unit = (100, " %") if self.unit == "share" else (1, "")
        digits = 1 if self.unit == "share" else self.digits
        number = f"{factor * value:.{digits}f}{unit}"
        if spread is not None:
            number += f" ± {factor * spread:.{digits}f}"
        if between is not None:
            number += f" [{factor * between[0]:.{digits}f}, {factor * between[1]:.{digits}f}]"
        return number

    @property
    def axis(self) -> str:
        """The label of an axis, with its unit."""
        return self.label if self.unit in ("number", "points") else f"{self.label}, %"

    def on_axis(self, value: float) -> float:
        """Return a value in the unit of the axis."""
        return 100 * value if self.unit == "share" else value


LEARNED = ("support", "sites", "cost", "unmet", "seconds", "steps")
"""Numbers about learning."""
BESIDE = ("strength", "seed", "gamma", *LEARNED)
"""Numbers beside measures in a row."""
KNOWN = (
    Measure("concept", "concept", "share"),
    Measure("clip_score", "CLIPScore", "points", digits=1),
    Measure("toxic", "toxic", "share", "lower", aliases=("toxicity",)),
    Measure("toxic_score", "mean toxicity", better="lower"),
    Measure("perplexity", "perplexity", better="lower", role="damage", digits=1, aliases=("ppl",)),
    Measure("img_score", "likeness", "percent", "higher", "damage", 1, ("likeness",)),
    Measure("kl", "divergence", better="lower", role="damage"),
    Measure("distinct_1", "distinct 1-grams", better="higher", role="variety"),
    Measure("distinct_2", "distinct 2-grams", better="higher", role="variety"),
    Measure("distinct_3", "distinct 3-grams", better="higher", role="variety"),
    Measure("repetition", "repetition", better="lower", role="variety"),
    Measure("empty", "empty", better="lower", role="variety"),
)
_BY_NAME = {name: one for one in KNOWN for name in (one.name, *one.aliases)}


def measure(name: str, metric: str | None = None) -> Measure:
    """Return the measure of a name: a known one, the column of a classifier, or a task of lm-eval.

    Args:
        name: name or alias, such as "perplexity" or "ppl".
        metric: metric of the task, such as "acc"; None for other measures.

    >>> measure("likeness").name, measure("polite").unit, measure("polite_score").unit, measure("mmlu", "acc").role
    ('img_score', 'share', 'number', 'damage')
    """
    if metric is not None:
        return Measure(name, name, "share" if metric in SHARES else "number", "either", "damage")
    if name in _BY_NAME:
        return _BY_NAME[name]
    return Measure(name, name.replace("_", " "), "number" if name.endswith("_score") else "share")


def first_of(role: Role, rows: Iterable[Mapping[str, Any]]) -> Measure | None:
    """Return the most important measure of a role in rows of values: a share before a score.

    >>> first_of("effect", [{"perplexity": 20.0, "polite_score": 0.4, "polite": 0.5}]).name
    'polite'
    >>> first_of("effect", [{"perplexity": 20.0, "mmlu": 0.25}])
    """
    found = [one for row in rows for name in row if (one := _in_row(name, row)) is not None and one.role == role]
    order = {one.name: i for i, one in enumerate(KNOWN)}
    return min(found, key=lambda one: (role == "effect" and one.unit != "share", order.get(one.name, 99)), default=None)


def value_text(row: Mapping[str, Any], name: str) -> str:
    """Return one number of a row with its unit, or "" if it is missing; an unknown measure has four digits.

    >>> row = {"strength": 0.5, "toxic": 0.058, "polite": 0.25, "polite_score": 0.3, "some_task": 25.125}
    >>> [value_text(row, name) for name in row]
    ['0.5', '5.8 %', '25.0 %', '0.300', '25.12']
    """
    value = row.get(name, "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    one = _in_row(name, row)
    return f"{value:.4g}" if one is None else one.text(value)


def _in_row(name: str, row: Mapping[str, Any]) -> Measure | None:
    """Return the measure of this name in a row, or None; the share of a classifier has its score beside it."""
    if name in BESIDE:
        return None
    is_known = name in _BY_NAME or name.endswith(("_score", "_share")) or f"{name}_score" in row
    return measure(name) if is_known else None
