"""What a sweep says: a line a method and gamma, the sparsest one that does the job, a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lineas.errors import LineasError
from lineas.evaluation.report import DAMAGES, EFFECTS, FAR_APART, figure_of, first_taken, in_a_plot, save_figure
from lineas.printable import as_label, in_markdown
from lineas.sweeping.jobs import UNTOUCHED

ALWAYS = ("support", "sites", "cost", "unmet", "seconds", "steps")


@dataclass(frozen=True)
class Line:
    """A method at a gamma and a strength, over seeds.

    Args:
        method: its name.
        gamma: None where the method has none.
        refit: whether its support was learned once more without a penalty.
        strength: at which it was judged.
        seeds: how many there are.
        values: means over seeds: support (0 to 1), sites touched, cost, unmet (see `learning.paths`), steps, seconds,
            and everything measured.
        deviations: over seeds, of the same, where there are several.
        share: of the largest effect that any line has, what this one has, below 0 where it has the opposite one; None
            without a measure of effect.
    """

    method: str
    gamma: float | None
    refit: bool
    strength: float
    seeds: int
    values: dict[str, float] = field(default_factory=dict)
    deviations: dict[str, float] = field(default_factory=dict)
    share: float | None = None

    @property
    def label(self) -> str:
        """As it stands in tables."""
        gamma = "" if self.gamma is None else f" {as_label(self.gamma)}"
        strength = "" if self.strength == 1 else f" at {as_label(self.strength)}"
        return f"{self.method}{gamma}{' refitted' if self.refit else ''}{strength}"


def effect_of(rows: Sequence[dict[str, Any]]) -> str | None:
    """The measure that should change: the concept or toxicity, where there is one."""
    return first_taken(EFFECTS, (row["values"] for row in rows))


def aim_of(effect: str) -> tuple[str, int]:
    """The name of a measure, and whether it should rise (1), fall (-1: what is called toxic), or either (0).

    >>> aim_of("toxic_score"), aim_of("+toxic"), aim_of("concept")
    (('toxic_score', -1), ('toxic', 1), ('concept', 0))
    """
    name = effect.removeprefix("+")
    return name, 1 if effect != name else -1 if name.startswith("toxic") else 0


def summary(rows: Sequence[dict[str, Any]], effect: str | None = None) -> list[Line]:
    """Lines of points: the untouched model first, then methods in the order in which they come, by gamma.

    Args:
        rows: the points of all jobs, as their files hold them.
        effect: the measure that should change, with "+" before it where it should rise; by default the share of the
            concept, or of toxic texts, which should fall.
    """
    aimed, aim = aim_of(effect or effect_of(rows) or "")
    kinds = dict.fromkeys(map(_kind, rows))
    lines = []
    for kind in kinds:
        mine = [row for row in rows if _kind(row) == kind]
        found: dict[str, list[float]] = {}
        for row in mine:
            for name, value in ({key: row[key] for key in ALWAYS if key in row} | row["values"]).items():
                found.setdefault(name, []).append(value)
        deviations = {name: stdev(values) for name, values in found.items() if len(values) > 1}
        means = {name: mean(values) for name, values in found.items()}
        lines.append(Line(*kind, len(mine), means, deviations))
    untouched = next((line for line in lines if line.method == UNTOUCHED), None)
    changes = [_change(line, untouched, aimed) for line in lines]
    wanted = [change for change in changes if change is not None and change * aim >= 0]
    most = max(wanted, key=abs, default=None)
    shares = [change / most if change is not None and most else None for change in changes]
    return [replace(line, share=share) for line, share in zip(lines, shares)]


def choose(lines: Sequence[Line], tolerance: float) -> Line | None:
    """The line of the smallest support among those whose effect is within a tolerance of the best; the weakest of it.

    Args:
        lines: of `summary`.
        tolerance: 0.2 keeps at least 80 % of the largest effect.
    """
    enough = [line for line in lines if line.share is not None and line.share >= 1 - tolerance]
    learned = [line for line in enough if "support" in line.values]
    return min(learned, key=lambda line: (line.values["support"], abs(line.strength)), default=None)


def chosen_point(rows: Sequence[dict[str, Any]], line: Line, effect: str) -> dict[str, Any]:
    """Of a line's seeds the one whose effect is nearest to their mean: neither the luckiest nor the unluckiest."""
    mine = [row for row in rows if _kind(row) == (line.method, line.gamma, line.refit, line.strength)]
    return min(mine, key=lambda row: abs(row["values"].get(effect, float("inf")) - line.values[effect]))


