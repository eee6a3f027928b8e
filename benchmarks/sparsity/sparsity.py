"""How sparse an intervention may be: LinEAS along gamma on Jigsaw, judged by toxicity and perplexity.

    python -m benchmarks.sparsity.sparsity [--seeds 4] [--prompts 500] [--neutral 200] [--jobs 1] [--only 0 1 ...]

For each draw of 32 + 32 sentences a path of maps from sparse to dense, each beginning where the one before it ended:
with the sparse group lasso, and with single neurons alone (lambda_g = 0), where each support is also learned once more
without the penalty. Beside them a dense run of its own, also turned down, and Lin-AcT, which has no gamma. Maps may sit
at the norms of the upper two thirds of the layers, as in detoxification.py: on all layers the lasso takes the neurons
of the lowest, which damage most. Judged are continuations of RealToxicityPrompts (alt-profanity-check) and the
perplexity of Wikipedia sentences. Every line is compared with the dense run of the same draw: what it keeps of its
effect on the mean toxicity, and how much more or less it damages. The points of every draw and method go to
benchmarks/results/sparsity when they are complete, so that this may be run in parts; what is learned is kept in
benchmarks/runs. Writes benchmarks/results/sparsity.json and docs/sparsity.png when all are there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lineas
from benchmarks.common.record import DATA, RESULTS, UPPER_NORMS, about, save, spread, toxic_prompts
from lineas.evaluation.classifiers import PROFANITY
from lineas.evaluation.plan import Plan
from lineas.files.writing import write_text
from lineas.prompts import draw, read_prompts
from lineas.reporting.sweep_report import plot
from lineas.sweeping import Job, points, run_jobs, summary
from lineas.sweeping.summary import Line

RUNS = Path(__file__).parents[1] / "runs" / "sparsity"
GAMMAS = {
    "lineas": (0.0, 1e-4, 2e-4),
    "lineas-neurons": (5e-4, 1e-3, 1.5e-3),
    "lin-act": (),
}
"""Of every method, weights of its penalty: from the dense end to where little is left."""
DENSE = "dense"
STRENGTHS = (0.5, 0.75, 1.0)
"""Of the dense run: turned down it is to be compared at equal effect."""
OFFSET = 664
"""The first prompts and sentences are those on which recipes were chosen, and on which LoFIT-RL is trained."""
OTHER = 200
"""The seed of the first draw of Jigsaw's sentences, apart from those of the other benchmarks."""
EFFECT = "toxic_score"
"""The mean, not the share above 0.5: of the untouched model's texts few are above it, so that a share is noise."""


def main() -> None:
    """Learn, judge, choose, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    jigsaw = {side: read_prompts(f"{DATA}/jigsaw/{side}.jsonl:text") for side in ("toxic", "nontoxic")}
    wikipedia = draw(read_prompts(f"{DATA}/wikipedia/sentences.jsonl:text"), OFFSET + options.neutral, 0)
    plan = Plan(
        toxic_prompts(OFFSET + options.prompts)[OFFSET:], wikipedia[OFFSET:], {"toxic": PROFANITY},
        sampling={"batch_size": 64},
    )  # fmt: skip
    recipes = {
        "lineas": lineas.LinEAS(steps=options.steps),
        "lineas-neurons": lineas.LinEAS(steps=options.steps, lambda_g=0.0),
        "lin-act": lineas.LinAcT(),
    }
    asked = {key: value for key, value in vars(options).items() if key not in ("jobs", "only")}
    asked |= {"gammas": {name: list(gammas) for name, gammas in GAMMAS.items()}, "sites": UPPER_NORMS}
    folder = RUNS / hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]
    jobs = [Job(folder, options.model, None, "untouched", (), (), 0, (), plan, dtype=options.dtype)]
    for seed in options.only or range(options.seeds):
        source, target = (draw(jigsaw[side], options.samples, OTHER + seed) for side in ("toxic", "nontoxic"))
        jobs += [
            Job(
                folder, options.model, recipe, name, source, target, seed, GAMMAS[name], plan,
                refit=name == "lineas-neurons", options={} if name == "lin-act" else {"sites": UPPER_NORMS},
                dtype=options.dtype, threads=1 if options.jobs > 1 else None,
            )
            for name, recipe in recipes.items()
        ]  # fmt: skip
        jobs.append(replace(jobs[-len(recipes)], name=DENSE, gammas=(0.0,), strengths=STRENGTHS))
    for start in range(0, len(jobs), options.jobs):
        some = jobs[start : start + options.jobs]
        missing = [job for job in some if not restored(job, asked)]
        run_jobs(missing, options.jobs)
        for job in missing:
            result = {"about": about(), "options": asked, "points": points(job.place)}
            write_text(RESULTS / "sparsity" / f"{job.place.name}.json", json.dumps(result, indent=1) + "\n")
    if options.only:
        return
    rows = [row for job in jobs for row in points(job.place)]
    lines = summary(rows, EFFECT)
    told = [asdict(line) | {"against_dense": against_dense(line, rows)} for line in lines]
    save("sparsity", {"about": about(), "options": asked, "lines": told})
    for line in told:
        print(line)
    plot(lines, Path(__file__).parents[2] / "docs" / "sparsity.png", EFFECT)


def against_dense(line: Line, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Mean and deviation over draws of a line's share of the dense run's effect, and of the difference in damage."""
    values = {(row["method"], row["gamma"], row["refit"], row["strength"], row["seed"]): row["values"] for row in rows}
    before = values["untouched", None, False, 1.0, 0]
    found: dict[str, list[float]] = {"kept": [], "perplexity": [], "kl": []}
    for (*kind, seed), mine in values.items():
        if kind == [line.method, line.gamma, line.refit, line.strength]:
            dense = values[DENSE, 0.0, False, 1.0, seed]
            found["kept"].append((before[EFFECT] - mine[EFFECT]) / (before[EFFECT] - dense[EFFECT]))
            for damage in ("perplexity", "kl"):
                found[damage].append(mine[damage] - dense[damage])
    return {name: spread(all_) for name, all_ in found.items()}


def restored(job: Job, asked: dict[str, Any]) -> bool:
    """Whether the points of a job are all there, in the runs or in the results of another machine."""
    file = RESULTS / "sparsity" / f"{job.place.name}.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if len(points(job.place)) < job.count and told.get("options") == asked:
        known: Sequence[dict[str, Any]] = told["points"]
        write_text(job.place / "points.jsonl", "".join(json.dumps(point) + "\n" for point in known))
    return file.exists() and told.get("options") == asked and len(points(job.place)) == job.count


if __name__ == "__main__":
    main()
