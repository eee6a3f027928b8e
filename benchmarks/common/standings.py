"""The result of a comparison of methods: sums over draws, tables, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.common import markdown, record
from benchmarks.common.contest import METHODS, PROMPT, UNTOUCHED

SYSTEMS = [UNTOUCHED, PROMPT, *METHODS]
"""All that a comparison may have, in the order of tables."""
CEILING = 1.6
"""Perplexity above so many times the untouched model's is drawn at the edge of the plot."""
FAR_OFF = 0.4
"""Divergence, in nats a token, from which it is."""
UNBOUNDED = 1e8
"""The smallest number of which only the size is written."""


def ordered(rows: Sequence[dict]) -> list[dict]:
    """Return the rows of a comparison in the order of `SYSTEMS`."""
    return sorted(rows, key=lambda row: (SYSTEMS.index(row["system"]), row["kind"], row["draw"], row["strength"]))


def summary(rows: Sequence[dict]) -> list[dict]:
    """Return a line for each method at strength 1: means over its draws, and their deviation."""
    lines = []
    for name in dict.fromkeys(row["system"] for row in rows):
        matching = [row for row in rows if row["system"] == name and row["kind"] != "curve"]
        line: dict = {"system": name, "draws": sum(row["kind"] == "row" for row in matching)}
        measures = dict.fromkeys(key for row in matching for key in row["values"])
        for key in (*measures, "seconds", "parameters"):
            values = [row["values"][key] for row in matching if key in row["values"]]
            values += [row[key] for row in matching if row["kind"] == "row" and key in row]
            if values:
                line[key] = record.spread(values)
        lines.append(line)
    return lines


def table(rows: Sequence[dict], effect: str) -> str:
    """Return the tables of a comparison of methods: at strength 1, and along strength.

    Args:
        rows: its rows.
        effect: the measure of its classifier, "toxic" or "concept".
    """
    rows = ordered(rows)
    lines = summary(rows)
    columns = {
        "draws": ("draws", 1, 0),
        effect: (f"{effect}, %", 100, 2),
        f"{effect}_score": ("mean score", 1, 3),
        "perplexity": ("perplexity", 1, 1),
        "kl": ("divergence", 1, 3),
        "distinct_2": ("distinct pairs of words", 1, 2),
        "mmlu": ("MMLU, %", 100, 1),
        "seconds": ("seconds to learn", 1, 0),
        "parameters": ("numbers learned", 1, 0),
    }
    columns = {key: column for key, column in columns.items() if any(key in line for line in lines)}
    cells = [
        (line["system"], *(_mean(line.get(key), factor, digits) for key, (_, factor, digits) in columns.items()))
        for line in lines
    ]
    first = rows[0]
    return (
        markdown.table(("method", *(title for title, _, _ in columns.values())), cells)
        + f"\n\n{first['prompts']} prompts, {first['seeds']} sampling seeds; ± over the draws of {first['samples']} + "
        f"{first['samples']} sentences; divergence from the untouched model in nats a token.\n\n"
        + _along_strength(rows, effect)
    )


def _along_strength(rows: list[dict], effect: str) -> str:
    """Return a table of mean score, perplexity and divergence along strength, by the first sampling seed."""
    curves = _curves(rows)
    strengths = sorted({strength for curve in curves.values() for strength in curve["at"]})
    titles = ("mean score, perplexity, divergence", "draws", *(f"strength {strength:g}" for strength in strengths))
    lines = []
    for system, curve in curves.items():
        values = (curve["at"].get(strength) for strength in strengths)
        cells = [
            f"{at[f'{effect}_score']:.3f}, {_number(at['perplexity'], 1)}, {at['kl']:.3f}" if at else ""
            for at in values
        ]
        lines.append((system, str(curve["draws"]), *cells))
    return markdown.table(titles, lines)