def markdown(lines: Sequence[Line], chosen: Line | None, about: str) -> str:
    """The table and what it says."""
    names = [name for name in dict.fromkeys(name for line in lines for name in line.values) if name not in ALWAYS]
    names = [name for name in names if not name.startswith(("distinct", "repetition", "empty"))]
    head = ["", "support", "sites", *map(in_markdown, names), "share of the effect", "cost", "unmet", "seconds"]
    table = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for line in lines:
        cells = [f"**{in_markdown(line.label)}**" if line == chosen else in_markdown(line.label)]
        cells += [_percent(line, "support"), _number(line, "sites")]
        cells += [_percent(line, name) if name in EFFECTS else _number(line, name) for name in names]
        cells += ["" if line.share is None else f"{100 * line.share:.0f} %"]
        cells += [_number(line, name) for name in ("cost", "unmet", "seconds")]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join([*table, "", in_markdown(about), ""])


def plot(lines: Sequence[Line], path: Path, effect: str | None = None) -> Path:
    """One PNG: effect, damage and cost over the support, a curve a method; refitted ones dotted.

    Args:
        lines: of `summary`.
        path: where to.
        effect: the measure that should change; by default the share of the concept or of toxic texts.

    Raises:
        LineasError: when matplotlib is not installed, or there is nothing to draw.
    """
    told = [line.values for line in lines]
    effect, damage = effect or first_taken(EFFECTS, told), first_taken(DAMAGES, told)
    panels = [name for name in (effect, damage, "cost") if name is not None]
    drawn = [line for line in lines if line.values.get("support", 0) > 0]
    if not drawn:
        raise LineasError("no point has a support, so there is nothing to draw.")
    figure, axes = figure_of(len(panels))
    untouched = next((line for line in lines if line.method == UNTOUCHED), None)
    curves: dict[tuple[str, bool, float], list[Line]] = {}
    for line in drawn:
        curves.setdefault((line.method, line.refit, line.strength), []).append(line)
    for axis, name in zip(axes, panels):
        factor = 100 if name in EFFECTS else 1
        for (method, refit, strength), curve in curves.items():
            mine = sorted((line for line in curve if name in line.values), key=lambda line: line.values["support"])
            x, y = [100 * line.values["support"] for line in mine], [factor * line.values[name] for line in mine]
            bars = [factor * line.deviations.get(name, 0.0) for line in mine]
            label = method + ", refitted" * refit + (f", at {as_label(strength)}" if strength != 1 else "")
            axis.errorbar(x, y, bars, fmt=":o" if refit else "-o", markersize=4, capsize=2, label=label)
        if untouched is not None and name in untouched.values:
            axis.axhline(factor * untouched.values[name], color="#888888", linestyle="--", linewidth=1, label=UNTOUCHED)
        values = [line.values[name] for line in drawn if line.values.get(name, 0) > 0]
        if values and max(values) > FAR_APART * min(values) and name not in EFFECTS:
            axis.set_yscale("log")
        title = in_a_plot(name.replace("_", " ")) + (", %" if factor == 100 else "")
        axis.set(title=title, xlabel="neurons touched, %", xscale="log")
        axis.xaxis.set_major_formatter("{x:g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    save_figure(figure, path)
    return path


def _kind(row: dict[str, Any]) -> tuple[str, float | None, bool, float]:
    """What the points of one line share."""
    return row["method"], row["gamma"], row["refit"], row["strength"]


def _change(line: Line, untouched: Line | None, effect: str) -> float | None:
    if untouched is None or effect not in line.values or effect not in untouched.values:
        return None
    return line.values[effect] - untouched.values[effect]


def _percent(line: Line, name: str) -> str:
    if name not in line.values:
        return ""
    deviation = f" ± {100 * line.deviations[name]:.2g}" if name in line.deviations else ""
    return f"{100 * line.values[name]:.2f} %{deviation}"


def _number(line: Line, name: str) -> str:
    if name not in line.values:
        return ""
    deviation = f" ± {line.deviations[name]:.2g}" if line.deviations.get(name) else ""
    return f"{line.values[name]:.4g}{deviation}"
