"""The sparsity that an intervention may have: LinEAS along gamma on Jigsaw, judged by toxicity and perplexity.

    python -m benchmarks.sparsity.sparsity [--seeds 4] [--prompts 500] [--neutral 200] [--jobs 1] [--only 0 1 ...]

For each draw of 32 + 32 sentences a path of maps from sparse to dense, each beginning where the one before it ended:
with the sparse group lasso, and with single neurons alone (lambda_g = 0), where each support is also learned once more
without the penalty. Beside them a dense run of its own, also turned down, and Lin-AcT, which has no gamma. Maps may sit
at the norms of the upper two thirds of the layers, as in detoxification: on all layers the lasso takes the neurons
of the lowest, which damage most. Judged are continuations of RealToxicityPrompts (alt-profanity-check) and the
perplexity of Wikipedia sentences. Every line is compared with the dense run of the same draw: what it keeps of its
effect on the mean toxicity, and how much more or less it damages. The points of every draw and method go to
benchmarks/results/sparsity when they are complete, so that this may be run in parts; what is learned is kept in
benchmarks/runs. Writes benchmarks/results/sparsity.json and docs/sparsity.png when all are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import lineas
from benchmarks.common import markdown, record
from benchmarks.common.methods import relative
from benchmarks.common.splits import UPPER_NORMS, jigsaw, take
from lineas.measures import measure
from lineas.printable import as_label

if TYPE_CHECKING:
    from lineas.sweeping import Job

GAMMAS = {
    "lineas": (0.0, 1e-4, 2e-4),
    "lineas-neurons": (5e-4, 1e-3, 1.5e-3),
    "lin-act": (),
}
"""The weights of each method's penalty, from dense to nearly empty."""
DENSE = "dense"
STRENGTHS = (0.5, 0.75, 1.0)
"""The strengths of the dense run, which is compared at equal effect."""
EFFECT = "toxic_score"
"""The mean, not the share above 0.5: of the untouched model's texts few are above it, so that a share is noise."""
ENOUGH = 0.8
"""The share of the dense intervention's effect that a smaller one has to keep."""


def main() -> None:
    """Learn, judge, choose, print and record."""
    from lineas.sweeping import run_jobs, summary
    from lineas.sweeping.report import plot

    parser = record.parser(__doc__)
    parser.add_argument("--model", default=None, help="hub id or folder; default: SmolLM2-135M-Instruct")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--neutral", type=int, default=200)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--dtype", default="float32", help="one for all points, on whatever machine they are made")
    parser.add_argument("--only", nargs="+", type=int, metavar="DRAW", help="make these alone, and no summary")
    options = parser.parse_args()
    jobs = plan(options)
    for start in range(0, len(jobs), options.jobs):
        some = jobs[start : start + options.jobs]
        run_jobs([job for job, part in some if not part.find()], options.jobs)
        for _, part in some:
            record.get_or_make(part)
    if options.only:
        return
    rows = [row for _, part in jobs for row in record.get_or_make(part).made["points"]]
    lines = summary(rows, EFFECT)
    compared = [asdict(line) | {"against_dense": against_dense(asdict(line), rows)} for line in lines]
    record.save("sparsity", asked(options), {"lines": compared})
    for line in compared:
        print(line)
    plot(lines, record.DOCS / "sparsity.png", EFFECT)


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all points depend on."""
    own = {key: value for key, value in vars(options).items() if key not in ("jobs", "only")}
    return own | {"gammas": {name: list(gammas) for name, gammas in GAMMAS.items()}, "sites": UPPER_NORMS}


def plan(options: argparse.Namespace) -> list[tuple[Job, record.Part]]:
    """Return the jobs of a sweep, each with the part that keeps its points."""
    from lineas.evaluation.classifiers import PROFANITY
    from lineas.sweeping import Job, points

    prompts = take("sparsity", "judging", "rtp", count=options.prompts)
    neutral = take("sparsity", "judging", "wikipedia", count=options.neutral)
    measures = lineas.Plan(prompts, neutral, {"toxic": PROFANITY}, sampling={"batch_size": 64})
    recipes = {
        "lineas": relative(steps=options.steps),
        "lineas-neurons": relative(steps=options.steps, lambda_g=0.0),
        "lin-act": lineas.LinAcT(),
    }
    folder = record.RUNS / "sparsity" / record.digest(asked(options))[:8]
    jobs = [Job(folder, options.model, measures, dtype=options.dtype)]
    for draw in options.only or range(options.seeds):
        source, target = jigsaw("sparsity", draw, options.samples)
        jobs += [
            Job(
                folder, options.model, measures, method=recipe, name=name, source=source, target=target, seed=draw,
                gammas=GAMMAS[name], refit=name == "lineas-neurons",
                options={} if name == "lin-act" else {"sites": UPPER_NORMS},
                dtype=options.dtype, threads=1 if options.jobs > 1 else None,
            )
            for name, recipe in recipes.items()
        ]  # fmt: skip
        jobs.append(replace(jobs[-len(recipes)], name=DENSE, gammas=(0.0,), strengths=STRENGTHS))

    def part(job: Job) -> record.Part:
        file = record.RESULTS / "sparsity" / f"{job.place.name}.json"
        return record.Part(
            file,
            asked(options),
            lambda: {"points": points(job.place)},
            lambda made: len(made["points"]) == job.count,
        )

    return [(job, part(job)) for job in jobs]


def against_dense(line: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return what a line keeps of the dense run's effect, and its further damage: mean and deviation over draws."""
    values = {(row["method"], row["gamma"], row["refit"], row["strength"], row["seed"]): row["values"] for row in rows}
    before = values["untouched", None, False, 1.0, 0]
    differences: dict[str, list[float]] = {"kept": [], "perplexity": [], "kl": []}
    for (*kind, draw), point in values.items():
        if kind == [line["method"], line["gamma"], line["refit"], line["strength"]]:
            dense = values[DENSE, 0.0, False, 1.0, draw]
            differences["kept"].append((before[EFFECT] - point[EFFECT]) / (before[EFFECT] - dense[EFFECT]))
            for damage in ("perplexity", "kl"):
                differences[damage].append(point[damage] - dense[damage])
    return {name: record.spread(draws) for name, draws in differences.items()}


