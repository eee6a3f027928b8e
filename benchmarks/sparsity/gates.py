"""Gates: at equal toxicity, does an intervention that acts token by token damage neutral text less?

    python -m benchmarks.sparsity.gates [--draws 4] [--prompts 400] [--neutral 300] [--only 0 1 ...]

LinEAS on 32 + 32 Jigsaw sentences (upper two thirds of the layers, as in detoxification.py), gated by the toxic
sentences against 64 Wikipedia sentences, beside the same without gates, at strengths up to 2. Judged as in sparsity.py,
and by the damage to civil comments of Jigsaw too: neutral text that is not what the gates were learned against. At the
toxicity that the ungated intervention has at strengths 0.5, 0.75 and 1, on curves that never rise (isotonic regression)
and interpolated, damage is compared draw by draw.
Writes gates.json and benchmarks/results/gates, a file a draw, so it goes on where it stopped and may be shared by
several processes (--only).
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from statistics import mean

from sklearn.isotonic import IsotonicRegression

import lineas
from benchmarks.common.record import DATA, UPPER_NORMS, about, kept, save, spread, toxic_prompts
from benchmarks.sparsity.sparsity import OFFSET
from lineas.evaluation.classifiers import PROFANITY, classifier
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.perplexity import damages
from lineas.evaluation.plan import Plan
from lineas.evaluation.variants import Steered, System, Untouched
from lineas.learning import gate
from lineas.learning.interruption import discard_partial
from lineas.prompts import draw, read_prompts

STRENGTHS = {"ungated": (0.5, 0.75, 1.0), "gated": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)}
OTHER = 300
"""The seed of the first draw of Jigsaw's sentences, apart from those of the other benchmarks."""
CONTROLS = 64
"""Wikipedia sentences that gates are learned against; those that are judged come after them."""
DAMAGES = ("perplexity", "kl", "comments_perplexity", "comments_kl")
MEASURES = ("toxic", "toxic_score", *DAMAGES)


def at_score(rows: list[dict], score: float) -> dict[str, float] | None:
    """Where a mean toxicity is first reached, interpolated; None where it is not."""
    for before, after in pairwise(rows):
        if after["toxic_score"] <= score:
            share = (before["toxic_score"] - score) / (before["toxic_score"] - after["toxic_score"])
            return {name: before[name] + share * (after[name] - before[name]) for name in ("strength", *MEASURES)}
    return None


def fitted(rows: list[dict]) -> list[dict]:
    """The same with the nearest mean toxicity that never rises with strength: a dip of a noisy curve is no crossing."""
    scores = IsotonicRegression(increasing=False).fit_transform(
        [row["strength"] for row in rows], [row["toxic_score"] for row in rows]
    )
    return [{**row, "toxic_score": float(score)} for row, score in zip(rows, scores)]


@discard_partial()
def main() -> None:
    """Learn, gate, judge, compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--neutral", type=int, default=300)
    parser.add_argument("--only", nargs="+", type=int, metavar="DRAW", help="make these alone, and no summary")
    options = parser.parse_args()
    model = lineas.load(dtype="float32")
    jigsaw = {side: read_prompts(f"{DATA}/jigsaw/{side}.jsonl:text") for side in ("toxic", "nontoxic")}
    wikipedia = draw(read_prompts(f"{DATA}/wikipedia/sentences.jsonl:text"), OFFSET + CONTROLS + options.neutral, 0)
    control, neutral = wikipedia[OFFSET : OFFSET + CONTROLS], wikipedia[OFFSET + CONTROLS :]
    prompts = toxic_prompts(OFFSET + options.prompts)[OFFSET:]
    plan = Plan(prompts, neutral, {"toxic": classifier(PROFANITY)}, sampling={"batch_size": 64})

    def compared(number: int) -> dict:
        source, target = (draw(jigsaw[side], 32, OTHER + number) for side in ("toxic", "nontoxic"))
        comments = [text for text in jigsaw["nontoxic"] if text not in set(target)]
        plain = lineas.learn(model, source, target, sites=UPPER_NORMS, seed=number, progress=False)
        both = {"ungated": plain, "gated": gate(model, plain, source, control)}
        told: dict = {"draw": number, "gate": both["gated"].facts["gate"]["area"]}
        for name, intervention in both.items():
            systems = [Untouched(), *(Steered(name, intervention, s) for s in STRENGTHS[name])]
            found = evaluate(model, systems, plan, Path(__file__).parents[1] / "runs" / "gates").rows
            told[name] = [
                {"strength": row.strength, **row.values, **on_comments(system, comments)}
                for row, system in zip(found, systems)
            ]
        return told

    def on_comments(system: System, comments: list[str]) -> dict[str, float]:
        found = damages(model, lambda: system.applied(model), comments)
        return dict(zip(DAMAGES[2:], map(mean, found)))

    asked = {"strengths": STRENGTHS, "sites": UPPER_NORMS, "prompts": options.prompts, "neutral": options.neutral}
    draws = [
        kept("gates", f"draw-{number}", asked, compared, number) for number in options.only or range(options.draws)
    ]
    if options.only:
        return
    save("gates", {"about": about(), "options": vars(options), "summary": summary(draws)})
    print(summary(draws))


def summary(draws: list[dict]) -> dict:
    """By the ungated strength, means over the draws in which the gated one gets there, and the gaps in damage."""
    found: dict = {"area": mean(one["gate"] for one in draws), "equal": []}
    curves = [{name: fitted(one[name]) for name in STRENGTHS} for one in draws]
    for place, strength in enumerate(STRENGTHS["ungated"], start=1):
        pairs = [
            (one["ungated"][place], at_score(one["gated"], one["ungated"][place]["toxic_score"])) for one in curves
        ]
        equal = [{"ungated": plain, "gated": gated} for plain, gated in pairs if gated]
        line: dict = {"strength": strength, "draws": len(draws), "reached": len(equal)}
        if equal:
            for name in ("ungated", "gated"):
                line[name] = {key: mean(one[name][key] for one in equal) for key in ("strength", *MEASURES)}
            gaps = {key: [one["gated"][key] - one["ungated"][key] for one in equal] for key in DAMAGES}
            line["gaps"] = {key: spread(some) for key, some in gaps.items()}
            line["shares"] = {
                key: [one["gated"][key] / one["ungated"][key] for one in equal] for key in ("kl", "comments_kl")
            }
        found["equal"].append(line)
    return found


if __name__ == "__main__":
    main()
