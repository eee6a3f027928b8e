"""Plots of evaluations (effect against damage, by strength) and of learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lineas.errors import LineasError, needing
from lineas.evaluation.results import Row
from lineas.files.ownership import written_by
from lineas.files.writing import new_file
from lineas.intervention.intervention import Intervention
from lineas.measures import measure
from lineas.printable import as_label, in_a_line
from lineas.reporting.colours import CURVES, UNTOUCHED
from lineas.reporting.neurons import site_sizes
from lineas.reporting.texts import Place, free_boxes

FAR_APART = 10
"""Ratio of perplexities from which the axis is logarithmic."""
FONT = 12
"""Size of the letters in points; 12 pixels if a page shows the picture 860 pixels wide."""
MARKERS = "osD^vP"
"""Marks of the points, which distinguish curves without colour."""


def in_a_plot(text: str) -> str:
    """Return a text for matplotlib: in one line, without mathematics, and visible in the legend.

    >>> in_a_plot("a$b"), in_a_plot("_hidden")
    ('a\\\\$b', ' _hidden')
    """
    text = in_a_line(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def plot_effect_and_damage(rows: Sequence[Row], path: Path, effect: str = "toxic", damage: str = "perplexity") -> Path:
    """Write a PNG of effect against damage, a curve for each system, and of both over strength; return its path."""
    figure, (judged, effects, damages) = figure_of(3)
    whole = [row for row in rows if effect in row.values and damage in row.values]
    if not whole:
        raise LineasError(f"no row has both {effect} and {damage}, so there is nothing to draw.")
    untouched = next((row for row in whole if row.strength == 0), None)
    wanted, spared, drawn = measure(effect), measure(damage), []
    names = list(dict.fromkeys(row.system for row in whole))
    for name in names:
        curve = sorted((row for row in whole if row.system == name), key=lambda row: row.strength)
        if untouched is not None and curve[0].strength > 0 and len(curve) > 1:
            curve = [untouched, *curve]
        strengths = [row.strength for row in curve]
        x, y = [wanted.on_axis(row.values[effect]) for row in curve], [row.values[damage] for row in curve]
        style = {"color": UNTOUCHED, "marker": "o", "zorder": 5} if curve == [untouched] else {}
        judged.plot(x, y, label=in_a_plot(name), clip_on=False, **style)
        for axis, one, values in ((effects, wanted, x), (damages, spared, y)):
            (line,) = axis.plot(strengths, values, **style)
            ends = [[one.on_axis(end) for end in row.intervals.get(one.name, (math.nan,) * 2)] for row in curve]
            axis.fill_between(strengths, *zip(*ends), color=line.get_color(), alpha=0.12, linewidth=0)
        drawn.append((list(zip(x, y)), [as_label(row.strength) for row in curve]))
    across, up = in_a_plot(wanted.axis), in_a_plot(spared.axis)
    judged.set(title="Effect and damage, by strength", xlabel=across, ylabel=up, xlim=(0, None))
    effects.set(title="Effect over strength", xlabel="strength", ylabel=across, ylim=(0, None))
    damages.set(title=f"{in_a_plot(spared.label.capitalize())} over strength", xlabel="strength", ylabel=up)
    values = [row.values[damage] for row in whole if row.values[damage] > 0]
    if values and max(values) > FAR_APART * min(values):
        judged.set_yscale("log")
        damages.set_yscale("log")
    figure.legend(handles=judged.lines, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    annotate(judged, [points for points, _ in drawn], [text for _, texts in drawn for text in texts])
    save_figure(figure, path)
    return path


def plot_learned(intervention: Intervention, rows: Sequence[Row], path: Path) -> Path:
    """Write a PNG of the cost while learning, of where the change sits, and of effect against damage."""
    figure, (learning, where, judged) = figure_of(3)
    cost, maps = intervention.facts.get("cost", []), intervention.maps
    learning.plot(range(1, len(cost) + 1), cost, marker="")
    learning.set(title="Distance to the target", xlabel="step", ylabel="cost", ylim=(0, None))
    layers = [next((part for part in name.split(".") if part.isdigit()), str(i)) for i, name in enumerate(maps)]
    where.bar(range(len(maps)), site_sizes(intervention).values(), color=CURVES[0])
    where.set(title="Where the change sits", xlabel="layer", ylabel="mean of |scale - 1| + |shift|")
    every = max(1, -(-len(layers) // 6))
    where.set_xticks(range(0, len(layers), every), layers[::every])
    points = [(100 * row.values["toxic"], row.values["perplexity"]) for row in rows]
    judged.plot(*zip(*points))
    judged.set(title="Effect and damage, by strength", xlabel="rude continuations, %", ylabel="perplexity")
    judged.set(xlim=(0, None), ylim=(0, 1.2 * max(y for _, y in points)))
    annotate(judged, [points], [as_label(row.strength) for row in rows])
    save_figure(figure, path)
    return path


def figure_of(panels: int) -> tuple[Any, Any]:
    """Return a figure and its axes, side by side."""
    with needing("plots need matplotlib", "plots"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.set_prop_cycle(color=CURVES, marker=[*MARKERS])
        one.tick_params(labelsize=FONT)
        one.locator_params(nbins=5)
    return figure, axes


def annotate(axis: Any, curves: Sequence[Sequence[Place]], texts: Sequence[str]) -> None:
    """Write one text beside each point of curves, if there is space; call it when all limits are set."""
    _enlarge(axis.figure)
    axis.figure.draw_without_rendering()
    places = [[(float(a), float(b)) for a, b in axis.transData.transform(points)] for points in curves]
    letter = FONT * axis.figure.dpi / 72
    boxes = free_boxes(places, texts, 0.65 * letter, letter, axis.bbox.extents)
    for text, box, point, (x, y) in zip(texts, boxes, chain(*curves), chain(*places)):
        if box:
            axis.annotate(text, point, (box[0] - x, box[1] - y), textcoords="offset pixels")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG with the signature of lineas."""
    _enlarge(figure)
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=figure.dpi, format="png", metadata={"Software": written_by()})


def _enlarge(figure: Any) -> None:
    for text in figure.findobj(lambda artist: hasattr(artist, "set_fontsize")):
        text.set_fontsize(FONT)
