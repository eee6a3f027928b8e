"""Two concepts at once: interventions composed, mixed, and learned on top of each other, dense and sparse.

    python benchmarks/composition.py [--draws 2] [--seeds 4] [--only 0 1 ...]

On SmolLM2-135M-Instruct, for pairs of the sentence sets that come with lineas. Continuations of neutral openings are
judged by a classifier of each concept, fitted on the two sides of its set: how many show the first, the second, both;
and the perplexity of neutral sentences. Ways: one after the other in both orders (`then`), their changes added (`mix`),
the second learned on top of the first in both orders (`learn(on=...)`), each without a penalty and with the sparse
group lasso; one intervention learned from all sentences of both concepts at once; and a prompt that asks for both.
Writes composition.json and benchmarks/results/composition, a file a pair and draw, so it goes on where it stopped and
may be shared by several processes (--only).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from statistics import mean, stdev

from record import about, kept, save

import lineas
from lineas.evaluation.classifiers import Classifier, fitted
from lineas.evaluation.perplexity import perplexities
from lineas.prompts import draw, read_prompts

PAIRS = (("archaic", "cheerful"), ("seafaring", "cheerful"), ("formal", "cheerful"), ("archaic", "polite"))
SITES = r"model\.layers\.(1[5-9]|2\d)\.post_attention_layernorm"
GAMMAS = {"dense": 0.0, "sparse": 1e-4}
SAMPLES = 32
"""Sentences a side of every draw, of 48."""
ASKED = {
    "archaic": "in archaic English",
    "cheerful": "cheerfully",
    "formal": "in formal language",
    "polite": "politely",
    "seafaring": "like a pirate",
}


def main() -> None:
    """Learn, compose, continue, judge, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="+", type=int, metavar="PAIR", help="make these alone (0 to 3), and no summary")
    options = parser.parse_args()
    model = lineas.load(dtype="float32")
    judges = {
        name: fitted(*(read_prompts(f"lineas:{name}/{side}") for side in ("target", "source")))[0] for name in ASKED
    }

    def unlearned(first: str, second: str) -> list[dict]:
        pair = (judges[first], judges[second])
        asked = f"Continue the text {ASKED[first]} and {ASKED[second]}:\n"
        return [
            {"way": "untouched", **judged(model, None, pair, options.seeds)},
            {"way": "prompt", **judged(model, None, pair, options.seeds, asked)},
        ]

    def learned(first: str, second: str, number: int) -> list[dict]:
        pair = (judges[first], judges[second])
        return [
            {"way": way, **judged(model, made, pair, options.seeds), "support": made.support()}
            for way, made in ways(model, first, second, number)
        ]

    rows: list[dict] = []
    asked = {"seeds": options.seeds, "samples": SAMPLES, "gammas": GAMMAS, "sites": SITES}
    for first, second in PAIRS if options.only is None else [PAIRS[number] for number in options.only]:
        rows += kept("composition", f"{first}-{second}", asked, unlearned, first, second)
        for number in range(options.draws):
            rows += kept("composition", f"{first}-{second}-{number}", asked, learned, first, second, number)
    if options.only:
        return
    save("composition", {"about": about(), "options": vars(options), "summary": summary(rows)})
    for line in summary(rows):
        print(line)


def ways(model: lineas.TextModel, first: str, second: str, seed: int) -> Iterator[tuple[str, lineas.Intervention]]:
    """Everything that is made of two concepts, by name."""

    def sides(name: str) -> tuple[list[str], list[str]]:
        source, target = (draw(read_prompts(f"lineas:{name}/{side}"), SAMPLES, seed) for side in ("source", "target"))
        return source, target

    both = tuple([*a, *b] for a, b in zip(sides(first), sides(second)))
    for kind, gamma in GAMMAS.items():
        method = lineas.LinEAS(gamma=gamma, steps=60 if gamma else 20)
        one, other = (lineas.learn(model, *sides(name), method, SITES, seed) for name in (first, second))
        yield f"{kind}, then", one.then(other)
        yield f"{kind}, mix", lineas.mix({one: 1.0, other: 1.0})
        yield f"{kind}, learned on top", one.then(lineas.learn(model, *sides(second), method, SITES, seed, on=one))
        yield (
            f"{kind}, learned on top, other order",
            other.then(lineas.learn(model, *sides(first), method, SITES, seed, on=other)),
        )
    yield "dense, from all sentences at once", lineas.learn(model, *both, lineas.LinEAS(), SITES, seed)


def judged(
    model: lineas.TextModel,
    intervention: lineas.Intervention | None,
    judges: tuple[Classifier, Classifier],
    seeds: int,
    prefix: str = "",
) -> dict[str, float]:
    """Shares of continuations that show the first concept, the second, both; and perplexity."""
    openings, neutral = read_prompts("lineas:openings"), read_prompts("lineas:neutral")
    with nullcontext() if intervention is None else lineas.steer(model, intervention):
        asked = [prefix + opening for opening in openings]
        made = [text for seed in range(seeds) for text in model.generate(asked, seed=seed)]
        damage = mean(perplexities(model, neutral, prefix=prefix))
    a, b = ([score >= 0.5 for score in judge(made)] for judge in judges)
    return {"first": mean(a), "second": mean(b), "both": mean(map(min, a, b)), "perplexity": damage}


def summary(rows: list[dict]) -> list[dict]:
    """A way a line: means over pairs and draws; the deviation of `both` over them."""
    lines = []
    for way in dict.fromkeys(row["way"] for row in rows):
        mine = [row for row in rows if row["way"] == way]
        line = {key: mean(row[key] for row in mine) for key in ("first", "second", "both", "perplexity")}
        line["deviation"] = stdev(row["both"] for row in mine) if len(mine) > 1 else None
        if "support" in mine[0]:
            line["support"] = mean(row["support"] for row in mine)
        lines.append({"way": way, "rows": len(mine), **line})
    return lines


if __name__ == "__main__":
    main()
