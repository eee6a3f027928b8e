"""Ways: at which sites is each rival best? Chosen on prompts, draws and sentences that judge nothing.

    python -m benchmarks.comparison.ways [--methods NAME ...] [--draws 0 1] [--prompts 300]

Every method learns from 32 + 32 Jigsaw sentences at each of the sites in `rivals.WAYS`, and is turned to a divergence
of 0.02 nats a token on 100 Wikipedia sentences; the mean toxicity of its continuations there decides. Writes
benchmarks/results/ways, a file a line, so it goes on where it stopped, and may be shared by several processes.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

from benchmarks.common import markdown, record
from benchmarks.common.concepts import CONCEPTS
from benchmarks.common.rivals import WAYS

if TYPE_CHECKING:
    from benchmarks.common.equal_damage import Bench

DIVERGENCE = 0.02
SENTENCES, SAMPLES = 100, 32


def main() -> None:
    """Learn, turn to the divergence, judge, print and record."""
    from benchmarks.common.equal_damage import Bench

    parser = record.parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=[name for name, ways in WAYS.items() if len(ways) > 1])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--prompts", type=int, default=300)
    options = parser.parse_args()
    bench = Bench(None, CONCEPTS["toxicity"]("choosing"), options.prompts, SENTENCES)
    for draw in options.draws:
        for method in options.methods:
            for way in WAYS[method]:
                print(record.get_or_make(part(bench, method, way, draw)).made, flush=True)


def part(bench: Bench, method: str, way: str, draw: int) -> record.Part:
    """Return the row of a method at some sites on a draw."""
    file = record.RESULTS / "ways" / f"{method}-{way.replace(' ', '-').lower()}-{draw}.json"
    asked = {"prompts": bench.count, "sentences": bench.sentences, "samples": SAMPLES, "divergence": DIVERGENCE}
    return record.Part(file, asked, partial(row, bench, method, way, draw))


def row(bench: Bench, method: str, way: str, draw: int) -> dict[str, Any]:
    """Learn, turn to the divergence, and judge."""
    from benchmarks.common.equal_damage import Curve

    concept, started = bench.concept, time.perf_counter()
    folder = record.RUNS / "ways" / f"{method}-{way.replace(' ', '-').lower()}-{draw}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    learned = WAYS[method][way](bench.model, concept.sides(draw, SAMPLES), concept.unwanted, draw, folder)
    seconds, curve = time.perf_counter() - started, Curve(learned, bench.neutral)
    strength = curve.strength(DIVERGENCE)
    effect = bench.effect(learned(strength), [0])
    about = {"method": method, "way": way, "draw": draw, "seconds": seconds, "strength": strength}
    return {**about, **curve.at(strength), **effect}


def best(rows: list[dict[str, Any]], method: str) -> str:
    """Return the way with the lowest mean score over the draws."""
    ways = WAYS[method]
    if len(ways) == 1:
        return next(iter(ways))
    return min(ways, key=lambda way: mean(r["score"] for r in rows if (r["method"], r["way"]) == (method, way)))


def table(result: record.Result) -> str:
    """Return a line for each method and its sites; the best is bold."""
    rows, lines = result.made, []
    for method, ways in WAYS.items():
        for way in ways:
            matching = [one for one in rows if (one["method"], one["way"]) == (method, way)]
            if matching:
                score = f"{mean(one['score'] for one in matching):.3f}"
                chosen = way == best(rows, method)
                cells = method, way, score, f"{mean(one['perplexity'] for one in matching):.1f}"
                lines.append(tuple(f"**{cell}**" if chosen else cell for cell in cells))
    return markdown.table(("method", "sites", "mean toxicity", "perplexity"), lines)


if __name__ == "__main__":
    main()
