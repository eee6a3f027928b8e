"""Gates: at equal toxicity, does an intervention that acts token by token damage neutral text less?

    python -m benchmarks.sparsity.gates [--draws 4] [--prompts 400] [--neutral 300] [--only 0 1 ...]

LinEAS on 32 + 32 Jigsaw sentences (upper two thirds of the layers, as in detoxification), gated by the toxic
sentences against 64 Wikipedia sentences, beside the same without gates, at strengths up to 2. Judged as in sparsity,
and by the damage to civil comments of Jigsaw too: neutral text that is not what the gates were learned against. At the
toxicity that the ungated intervention has at strengths 0.5, 0.75 and 1, on curves that never rise (isotonic regression)
and interpolated, damage is compared draw by draw.
Writes gates.json and benchmarks/results/gates, a file a draw, so it goes on where it stopped and may be shared by
several processes (--only).
"""

from __future__ import annotations

import argparse
from functools import partial
from statistics import mean

import lineas
from benchmarks.common import markdown, record
from benchmarks.common.curves import crossing, never_rising
from benchmarks.common.methods import relative
from benchmarks.common.splits import UPPER_NORMS, jigsaw, take
from lineas.measures import measure

STRENGTHS = {"ungated": (0.5, 0.75, 1.0), "gated": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)}
DAMAGES = ("perplexity", "kl", "comments_perplexity", "comments_kl")
MEASURES = ("strength", "toxic", "toxic_score", *DAMAGES)


def main() -> None:
    """Learn, gate, judge, compare, print and record."""
    parser = record.parser(__doc__)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--neutral", type=int, default=300)
    parser.add_argument("--only", nargs="+", type=int, metavar="DRAW", help="make these alone, and no summary")
    options = parser.parse_args()
    draws = [record.get_or_make(part).made for part in plan(options)]
    if options.only:
        return
    record.save("gates", vars(options), {"summary": summary(draws)})
    print(summary(draws))


def plan(options: argparse.Namespace) -> list[record.Part]:
    """Return the draws."""
    sizes = {"prompts": options.prompts, "neutral": options.neutral}
    asked = {"strengths": STRENGTHS, "sites": UPPER_NORMS, **sizes}
    folder = record.RESULTS / "gates"
    return [
        record.Part(folder / f"draw-{draw}.json", asked, partial(compared, draw, **sizes))
        for draw in options.only or range(options.draws)
    ]


def compared(draw: int, prompts: int, neutral: int) -> dict:
    """Learn a draw, gate it, and judge both at several strengths."""
    from lineas.evaluation.classifiers import PROFANITY
    from lineas.evaluation.perplexity import damages
    from lineas.evaluation.variants import Steered, Untouched
    from lineas.learning import gate

    model = record.default_model()
    source, target = jigsaw("gates", draw)
    comments = take("gates", "judging", "jigsaw/nontoxic", draw)
    measures = lineas.Plan(
        take("gates", "judging", "rtp", count=prompts),
        take("gates", "judging", "wikipedia", count=neutral),
        {"toxic": PROFANITY},
        sampling={"batch_size": 64},
    )
    plain = lineas.learn(model, source, target, relative(), UPPER_NORMS, seed=draw, progress=False)
    gated = gate(model, plain, source, take("gates", "learning", "wikipedia"))
    curves = {}
    for name, intervention in zip(STRENGTHS, (plain, gated)):
        systems = [Untouched(), *(Steered(name, intervention, s) for s in STRENGTHS[name])]
        rows = lineas.evaluate(model, systems, measures, record.RUNS / "gates").rows
        curves[name] = [{"strength": row.strength, **row.values} for row in rows]
        for row, system in zip(curves[name], systems):
            with system.applied(model) as change:
                perplexity, kl = map(mean, damages(model, change, comments))
            row |= {"comments_perplexity": perplexity, "comments_kl": kl}
        print(draw, name, curves[name], flush=True)
    return {"draw": draw, "gate": gated.facts["gate"]["area"], **curves}


def summary(draws: list[dict]) -> dict:
    """Return means over the draws in which the gated one gets to the ungated one's toxicity, and the gaps in damage."""
    lines = []
    curves = [{name: never_rising(draw[name], "toxic_score") for name in STRENGTHS} for draw in draws]
    for place, strength in enumerate(STRENGTHS["ungated"], start=1):
        pairs = []
        for curve in curves:
            plain = curve["ungated"][place]
            if gated := crossing(curve["gated"], "toxic_score", plain["toxic_score"], -1, MEASURES):
                pairs.append({"ungated": plain, "gated": gated})
        line: dict = {"strength": strength, "draws": len(draws), "reached": len(pairs)}
        if pairs:
            for name in STRENGTHS:
                line[name] = {key: mean(pair[name][key] for pair in pairs) for key in MEASURES}
            line["gaps"] = {
                key: record.spread([pair["gated"][key] - pair["ungated"][key] for pair in pairs]) for key in DAMAGES
            }
            line["shares"] = {
                key: [pair["gated"][key] / pair["ungated"][key] for pair in pairs] for key in ("kl", "comments_kl")
            }
        lines.append(line)
    return {"area": mean(draw["gate"] for draw in draws), "equal": lines}


def table(result: record.Result) -> str:
    """Return a line for each intervention at every ungated strength, and their difference in damage."""
    titles = ("", "strength", "mean score", "perplexity", "divergence", "divergence on comments", "draws")
    damages = {"perplexity": measure("perplexity"), "kl": measure("kl"), "comments_kl": measure("kl")}
    lines = []
    for line in result.made["summary"]["equal"]:
        if not line["reached"]:
            lines.append(("ungated", f"{line['strength']:.2f}", "", "", "", "", f"0 of {line['draws']}"))
            continue
        for name in STRENGTHS:
            row = line[name]
            effect = f"{row['strength']:.2f}", measure("toxic_score").text(row["toxic_score"])
            damage = (known.text(row[key]) for key, known in damages.items())
            lines.append((name, *effect, *damage, f"{line['reached']} of {line['draws']}"))
        gaps = (markdown.change(line["gaps"][key], known.digits) for key, known in damages.items())
        lines.append(("*difference, draw by draw*", "", "", *gaps, ""))
    return markdown.table(titles, lines)


if __name__ == "__main__":
    main()
