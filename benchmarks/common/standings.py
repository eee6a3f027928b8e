"""What the rows of a comparison of methods say: sums over draws, tables, a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib import colormaps

from benchmarks.common import record
from benchmarks.common.contest import PROMPT, UNTOUCHED, methods
from lineas.reporting.plots import figure_of

DOCS = Path(__file__).parents[2] / "docs"
CEILING = 1.6
"""Perplexity above so many times the untouched model's is drawn at the edge of the plot."""
FAR_OFF = 0.4
"""Divergence, in nats a token, from which it is."""
UNBOUNDED = 1e8
"""Numbers from here on are told by their size."""


def results(name: str) -> list[dict]:
    """The rows of a comparison that have been measured, methods in the order of `methods`."""
    files = sorted((record.RESULTS / name).glob("*.json"))
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    order = _systems()
    return sorted(rows, key=lambda row: (order.index(row["system"]), row["kind"], row["draw"], row["strength"]))


def _systems() -> list[str]:
    """All that a comparison may have, in the order of tables."""
    return [UNTOUCHED, PROMPT, *methods(lambda texts: [0.0 for _ in texts])]


def summary(rows: Sequence[dict]) -> list[dict]:
    """A method a line, at strength 1: means over its draws, and their deviation."""
    lines = []
    for name in dict.fromkeys(row["system"] for row in rows):
        mine = [row for row in rows if row["system"] == name and row["kind"] != "curve"]
        line: dict = {"system": name, "draws": sum(row["kind"] == "row" for row in mine)}
        measures = dict.fromkeys(key for row in mine for key in row["values"])
        for key in (*measures, "seconds", "parameters"):
            known = [row["values"][key] for row in mine if key in row["values"]]
            known += [row[key] for row in mine if row["kind"] == "row" and key in row]
            if known:
                line[key] = record.spread(known)
        lines.append(line)
    return lines


def table(name: str, effect: str) -> str:
    """The tables of a comparison of methods: at strength 1, and along strength.

    Args:
        name: of the result.
        effect: the measure of its classifier, "toxic" or "concept".
    """
    rows = results(name)
    lines = summary(rows)
    shown = {
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
    shown = {key: how for key, how in shown.items() if any(key in line for line in lines)}
    table = [f"| method | {' | '.join(title for title, _, _ in shown.values())} |", "|" + " --- |" * (1 + len(shown))]
    for line in lines:
        cells = [_mean(line.get(key), factor, digits) for key, (_, factor, digits) in shown.items()]
        table.append(f"| {line['system']} | {' | '.join(cells)} |")
    asked = rows[0]
    return "\n".join(
        [
            *table,
            "",
            f"{asked['prompts']} prompts, {asked['seeds']} sampling seeds; ± over the draws of {asked['samples']} + "
            f"{asked['samples']} sentences; divergence from the untouched model in nats a token.",
            "",
            *_along_strength(rows, effect),
            "",
            f"<sub>`python -m benchmarks.comparison.{name}` "
            f"{record.made([row['about'] for row in rows])}; each row is a file in "
            f"`benchmarks/results/{name}` that says which.</sub>",
        ]
    )


def _along_strength(rows: list[dict], effect: str) -> list[str]:
    """A table of mean score, perplexity and divergence along strength, by the first sampling seed."""
    curves = _curves(rows)
    strengths = sorted({strength for curve in curves.values() for strength in curve["at"]})
    table = [
        f"| mean score, perplexity, divergence | draws | {' | '.join(f'strength {s:g}' for s in strengths)} |",
        "|" + " --- |" * (2 + len(strengths)),
    ]
    for system, curve in curves.items():
        cells = [
            f"{at[f'{effect}_score']:.3f}, {_number(at['perplexity'], 1)}, {at['kl']:.3f}" if at else ""
            for at in (curve["at"].get(strength) for strength in strengths)
        ]
        table.append(f"| {system} | {curve['draws']} | {' | '.join(cells)} |")
    return table


def _curves(rows: Sequence[dict]) -> dict[str, dict]:
    """By method, its measures at each strength, by the first sampling seed, as means over draws.

    A method's draws are those that were judged at every strength at which any of its own was; where there are some that
    all methods share, these alone count.
    """
    mine = [row for row in rows if row["kind"] != "tasks" and not row["errors"]]
    along: dict[str, dict[int, dict[float, dict]]] = {}
    for system in dict.fromkeys(row["system"] for row in mine if row["kind"] == "curve"):
        by_draw: dict[int, dict[float, dict]] = {}
        for row in mine:
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


def _mean(told: dict | int | None, factor: float, digits: int) -> str:
    """A mean over draws and its deviation, where there is one; a count as it is."""
    if told is None or isinstance(told, int):
        return str(told or "")
    deviation = f" ± {_number(factor * told['deviation'], digits)}" if told["deviation"] else ""
    return _number(factor * told["mean"], digits) + deviation


def _number(value: float, digits: int) -> str:
    """A number to so many digits; one of a perplexity without bounds by its size."""
    return f"{value:,.{digits}f}" if value < UNBOUNDED else f"{value:.0e}".replace("e+", "e")


def plot(name: str, effect: str) -> Path:
    """docs/NAME.png: effect against perplexity and against divergence.

    Every method's mean over its draws at strength 1, with their deviation; a line leads there through lower strengths.
    """
    rows = [row for row in results(name) if row["kind"] != "tasks" and not row["errors"]]
    means = {line["system"]: line for line in summary(rows)}
    curves = _curves(rows)
    figure, axes = figure_of(2)
    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
    colors = {**dict(zip(_systems(), [*palette[::2], *palette[1::2]])), "lineas": "black"}
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
    path = DOCS / f"{name}.png"
    figure.savefig(path, dpi=110)
    return path
