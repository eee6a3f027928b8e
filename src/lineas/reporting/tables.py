"""Tables of evaluations, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev
from typing import Any

from lineas.evaluation.measures import PLAIN, SHARES
from lineas.evaluation.results import Evaluation, Row
from lineas.printable import as_label, in_markdown


def columns(rows: Sequence[Row]) -> list[str]:
    """The measures of any row, in the order in which they were taken."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def cell(row: Row, name: str) -> str:
    """A measure with its deviation over seeds and its 95 % interval; "-" where it is missing."""
    if name not in row.values:
        return "-"
    value = row.values[name]
    low, high = row.intervals.get(name, (value, value))
    interval = name in row.intervals
    if name in PLAIN or name.endswith("_score") or row.metrics.get(name, "acc") not in SHARES:
        digits = 1 if name in ("perplexity", "clip_score", "img_score") else 3
        return f"{value:.{digits}f}" + (f" [{low:.{digits}f}, {high:.{digits}f}]" if interval else "")
    by_seed = row.by_seed.get(name, [])
    deviation = f" ± {100 * stdev(by_seed):.1f}" if len(by_seed) > 1 else ""
    return f"{100 * value:.1f} %{deviation}" + (f" [{100 * low:.1f}, {100 * high:.1f}]" if interval else "")


def failures(rows: Sequence[Row]) -> list[str]:
    """What is missing and why, a sentence each."""
    return [
        f"{row.system} at {as_label(row.strength)}, {name}: {why}" for row in rows for name, why in row.errors.items()
    ]


def markdown(evaluation: Evaluation) -> str:
    """The table, one row a system and strength, and what it was measured on."""
    rows, facts = evaluation.rows, evaluation.facts
    names = columns(rows)
    lines = [
        f"| {' | '.join(['system', 'strength', *map(in_markdown, names)])} |",
        f"|{' --- |' * (len(names) + 2)}",
        *(f"| {' | '.join(_cells(row, names))} |" for row in rows),
        "",
        f"{in_markdown(facts['model'])} ({facts['dtype']}), {facts['prompts']['count']} prompts, "
        f"{len(facts['seeds'])} sampling seeds (± deviation over them), {_beside(facts)}; in brackets 95 % intervals.",
    ]
    lines += [f"\nNot measured: {in_markdown(failure)}" for failure in failures(rows)]
    return "\n".join(lines) + "\n"


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    """A row of the table in Markdown."""
    return [in_markdown(row.system), as_label(row.strength), *(cell(row, name) for name in names)]


def _beside(facts: dict[str, Any]) -> str:
    """What else a measurement was made with."""
    if "judge" in facts:
        concept, judge = (in_markdown(str(facts[name])) for name in ("concept", "judge"))
        return f"concept '{concept}' by {judge}, likeness to the untouched picture (img_score)"
    return f"{facts['neutral']['count']} neutral sentences"