def table(result: record.Result) -> str:
    """Return the table of LinEAS along gamma, against the dense intervention of the same draw."""
    titles = ("gamma", "neurons touched", "mean score", "kept of the dense effect", "perplexity", "against dense")
    chosen = smallest(result.made["lines"])
    lines = []
    for line in result.made["lines"]:
        values, against, label = line["values"], line["against_dense"], label_of(line)
        neurons = kept = more = ""
        if line["method"] != "untouched":
            neurons = markdown.percent(values["support"], 1, line["deviations"]["support"])
            kept = markdown.percent(against["kept"]["mean"], deviation=against["kept"]["deviation"])
            more = markdown.change(against["perplexity"], 1)
        score = replace(measure(EFFECT), digits=4).text(values[EFFECT])
        damages = measure("perplexity").text(values["perplexity"]), more, measure("kl").text(values["kl"])
        lines.append((f"**{label}**" if line == chosen else label, neurons, score, kept, *damages))
    draws = result.asked["seeds"]
    return (
        markdown.table((*titles, "divergence"), lines) + f"\n\nIn bold: the smallest support that keeps "
        f"{markdown.percent(ENOUGH)} of the dense effect. Means of {draws} draws."
    )


def sentence(result: record.Result) -> str:
    """Return what the smallest support does that does most of the work."""
    lines = result.made["lines"]
    one = smallest(lines)
    before, dense = (
        next(line["values"] for line in lines if (line["method"], line["gamma"], line["strength"]) == kind)
        for kind in (("untouched", None, 1.0), (DENSE, 0.0, 1.0))
    )
    kept, values, perplexity = one["against_dense"]["kept"], one["values"], measure("perplexity").text
    return (
        f"On SmolLM2 and Jigsaw, {markdown.percent(values['support'], 1)} of the neurons keep "
        f"{markdown.percent(kept['mean'], deviation=kept['deviation'])} of what all of them do to the mean toxicity "
        f"({result.asked['seeds']} draws), at a perplexity of {perplexity(values['perplexity'])} instead of "
        f"{perplexity(dense['perplexity'])} (untouched: {perplexity(before['perplexity'])}): gamma {one['gamma']:g} on "
        f"single neurons{', refitted' * one['refit']}."
    )


def smallest(lines: list[dict]) -> dict:
    """Return of the lines that keep enough of the dense effect the one of the smallest support."""
    enough = [line for line in lines if line["against_dense"]["kept"]["mean"] >= ENOUGH]
    return min(enough, key=lambda line: line["values"]["support"])


def label_of(line: dict[str, Any]) -> str:
    """Return a line's name as `lineas.sweeping.Line.label` has it, whose import takes seconds."""
    gamma = "" if line["gamma"] is None else f" {as_label(line['gamma'])}"
    strength = "" if line["strength"] == 1 else f" at {as_label(line['strength'])}"
    return f"{line['method']}{gamma}{' refitted' * line['refit']}{strength}"


if __name__ == "__main__":
    main()
