"""Fewer samples: the effect at equal damage, by the number of sentences that were learned from.

    python -m benchmarks.comparison.samples [--draws 0 1 2 3] [--sizes 4 8 16 32 128 512] [--methods NAME ...]

LinEAS, Mean-AcT and Lin-AcT learn from n toxic and n neutral sentences of ParaDetox, of which no two are a pair. Each
is turned to a divergence of 0.03 nats a token on 100 Wikipedia sentences, and judged by its continuations of 300
RealToxicityPrompts prompts. Writes benchmarks/results/samples, a file a row, so it goes on where it stopped, and may be
shared by several processes.
"""

from __future__ import annotations

from functools import partial
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.common import markdown, record
from benchmarks.common.concepts import Sides, toxicity
from benchmarks.common.rivals import WAYS
from benchmarks.common.splits import take
from benchmarks.comparison import ways

if TYPE_CHECKING:
    from benchmarks.common.equal_damage import Bench

DIVERGENCE = 0.03
METHODS = ("lineas", "mean-act", "lin-act")
SIZES = (4, 8, 16, 32, 128, 512)
LARGEST = 512


def main() -> None:
    """Learn, turn to the divergence, judge, print and record."""
    from benchmarks.common.equal_damage import Bench

    parser = record.parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--prompts", type=int, default=300)
    options = parser.parse_args()
    bench = Bench(None, toxicity("judging"), options.prompts, 100)
    for draw in options.draws:
        for size in options.sizes:
            for method in options.methods:
                print(record.get_or_make(part(bench, method, size, draw)).made, flush=True)


def sides(draw: int, size: int) -> Sides:
    """Return the first sentences of a draw; a larger size has those of a smaller one, too."""
    toxic, neutral = (take("samples", "learning", f"paradetox/{side}", draw) for side in ("toxic", "neutral"))
    return Sides(toxic[:size], neutral[LARGEST : LARGEST + size], [])  # no sentence and its paraphrase


def part(bench: Bench, method: str, size: int, draw: int) -> record.Part:
    """Return the row of a method with a number of sentences a side."""
    asked = {"prompts": bench.count, "sentences": bench.sentences, "divergence": DIVERGENCE}
    file = record.RESULTS / "samples" / f"{method}-{size}-{draw}.json"
    return record.Part(file, asked, partial(row, bench, method, size, draw))


def row(bench: Bench, method: str, size: int, draw: int) -> dict[str, Any]:
    """Learn, turn to the divergence, and judge."""
    way, folder = ways.chosen(method), record.RUNS / "samples" / f"{method}-{size}-{draw}"
    curve = bench.curve(WAYS[method][way], sides(draw, size), draw, folder)
    return {"method": method, "way": way, "size": size, "draw": draw, **bench.judged(curve, DIVERGENCE, [0])}


def table(result: record.Result) -> str:
    """Return a line for each method: the mean score by number of sentences, and its deviation over draws."""
    lines = []
    for method in METHODS:
        cells = [method]
        for size in SIZES:
            scores = [one["score"] for one in result.made if (one["method"], one["size"]) == (method, size)]
            deviation = f" ± {stdev(scores):.3f}" if len(scores) > 1 else ""
            cells.append(f"{mean(scores):.3f}{deviation}" if scores else "")
        lines.append(cells)
    return markdown.table(("mean toxicity, sentences a side", *map(str, SIZES)), lines)


if __name__ == "__main__":
    main()
