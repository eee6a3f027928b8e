"""Markdown: tables, and the numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with a title over every column."""
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]
    return "\n".join(lines)


def percent(share: float, digits: int = 0, deviation: float | None = None) -> str:
    """Return a share from 0 to 1 in percent, with its deviation where there is one.

    >>> percent(0.0585, 1), percent(0.88, deviation=0.127)
    ('5.9 %', '88 % ± 13')
    """
    return f"{100 * share:.{digits}f} %" + ("" if deviation is None else f" ± {100 * deviation:.{digits}f}")


def change(gap: dict[str, Any], digits: int = 0, factor: float = 1) -> str:
    """Return a mean difference with its sign, and its deviation, or standard error, where there is one.

    >>> change({"mean": 0.041, "deviation": 0.009}, 1, 100), change({"mean": -2.0, "deviation": None})
    ('+4.1 ± 0.9', '-2')
    """
    error = gap.get("deviation", gap.get("standard_error"))
    return f"{factor * gap['mean']:+.{digits}f}" + ("" if error is None else f" ± {factor * error:.{digits}f}")
