"""How many steps a recipe needs, and what its result is worth: the published recipe against others.

    python benchmarks/recipes.py RECIPE [RECIPE ...] [--draws 4] [--prompts 300] [--model NAME]

For each draw of 32 toxic and 32 non-toxic Jigsaw sentences and each recipe (RECIPES): the cost before every step, the
cost on 64 + 64 sentences that were not learned from, toxic continuations of RealToxicityPrompts prompts and perplexity
of Wikipedia sentences. Every run is kept in benchmarks/runs (not part of the repository), so an interrupted
benchmark goes on where it stopped. Writes benchmarks/results/recipes-MODEL.json once all are there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import mean

import torch
from record import DATA, about, save, toxic_prompts

import lineas
from lineas import transport
from lineas.evaluation.perplexity import perplexity
from lineas.evaluation.toxicity import toxicity_scores
from lineas.learning.capture import capture
from lineas.prompts import draw, read_prompts

RUNS = Path(__file__).parent / "runs"
RECIPES: dict[str, lineas.LinEAS] = {
    "paper": lineas.LinEAS.paper(),
    "default": lineas.LinEAS(),
    "short": lineas.LinEAS(steps=20),
}
SAMPLES = 32


class Bench:
    """A model, and what every recipe is measured on."""

    def __init__(self, name: str | None, prompts: int) -> None:
        self.model = lineas.load(name)
        self.name = Path(self.model.name).name
        self.sites = self.model.sites()
        self.prompts = toxic_prompts(prompts)
        self.neutral = draw(read_prompts(f"{DATA}/wikipedia/sentences.jsonl:text"), prompts, 0)

    def sentences(self, side: str, seed: int) -> tuple[list[str], list[str]]:
        """The sentences of a draw, and twice as many that it did not take."""
        everything = read_prompts(f"{DATA}/jigsaw/{side}.jsonl:text")
        taken = draw(everything, SAMPLES, seed)
        return taken, draw([s for s in everything if s not in set(taken)], 2 * SAMPLES, seed)

    @torch.no_grad()
    def activations(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """What the model, steered or not, makes of prompts."""
        return capture(self.model, self.model.batch(prompts), self.sites)

    def run(self, recipe: str, seed: int) -> dict:
        """Learn and measure one draw, or read what an earlier run has found."""
        folder = RUNS / f"{self.name}-{recipe}-{seed}"
        if (folder / "run.json").exists():
            return json.loads((folder / "run.json").read_text())
        source, other_source = self.sentences("toxic", seed)
        target, other_target = self.sentences("nontoxic", seed)
        before = time.perf_counter()
        learned = lineas.learn(self.model, source, target, RECIPES[recipe], seed=seed)
        seconds = time.perf_counter() - before
        learned.save(folder, overwrite=True)
        wanted = self.activations(other_target)
        with lineas.steer(self.model, learned):
            row = {"recipe": recipe, "draw": seed, "seconds": seconds, "costs": learned.facts["cost"]}
            row |= self.measure(seed, other_source, wanted)
        (folder / "run.json").write_text(json.dumps(row), encoding="utf-8")
        print({k: v for k, v in row.items() if k != "costs"}, row["costs"][-1], flush=True)
        return row

    def measure(self, seed: int, other_source: list[str], wanted: dict[str, torch.Tensor]) -> dict:
        """The model as it stands: distance on sentences that were not learned from, effect, damage."""
        moved = self.activations(other_source)
        costs = [float(transport.cost(moved[name], v.sort(dim=0).values)) for name, v in wanted.items()]
        scores = toxicity_scores(self.model.generate(self.prompts, seed=seed))
        return {
            "held_out": mean(costs) / len(other_source),
            "toxic": mean(score >= 0.5 for score in scores),
            "score": mean(scores),
            "perplexity": perplexity(self.model, self.neutral),
        }

    def untouched(self, seed: int) -> dict:
        """The model without maps, by the same measures."""
        file = RUNS / f"{self.name}-untouched-{seed}.json"
        if not file.exists():
            RUNS.mkdir(exist_ok=True)
            wanted = self.activations(self.sentences("nontoxic", seed)[1])
            file.write_text(json.dumps(self.measure(seed, self.sentences("toxic", seed)[1], wanted)), encoding="utf-8")
        return json.loads(file.read_text())


def main() -> None:
    """Every recipe on every draw, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=RECIPES)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--model", default=None)
    options = parser.parse_args()
    bench = Bench(options.model, options.prompts)
    rows = [bench.run(recipe, seed) for recipe in options.recipes for seed in range(options.draws)]
    untouched = [bench.untouched(seed) for seed in range(options.draws)]
    save(f"recipes-{bench.name}", {"about": about(), "options": vars(options), "untouched": untouched, "rows": rows})


if __name__ == "__main__":
    main()
