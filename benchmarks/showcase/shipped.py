"""Learn and measure the interventions that ship with lineas, on SmolLM2-135M-Instruct.

    python -m benchmarks.showcase.shipped [NAME ...]

From the sentence sets in src/lineas/data to src/lineas/data/interventions/NAME, kept to a few kB by the lasso on
single neurons, on the second half of the layers. Measured at strength 0, 0.5 and 1: the share of continuations of
neutral openings that a classifier fitted on the set's own two sides takes for the target side (for "polite" also the
share of rude continuations of provoking ones), and the perplexity of neutral sentences. The rows go to
benchmarks/results/shipped.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean

import lineas
from benchmarks.common.record import about, save
from lineas.evaluation.classifiers import PROFANITY, classifier, fitted
from lineas.evaluation.perplexity import perplexity
from lineas.learning.interruption import discard_partial
from lineas.prompts import read_prompts

WHAT = {
    "polite": "considerate instead of rude",
    "formal": "official register instead of slang",
    "archaic": "thee and thou instead of plain modern English",
}
SITES = r"model\.layers\.(1[5-9]|2\d)\.post_attention_layernorm"
RECIPE = lineas.LinEAS(steps=60, optimizer="sgd", gamma=2e-3, lambda_g=0.0)
FOLDER = Path(lineas.__file__).parent / "data" / "interventions"
SEEDS = range(4)


def ship(model: lineas.TextModel, name: str) -> dict:
    """Learn one, measure it, and write it into the package."""
    source, target = (read_prompts(f"lineas:{name}/{side}") for side in ("source", "target"))
    judge, area = fitted(target, source)
    is_rude = classifier(PROFANITY)
    learned = lineas.learn(model, source, target, RECIPE, sites=SITES)
    openings, neutral = read_prompts("lineas:openings"), read_prompts("lineas:neutral")
    rows = []
    for strength in (0.0, 0.5, 1.0):
        with lineas.steer(model, learned, strength=strength):
            made = [text for seed in SEEDS for text in model.generate(openings, seed=seed)]
            row = {
                "strength": strength,
                "target_share": mean(score >= 0.5 for score in judge(made)),
                "perplexity": perplexity(model, neutral),
            }
            if name == "polite":
                rude = [
                    s
                    for seed in SEEDS
                    for s in is_rude(model.generate(read_prompts("lineas:polite/prompts"), seed=seed))
                ]
                row["rude_share"] = mean(s >= 0.5 for s in rude)
            rows.append(row)
            print(name, row, *made[:4], sep="\n    ", flush=True)
    data = {side: {"file": f"lineas:{name}/{side}", **learned.facts["data"][side]} for side in ("source", "target")}
    learned = learned.with_facts(name=name, data=data, measurements=rows)
    folder = learned.save(FOLDER / name, overwrite=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "name": name,
        "what": WHAT[name],
        "support": learned.support(),
        "neurons": sum(int(m.support().sum()) for m in learned.maps.values()),
        "bytes": size,
        "tensor_bytes": (folder / "intervention.safetensors").stat().st_size,
        "judge_area": area,
        "measurements": rows,
    }


@discard_partial()
def main() -> None:
    """All of them, or those named."""
    model = lineas.load()
    save("shipped", {"about": about(), "rows": [ship(model, name) for name in sys.argv[1:] or WHAT]})


if __name__ == "__main__":
    main()