def _curves(rows: Sequence[dict]) -> dict[str, dict]:
    """Return by method its measures at each strength, by the first sampling seed, as means over draws.

    A method's draws are those that were judged at every strength at which any of its own was; where there are some that
    all methods share, these alone count.
    """
    matching = [row for row in rows if row["kind"] != "tasks" and not row["errors"]]
    along: dict[str, dict[int, dict[float, dict]]] = {}
    for system in dict.fromkeys(row["system"] for row in matching if row["kind"] == "curve"):
        by_draw: dict[int, dict[float, dict]] = {}
        for row in matching:
            if row["system"] == system:
                first = {key: by_seed[0] for key, by_seed in row["by_seed"].items()}
                by_draw.setdefault(row["draw"], {})[row["strength"]] = {**row["values"], **first}
        strengths = {strength for at in by_draw.values() for strength in at}
        along[system] = {draw: at for draw, at in by_draw.items() if len(at) == len(strengths)}
    along = {system: draws for system, draws in along.items() if draws}
    shared = set.intersection(*map(set, along.values())) if along else set()
    curves = {}
    for system, by_draw in along.items():
        draws = [at for draw, at in by_draw.items() if draw in shared or not shared]
        at = {s: {key: mean(draw[s][key] for draw in draws) for key in draws[0][s]} for s in sorted(draws[0])}
        curves[system] = {"draws": len(draws), "at": at}
    return curves


def _mean(value: dict | int | None, factor: float, digits: int) -> str:
    """Return a mean over draws and its deviation, where there is one; a count as it is."""
    if value is None or isinstance(value, int):
        return str(value or "")
    deviation = f" ± {_number(factor * value['deviation'], digits)}" if value["deviation"] else ""
    return _number(factor * value["mean"], digits) + deviation


def _number(value: float, digits: int) -> str:
    """Return a number to so many digits; of a perplexity without bounds the size alone."""
    return f"{value:,.{digits}f}" if value < UNBOUNDED else f"{value:.0e}".replace("e+", "e")


def plot(name: str, effect: str) -> Path:
    """Draw docs/NAME.png: effect against perplexity and against divergence.

    Every method's mean over its draws at strength 1, with their deviation; a line leads there through lower strengths.
    """
    from matplotlib import colormaps

    from lineas.reporting.plots import figure_of

    rows = ordered([part.made for part in record.parts_of(name)])
    rows = [row for row in rows if row["kind"] != "tasks" and not row["errors"]]
    means = {line["system"]: line for line in summary(rows)}
    curves = _curves(rows)
    figure, axes = figure_of(2)
    palette = [colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]
    colors = {**dict(zip(SYSTEMS, palette)), "lineas": "black"}
    untouched = means[UNTOUCHED]
    for axis, damage in zip(axes, ("perplexity", "kl")):
        edge = FAR_OFF if damage == "kl" else CEILING * untouched[damage]["mean"]
        highest = min(edge, max(line[damage]["mean"] for line in means.values()))
        outside = 0
        for system, line in means.items():
            if system in curves:
                along = [*curves[system]["at"].values()][:-1]
                x, y = (
                    [untouched[key]["mean"], *(values[key] for values in along), line[key]["mean"]]
                    for key in (effect, damage)
                )
                axis.plot(x, y, marker=".", linewidth=1, alpha=0.6, color=colors[system])
            (at, x_bar), (level, y_bar) = ((line[key]["mean"], line[key]["deviation"]) for key in (effect, damage))
            if level > highest:
                axis.plot(at, highest, marker="^", color=colors[system], label=system, linestyle="none")
                label = f"{system}: {_number(level, 0 if level >= 100 else 2)}"
                axis.annotate(label, (at, highest), (6, -3 - 11 * outside), textcoords="offset points", fontsize=8)
                outside += 1
            else:
                axis.errorbar(at, level, y_bar, x_bar, fmt="o", color=colors[system], label=system, capsize=2)
        axis.set(
            xlabel=effect.replace("_", " "),
            ylabel="divergence" if damage == "kl" else damage,
            ylim=(None, 1.04 * highest),
        )
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    path = record.DOCS / f"{name}.png"
    figure.savefig(path, dpi=110)
    return path
