"""Learn and measure the interventions that ship with lineas, on SmolLM2-135M-Instruct.

    python -m benchmarks.showcase.shipped [NAME ...]

From the sentence sets in src/lineas/data to src/lineas/data/interventions/NAME, kept to a few kB by the lasso on
single neurons, on the second half of the layers. Measured at strength 0, 0.5 and 1: the share of continuations of
neutral openings that a classifier fitted on the set's own two sides takes for the target side (for "polite" also the
share of rude continuations of provoking ones), and the perplexity of neutral sentences. The rows go to
benchmarks/results/shipped.json.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import lineas
from benchmarks.common import markdown, record
from benchmarks.common.splits import UPPER_HALF, both, take
from lineas.measures import measure

WHAT = {
    "polite": "considerate instead of rude",
    "formal": "official register instead of slang",
    "archaic": "thee and thou instead of plain modern English",
}
FOLDER = Path(lineas.__file__).parent / "data" / "interventions"
SEEDS = range(4)
NEURONS = 17_280
"""At the default sites of SmolLM2-135M."""


def main() -> None:
    """Learn and measure all of them, or those named."""
    from lineas.learning.interruption import discard_partial

    parser = record.parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(WHAT), help=", ".join(WHAT))
    options = parser.parse_args()
    model = record.text_model()
    with discard_partial():
        record.save("shipped", vars(options), {"rows": [ship(model, name) for name in options.names]})


def ship(model: lineas.TextModel, name: str) -> dict:
    """Learn one, measure it, and write it into the package."""
    from lineas.evaluation.classifiers import PROFANITY, classifier, fitted
    from lineas.evaluation.perplexity import perplexity

    source, target = both("shipped", "learning", f"lineas:{name}", ("source", "target"))
    judge, area = fitted(*both("shipped", "judging", f"lineas:{name}", ("target", "source")))
    openings, neutral = (take("shipped", "judging", f"lineas:{kind}") for kind in ("openings", "neutral"))
    recipe = lineas.LinEAS(steps=60, optimizer="sgd", gamma=2e-3, lambda_g=0.0)
    learned = lineas.learn(model, source, target, recipe, sites=UPPER_HALF)
    is_rude = classifier(PROFANITY)
    rows = []
    for strength in (0.0, 0.5, 1.0):
        with lineas.steer(model, learned, strength=strength):
            continued = [text for seed in SEEDS for text in model.generate(openings, seed=seed)]
            row = {
                "strength": strength,
                "target_share": mean(score >= 0.5 for score in judge(continued)),
                "perplexity": perplexity(model, neutral),
            }
            if name == "polite":
                provoking = take("shipped", "judging", "lineas:polite/prompts")
                answers = [text for seed in SEEDS for text in model.generate(provoking, seed=seed)]
                row["rude_share"] = mean(score >= 0.5 for score in is_rude(answers))
            rows.append(row)
            print(name, row, *continued[:4], sep="\n    ", flush=True)
    data = {side: {"file": f"lineas:{name}/{side}", **learned.facts["data"][side]} for side in ("source", "target")}
    learned = learned.with_facts(name=name, data=data, measurements=rows)
    folder = learned.save(FOLDER / name, overwrite=True)
    return {
        "name": name,
        "what": WHAT[name],
        "support": learned.support(),
        "neurons": sum(int(m.support().sum()) for m in learned.maps.values()),
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "tensor_bytes": (folder / "intervention.safetensors").stat().st_size,
        "judge_area": area,
        "measurements": rows,
    }


def table(result: record.Result) -> str:
    """Return a line for each intervention."""
    titles = ("name", "what it does", f"neurons touched, of {NEURONS:,}", "size", "taken for the target", "perplexity")
    lines = []
    for row in result.made["rows"]:
        ends = row["measurements"][0], row["measurements"][-1]
        lines.append(
            (
                f"`{row['name']}`",
                row["what"],
                f"{row['neurons']} ({markdown.percent(row['neurons'] / NEURONS, 1)})",
                f"{row['tensor_bytes'] / 1000:.0f} kB",
                " -> ".join(markdown.percent(end["target_share"]) for end in ends),
                " -> ".join(measure("perplexity").text(end["perplexity"]) for end in ends),
            )
        )
    return markdown.table(titles, lines)


if __name__ == "__main__":
    main()
