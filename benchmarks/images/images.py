"""Effect against faithfulness on pictures: methods at equal effect over several draws, and LinEAS over gamma.

    python -m benchmarks.images.images [--model shapes] [--draws 3] [--prompts 48] [--parts night gamma-0.01 ...]

On the image model that comes with lineas, whose world has a judge: three styles to learn and a thing to remove. For
each draw of 32 + 32 prompts every method learns at all norms of the U-Net; its pictures of other prompts are judged at
several strengths, with activations pooled by their mean and by their largest pixel. At the strength at which the
judge sees the concept in 80 % of the pictures (in 20 % where it is removed), interpolated, methods are compared by
what is left of the untouched pictures (img_score). Then LinEAS with the sparse group lasso, as in the paper's table on
gamma, of a style by the mean and of the removal by the largest pixel. Each concept and each gamma is a part of its own
in benchmarks/results/images, so that two processes may share them and a run goes on where it stopped. Writes
benchmarks/results/images.json and docs/images/fronts.png of a run with all concepts, and docs/images/gamma.png and
sun-gamma.png of one with everything.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

import lineas
from benchmarks.common.record import about, kept, save
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.plan import Plan
from lineas.evaluation.variants import Steered, Untouched
from lineas.intervention.fingerprint import norm_digest
from lineas.learning.interruption import discard_partial
from lineas.reporting.image_grid import strip
from lineas.sites import Pooling
from tools import world

STYLES = ("at night", "as a sketch", "in the rain")
REMOVED = "sun"
CONCEPTS = {concept.split()[-1]: concept for concept in (*STYLES, REMOVED)}
"""By the names of their parts."""
LEVEL = 0.8
"""The effect at which methods are compared; 1 - LEVEL where a thing is removed."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
PATHS: dict[str, tuple[str, Pooling, tuple[float, ...]]] = {
    "gamma": (STYLES[0], "mean", (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
    "sun-gamma": (REMOVED, "max", (0.0, 3e-4, 1e-3, 3e-3, 1e-2)),
}
"""Concept, pooling and weights of the penalty, by the beginning of their parts' names."""
POOLINGS: tuple[Pooling, ...] = ("mean", "max")
GAMMA_STEPS = 60
PAINTED = 4
"""Prompts of the strip over gamma."""
METHODS: dict[str, Any] = {
    "LinEAS": lineas.LinEAS(),
    "Lin-AcT": lineas.LinAcT(),
    "Mean-AcT": lineas.MeanAcT(),
    "ITI-c": lineas.ITIc(),
}


IMAGES = Path(__file__).parents[2] / "docs" / "images"
RUNS = Path(__file__).parents[1] / "runs" / "images"


def sides(concept: str, draw: int, prompts: int) -> tuple[list[str], list[str], list[str]]:
    """Source, target and what is drawn, of a draw."""
    seed = 1000 + 10 * draw
    if concept == REMOVED:
        kinds: list[dict[str, Any]] = [{"style": "", "sun": True}, {"style": "", "sun": False}]
    else:
        kinds = [{"style": "", "sun": None}, {"style": concept, "sun": None}]
    source, target = (world.descriptions(32, seed + i, **kind) for i, kind in enumerate(kinds))
    return source, target, world.descriptions(prompts, 7, **kinds[0])


def at_level(rows: list[dict], concept: str, effect: float = LEVEL) -> dict[str, float] | None:
    """Strength and faithfulness where an effect is first reached, interpolated; None where it is not."""
    sign = -1 if concept == REMOVED else 1
    level = 1 - effect if concept == REMOVED else effect
    for before, after in pairwise(rows):
        if sign * (after["concept"] - level) >= 0:
            apart = after["concept"] - before["concept"]
            share = max(0.0, (level - before["concept"]) / apart) if apart else 0.0
            return {name: before[name] + share * (after[name] - before[name]) for name in ("strength", "img_score")}
    return None


def curve(model: Any, learned: lineas.Intervention, plan: Plan, strengths: tuple[float, ...]) -> list[dict]:
    """Effect and faithfulness from the untouched model on."""
    systems = [Untouched(), *(Steered("steered", learned, s) for s in strengths)]
    found = evaluate(model, systems, plan)
    return [{"strength": row.strength, **row.values, "intervals": row.intervals} for row in found.rows]


@discard_partial()
def main() -> None:
    """Learn, draw, judge, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=48)
    points = {f"{name}-{gamma:g}": (name, gamma) for name, (_, _, gammas) in PATHS.items() for gamma in gammas}
    every = [*CONCEPTS, *points]
    parser.add_argument("--parts", nargs="+", default=every, choices=every, metavar="PART", help=", ".join(every))
    options = parser.parse_args()
    model = lineas.load(options.model)
    asked = {name: getattr(options, name) for name in ("model", "draws", "prompts")}
    asked["weights"] = norm_digest(model.network)
    made = {}
    for part in options.parts:
        make, given = (compare, [CONCEPTS[part]]) if part in CONCEPTS else (penalised, points[part])
        made[part] = kept("images", part, asked, make, model, options.draws, options.prompts, *given)
    if made.keys() >= CONCEPTS.keys():
        curves = [curve for part in CONCEPTS for curve in made[part]]
        paths = {}
        for name in PATHS:
            rows = [row for part in points if points[part][0] == name for row in made.get(part, [])]
            paths[name] = [row | {"dense": dense_there(curves, row, name)} for row in rows]
        save("images", {"about": about(), "options": asked, "summary": summary(curves), "paths": paths})
        plot(curves, IMAGES / "fronts.png")
    if made.keys() == set(every):
        for name in PATHS:
            paint(model, options.prompts, name)


def compare(model: Any, draws: int, prompts: int, concept: str) -> list[dict]:
    """Every method on a concept: effect and faithfulness over strength in every draw, and where effects are equal."""
    curves = []
    for pooling, (name, method) in product(POOLINGS, METHODS.items()):
        for draw in range(draws):
            source, target, drawn = sides(concept, draw, prompts)
            begun = time.perf_counter()
            learned = lineas.learn(model, source, target, method, seed=draw, pooling=pooling, progress=False)
            seconds = time.perf_counter() - begun
            rows = curve(
                model,
                learned,
                Plan(drawn, concept=concept, sampling={"batch_size": 32}),
                STRENGTHS,
            )
            facts = {"concept": concept, "method": name, "pooling": pooling, "draw": draw, "seconds": seconds}
            curves.append({**facts, "rows": rows, "at": at_level(rows, concept)})
        print(summary(curves)[-1], flush=True)
    return curves


def summary(curves: list[dict]) -> list[dict]:
    """A method on a concept a line: means over its draws."""
    lines = []
    for kind in dict.fromkeys((one["concept"], one["method"], one["pooling"]) for one in curves):
        mine = [one for one in curves if (one["concept"], one["method"], one["pooling"]) == kind]
        whole = [next(row for row in one["rows"] if row["strength"] == 1) for one in mine]
        reached = [one["at"] for one in mine if one["at"]]
        likeness = [there["img_score"] for there in reached]
        lines.append(
            {
                **dict(zip(("concept", "method", "pooling"), kind)),
                "reached": len(likeness),
                "img_score": mean(likeness) if likeness else None,
                "deviation": stdev(likeness) if len(likeness) > 1 else None,
                "strength": mean(there["strength"] for there in reached) if reached else None,
                "at_1": {key: mean(row[key] for row in whole) for key in ("concept", "img_score")},
                "seconds": mean(one["seconds"] for one in mine),
            }
        )
    return lines


def penalised(model: Any, draws: int, prompts: int, name: str, gamma: float) -> list[dict]:
    """Support, effect and faithfulness of LinEAS at strength 1 in every draw."""
    found = []
    for draw in range(draws):
        learned, drawn = learned_with(model, name, gamma, draw, prompts)
        rows = curve(
            model,
            learned,
            Plan(drawn, concept=PATHS[name][0], sampling={"batch_size": 32}),
            (1.0,),
        )
        found.append({"gamma": gamma, "draw": draw, "support": learned.support(), **rows[-1]})
    print(gamma, {key: float(np.mean([row[key] for row in found])) for key in ("support", "concept", "img_score")})
    return found


def dense_there(curves: list[dict], row: dict, name: str) -> float | None:
    """What LinEAS without a penalty leaves of the pictures, at the strength at which it has the same effect."""
    concept, pooling, _ = PATHS[name]
    kind = (concept, "LinEAS", pooling, row["draw"])
    (rows,) = (one["rows"] for one in curves if (one["concept"], one["method"], one["pooling"], one["draw"]) == kind)
    there = at_level(rows, concept, 1 - row["concept"] if concept == REMOVED else row["concept"])
    return there and there["img_score"]


def learned_with(model: Any, name: str, gamma: float, draw: int, prompts: int) -> tuple[lineas.Intervention, list[str]]:
    """A point of a path, learned or as it was learned before, and what is drawn."""
    concept, pooling, _ = PATHS[name]
    source, target, drawn = sides(concept, draw, prompts)
    folder = RUNS / f"{norm_digest(model.network)[:8]}-{name}-{gamma:g}-{draw}"
    if folder.exists():
        return lineas.Intervention.load(folder), drawn
    method = lineas.LinEAS(gamma=gamma, steps=GAMMA_STEPS)
    learned = lineas.learn(model, source, target, method, seed=draw, pooling=pooling, progress=False)
    learned.save(folder)
    return learned, drawn


def paint(model: Any, prompts: int, name: str) -> None:
    """What the first draw makes of some prompts, a column a gamma."""
    columns, gammas = [], PATHS[name][2]
    for gamma in gammas:
        learned, drawn = learned_with(model, name, gamma, 0, prompts)
        with lineas.steer(model, learned):
            columns.append(model.generate(drawn[:PAINTED]))
    columns.append(model.generate(drawn[:PAINTED]))
    labels = [*(f"gamma {gamma:g}" for gamma in gammas), "untouched"]
    strip(list(zip(*columns)), drawn[:PAINTED], labels).save(IMAGES / f"{name}.png")


def plot(curves: list[dict], path: Path) -> None:
    """A panel a concept: likeness over effect, a line a method, the mean of the draws at every strength."""
    from matplotlib.figure import Figure

    concepts = list(dict.fromkeys(one["concept"] for one in curves))
    figure = Figure(figsize=(4 * len(concepts), 4), layout="constrained")
    for axis, concept in zip(figure.subplots(1, len(concepts)), concepts):
        for (i, name), pooling in product(enumerate(METHODS), POOLINGS):
            mine = [
                one["rows"] for one in curves
                if (one["concept"], one["method"], one["pooling"]) == (concept, name, pooling)
            ]  # fmt: skip
            x, y = (np.mean([[row[key] for row in rows] for rows in mine], 0) for key in ("concept", "img_score"))
            x = 100 * (1 - x if concept == REMOVED else x)
            how = "-" if pooling == "max" else ":"
            axis.plot(x, y, how, color=f"C{i}", marker="o", markersize=3, label=f"{name}, {pooling}")
        title = f"without a {concept}" if concept == REMOVED else concept
        axis.set(title=title, xlabel="taken for it, %", xlim=(-3, 103), ylim=(55, 101))
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set(ylabel="likeness to the untouched pictures, %")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
