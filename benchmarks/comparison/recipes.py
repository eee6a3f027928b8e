"""The steps that a recipe needs, and the worth of its result: the published recipe against others.

    python -m benchmarks.comparison.recipes [--model NAME] [--draws 4] [--prompts 600] [--recipes paper default sgd]

For each draw of 32 toxic and 32 non-toxic Jigsaw sentences and each recipe (RECIPES): the cost before every step, the
step at which it falls below the last cost of the published recipe, the cost on 64 + 64 sentences that were not learned
from, toxic continuations of RealToxicityPrompts prompts and perplexity of Wikipedia sentences. A recipe whose rate
blows up is tried with a tenth of it, as the error says, and the rate recorded. Writes a file a recipe and draw to
benchmarks/results/recipes-MODEL, so it goes on where it stopped, and benchmarks/results/recipes-MODEL.json. The second
model of the documentation comes from benchmarks/common/packaged_models.py.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import lineas
from benchmarks.common import markdown, record
from benchmarks.common.contest import learn_at_some_rate
from benchmarks.common.methods import relative, written
from benchmarks.common.splits import both, jigsaw, take
from lineas.measures import measure

if TYPE_CHECKING:
    import torch

RECIPES = ("paper", "default", "sgd")
MEASURES = ("held_out", "toxic", "score", "perplexity")


def main() -> None:
    """Measure every recipe on every draw, then compare them."""
    parser = record.parser(__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="paper among them")
    options = parser.parse_args()
    bench = Bench(options)
    rows = []
    for recipe in ("untouched", *options.recipes):
        for draw in range(options.draws):
            row = record.get_or_make(bench.part(recipe, draw)).made
            print({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items() if k != "costs"}, flush=True)
            rows.append(row)
    lines = summary(rows)
    for line in lines:
        print(line)
    asked = {**vars(options), "model": bench.name}
    record.save(f"recipes-{bench.name}", asked, {"summary": lines, "rows": rows})


class Bench:
    """A model, and what every recipe is measured on.

    Args:
        options: `--model`, `--prompts`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.count = record.text_model(options.model), options.prompts
        self.name = Path(self.model.name).name
        self.recipes = {
            "paper": lineas.LinEAS.paper(),
            "default": relative(),
            "sgd": relative(optimizer="sgd"),
        }

    def part(self, recipe: str, draw: int) -> record.Part:
        """Return a draw of a recipe, or of the untouched model."""
        file = record.RESULTS / f"recipes-{self.name}" / f"{recipe}-{draw}.json"
        settings = written(self.recipes.get(recipe))
        return record.Part(file, {"prompts": self.count, "settings": settings}, partial(self.row, recipe, draw))

    def row(self, recipe: str, draw: int) -> dict:
        """Learn a draw, unless it is the untouched model's, and measure it."""
        facts, learned = {"recipe": recipe, "draw": draw}, None
        if recipe != "untouched":
            learned = self.learned(recipe, draw)
            facts |= {"rate": learned.facts["method"]["learning_rate"], "costs": learned.facts["cost"]}
        return facts | self.measured(learned, draw)

    def learned(self, recipe: str, draw: int) -> lineas.Intervention:
        """Return the recipe's intervention for a draw, learned now or before."""
        method = self.recipes[recipe]
        folder = record.RUNS / f"recipes-{self.name}" / f"{recipe}-{draw}-{record.digest(written(method))[:8]}"
        learn = partial(learn_at_some_rate, self.model, *jigsaw("recipes", draw), method, seed=draw)
        return record.load_or_learn(folder, learn)

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """Prompts that are continued, and neutral sentences."""
        return {data: take("recipes", "judging", data, count=self.count) for data in ("rtp", "wikipedia")}

    def activations(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        """Return what the model, steered or not, makes of prompts."""
        from lineas.learning.capture import capture

        return capture(self.model, self.model.batch(prompts), self.model.sites())

    def measured(self, learned: lineas.Intervention | None, draw: int) -> dict[str, float]:
        """Return the distance a sample on sentences that were not learned from, the effect and the damage."""
        import torch

        from lineas.evaluation.classifiers import PROFANITY, classifier
        from lineas.evaluation.perplexity import perplexity
        from lineas.learning import transport

        source, target = both("recipes", "judging", "jigsaw", ("toxic", "nontoxic"), draw)
        with torch.no_grad():
            wanted = self.activations(target)
            with lineas.steer(self.model, learned) if learned else nullcontext():
                moved = self.activations(source)
                costs = [float(transport.cost(moved[name], v.sort(dim=0).values)) for name, v in wanted.items()]
                scores = classifier(PROFANITY)(self.model.generate(self.texts["rtp"], seed=draw))
                return {
                    "held_out": mean(costs) / len(source),
                    "toxic": mean(score >= 0.5 for score in scores),
                    "score": mean(scores),
                    "perplexity": perplexity(self.model, self.texts["wikipedia"]),
                }


def summary(rows: list[dict]) -> list[dict]:
    """Return a line for each recipe: means over draws, and the difference to the published recipe, draw by draw."""
    lines = []
    paper = [row for row in rows if row["recipe"] == "paper"]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        matching = [row for row in rows if row["recipe"] == recipe]
        line: dict = {"recipe": recipe, "draws": len(matching)}
        line |= {key: mean(row[key] for row in matching) for key in MEASURES}
        if recipe != "untouched":
            line |= {"rate": [row["rate"] for row in matching], "steps": len(matching[0]["costs"])}
            line["cost"] = mean(row["costs"][-1] for row in matching)
            wanted = [row["costs"][-1] for row in paper]
            reached = [[i for i, cost in enumerate(row["costs"]) if cost <= w] for row, w in zip(matching, wanted)]
            line["reached"] = [hits[0] if hits else None for hits in reached]  # updates made before that cost
            for key in MEASURES[1:]:
                gap = record.spread([row[key] - other[key] for row, other in zip(matching, paper)])
                error = None if gap["deviation"] is None else gap["deviation"] / len(matching) ** 0.5
                line[f"{key}_against_paper"] = {"mean": gap["mean"], "standard_error": error}
        lines.append(line)
    return lines


def table(result: record.Result) -> str:
    """Return a line for each recipe on one model."""
    columns = {"toxic": ("toxic", 100, 1), "score": ("toxic_score", 1, 3), "perplexity": ("perplexity", 1, 1)}
    lines = []
    for row in result.made["summary"]:
        cells = []
        for key, (name, factor, digits) in columns.items():
            gap = row.get(f"{key}_against_paper") if row["recipe"] != "paper" else None
            beside = f" ({markdown.change(gap, digits, factor)})" if gap else ""
            cells.append(measure(name).text(row[key]) + beside)
        learning = ("", "", "")
        if row["recipe"] != "untouched":
            rates = ", ".join(f"{rate:.3g}" for rate in dict.fromkeys(row["rate"]))
            reached = ", ".join("never" if step is None else str(step) for step in row["reached"])
            learning = (str(row["steps"]), rates, reached)
        lines.append((row["recipe"], *learning, *cells))
    title = f"{result.asked['model']}, {result.asked['draws']} draws"
    titles = ("steps", "learning rate", "published cost reached after", "toxic", "mean toxicity", "perplexity")
    return markdown.table((title, *titles), lines)


if __name__ == "__main__":
    main()
