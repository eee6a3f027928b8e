"""Two concepts at once: interventions composed, mixed, and learned on top of each other, dense and sparse.

    python -m benchmarks.sparsity.composition [--draws 2] [--samples 4] [--only 0 1 ...]

On SmolLM2-135M-Instruct, for pairs of the sentence sets that come with lineas. Continuations of neutral openings are
judged by a classifier of each concept, fitted on the two sides of its whole set, of which half are learned from: how
many show the first, the second, both; and the damage to neutral sentences. Ways: each alone, one after the other in
both orders (`then`), their changes added (`mix`), one learned on top of the other in both orders (`learn(on=...)`), of
LinEAS without a penalty, with the sparse group lasso, and with single neurons penalised and refitted; Lin-AcT; one
intervention learned from all sentences of both concepts at once; the dense ones composed at lower strengths; and a
prompt that asks for both.
Writes composition.json and benchmarks/results/composition, a file a pair and draw, so it goes on where it stopped and
may be shared by several processes (--only).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from statistics import mean

import lineas
from benchmarks.common.record import about, kept, save, spread
from lineas.evaluation.classifiers import Classifier, fitted
from lineas.evaluation.perplexity import damages
from lineas.learning import Method
from lineas.learning.interruption import discard_partial
from lineas.prompts import draw, read_prompts

PAIRS = (("archaic", "cheerful"), ("seafaring", "cheerful"), ("formal", "cheerful"), ("archaic", "polite"))
SITES = r"model\.layers\.(1[5-9]|2\d)\.post_attention_layernorm"
METHODS: dict[str, Method] = {
    "lin-act": lineas.LinAcT(),
    "dense": lineas.LinEAS(),
    "group lasso": lineas.LinEAS(gamma=1e-4, steps=30),
    "neurons": lineas.LinEAS(gamma=1e-3, lambda_g=0.0, steps=30, refit=True),
}
SENTENCES = 24
"""Sentences a side of every draw, of 48."""
AT = (0.5, 0.75)
SWAPPED = ", other order"
MEASURES = ("first", "second", "both", "perplexity", "kl")
ASKED = {
    "archaic": "in archaic English",
    "cheerful": "cheerfully",
    "formal": "in formal language",
    "polite": "politely",
    "seafaring": "like a pirate",
}


@discard_partial()
def main() -> None:
    """Learn, compose, continue, judge, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4, help="continuations of each opening")
    parser.add_argument("--only", nargs="+", type=int, metavar="PAIR", help="make these alone (0 to 3), and no summary")
    options = parser.parse_args()
    model = lineas.load(dtype="float32")
    judging = {
        name: fitted(*(read_prompts(f"lineas:{name}/{side}") for side in ("target", "source"))) for name in ASKED
    }
    judges = {name: judge for name, (judge, _) in judging.items()}

    def unlearned(first: str, second: str) -> list[dict]:
        pair = (judges[first], judges[second])
        asked = f"Continue the text {ASKED[first]} and {ASKED[second]}:\n"
        return [
            {"way": "untouched", **judged(model, None, pair, options.samples)},
            {"way": "prompt", **judged(model, None, pair, options.samples, asked)},
        ]

    def learned(make: Callable[..., Iterator], first: str, second: str, number: int) -> list[dict]:
        pair = (judges[first], judges[second])
        return [
            {"way": way, **judged(model, made, pair, options.samples), "support": made.support()}
            for way, made in make(model, first, second, number)
        ]

    rows: list[dict] = []
    methods = {name: asdict(method) for name, method in METHODS.items()}
    asked = {"samples": options.samples, "sentences": SENTENCES, "methods": methods, "sites": SITES}
    for first, second in PAIRS if options.only is None else [PAIRS[number] for number in options.only]:
        rows += kept("composition", f"{first}-{second}", asked, unlearned, first, second)
        for number in range(options.draws):
            case = f"{first}-{second}-{number}"
            made = kept("composition", case, asked, learned, ways, first, second, number)
            made += kept("composition", f"{case}-weaker", asked | {"at": AT}, learned, weaker, first, second, number)
            rows += [{"case": case, **row} for row in made]
    if options.only:
        return
    found = summary(rows)
    areas = {name: area for name, (_, area) in judging.items()}
    save("composition", {"about": about(), "options": vars(options), "areas": areas, **found})
    for line in [*found["lines"], *found["gaps"].items()]:
        print(line)


