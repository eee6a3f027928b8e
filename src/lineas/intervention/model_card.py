"""The model card of an artifact: what it does, its network, how it was learned, and its measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from lineas.measures import BESIDE, measure, value_text
from lineas.printable import as_code, front_matter, in_a_line, in_markdown

HOW = ("method", "pooling", "seed", "drawing", "data", "versions", "made_by")
"""Facts in the section on how it was made."""


def model_card(description: dict[str, Any]) -> str:
    """Return the README.md of an artifact, of which `description` is the JSON; its front matter is the hub's."""
    model, facts, sites = description["model"], description["facts"], description["sites"]
    touched = [site for site in sites if site["touched"]]
    on_the_hub = model and model["name"].count("/") == 1
    title = in_markdown(str(facts.get("name", "An intervention")))
    lines = [
        *front_matter("lineas", model["name"] if on_the_hub else None, title, _results(facts)),
        "",
        f"# {title}",
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
    lines += effect_and_damage(facts)
    if damage := damage_learned(facts):
        lines += [f"{damage.capitalize()}.", ""]
    if "calibration" in facts:
        calibration = facts["calibration"]
        named = [name for name in ("effect", "damage") if name in calibration]
        goals = ", ".join(f"{name} {in_markdown(str(calibration[name]))}" for name in named)
        missed = "" if calibration.get("reached", True) else "; not reached"
        strength = f"**{calibration['strength']:.3g}** ({goals}{missed})"
        lines += [f'Calibrated strength: {strength}; `steer(..., strength="calibrated")`.', ""]
    origin = {key: facts[key] for key in HOW if key in facts}
    if origin:
        lines += ["## How it was made", "", "```json", json.dumps(origin, indent=1), "```", ""]
    return "\n".join(lines)


def effect_and_damage(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines of Markdown with the measurements among the facts and their judges; none without any."""
    if not facts.get("measurements"):
        return []
    calibration = facts.get("calibration", {})
    judges = [f"{column} by {name}" for column, name in (calibration.get("classifiers") or {}).items()]
    judges += (
        [f"concept {calibration['concept']!r} by {calibration.get('judge')}"] if calibration.get("concept") else []
    )
    said = [f"Judges: {in_markdown('; '.join(judges))}.", ""] if judges else []
    return ["## Effect and damage", "", *_table(facts["measurements"]), "", *said]


def _results(facts: Mapping[str, Any]) -> list[EvalResult]:
    """Return the measurements at the calibrated strength as the hub lists them."""
    strength = facts["calibration"]["strength"] if "calibration" in facts else None
    row = next((row for row in facts.get("measurements", []) if row.get("strength") == strength), {})
    task = "text-to-image" if "drawing" in facts else "text-generation"
    labels = {name: in_a_line(measure(name).label) for name in row if strength is not None and name not in BESIDE}
    prompts = "the prompts of the calibration"  # which no dataset of the hub needs to be
    return [
        EvalResult(task, "unknown", prompts, in_a_line(name), row[name], metric_name=label)
        for name, label in labels.items()
    ]


def unfinished(facts: Mapping[str, Any]) -> str | None:
    """Return the steps that were done if learning was interrupted, also that of a combined part; else None.

    >>> unfinished({"of": [{}, {"interrupted": {"done": 4, "of": 20}}]})
    '4 of 20 steps'
    """
    here = facts.get("interrupted")
    if isinstance(here, dict):
        return f"{here.get('done')} of {here.get('of')} steps"
    parts = (part for part in facts.get("of") or () if isinstance(part, dict))
    return next((steps for part in parts if (steps := unfinished(part)) is not None), None)


def recipe(facts: Mapping[str, Any]) -> str:
    """Return the method and its settings in one line; the facts must have a method."""
    settings = [f"{key} {value}" for key, value in facts["method"].items() if key != "name" and value is not None]
    settings.append(f"seed {facts.get('seed')}")
    settings += ["pooled by the largest"] if facts.get("pooling") == "max" else []
    return f"{facts['method']['name']}: {', '.join(settings)}"


def damage_learned(facts: Mapping[str, Any]) -> str | None:
    """Return the sentence on the divergence that was measured while learning; None if none was.

    >>> damage_learned({"divergence": 0.02987})
    'divergence from the untouched model at strength 1: 0.0299 nats a token on the neutral text of learning'
    """
    if not isinstance(divergence := facts.get("divergence"), (int, float)):
        return None
    unit = "of the denoiser's mean square" if "drawing" in facts else "nats a token"
    return f"divergence from the untouched model at strength 1: {divergence:.3g} {unit} on the neutral text of learning"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of measurements, one row per strength."""
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
