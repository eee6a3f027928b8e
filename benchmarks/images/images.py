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
from collections.abc import Sequence
from functools import partial
from itertools import product
from statistics import mean
from typing import TYPE_CHECKING, Any

import lineas
from benchmarks.common import markdown, record, splits
from benchmarks.common.curves import crossing
from benchmarks.common.methods import relative
from lineas.measures import measure

if TYPE_CHECKING:
    from lineas.sites import Pooling

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
POINTS = {f"{name}-{gamma:g}": (name, gamma) for name, (_, _, gammas) in PATHS.items() for gamma in gammas}
"""Path and gamma, by their parts' names."""
POOLINGS: tuple[Pooling, ...] = ("mean", "max")
METHODS = ("LinEAS", "Lin-AcT", "Mean-AcT", "ITI-c")
GAMMA_STEPS = 60
PAINTED = 4
"""Prompts of the strip over gamma."""
IMAGES = record.DOCS / "images"


def main() -> None:
    """Learn, draw, judge, print and record."""
    parser = record.parser(__doc__)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=48)
    every = [*CONCEPTS, *POINTS]
    parser.add_argument("--parts", nargs="+", default=every, choices=every, metavar="PART", help=", ".join(every))
    options = parser.parse_args()
    model = lineas.load(options.model)
    parts = plan(model, options)
    rows = {name: record.get_or_make(parts[name]).made for name in options.parts}
    if rows.keys() >= CONCEPTS.keys():
        curves = [curve for name in CONCEPTS for curve in rows[name]]
        paths = {name: [] for name in PATHS}
        for point, (name, _) in POINTS.items():
            paths[name] += [row | {"dense": dense_there(curves, row, name)} for row in rows.get(point, [])]
        record.save("images", parts["night"].asked, {"summary": summary(curves), "paths": paths})
        plot(curves)
    if rows.keys() >= {*CONCEPTS, *POINTS}:
        for name in PATHS:
            paint(model, options.prompts, name)


def plan(model: Any, options: argparse.Namespace) -> dict[str, record.Part]:
    """Return every part by its name."""
    from lineas.intervention.fingerprint import norm_digest

    asked = {name: getattr(options, name) for name in ("model", "draws", "prompts")}
    asked["weights"] = norm_digest(model.network)
    sizes = (model, options.draws, options.prompts)
    measures = {name: partial(compare, *sizes, concept) for name, concept in CONCEPTS.items()}
    measures |= {name: partial(penalised, *sizes, *point) for name, point in POINTS.items()}
    return {
        name: record.Part(record.RESULTS / "images" / f"{name}.json", asked, measure_)
        for name, measure_ in measures.items()
    }


def sides(concept: str, draw: int, prompts: int) -> tuple[list[str], list[str], list[str]]:
    """Return source, target and what is drawn, of a draw."""
    from tools.world import descriptions

    first: dict[str, Any] = {"style": "", "sun": True if concept == REMOVED else None}
    second = {"style": "", "sun": False} if concept == REMOVED else {"style": concept, "sun": None}
    one, two = splits.rows("images", "learning", "world", draw)
    (judging,) = splits.rows("images", "judging", "world")
    return descriptions(32, one, **first), descriptions(32, two, **second), descriptions(prompts, judging, **first)


def at_level(rows: list[dict], concept: str, effect: float = LEVEL) -> dict[str, float] | None:
    """Return strength and faithfulness where an effect is first reached; None where it is not."""
    removed = concept == REMOVED
    level, sign = (1 - effect, -1) if removed else (effect, 1)
    return crossing(rows, "concept", level, sign, ("strength", "img_score"))


def curve(
    model: Any, learned: lineas.Intervention, prompts: list[str], concept: str, strengths: Sequence[float]
) -> list[dict]:
    """Return effect and faithfulness from the untouched model on."""
    from lineas.evaluation.variants import Steered, Untouched

    systems = [Untouched(), *(Steered("steered", learned, s) for s in strengths)]
    rows = lineas.evaluate(model, systems, lineas.Plan(prompts, concept=concept, sampling={"batch_size": 32})).rows
    return [{"strength": row.strength, **row.values, "intervals": row.intervals} for row in rows]


