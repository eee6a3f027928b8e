"""The model card of an artifact: what it does, on which network, how it was learned and what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lineas.measures import value_text
from lineas.printable import as_code, front_matter, in_markdown

HOW = ("method", "pooling", "seed", "drawing", "data", "versions", "made_by")
"""Facts that the card says of how it was made."""


def model_card(description: dict[str, Any]) -> str:
    """The README.md of an artifact, from its JSON description; front matter as the hub reads it."""
    model, facts, sites = description["model"], description["facts"], description["sites"]
    touched = [site for site in sites if site["touched"]]
    on_the_hub = model and model["name"].count("/") == 1
    lines = [
        *front_matter("lineas", model["name"] if on_the_hub else None),
        "",
        f"# {in_markdown(str(facts.get('name', 'An intervention')))}",
        "",
        f"Per-neuron affine maps on {len(touched)} of {len(sites)} sites, {description['support']:.2%} of their neurons"
        + (f", learned on {as_code(model['name'])} ({in_markdown(model['architecture'])})." if model else "."),
        "",
        *([f"**Interrupted while learning, after {early}.**", ""] if (early := unfinished(facts)) else []),
        description["operation"],
        "",
        "```python",
        "import lineas",
        f"model = lineas.load({model['name']!r})" if model else "model = lineas.load(...)",
        'with lineas.steer(model, lineas.Intervention.load("THIS FOLDER"), strength=1.0):',
        f"    print(model.generate([{'a prompt' if 'drawing' in facts else 'You always'!r}]))",
        "```",
        "",
    ]
    if facts.get("measurements"):
        lines += ["## Effect and damage", "", *_table(facts["measurements"]), ""]
    if "calibration" in facts:
        found = facts["calibration"]
        goals = ", ".join(f"{name} {in_markdown(str(found[name]))}" for name in ("effect", "damage") if name in found)
        missed = "" if found.get("reached", True) else "; not reached"
        lines += [
            f'Calibrated strength: **{found["strength"]:.3g}** ({goals}{missed}); `steer(..., strength="calibrated")`.',
            "",
        ]
    learned = {key: facts[key] for key in HOW if key in facts}
    if learned:
        lines += ["## How it was made", "", "```json", json.dumps(learned, indent=1), "```", ""]
    return "\n".join(lines)


def unfinished(facts: dict[str, Any]) -> str | None:
    """Return the steps that were done when learning was interrupted, also that of a part; None when it was not.

    >>> unfinished({"of": [{}, {"interrupted": {"done": 4, "of": 20}}]})
    '4 of 20 steps'
    """
    here = facts.get("interrupted")
    if isinstance(here, dict):
        return f"{here.get('done')} of {here.get('of')} steps"
    parts = (part for part in facts.get("of") or () if isinstance(part, dict))
    return next((said for part in parts if (said := unfinished(part)) is not None), None)


def recipe(facts: dict[str, Any]) -> str:
    """A method with its settings, in a line."""
    settings = [f"{key} {value}" for key, value in facts["method"].items() if key != "name" and value is not None]
    settings.append(f"seed {facts.get('seed')}")
    settings += ["pooled by the largest"] if facts.get("pooling") == "max" else []
    return f"{facts['method']['name']}: {', '.join(settings)}"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of measurements, one row a strength."""
    columns = list(rows[0])
    body = [" | ".join(in_markdown(value_text(row, column)) for column in columns) for row in rows]
    head = " | ".join(in_markdown(str(column)) for column in columns)
    return [f"| {head} |", f"|{' --- |' * len(columns)}", *(f"| {row} |" for row in body)]


def is_ours(file: Path) -> bool:
    """Return whether a README.md is a model card of lineas."""
    try:
        return "\nlibrary_name: lineas\n" in file.read_text(encoding="utf-8")[:200]
    except (OSError, ValueError):
        return False
