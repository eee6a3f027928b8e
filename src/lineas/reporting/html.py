"""The page: sections of what is known, in one file without anything from elsewhere, in light and in dark."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from lineas.files.ownership import written_by
from lineas.intervention import model_card
from lineas.intervention.intervention import Intervention
from lineas.measures import Measure, first_of, value_text
from lineas.printable import as_label, printable
from lineas.reporting import charts
from lineas.reporting.neurons import Neuron, by_layer, overlap


@dataclass(frozen=True)
class Content:
    """The content of a page.

    Args:
        interventions: interventions by name.
        neurons: the largest neurons of each, by name.
        curves: rows of measurements of each, by name; every row has a "strength", and 0 is the untouched model.
        samples: prompts of each with the texts by strength, by name.
        strips: one picture (PIL) of the samples of each, by name, for image models.
    """

    interventions: Mapping[str, Intervention]
    neurons: Mapping[str, Sequence[Neuron]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    samples: Mapping[str, Sequence[tuple[str, Mapping[str, str]]]] = field(default_factory=dict)
    strips: Mapping[str, Any] = field(default_factory=dict)


def page(content: Content) -> str:
    """Return the whole page."""
    environment = Environment(
        loader=PackageLoader("lineas.reporting", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    these = content.interventions
    costs = {name: list(enumerate(one.facts.get("cost", []), 1)) for name, one in these.items()}
    return environment.get_template("report.html.jinja").render(
        written_by=written_by(),
        heads=[_head(name, one) for name, one in these.items()],
        learning=charts.lines({name: cost for name, cost in costs.items() if len(cost) > 1}, "step", "cost"),
        judged=_judged(content.curves),
        samples=content.samples,
        strips={name: _png(picture) for name, picture in content.strips.items()},
        where=[(name, by_layer(one)) for name, one in these.items()],
        neurons={name: ones for name, ones in content.neurons.items() if ones},
        overlap=[[overlap(one, other) for other in these.values()] for one in these.values()] if len(these) > 1 else [],
    )


def _shown(value: Any) -> Any:
    """Return what the template puts in, with control characters shown; it is escaped after this."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _head(name: str, intervention: Intervention) -> dict[str, str]:
    """What is said first and last of an intervention."""
    facts, maps = intervention.facts, intervention.maps
    touched = sum(not m.is_identity() for m in maps.values())
    neurons = sum(int(m.support().sum()) for m in maps.values())
    said = [
        f"{neurons} of {sum(m.width for m in maps.values())} neurons ({intervention.support():.2%}) at {touched} of "
        f"{len(maps)} sites are changed."
    ]
    if intervention.gates:
        said.append(f"Gated at {len(intervention.gates)} sites: each token gets its own share of the change.")
    if intervention.base:
        said.append(f"Learned on {intervention.base.name} ({intervention.base.architecture}).")
    if "method" in facts:
        said.append(f"{model_card.recipe(facts)}.")
    if "calibration" in facts:
        said.append(f"Calibrated strength {facts['calibration']['strength']:.3g}.")
    made = {key: value for key, value in facts.items() if key not in ("cost", "folds", "measurements")}
    return {"name": name, "said": " ".join(said), "made": json.dumps(made, indent=1, ensure_ascii=False, default=str)}


def _judged(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Effect against damage, both over the strength, and everything as a table."""
    rows = [(name, row) for name, curve in curves.items() for row in curve]
    effect, damage = (first_of(role, (row for _, row in rows)) for role in ("effect", "damage"))
    if effect is None and damage is None:
        return None

    def series(x: Measure | None, y: Measure) -> dict[str, list[tuple[float, float]]]:
        across = "strength" if x is None else x.name
        return {
            name: [
                (float(row[across]) if x is None else x.on_axis(row[across]), y.on_axis(row[y.name]))
                for row in curve
                if across in row and y.name in row
            ]
            for name, curve in curves.items()
        }

    drawn = []
    if effect and damage:
        notes = None
        if len(curves) == 1:
            (only,) = curves.values()
            whole = [row for row in only if effect.name in row and damage.name in row]
            notes = [as_label(row["strength"]) if "strength" in row else "" for row in whole]
        drawn.append(charts.lines(series(effect, damage), effect.axis, damage.axis, zero=False, notes=notes))
    drawn += [charts.lines(series(None, m), "strength", m.axis, m is effect) for m in (effect, damage) if m]
    columns = list(dict.fromkeys(key for _, row in rows for key in row if isinstance(row[key], (int, float))))
    cells = [(name, [value_text(row, column) for column in columns]) for name, row in rows]
    return {"charts": drawn, "columns": columns, "rows": cells}


def _png(picture: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
