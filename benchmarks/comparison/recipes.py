"""How many steps a recipe needs, and what its result is worth: the published recipe against others.

    python -m benchmarks.comparison.recipes [--model NAME] [--draws 4] [--prompts 600] [--recipes paper default sgd]

For each draw of 32 toxic and 32 non-toxic Jigsaw sentences and each recipe (RECIPES): the cost before every step, the
step at which it falls below the last cost of the published recipe, the cost on 64 + 64 sentences that were not learned
from, toxic continuations of RealToxicityPrompts prompts and perplexity of Wikipedia sentences. A recipe whose rate
blows up is tried with a tenth of it, as the error says, and the rate recorded. What is learned and measured is kept in
benchmarks/runs (not part of the repository), so an interrupted benchmark goes on where it stopped. Writes
benchmarks/results/recipes-MODEL.json. The second model of the documentation comes from benchmarks/gemma.py.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from statistics import mean, stdev

import torch

import lineas
from benchmarks.common.record import DATA, about, learn_at_some_rate, save, toxic_prompts
from lineas.evaluation.classifiers import PROFANITY, classifier
from lineas.evaluation.perplexity import perplexity
from lineas.learning import transport
from lineas.learning.capture import capture
from lineas.learning.interruption import discard_partial
from lineas.prompts import draw, read_prompts

RUNS = Path(__file__).parents[1] / "runs"
RECIPES: dict[str, lineas.LinEAS] = {
    "paper": lineas.LinEAS.paper(),
    "default": lineas.LinEAS(),
    "sgd": lineas.LinEAS(optimizer="sgd"),
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

    def row(self, recipe: str, seed: int) -> dict:
        """One draw, learned (unless the recipe is "untouched") and measured, or read from an earlier run."""
        folder = RUNS / f"{self.name}-{recipe}-{seed}"
        row = {"recipe": recipe, "draw": seed}
        learned = None
        if recipe != "untouched":
            learned = self.learned(folder, recipe, seed)
            row |= {"rate": learned.facts["method"]["learning_rate"], "costs": learned.facts["cost"]}
        file = folder / f"measured-{len(self.prompts)}.json"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.measured(learned, seed)), encoding="utf-8")
        row |= json.loads(file.read_text())
        print({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items() if k != "costs"}, flush=True)
        return row

    def learned(self, folder: Path, recipe: str, seed: int) -> lineas.Intervention:
        """The recipe's intervention for a draw."""
        if not (folder / "intervention.json").exists():
            sides = [self.sentences(side, seed)[0] for side in ("toxic", "nontoxic")]
            learn_at_some_rate(self.model, *sides, RECIPES[recipe], seed=seed).save(folder, overwrite=True)
        return lineas.Intervention.load(folder)

    @torch.no_grad()
    def activations(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """What the model, steered or not, makes of prompts."""
        return capture(self.model, self.model.batch(prompts), self.sites)

    def measured(self, learned: lineas.Intervention | None, seed: int) -> dict:
        """Distance a sample on sentences that were not learned from, effect, damage."""
        source, target = (self.sentences(side, seed)[1] for side in ("toxic", "nontoxic"))
        wanted = self.activations(target)
        with lineas.steer(self.model, learned) if learned else nullcontext():
            moved = self.activations(source)
            costs = [float(transport.cost(moved[name], v.sort(dim=0).values)) for name, v in wanted.items()]
            scores = classifier(PROFANITY)(self.model.generate(self.prompts, seed=seed))
            return {
                "held_out": mean(costs) / len(source),
                "toxic": mean(score >= 0.5 for score in scores),
                "score": mean(scores),
                "perplexity": perplexity(self.model, self.neutral),
            }


def summary(rows: list[dict]) -> list[dict]:
    """A recipe a row: means over the draws, and the difference to the published recipe, draw by draw."""
    by = {
        recipe: [row for row in rows if row["recipe"] == recipe] for recipe in dict.fromkeys(r["recipe"] for r in rows)
    }
    lines = []
    for recipe, mine in by.items():
        line: dict = {"recipe": recipe, "draws": len(mine)}
        for key in ("held_out", "toxic", "score", "perplexity"):
            line[key] = mean(row[key] for row in mine)
        if recipe != "untouched":
            line |= {"rate": [row["rate"] for row in mine], "steps": len(mine[0]["costs"])}
            line["cost"] = mean(row["costs"][-1] for row in mine)
            wanted = [row["costs"][-1] for row in by["paper"]]
            reached = [[i for i, cost in enumerate(row["costs"]) if cost <= w] for row, w in zip(mine, wanted)]
            line["reached"] = [hits[0] if hits else None for hits in reached]  # updates made before that cost
            for key in ("toxic", "score", "perplexity"):
                gaps = [row[key] - other[key] for row, other in zip(mine, by["paper"])]
                deviation = stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
                line[f"{key}_against_paper"] = {"mean": mean(gaps), "standard_error": deviation}
        lines.append(line)
    return lines


@discard_partial()
def main() -> None:
    """Every recipe on every draw, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="paper among them")
    options = parser.parse_args()
    bench = Bench(options.model, options.prompts)
    rows = [bench.row(recipe, seed) for recipe in ("untouched", *options.recipes) for seed in range(options.draws)]
    lines = summary(rows)
    for line in lines:
        print(line)
    given = {**vars(options), "model": bench.name}
    save(f"recipes-{bench.name}", {"about": about(), "options": given, "summary": lines, "rows": rows})


if __name__ == "__main__":
    main()
