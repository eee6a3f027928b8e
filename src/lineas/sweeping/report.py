"""The table in Markdown and the plot of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lineas.errors import LineasError
from lineas.measures import LEARNED, Measure, first_of, measure
from lineas.printable import as_label, in_markdown
from lineas.reporting.plots import FAR_APART, figure_of, in_a_plot, save_figure
from lineas.sweeping.jobs import UNTOUCHED
from lineas.sweeping.summary import Line


def markdown(lines: Sequence[Line], chosen: Line | None, about: str) -> str:
    """Return the table in Markdown, with a text below it."""
    names = [name for name in dict.fromkeys(name for line in lines for name in line.values) if name not in LEARNED]
    names = [name for name in names if measure(name).role != "variety"]
    head = ["", "support", "sites", *map(in_markdown, names), "share of the effect", "cost", "unmet", "seconds"]
    table = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for line in lines:
        cells = [f"**{in_markdown(line.label)}**" if line == chosen else in_markdown(line.label)]
        cells += [_support(line), _number(line, "sites")]
        for name in names:
            value, deviation = line.values.get(name), line.deviations.get(name)
            cells.append("" if value is None else measure(name).text(value, deviation))
        cells += ["" if line.share is None else f"{100 * line.share:.0f} %"]
        cells += [_number(line, name) for name in ("cost", "unmet", "seconds")]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join([*table, "", in_markdown(about), ""])


def plot(lines: Sequence[Line], path: Path, effect: str | None = None) -> Path:
    """Draw effect, damage and cost over the support into a PNG, one curve for each method; refitted ones are dotted.

    By default the effect is the first one that was measured.
    """
    rows = [line.values for line in lines]
    main_effect, damage = measure(effect) if effect else first_of("effect", rows), first_of("damage", rows)
    panels = [*(one for one in (main_effect, damage) if one is not None), Measure("cost", "cost")]
    drawn = [line for line in lines if line.values.get("support", 0) > 0]
    if not drawn:
        raise LineasError("no intervention changes a neuron, so there is nothing to draw.")
    figure, axes = figure_of(len(panels))
    untouched = next((line for line in lines if line.method == UNTOUCHED), None)
    curves: dict[tuple[str, bool, float], list[Line]] = {}
    for line in drawn:
        curves.setdefault((line.method, line.refit, line.strength), []).append(line)
    for axis, one in zip(axes, panels):
        name = one.name
        for (method, refit, strength), curve in curves.items():
            along = sorted((line for line in curve if name in line.values), key=lambda line: line.values["support"])
            x, y = [100 * line.values["support"] for line in along], [one.on_axis(line.values[name]) for line in along]
            bars = [one.on_axis(line.deviations.get(name, 0.0)) for line in along]
            label = method + ", refitted" * refit + (f", at {as_label(strength)}" if strength != 1 else "")
            axis.errorbar(x, y, bars, fmt=":o" if refit else "-o", markersize=4, capsize=2, label=label)
        if untouched is not None and name in untouched.values:
            level = one.on_axis(untouched.values[name])
            axis.axhline(level, color="#888888", linestyle="--", linewidth=1, label=UNTOUCHED)
        values = [line.values[name] for line in drawn if line.values.get(name, 0) > 0]
        if values and max(values) > FAR_APART * min(values) and one.unit != "share":
            axis.set_yscale("log")
        axis.set(title=in_a_plot(one.axis), xlabel="neurons touched, %", xscale="log")
        axis.xaxis.set_major_formatter("{x:g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    save_figure(figure, path)
    return path


def _support(line: Line) -> str:
    if "support" not in line.values:
        return ""
    deviation = f" ± {100 * line.deviations['support']:.2g}" if "support" in line.deviations else ""
    return f"{100 * line.values['support']:.2f} %{deviation}"


def _number(line: Line, name: str) -> str:
    if name not in line.values:
        return ""
    deviation = f" ± {line.deviations[name]:.2g}" if line.deviations.get(name) else ""
    return f"{line.values[name]:.4g}{deviation}"