def compare(model: Any, draws: int, prompts: int, concept: str) -> list[dict]:
    """Judge every method on a concept: over strength in every draw, and where effects are equal."""
    methods = dict(zip(METHODS, (relative(), lineas.LinAcT(), lineas.MeanAcT(), lineas.ITIc())))
    curves = []
    for pooling, (name, method) in product(POOLINGS, methods.items()):
        for draw in range(draws):
            source, target, drawn = sides(concept, draw, prompts)
            begun = time.perf_counter()
            learned = lineas.learn(model, source, target, method, seed=draw, pooling=pooling, progress=False)
            seconds = time.perf_counter() - begun
            rows = curve(model, learned, drawn, concept, STRENGTHS)
            facts = {"concept": concept, "method": name, "pooling": pooling, "draw": draw, "seconds": seconds}
            curves.append({**facts, "rows": rows, "at": at_level(rows, concept)})
        print(summary(curves)[-1], flush=True)
    return curves


def summary(curves: list[dict]) -> list[dict]:
    """Return a line for each method on each concept: means over its draws."""
    lines = []
    for kind in dict.fromkeys((one["concept"], one["method"], one["pooling"]) for one in curves):
        matching = of_kind(curves, *kind)
        whole = [next(row for row in one["rows"] if row["strength"] == 1) for one in matching]
        reached = [one["at"] for one in matching if one["at"]]
        likeness = record.spread([there["img_score"] for there in reached]) if reached else {}
        lines.append(
            {
                **dict(zip(("concept", "method", "pooling"), kind)),
                "reached": len(reached),
                "img_score": likeness.get("mean"),
                "deviation": likeness.get("deviation"),
                "strength": mean(there["strength"] for there in reached) if reached else None,
                "at_1": {key: mean(row[key] for row in whole) for key in ("concept", "img_score")},
                "seconds": mean(one["seconds"] for one in matching),
            }
        )
    return lines


def of_kind(curves: list[dict], *kind: str) -> list[dict]:
    """Return the curves of a concept, a method and a pooling."""
    return [one for one in curves if (one["concept"], one["method"], one["pooling"]) == kind]


def penalised(model: Any, draws: int, prompts: int, name: str, gamma: float) -> list[dict]:
    """Return support, effect and faithfulness of LinEAS at strength 1 in every draw."""
    rows = []
    for draw in range(draws):
        learned, drawn = learned_with(model, name, gamma, draw, prompts)
        row = curve(model, learned, drawn, PATHS[name][0], (1.0,))[-1]
        rows.append({"gamma": gamma, "draw": draw, "support": learned.support(), **row})
    print(gamma, {key: mean(row[key] for row in rows) for key in ("support", "concept", "img_score")}, flush=True)
    return rows


def dense_there(curves: list[dict], row: dict, name: str) -> float | None:
    """Return what LinEAS without a penalty leaves of the pictures, at the strength at which it has the same effect."""
    concept, pooling, _ = PATHS[name]
    (rows,) = (one["rows"] for one in of_kind(curves, concept, "LinEAS", pooling) if one["draw"] == row["draw"])
    there = at_level(rows, concept, 1 - row["concept"] if concept == REMOVED else row["concept"])
    return None if there is None else there["img_score"]


def learned_with(model: Any, name: str, gamma: float, draw: int, prompts: int) -> tuple[lineas.Intervention, list[str]]:
    """Return a point of a path, learned now or before, and what is drawn."""
    from lineas.intervention.fingerprint import norm_digest

    concept, pooling, _ = PATHS[name]
    source, target, drawn = sides(concept, draw, prompts)
    folder = record.RUNS / "images" / f"{norm_digest(model.network)[:8]}-{name}-{gamma:g}-{draw}"
    method = relative(gamma=gamma, steps=GAMMA_STEPS)
    learn = partial(lineas.learn, model, source, target, method, seed=draw, pooling=pooling, progress=False)
    return record.load_or_learn(folder, learn), drawn


