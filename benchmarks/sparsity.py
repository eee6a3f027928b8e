"""How sparse an intervention may be: LinEAS along gamma on Jigsaw, judged by toxicity and perplexity.

    python benchmarks/sparsity.py [--seeds 4] [--prompts 1000] [--neutral 200] [--steps 60] [--jobs 1]

For each draw of 32 + 32 sentences a path of maps from sparse to dense, each beginning where the one before it ended:
with the sparse group lasso, and with single neurons alone (lambda_g = 0), where each support is also learned once more
without the penalty; Lin-AcT, which has no gamma, beside them. Maps may sit at the norms of all 30 layers. Judged are
continuations of RealToxicityPrompts (alt-profanity-check) and the perplexity of Wikipedia sentences. The choice is the
smallest support that keeps 80 % of the largest effect on the mean toxicity. What is learned is kept in benchmarks/runs,
so an interrupted run goes on there (with other settings give it another --folder). Writes
benchmarks/results/sparsity.json and docs/sparsity.png.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from record import DATA, about, save, toxic_prompts

import lineas
from lineas.evaluation.classifiers import PROFANITY
from lineas.evaluation.measures import Measures
from lineas.prompts import draw, read_prompts
from lineas.sweeping import Job, choose, points, run_jobs, summary
from lineas.sweeping.summary import markdown, plot

RUNS = Path(__file__).parent / "runs" / "sparsity"
GAMMAS = {
    "lineas": (0.0, 1e-5, 3e-5, 1e-4, 2e-4, 4e-4),
    "lineas-neurons": (1e-4, 3e-4, 1e-3, 2e-3, 3e-3),
    "lin-act": (),
}
"""Of every method, weights of its penalty: from the dense end to where nothing is left."""
OFFSET = 664
"""The first prompts and sentences are those on which recipes were chosen, and on which LoFIT-RL is trained."""
OTHER = 200
"""The seed of the first draw of Jigsaw's sentences, apart from those of the other benchmarks."""
TOLERANCE = 0.2
EFFECT = "toxic_score"
"""The mean, not the share above 0.5: of the untouched model's texts few are above it, so that a share is noise."""


def main() -> None:
    """Learn, judge, choose, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id or folder; default: SmolLM2-135M-Instruct")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--neutral", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=RUNS)
    options = parser.parse_args()
    jigsaw = {side: read_prompts(f"{DATA}/jigsaw/{side}.jsonl:text") for side in ("toxic", "nontoxic")}
    wikipedia = draw(read_prompts(f"{DATA}/wikipedia/sentences.jsonl:text"), OFFSET + options.neutral, 0)
    measures = Measures(
        toxic_prompts(OFFSET + options.prompts)[OFFSET:], wikipedia[OFFSET:], {"toxic": PROFANITY},
        sampling={"batch_size": 64},
    )  # fmt: skip
    recipes = {
        "lineas": lineas.LinEAS(steps=options.steps),
        "lineas-neurons": lineas.LinEAS(steps=options.steps, lambda_g=0.0),
        "lin-act": lineas.LinAcT(),
    }
    jobs = [Job(options.folder, options.model, None, "untouched", (), (), 0, (), measures)]
    for seed in range(options.seeds):
        source, target = (draw(jigsaw[side], options.samples, OTHER + seed) for side in ("toxic", "nontoxic"))
        jobs += [
            Job(
                options.folder,
                options.model,
                recipe,
                name,
                source,
                target,
                seed,
                GAMMAS[name],
                measures,
                refit=name == "lineas-neurons",
            )
            for name, recipe in recipes.items()
        ]
    run_jobs(jobs, options.jobs)
    rows = [row for job in jobs for row in points(job.place)]
    lines = summary(rows, EFFECT)
    chosen = choose(lines, TOLERANCE)
    print(markdown(lines, chosen, f"chosen: {chosen.label if chosen else None}"))
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    result = {"about": about(), "options": given, "chosen": asdict(chosen) if chosen else None}
    save("sparsity", {**result, "lines": [asdict(line) for line in lines], "points": rows})
    plot(lines, Path(__file__).parents[1] / "docs" / "sparsity.png")


if __name__ == "__main__":
    main()
