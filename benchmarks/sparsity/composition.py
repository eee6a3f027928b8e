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
from functools import cache, partial
from statistics import mean
from typing import TYPE_CHECKING, Any

import lineas
from benchmarks.common import markdown, record
from benchmarks.common.methods import relative, settings_of
from benchmarks.common.splits import STYLES, UPPER_HALF, both, take
from lineas.measures import measure

if TYPE_CHECKING:
    from lineas.evaluation.classifiers import Classifier

PAIRS = (("archaic", "cheerful"), ("seafaring", "cheerful"), ("formal", "cheerful"), ("archaic", "polite"))
KINDS = ("lin-act", "dense", "group lasso", "neurons")
SENTENCES = 24
"""Sentences a side of every draw, of 48."""
AT = (0.5, 0.75)
SWAPPED = ", other order"
MEASURES = ("first", "second", "both", "perplexity", "kl")
IN_WORDS = {
    "archaic": "in archaic English",
    "cheerful": "cheerfully",
    "formal": "in formal language",
    "polite": "politely",
    "seafaring": "like a pirate",
}
Ways = Iterator[tuple[str, "lineas.Intervention"]]


def main() -> None:
    """Learn, compose, continue, judge, print and record."""
    parser = record.parser(__doc__)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4, help="continuations of each opening")
    parser.add_argument("--only", nargs="+", type=int, metavar="PAIR", help="make these alone (0 to 3), and no summary")
    options = parser.parse_args()
    rows = [{**case, **row} for case, part in plan(options) for row in record.get_or_make(part).made]
    if options.only:
        return
    means = summary(rows)
    areas = {name: judge(name)[1] for name in STYLES}
    record.save("composition", vars(options), {"areas": areas, **means})
    for line in [*means["lines"], *means["gaps"].items()]:
        print(line)


def plan(options: argparse.Namespace) -> list[tuple[dict[str, str], record.Part]]:
    """Return the parts, each with what its rows have in common: the case, a pair and a draw."""
    settings = {kind: settings_of(method) for kind, method in methods().items()}
    asked = {"samples": options.samples, "sentences": SENTENCES, "methods": settings, "sites": UPPER_HALF}

    def part(name: str, asked: dict[str, Any], measure: Callable[..., list[dict]], *given: Any) -> record.Part:
        file = record.RESULTS / "composition" / f"{name}.json"
        return record.Part(file, asked, partial(measure, options.samples, *given))

    parts = []
    for pair in PAIRS if options.only is None else [PAIRS[number] for number in options.only]:
        parts.append(({}, part("-".join(pair), asked, unlearned, *pair)))
        for draw in range(options.draws):
            case = f"{'-'.join(pair)}-{draw}"
            parts.append(({"case": case}, part(case, asked, learned, ways, *pair, draw)))
            weak = part(f"{case}-weaker", asked | {"at": AT}, learned, weaker, *pair, draw)
            parts.append(({"case": case}, weak))
    return parts


@cache
def methods() -> dict[str, Any]:
    """Return the methods by their names."""
    group_lasso = relative(gamma=1e-4, steps=30)
    neurons = relative(gamma=1e-3, lambda_g=0.0, steps=30, refit=True)
    return dict(zip(KINDS, (lineas.LinAcT(), relative(), group_lasso, neurons)))


@cache
def judge(name: str) -> tuple[Classifier, float]:
    """Return the classifier of a concept, and the area under its ROC curve on sentences kept apart."""
    from lineas.evaluation.classifiers import fitted

    return fitted(*both("composition", "judging", f"lineas:{name}", ("target", "source")))


def unlearned(samples: int, first: str, second: str) -> list[dict]:
    """Judge the untouched model, and a prompt that asks for both."""
    prefix = f"Continue the text {IN_WORDS[first]} and {IN_WORDS[second]}:\n"
    return [
        {"way": "untouched", **judged(samples, None, first, second)},
        {"way": "prompt", **judged(samples, None, first, second, prefix)},
    ]


def learned(samples: int, make: Callable[[str, str, int], Ways], first: str, second: str, draw: int) -> list[dict]:
    """Judge every way of a draw."""
    rows = []
    for way, intervention in make(first, second, draw):
        shares = judged(samples, intervention, first, second)
        rows.append({"way": way, **shares, "support": intervention.support()})
        print(first, second, draw, rows[-1], flush=True)
    return rows


def learn(
    source: list[str], target: list[str], draw: int, kind: str = "dense", on: lineas.Intervention | None = None
) -> lineas.Intervention:
    """Learn by one of the methods."""
    return lineas.learn(record.default_model(), source, target, methods()[kind], UPPER_HALF, draw, on=on)


def ways(first: str, second: str, draw: int) -> Ways:
    """Give everything that is made of two concepts, by name."""
    a, b = sides(first, draw), sides(second, draw)
    for kind in KINDS:
        one, other = learn(*a, draw, kind), learn(*b, draw, kind)
        yield f"{kind}, first alone", one
        yield f"{kind}, second alone", other
        yield f"{kind}, then", one.then(other)
        yield f"{kind}, then{SWAPPED}", other.then(one)
        if kind in ("lin-act", "dense"):
            yield f"{kind}, mix", lineas.mix({one: 1.0, other: 1.0})
        if kind != "lin-act":
            yield f"{kind}, learned on top", one.then(learn(*b, draw, kind, one))
            yield f"{kind}, learned on top{SWAPPED}", other.then(learn(*a, draw, kind, other))
    yield "dense, from all sentences at once", learn([*a[0], *b[0]], [*a[1], *b[1]], draw)


