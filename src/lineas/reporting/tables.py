"""Tables of evaluations, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import stdev
from typing import Any

from lineas.evaluation.results import Evaluation, Row
from lineas.measures import measure
from lineas.printable import as_label, in_markdown

NEARLY_ALL, NEARLY_NONE = 0.95, 0.01
"""A judge says yes to nearly everything from the first share on, and no up to the second."""


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the measures of all rows, in the order in which they were taken."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def cell(row: Row, name: str) -> str:
    """Return a measure with its deviation over seeds and its 95 % interval; "-" if it is missing."""
    if name not in row.values:
        return "-"
    one, by_seed = measure(name, row.metrics.get(name)), row.by_seed.get(name, [])
    spread = stdev(by_seed) if one.unit == "share" and len(by_seed) > 1 else None
    return one.text(row.values[name], spread, row.intervals.get(name))


def failures(rows: Sequence[Row]) -> list[str]:
    """Return one sentence for each measure that failed."""
    return [
        f"{row.system} at {as_label(row.strength)}, {name}: {why}" for row in rows for name, why in row.errors.items()
    ]


def saturated(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one sentence for each judge that says yes, or no, to nearly everything, also from the untouched model.

    Rows have a "strength"; a judge's share is "concept", or has its score beside it.

    >>> saturated([{"strength": s, "polite": 0.97 + 0.03 * s, "polite_score": 0.9} for s in (0.0, 1.0)])[0][:68]
    'polite: this judge says yes to nearly everything (97.0 % to 100.0 %)'
    """
    rows, sentences = list(rows), []
    for name in dict.fromkeys(name for row in rows for name in row if name == "concept" or f"{name}_score" in row):
        low, high = (end(row[name] for row in rows if name in row) for end in (min, max))
        answer = "yes" if low >= NEARLY_ALL else "no" if high <= NEARLY_NONE else None
        if answer and {0} < {row["strength"] for row in rows if name in row}:  # also at another strength than 0
            between = f"{measure(name).text(low)} to {measure(name).text(high)}"
            begin = f"{measure(name).label}: this judge says {answer} to nearly everything ({between}), also from the"
            sentences.append(f"{begin} untouched model; its numbers tell little.")
    return sentences


def markdown(evaluation: Evaluation) -> str:
    """Return the table, one row for each system and strength, and what it was measured on."""
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
    lines += [f"\n{in_markdown(said)}" for said in saturated({"strength": row.strength, **row.values} for row in rows)]
    lines += [f"\nNot measured: {in_markdown(failure)}" for failure in failures(rows)]
    return "\n".join(lines) + "\n"


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    return [in_markdown(row.system), as_label(row.strength), *(cell(row, name) for name in names)]


def _beside(facts: dict[str, Any]) -> str:
    """Return the sentence on judges and neutral sentences that ends a table."""
    if "judge" in facts:
        concept, judge = (in_markdown(str(facts[name])) for name in ("concept", "judge"))
        return f"concept '{concept}' by {judge}, likeness to the untouched picture (img_score)"
    return f"{facts['neutral']['count']} neutral sentences"
