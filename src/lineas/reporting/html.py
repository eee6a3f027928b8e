"""The HTML page: one self-contained file with a light and a dark theme."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from lineas.files.ownership import written_by
from lineas.intervention import model_card
from lineas.intervention.intervention import Intervention
from lineas.measures import Measure, first_of, measure, value_text
from lineas.printable import as_label, printable
from lineas.reporting import charts, colours
from lineas.reporting.neurons import Neuron, overlap, site_sizes
from lineas.reporting.tables import saturated


@dataclass(frozen=True)
class Content:
    """The content of a page.

    Args:
        interventions: interventions by name.
        neurons: the largest neurons of each, by name.
        curves: rows of measurements of each, by name; every row has a "strength", and 0 is the untouched model. A row
            may have "intervals", both ends by measure.
        samples: prompts of each with the texts by strength, by name.
        strips: one picture (PIL) of the samples of each, by name, for image models.
        sizes: how far the maps of each move their neurons, by name and site, as `site_sizes` returns them for prompts.
    """

    interventions: Mapping[str, Intervention]
    neurons: Mapping[str, Sequence[Neuron]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    samples: Mapping[str, Sequence[tuple[str, Mapping[str, str]]]] = field(default_factory=dict)
    strips: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


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
    order = [*these, *(name for name in content.curves if name not in these)]  # one colour for one name
    costs = {name: list(enumerate(one.facts.get("cost", []), 1)) for name, one in these.items()}
    return environment.get_template("report.html.jinja").render(
        written_by=written_by(),
        heads=[_head(name, one) for name, one in these.items()],
        colours=colours,
        learning=charts.lines({name: cost if len(cost) > 1 else [] for name, cost in costs.items()}, "step", "cost"),
        legend=charts.legend(order),
        judged=_judged({name: content.curves.get(name, ()) for name in order}),
        samples=content.samples,
        strips={name: (_png(picture), picture.width) for name, picture in content.strips.items()},
        where=_where(content),
        digits=_digits,
        font=charts.FONT,
        neurons={name: ones for name, ones in content.neurons.items() if ones},
        overlap=[[overlap(one, other) for other in these.values()] for one in these.values()] if len(these) > 1 else [],
    )


def _shown(value: Any) -> Any:
    """Return a value for the template with its control characters made visible; the template escapes it."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _head(name: str, intervention: Intervention) -> dict[str, str]:
    """Return the first sentences about an intervention, and how it was made."""
    facts, maps = intervention.facts, intervention.maps
    touched = sum(not m.is_identity() for m in maps.values())
    neurons = sum(int(m.support().sum()) for m in maps.values())
    sentences = [
        f"{neurons} of {sum(m.width for m in maps.values())} neurons ({intervention.support():.2%}) at {touched} of "
        f"{len(maps)} sites are changed."
    ]
    if intervention.gates:
        sentences.append(f"Gated at {len(intervention.gates)} sites: each token gets its own share of the change.")
    if intervention.base:
        sentences.append(f"Learned on {intervention.base.name} ({intervention.base.architecture}).")
    if "method" in facts:
        sentences.append(f"{model_card.recipe(facts)}.")
    if damage := model_card.damage_learned(facts):
        sentences.append(f"{damage.capitalize()}.")
    if "calibration" in facts:
        sentences.append(f"Calibrated strength {facts['calibration']['strength']:.3g}.")
    facts = {key: value for key, value in facts.items() if key not in ("cost", "folds", "measurements")}
    return {
        "name": name,
        "said": " ".join(sentences),
        "made": json.dumps(facts, indent=1, ensure_ascii=False, default=str),
    }


def _judged(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """Return the charts of effect and damage, and all measures as a table."""
    rows = [(name, row) for name, curve in curves.items() for row in curve]
    effect, damage = (first_of(role, (row for _, row in rows)) for role in ("effect", "damage"))
    if effect is None and damage is None:
        return None

    def drawn(across: Measure, up: Measure) -> Markup:
        whole = {name: [row for row in curve if {across.name, up.name} <= {*row}] for name, curve in curves.items()}
        flat, is_front = [row for curve in whole.values() for row in curve], across is effect
        spans = [None if is_front else row.get("intervals", {}).get(up.name) for row in flat]
        return charts.lines(
            {
                name: [(across.on_axis(float(row[across.name])), up.on_axis(row[up.name])) for row in curve]
                for name, curve in whole.items()
            },
            across.axis,
            up.axis,
            zero=up is effect,
            notes=[as_label(row["strength"]) if is_front and "strength" in row else "" for row in flat],
            spans=[span and (up.on_axis(span[0]), up.on_axis(span[1])) for span in spans],
            hint="" if up.better == "either" else f" ({up.better} is better)",
        )

    strength = Measure("strength", "strength")
    pairs = [(effect, damage), (strength, effect), (strength, damage)]
    columns = list(dict.fromkeys(key for _, row in rows for key in row if isinstance(row[key], (int, float))))
    return {
        "charts": [drawn(across, up) for across, up in pairs if across and up],
        "front": effect and damage,
        "spans": any(row.get("intervals") for _, row in rows),
        "saturated": saturated(row for _, row in rows),
        "columns": [measure(column).label for column in columns],
        "rows": [(name, [value_text(row, column) for column in columns]) for name, row in rows],
    }


def _where(content: Content) -> dict[str, Any]:
    """Return for each site its name, and for each intervention the relative size, the size and the neurons."""
    these = content.interventions
    sizes = {name: content.sizes.get(name) or site_sizes(one) for name, one in these.items()}
    sites = list(dict.fromkeys(site for one in these.values() for site in one.maps))
    kinds = [re.sub(r"\d+", "*", site) for site in sites]
    sites = [site for _, site in sorted(zip(kinds, sites), key=lambda pair: kinds.index(pair[0]))]
    rows = []
    for site in sites:
        cells = []
        for by_site, map_ in ((sizes[name], one.maps.get(site)) for name, one in these.items()):
            size = by_site.get(site, 0.0)
            touched = f"{int(map_.support().sum())} of {map_.width}" if map_ else ""
            share = size / (max(by_site.values()) or 1.0)
            cells.append((share, _digits(size) if map_ else "", "all" if map_ and map_.support().all() else touched))
        rows.append((site, cells))
    return {
        "rows": rows,
        "by_prompts": bool(content.sizes),
        "is_sparse": any(one.support() < 1 for one in these.values()),
    }


def _digits(number: float, start: float = 0) -> str:
    """Return a number with three digits, or with up to eight, until it differs from `start`.

    >>> _digits(0.000123456), _digits(1.234567, 1), _digits(1.000012, 1), _digits(1.0, 1)
    ('0.000123', '1.23', '1.00001', '1')
    """
    texts = [f"{number:.{digits}g}" for digits in range(3, 9)]
    return next((text for text in texts if float(text) != start), texts[0])


def _png(picture: Any) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