def weaker(first: str, second: str, draw: int) -> Ways:
    """Give the dense ones, which change the most, at lower strengths: is what a penalty gives more than less?"""
    one, other = (learn(*sides(name, draw), draw) for name in (first, second))
    for strength in AT:
        yield f"dense, then, at {strength:g}", one.at(strength).then(other.at(strength))
        yield f"dense, then, at {strength:g}{SWAPPED}", other.at(strength).then(one.at(strength))


def judged(
    samples: int, intervention: lineas.Intervention | None, first: str, second: str, prefix: str = ""
) -> dict[str, float]:
    """Return the shares of continuations that show the first concept, the second, both; and the damage."""
    from lineas.evaluation import Steered, Untouched
    from lineas.evaluation.perplexity import damages

    model = record.default_model()
    openings, neutral = (take("composition", "judging", f"lineas:{name}") for name in ("openings", "neutral"))

    system = Untouched() if intervention is None else Steered("composed", intervention)
    with system.applied(model) as change:
        texts = model.generate([prefix + opening for opening in openings] * samples, batch_size=128)
        perplexity, kl = map(mean, damages(model, change, neutral, prefix=prefix))
    a, b = ([score >= 0.5 for score in judge(name)[0](texts)] for name in (first, second))
    return {"first": mean(a), "second": mean(b), "both": mean(map(min, a, b)), "perplexity": perplexity, "kl": kl}


def sides(name: str, draw: int) -> tuple[list[str], list[str]]:
    """Return what a draw learns a concept from."""
    return both("composition", "learning", f"lineas:{name}", ("source", "target"), draw, SENTENCES)


def summary(rows: list[dict]) -> dict:
    """Return means over pairs, draws and orders, and what composing, learning on top and the order change."""
    lines = []
    for way in dict.fromkeys(row["way"].removesuffix(SWAPPED) for row in rows):
        matching = [row for row in rows if row["way"].removesuffix(SWAPPED) == way]
        line = {key: mean(row[key] for row in matching) for key in MEASURES}
        if "support" in matching[0]:
            line["support"] = mean(row["support"] for row in matching)
        lines.append({"way": way, "rows": len(matching), **line})
    return {"lines": lines, "gaps": {kind: gaps(kind, rows) for kind in KINDS}}


def gaps(kind: str, rows: list[dict]) -> dict[str, dict]:
    """Return differences within a pair and a draw, means of both orders, with their deviation over pairs and draws.

    `composed` against the concept that shows both more often, alone; composed against the dense ones composed (`than
    dense`); learned `on top` against composed; a concept that comes `last` against the same one first.
    """
    differences: dict[str, list[dict[str, float]]] = {"composed": [], "than dense": [], "on top": [], "last": []}
    for case in dict.fromkeys(row["case"] for row in rows if "case" in row):
        at = {row["way"]: row for row in rows if row.get("case") == case}
        alone = max((at[f"{kind}, {which} alone"] for which in ("first", "second")), key=lambda row: row["both"])
        plain = over_orders(at, f"{kind}, then")
        others = {"composed": (plain, alone), "than dense": (plain, over_orders(at, "dense, then"))}
        if f"{kind}, learned on top" in at:
            others["on top"] = (over_orders(at, f"{kind}, learned on top"), plain)
        for name, (one, other) in others.items():
            differences[name].append({key: one[key] - other[key] for key in MEASURES})
        then, swapped = (at[f"{kind}, then{order}"] for order in ("", SWAPPED))
        last = (swapped["first"] - then["first"], then["second"] - swapped["second"])
        differences["last"].append({"shown": mean(last)})
    return {
        name: {key: record.spread([gap[key] for gap in cases]) for key in cases[0]}
        for name, cases in differences.items()
        if cases
    }


def over_orders(at: dict[str, dict], way: str) -> dict[str, float]:
    """Return the means of a way's two orders."""
    return {key: mean(at[f"{way}{order}"][key] for order in ("", SWAPPED)) for key in MEASURES}


def table(result: record.Result) -> str:
    """Return a line for each way, and what composing changes, in points."""
    titles = ("", "first concept", "second", "both at once", "perplexity", "divergence", "neurons touched")
    lines = [
        (
            row["way"],
            *(markdown.percent(row[key]) for key in ("first", "second", "both")),
            *(measure(key).text(row[key]) for key in ("perplexity", "kl")),
            markdown.percent(row["support"]) if "support" in row else "",
        )
        for row in result.made["lines"]
    ]
    changes = [
        (
            kind,
            markdown.change(gaps["composed"]["both"], factor=100),
            markdown.change(gaps["than dense"]["both"], factor=100) if kind != "dense" else "",
            markdown.change(gaps["on top"]["both"], factor=100) if "on top" in gaps else "",
            markdown.change(gaps["last"]["shown"], factor=100),
        )
        for kind, gaps in result.made["gaps"].items()
    ]
    points = (
        "points more",
        "composed, not alone",
        "composed, not dense",
        "learned on top",
        "a concept last, not first",
    )
    return markdown.table(titles, lines) + "\n\n" + markdown.table(points, changes)


if __name__ == "__main__":
    main()
