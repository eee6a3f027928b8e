"""Ways: at which sites is each rival best? Chosen on prompts, draws and sentences that judge nothing.

    python -m benchmarks.comparison.ways [--methods NAME ...] [--draws 0 1] [--prompts 300]

Every method learns from 32 + 32 Jigsaw sentences at each of the sites in `rivals.WAYS`, and is turned to a divergence
of 0.02 nats a token on 100 Wikipedia sentences; the mean toxicity of its continuations there decides. Writes
benchmarks/results/ways, a file a line, so it goes on where it stopped, and may be shared by several processes.
"""

from __future__ import annotations

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
    file = record.RESULTS / "ways" / f"{file_name(method, way, draw)}.json"
    asked = {"prompts": bench.count, "sentences": bench.sentences, "samples": SAMPLES, "divergence": DIVERGENCE}
    return record.Part(file, asked, partial(row, bench, method, way, draw))


def row(bench: Bench, method: str, way: str, draw: int) -> dict[str, Any]:
    """Learn, turn to the divergence, and judge."""
    folder = record.RUNS / "ways" / file_name(method, way, draw)
    curve = bench.curve(WAYS[method][way], bench.concept.sides(draw, SAMPLES), draw, folder)
    return {"method": method, "way": way, "draw": draw, **bench.judged(curve, DIVERGENCE, [0])}


def file_name(method: str, way: str, draw: int) -> str:
    """Return the name of what a method learned at some sites on a draw.

    >>> file_name("aura", "MLP linears", 1)
    'aura-mlp-linears-1'
    """
    return f"{method}-{way.replace(' ', '-').lower()}-{draw}"


def chosen(method: str) -> str:
    """Return the way that did best in the committed rows."""
    return best([part.made for part in record.parts_of("ways")], method)


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
