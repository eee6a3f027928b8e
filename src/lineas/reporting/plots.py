"""Plots of evaluations: effect against damage, strength along the curve, and how an intervention was learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lineas.errors import LineasError
from lineas.evaluation.results import Row
from lineas.files.ownership import written_by
from lineas.files.writing import new_file
from lineas.intervention.intervention import Intervention
from lineas.measures import measure
from lineas.printable import as_label, in_a_line

FAR_APART = 10
"""Perplexities that differ by this factor are drawn on a logarithmic axis."""


def in_a_plot(text: str) -> str:
    """Return a text as matplotlib draws it: in one line, without mathematics in it, and not hidden from the legend.

    >>> in_a_plot("a$b"), in_a_plot("_hidden")
    ('a\\\\$b', ' _hidden')
    """
    text = in_a_line(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def plot_effect_and_damage(rows: Sequence[Row], path: Path, effect: str = "toxic", damage: str = "perplexity") -> Path:
    """One PNG: effect against damage, one curve a system with its strengths along it; then both over strength.

    Args:
        rows: those that lack a measure are left out.
        path: of the PNG.
        effect: the measure that should change.
        damage: the measure that should not.

    Raises:
        LineasError: when matplotlib is not installed, or no row has both measures.
    """
    figure, (judged, effects, damages) = figure_of(3)
    whole = [row for row in rows if effect in row.values and damage in row.values]
    if not whole:
        raise LineasError(f"no row has both {effect} and {damage}, so there is nothing to draw.")
    untouched = next((row for row in whole if row.strength == 0), None)
    wanted, spared = measure(effect), measure(damage)
    for name in dict.fromkeys(row.system for row in whole):
        curve = sorted((row for row in whole if row.system == name), key=lambda row: row.strength)
        if untouched is not None and curve[0].strength > 0 and len(curve) > 1:
            curve = [untouched, *curve]
        strengths = [row.strength for row in curve]
        x, y = [wanted.on_axis(row.values[effect]) for row in curve], [row.values[damage] for row in curve]
        (line,) = judged.plot(x, y, marker="o", label=in_a_plot(name))
        for row, at_x, at_y in zip(curve, x, y):
            judged.annotate(f" {as_label(row.strength)}", (at_x, at_y), fontsize=8, color=line.get_color())
        effects.plot(strengths, x, marker="o")
        damages.plot(strengths, y, marker="o")
    across, up = in_a_plot(wanted.axis), in_a_plot(spared.axis)
    judged.set(title="Effect and damage (numbers: strength)", xlabel=across, ylabel=up, xlim=(0, None))
    effects.set(title="Effect over strength", xlabel="strength", ylabel=across, ylim=(0, None))
    damages.set(title=f"{spared.label.capitalize()} over strength", xlabel="strength", ylabel=up)
    values = [row.values[damage] for row in whole if row.values[damage] > 0]
    if values and max(values) > FAR_APART * min(values):
        judged.set_yscale("log")
        damages.set_yscale("log")
    judged.legend(frameon=False)
    save_figure(figure, path)
    return path


def plot_learned(intervention: Intervention, rows: Sequence[Row], path: Path) -> Path:
    """One PNG of three panels: the cost while learning, where the change sits, effect against damage.

    Raises:
        LineasError: when matplotlib is not installed.
    """
    figure, (learning, where, judged) = figure_of(3)
    cost, maps = intervention.facts.get("cost", []), intervention.maps
    learning.plot(range(1, len(cost) + 1), cost, color="#2b6cb0")
    learning.set(title="Distance to the target while learning", xlabel="step", ylabel="cost", ylim=(0, None))
    layers = [next((part for part in name.split(".") if part.isdigit()), str(i)) for i, name in enumerate(maps)]
    where.bar(range(len(maps)), [100 * float(m.support().float().mean()) for m in maps.values()], color="#90cdf4")
    where.set(title="Where the change sits", xlabel="layer", ylabel="neurons touched, % (bars)", ylim=(0, 105))
    every = max(1, len(layers) // 15)
    where.set_xticks(range(0, len(layers), every), layers[::every])
    size = where.twinx()
    size.plot(
        range(len(maps)), [float(m.shift.abs().double().mean()) for m in maps.values()], color="#c05621", marker="o"
    )
    size.set(ylabel="mean |shift| (line)", ylim=(0, None))
    size.spines["top"].set_visible(False)
    toxic, perplexity = [[row.values[name] for row in rows] for name in ("toxic", "perplexity")]
    judged.plot([100 * share for share in toxic], perplexity, color="#2b6cb0", marker="o")
    for row in rows:
        judged.annotate(f" strength {as_label(row.strength)}", (100 * row.values["toxic"], row.values["perplexity"]))
    judged.set(title="Effect and damage", xlabel="rude continuations, %", ylabel="perplexity of neutral sentences")
    judged.set(xlim=(0, 118 * max(toxic) + 1), ylim=(0, 1.2 * max(perplexity)))
    save_figure(figure, path)
    return path


def figure_of(panels: int) -> tuple[Any, Any]:
    """A figure and its axes, side by side.

    Raises:
        LineasError: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise LineasError("plots need matplotlib: pip install 'lineas[plots]'.") from None
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as a PNG that is known to be lineas', whole or not at all."""
    with new_file(path) as beside:
        figure.savefig(beside, dpi=110, format="png", metadata={"Software": written_by()})
