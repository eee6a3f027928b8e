"""The budget: is the divergence at strength 1 also what was asked for on text that learning has not seen?

    python -m benchmarks.comparison.budget [--model DIR] [--draws 2]

`LinEAS()` with its defaults learns toxicity (32 + 32 Jigsaw sentences, two draws), politeness, formality and the
archaic style (the sentences that ship). Its divergence and perplexity at strength 1 are then measured on 100 sentences
of Wikipedia, 100 civil comments of Jigsaw, and 100 questions and answers of TruthfulQA, as chat turns where the model
has a chat template. Writes benchmarks/results/budget, a file an intervention, so it goes on where it stopped.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import lineas
from benchmarks.common import markdown, record
from benchmarks.common.splits import both, jigsaw, take

COUNT = 100
KINDS = ("Wikipedia", "civil comments", "chat turns")
SHIPPED = ("polite", "formal", "archaic")


def main() -> None:
    """Learn, measure, print and record."""
    parser = record.parser(__doc__)
    parser.add_argument("--model", default=None, help="hub id or folder; default: SmolLM2-135M-Instruct")
    parser.add_argument("--draws", type=int, default=2)
    options = parser.parse_args()
    bench = Bench(options.model)
    for concept, draw in [*(("toxicity", draw) for draw in range(options.draws)), *((one, 0) for one in SHIPPED)]:
        print(record.get_or_make(bench.part(concept, draw)).made, flush=True)


class Bench:
    """A model and the texts on which its interventions are measured.

    Args:
        name: hub id or folder of the model; None for the default one.
    """

    def __init__(self, name: str | None) -> None:
        self.model = record.text_model(name, dtype="float32")
        self.name = Path(self.model.name).name

    def part(self, concept: str, draw: int) -> record.Part:
        """Return the row of an intervention."""
        file = record.RESULTS / "budget" / f"{self.name}-{concept}-{draw}.json"
        asked = {"model": self.name, "concept": concept, "draw": draw, "count": COUNT}
        return record.Part(file, asked, partial(self.row, concept, draw))

    def row(self, concept: str, draw: int) -> dict[str, Any]:
        """Learn, and measure the divergence on each kind of text."""
        if concept == "toxicity":
            sides = jigsaw("budget", draw)
        else:
            sides = both("budget", "learning", f"lineas:{concept}", ("source", "target"))
        learned = lineas.learn(self.model, *sides, seed=draw, progress=False)
        found = {kind: self._damage(kind, draw, learned) for kind in KINDS}
        spent = {"budget": learned.facts["method"]["divergence"], "spent": learned.facts["divergence"]}
        about = {"model": self.name, "concept": concept, "draw": draw, "sites": len(learned.maps)}
        return {**about, **spent, "cost": [learned.facts["cost"][0], learned.facts["cost_after"]], "on": found}

    def _damage(self, kind: str, draw: int, learned: lineas.Intervention) -> dict[str, float]:
        from benchmarks.common.equal_damage import Neutral
        from lineas.evaluation.variants import Steered, Untouched

        neutral = Neutral(self.model, self._texts(kind, draw))
        before, after = neutral.measure(Untouched()), neutral.measure(Steered("learned", learned, 1.0))
        return {"kl": after["kl"], "perplexity_change": after["perplexity"] / before["perplexity"] - 1}

    def _texts(self, kind: str, draw: int) -> list[str]:
        if kind == "Wikipedia":
            return take("budget", "judging", "wikipedia")
        if kind == "civil comments":  # none of those that the draw learns from
            return take("budget", "judging", "jigsaw/nontoxic", draw)
        return [self._turn(*pair.split("\n", 1)) for pair in take("budget", "judging", "truthfulqa")]

    def _turn(self, question: str, answer: str) -> str:
        """Return a question and its answer as the model reads a conversation."""
        tokenizer = self.model.tokenizer
        if getattr(tokenizer, "chat_template", None) is None:
            return f"{question}\n{answer}"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))


def table(result: record.Result) -> str:
    """Return a line for each model and concept: what was spent on neutral text, and what it is on other text."""
    titles = ("model", "concept", "budget", "spent", *(f"{kind}: divergence, perplexity" for kind in KINDS))
    lines = []
    rows = result.made
    for model in dict.fromkeys(row["model"] for row in rows):
        for concept in ("toxicity", *SHIPPED):
            matching = [row for row in rows if (row["model"], row["concept"]) == (model, concept)]
            if not matching:
                continue
            cells = [model, concept, f"{matching[0]['budget']:g}", f"{mean(row['spent'] for row in matching):.4f}"]
            for kind in KINDS:
                kl, change = (mean(row["on"][kind][key] for row in matching) for key in ("kl", "perplexity_change"))
                cells.append(f"{kl:.4f}, {100 * change:+.1f} %")
            lines.append(cells)
    return markdown.table(titles, lines)


if __name__ == "__main__":
    main()