def paint(model: Any, prompts: int, name: str) -> None:
    """Draw what the first draw makes of some prompts, a column a gamma: docs/images/NAME.png."""
    from lineas.reporting.image_grid import strip

    concept, _, gammas = PATHS[name]
    shown, columns = sides(concept, 0, prompts)[-1][:PAINTED], []
    for gamma in gammas:
        with lineas.steer(model, learned_with(model, name, gamma, 0, prompts)[0]):
            columns.append(model.generate(shown))
    columns.append(model.generate(shown))
    labels = [*(f"gamma {gamma:g}" for gamma in gammas), "untouched"]
    strip(list(zip(*columns)), shown, labels).save(IMAGES / f"{name}.png")


def plot(curves: list[dict]) -> None:
    """Draw docs/images/fronts.png: a panel a concept, likeness over effect, a line a method, means of the draws."""
    import numpy as np
    from matplotlib.figure import Figure

    concepts = list(dict.fromkeys(one["concept"] for one in curves))
    figure = Figure(figsize=(4 * len(concepts), 4), layout="constrained")
    for axis, concept in zip(figure.subplots(1, len(concepts)), concepts):
        for (i, name), pooling in product(enumerate(METHODS), POOLINGS):
            matching = [one["rows"] for one in of_kind(curves, concept, name, pooling)]
            x, y = (np.mean([[row[key] for row in rows] for rows in matching], 0) for key in ("concept", "img_score"))
            x = 100 * (1 - x if concept == REMOVED else x)
            how = "-" if pooling == "max" else ":"
            axis.plot(x, y, how, color=f"C{i}", marker="o", markersize=3, label=f"{name}, {pooling}")
        title = f"without a {concept}" if concept == REMOVED else concept
        axis.set(title=title, xlabel="taken for it, %", xlim=(-3, 103), ylim=(55, 101))
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set(ylabel="likeness to the untouched pictures, %")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(IMAGES / "fronts.png", dpi=90)


def table(result: record.Result) -> str:
    """Return the tables of methods at equal effect, and of LinEAS along gamma."""
    lines, options = result.made["summary"], result.asked
    concepts = list(dict.fromkeys(line["concept"] for line in lines))
    methods = []
    for pooling, method in product(POOLINGS, METHODS):
        matching = {line["concept"]: line for line in lines if (line["method"], line["pooling"]) == (method, pooling)}
        seconds = mean(line["seconds"] for line in matching.values())
        cells = [likeness_of(matching[concept], options["draws"]) for concept in concepts]
        methods.append((method, pooling, *cells, f"{seconds:.0f}"))
    blocks = [
        markdown.table(("method", "pooled by", *concepts, "seconds to learn"), methods),
        f"Likeness to the untouched pictures, %, at the strength at which the judge takes {markdown.percent(LEVEL)} of "
        f"{options['prompts']} pictures for the concept ({REMOVED}: {markdown.percent(1 - LEVEL)}), up to strength "
        f"{STRENGTHS[-1]:g}; mean ± deviation of {options['draws']} draws of 32 + 32 prompts; in brackets how many of "
        "them get there, where not all do.",
        along_gamma(result.made["paths"]["gamma"], "taken for night"),
        along_gamma(result.made["paths"]["sun-gamma"], "a sun is seen"),
        "The dense one is that of the first table, turned down; empty where it does not have the effect in all draws.",
    ]
    return "\n\n".join(blocks)


def along_gamma(rows: list[dict], judged: str) -> str:
    """Return a line for each gamma: means over draws."""
    titles = ("gamma", "neurons touched", f"{judged} at strength 1", "likeness", "of the dense one at that effect")
    likeness, lines = measure("img_score"), []
    for gamma in dict.fromkeys(row["gamma"] for row in rows):
        matching = [row for row in rows if row["gamma"] == gamma]
        support, concept, score = (mean(row[key] for row in matching) for key in ("support", "concept", "img_score"))
        dense = [row["dense"] for row in matching]
        same = "" if None in dense else f"{likeness.text(mean(dense))} %"
        cells = markdown.percent(support, 1), markdown.percent(concept), f"{likeness.text(score)} %", same
        lines.append((f"{gamma:g}", *cells))
    return markdown.table(titles, lines)


def likeness_of(line: dict, draws: int) -> str:
    """Return what is left of the pictures at equal effect."""
    if not line["reached"]:
        return "never"
    text = measure("img_score").text(line["img_score"], line["deviation"])
    return text + (f" ({line['reached']} of {draws})" if line["reached"] < draws else "")


if __name__ == "__main__":
    main()