def ways(model: lineas.TextModel, first: str, second: str, seed: int) -> Iterator[tuple[str, lineas.Intervention]]:
    """Everything that is made of two concepts, by name."""
    both = tuple([*a, *b] for a, b in zip(sides(first, seed), sides(second, seed)))
    for kind, method in METHODS.items():
        one, other = (lineas.learn(model, *sides(name, seed), method, SITES, seed) for name in (first, second))
        yield f"{kind}, first alone", one
        yield f"{kind}, second alone", other
        yield f"{kind}, then", one.then(other)
        yield f"{kind}, then{SWAPPED}", other.then(one)
        if kind in ("lin-act", "dense"):
            yield f"{kind}, mix", lineas.mix({one: 1.0, other: 1.0})
        if kind != "lin-act":
            above = lineas.learn(model, *sides(second, seed), method, SITES, seed, on=one)
            yield f"{kind}, learned on top", one.then(above)
            above = lineas.learn(model, *sides(first, seed), method, SITES, seed, on=other)
            yield f"{kind}, learned on top{SWAPPED}", other.then(above)
    yield "dense, from all sentences at once", lineas.learn(model, *both, lineas.LinEAS(), SITES, seed)


def weaker(model: lineas.TextModel, first: str, second: str, seed: int) -> Iterator[tuple[str, lineas.Intervention]]:
    """The dense ones, which change the most, composed at lower strengths: is what a penalty gives more than less?"""
    one, other = (lineas.learn(model, *sides(name, seed), METHODS["dense"], SITES, seed) for name in (first, second))
    for strength in AT:
        yield f"dense, then, at {strength:g}", one.at(strength).then(other.at(strength))
        yield f"dense, then, at {strength:g}{SWAPPED}", other.at(strength).then(one.at(strength))


def sides(name: str, seed: int) -> tuple[list[str], list[str]]:
    """What a draw learns a concept from."""
    source, target = (draw(read_prompts(f"lineas:{name}/{side}"), SENTENCES, seed) for side in ("source", "target"))
    return source, target


def judged(
    model: lineas.TextModel,
    intervention: lineas.Intervention | None,
    judges: tuple[Classifier, Classifier],
    samples: int,
    prefix: str = "",
) -> dict[str, float]:
    """Shares of continuations that show the first concept, the second, both; perplexity and divergence."""
    openings, neutral = read_prompts("lineas:openings"), read_prompts("lineas:neutral")[::2]
    asked = [prefix + opening for opening in openings]

    def applied() -> AbstractContextManager[object]:
        return nullcontext() if intervention is None else lineas.steer(model, intervention)

    with applied():
        made = model.generate(asked * samples, batch_size=128)
    perplexity, kl = map(mean, damages(model, applied, neutral, prefix=prefix))
    a, b = ([score >= 0.5 for score in judge(made)] for judge in judges)
    return {"first": mean(a), "second": mean(b), "both": mean(map(min, a, b)), "perplexity": perplexity, "kl": kl}


def summary(rows: list[dict]) -> dict:
    """Means over pairs, draws and orders, a way a line; and what composing, learning on top and the order change."""
    lines = []
    for way in dict.fromkeys(row["way"].removesuffix(SWAPPED) for row in rows):
        mine = [row for row in rows if row["way"].removesuffix(SWAPPED) == way]
        line = {key: mean(row[key] for row in mine) for key in MEASURES}
        if "support" in mine[0]:
            line["support"] = mean(row["support"] for row in mine)
        lines.append({"way": way, "rows": len(mine), **line})
    return {"lines": lines, "gaps": {kind: gaps(kind, rows) for kind in METHODS}}


def gaps(kind: str, rows: list[dict]) -> dict[str, dict]:
    """Differences within a pair and a draw, means of both orders, with their deviation over pairs and draws.

    `composed` against the concept that shows both more often, alone; composed against the dense ones composed (`than
    dense`); learned `on top` against composed; a concept that comes `last` against the same one first.
    """
    found: dict[str, list[dict[str, float]]] = {"composed": [], "than dense": [], "on top": [], "last": []}
    for case in dict.fromkeys(row["case"] for row in rows if "case" in row):
        at = {row["way"]: row for row in rows if row.get("case") == case}
        alone = max((at[f"{kind}, {which} alone"] for which in ("first", "second")), key=lambda row: row["both"])
        plain = over_orders(at, f"{kind}, then")
        others = {"composed": (plain, alone), "than dense": (plain, over_orders(at, "dense, then"))}
        if f"{kind}, learned on top" in at:
            others["on top"] = (over_orders(at, f"{kind}, learned on top"), plain)
        for name, (one, other) in others.items():
            found[name].append({key: one[key] - other[key] for key in MEASURES})
        then, swapped = (at[f"{kind}, then{order}"] for order in ("", SWAPPED))
        last = (swapped["first"] - then["first"], then["second"] - swapped["second"])
        found["last"].append({"shown": mean(last)})
    return {name: {key: spread([gap[key] for gap in all_]) for key in all_[0]} for name, all_ in found.items() if all_}


def over_orders(at: dict[str, dict], way: str) -> dict[str, float]:
    """The mean of a way's two orders."""
    return {key: mean(at[f"{way}{order}"][key] for order in ("", SWAPPED)) for key in MEASURES}


if __name__ == "__main__":
    main()
