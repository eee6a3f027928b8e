"""Effect against faithfulness on pictures: methods at equal effect over several draws, and LinEAS over gamma.

    python benchmarks/images.py [--model shapes] [--draws 3] [--prompts 64]

On the image model that comes with lineas, whose world has a judge: three styles to learn and a thing to remove. For
each draw of 32 + 32 prompts every method learns at all norms of the U-Net; its pictures of other prompts are judged at
several strengths. At the strength at which the judge sees the concept in 80 % of the pictures (in 20 % where it is
removed), interpolated, methods are compared by what is left of the untouched pictures (img_score). Then LinEAS with
the sparse group lasso, as in the paper's table on gamma. Writes benchmarks/results/images.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from record import about, save

import lineas
from lineas.evaluation.images import PicturePlan, evaluate_pictures
from lineas.evaluation.judges import judge
from lineas.evaluation.systems import Steered, Untouched

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import world

STYLES = ("at night", "as a sketch", "in the rain")
REMOVED = "sun"
LEVEL = 0.8
"""The effect at which methods are compared; 1 - LEVEL where a thing is removed."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
GAMMAS = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
METHODS: dict[str, Any] = {
    "LinEAS": lineas.LinEAS(),
    "Lin-AcT": lineas.LinAcT(),
    "Mean-AcT": lineas.MeanAcT(),
    "ITI-c": lineas.ITIc(),
}


def sides(concept: str, draw: int, prompts: int) -> tuple[list[str], list[str], list[str]]:
    """Source, target and what is drawn, of a draw."""
    seed = 1000 + 10 * draw
    if concept == REMOVED:
        kinds: list[dict[str, Any]] = [{"style": "", "sun": True}, {"style": "", "sun": False}]
    else:
        kinds = [{"style": "", "sun": None}, {"style": concept, "sun": None}]
    source, target = (world.descriptions(32, seed + i, **kind) for i, kind in enumerate(kinds))
    return source, target, world.descriptions(prompts, 7, **kinds[0])


def at_level(rows: list[dict], concept: str) -> dict[str, float] | None:
    """Strength and faithfulness where the effect is first reached, interpolated; None where it is not."""
    sign = -1 if concept == REMOVED else 1
    level = 1 - LEVEL if concept == REMOVED else LEVEL
    for before, after in pairwise(rows):
        if sign * (after["concept"] - level) >= 0:
            share = (level - before["concept"]) / (after["concept"] - before["concept"])
            return {name: before[name] + share * (after[name] - before[name]) for name in ("strength", "img_score")}
    return None


def curve(model: Any, learned: lineas.Intervention, plan: PicturePlan, strengths: tuple[float, ...]) -> list[dict]:
    """Effect and faithfulness from the untouched model on."""
    systems = [Untouched(), *(Steered("steered", learned, s) for s in strengths)]
    found = evaluate_pictures(model, systems, plan)
    return [{"strength": row.strength, **row.values, "intervals": row.intervals} for row in found.rows]


def main() -> None:
    """Learn, draw, judge, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64)
    options = parser.parse_args()
    model: Any = lineas.load(options.model)
    eyes = judge(model.judge)
    curves, summary = [], []
    for concept in (*STYLES, REMOVED):
        for name, method in METHODS.items():
            reached = []
            for draw in range(options.draws):
                source, target, drawn = sides(concept, draw, options.prompts)
                begun = time.perf_counter()
                learned = lineas.learn(model, source, target, method, seed=draw, progress=False)
                seconds = time.perf_counter() - begun
                rows = curve(model, learned, PicturePlan(drawn, concept, eyes, batch_size=32), STRENGTHS)
                there = at_level(rows, concept)
                reached.append(there)
                curves.append(
                    {"concept": concept, "method": name, "draw": draw, "seconds": seconds, "rows": rows, "at": there}
                )
            likeness = [there["img_score"] for there in reached if there]
            line = {
                "concept": concept,
                "method": name,
                "reached": len(likeness),
                "img_score": mean(likeness) if likeness else None,
                "deviation": stdev(likeness) if len(likeness) > 1 else None,
                "strength": mean(there["strength"] for there in reached if there) if likeness else None,
            }
            summary.append(line)
            print(line, flush=True)
    sparse = []
    for gamma in GAMMAS:
        for draw in range(options.draws):
            source, target, drawn = sides(STYLES[0], draw, options.prompts)
            method = lineas.LinEAS(gamma=gamma, steps=60)
            learned = lineas.learn(model, source, target, method, seed=draw, progress=False)
            rows = curve(model, learned, PicturePlan(drawn, STYLES[0], eyes, batch_size=32), (1.0,))
            sparse.append({"gamma": gamma, "draw": draw, "support": learned.support(), **rows[-1]})
        told = [row for row in sparse if row["gamma"] == gamma]
        print(gamma, {key: float(np.mean([row[key] for row in told])) for key in ("support", "concept", "img_score")})
    given = vars(options)
    save("images", {"about": about(), "options": given, "summary": summary, "gamma": sparse, "curves": curves})


if __name__ == "__main__":
    main()
