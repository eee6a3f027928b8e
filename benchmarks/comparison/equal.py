"""The comparison at equal damage: every method's effect at a divergence of 0.02 and of 0.05 nats a token.

    python -m benchmarks.comparison.equal --concept toxicity [--model DIR] [--draws 0 1 2 3] [--methods NAME ...]
        [--prompts 1000] [--seeds 4] [--minutes M]

Every method learns from draws of 32 + 32 sentences, at the sites at which it did best (`comparison.ways`). Its strength
is turned until the divergence on neutral sentences is 0.01, 0.02, 0.05 and 0.1 nats a token; there it is judged by its
continuations, with one sampling seed at the outer two. Damage is measured in float32. The texts are written by the same
model in bfloat16, in half the time. Writes benchmarks/results/equal/CONCEPT-MODEL, a file a row, so it goes on where it
stopped, and may be shared by several processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.common import markdown, record
from benchmarks.common.concepts import CONCEPTS
from benchmarks.common.curves import crossing, never_rising
from benchmarks.common.rivals import WAYS
from benchmarks.comparison import ways
from lineas.prompts import described

if TYPE_CHECKING:
    from benchmarks.common.equal_damage import Bench, Curve

DIVERGENCES = (0.02, 0.05, 0.01, 0.1)
"""In the order in which they are measured; the first two with all sampling seeds."""
MAIN = DIVERGENCES[:2]
UNTOUCHED, PROMPT = "untouched", "prompt"
FALLING = ("toxicity",)
"""Concepts whose score should fall."""


def main() -> None:
    """Measure what is asked for and not measured yet."""
    parser = record.parser(__doc__)
    parser.add_argument("--concept", choices=CONCEPTS, default="toxicity")
    parser.add_argument("--model", default=None, help="hub id or folder; default: SmolLM2-135M-Instruct")
    parser.add_argument("--methods", nargs="+", default=[UNTOUCHED, PROMPT, *WAYS], metavar="NAME")
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--samples", type=int, default=32, help="sentences a side")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--sentences", type=int, default=200, help="neutral sentences")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time; run again to go on")
    options = parser.parse_args()
    contest, until = Contest.of(options), time.monotonic() + 60 * options.minutes
    for draw in options.draws:
        for method in options.methods:
            for part in contest.parts(method, draw):
                if part.find() is None and time.monotonic() > until:
                    print("out of time; run the same command again to go on.", flush=True)
                    sys.exit(3)
                row = record.get_or_make(part).made
                print({key: value for key, value in row.items() if key != "score_by_seed"}, flush=True)


@dataclass
class Contest:
    """A concept on a model.

    Args:
        concept: its name.
        bench: what judges.
        samples: number of sentences a side.
        seeds: number of sampling seeds.
    """

    concept: str
    bench: Bench
    samples: int
    seeds: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> Contest:
        """Return what the options ask for."""
        from benchmarks.common.equal_damage import Bench

        bench = Bench(options.model, CONCEPTS[options.concept]("judging"), options.prompts, options.sentences)
        return cls(options.concept, bench, options.samples, options.seeds)

    @property
    def name(self) -> str:
        """The name of the folders of results and of what was learned."""
        model = "SmolLM2-135M-Instruct" if self.bench.name is None else Path(self.bench.name).name
        return f"{self.concept}-{model}"

    def parts(self, method: str, draw: int) -> Iterable[record.Part]:
        """Return the rows of a method on a draw; the systems that learn nothing have one altogether."""
        if method in WAYS:
            learned = _Once(partial(self._learned, method, draw))
            for divergence in DIVERGENCES:
                yield self._part(
                    f"{method}-{draw}-{divergence:g}", partial(self._row, method, draw, divergence, learned)
                )
        elif draw == 0:
            yield self._part(method, partial(self._unlearned, method))

    def _part(self, name: str, measure: Callable[[], dict[str, Any]]) -> record.Part:
        from benchmarks.common.equal_damage import SAMPLING

        concept, bench = self.bench.concept, self.bench
        asked = {
            "prompts": described(concept.prompts[: bench.count]),
            "neutral": described(concept.neutral[: bench.sentences]),
            "samples": self.samples,
            "seeds": self.seeds,
            "sampling": SAMPLING,
        }
        about = {"concept": self.concept, "model": self.name.removeprefix(f"{self.concept}-")}
        file = record.RESULTS / "equal" / self.name / f"{name}.json"
        return record.Part(file, asked, lambda: {**about, **measure()})

    def _learned(self, method: str, draw: int) -> tuple[str, float, Curve]:
        """Return where a method learned, its seconds, and its damage along strength."""
        way, started = ways.chosen(method), time.perf_counter()
        folder = record.RUNS / "equal" / self.name / ways.file_name(method, way, draw)
        curve = self.bench.curve(WAYS[method][way], self.bench.concept.sides(draw, self.samples), draw, folder)
        return way, time.perf_counter() - started, curve

    def _row(self, method: str, draw: int, divergence: float, learned: _Once) -> dict[str, Any]:
        way, seconds, curve = learned()
        seeds = range(self.seeds if divergence in MAIN else 1)
        about = {"system": method, "way": way, "draw": draw, "divergence": divergence, "seconds": seconds}
        return {**about, **self.bench.judged(curve, divergence, seeds)}

    def _unlearned(self, method: str) -> dict[str, Any]:
        """Judge the untouched model, or the prompt baseline."""
        from lineas.evaluation.perplexity import damages
        from lineas.evaluation.variants import Prompted, Untouched

        bench = self.bench
        neutral, seeds = bench.concept.neutral[: bench.sentences], range(self.seeds)
        if method == UNTOUCHED:
            return {"system": method, **bench.neutral.measure(Untouched()), **bench.effect(Untouched(), seeds)}
        system = Prompted(bench.concept.instruction)
        with system.applied(bench.model) as change:
            perplexity, divergence = map(mean, damages(bench.model, change, neutral, prefix=system.prefix))
        return {"system": method, "kl": divergence, "perplexity": perplexity, **bench.effect(system, seeds)}


class _Once:
    """A function that is called once, when its result is first needed."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function, self._results = function, []

    def __call__(self) -> Any:
        if not self._results:
            self._results.append(self._function())
        return self._results[0]


def lines(rows: Sequence[dict[str, Any]], sign: int) -> list[dict[str, Any]]:
    """Return a line for each method: its effect at equal divergence, and its damage at the effect of LinEAS.

    The effect that is compared is that of LinEAS at the first divergence, draw by draw, on curves whose score never
    goes back with the divergence (isotonic regression), interpolated.
    """
    untouched = next(row for row in rows if row["system"] == UNTOUCHED)
    curves: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for row in sorted((row for row in rows if "draw" in row), key=lambda row: row["divergence"]):
        curves.setdefault(row["system"], {}).setdefault(row["draw"], [untouched]).append(row)
    found = [{"system": row["system"], **row} for row in rows if "draw" not in row]
    levels = {
        draw: next(row["score"] for row in curve if row.get("divergence") == MAIN[0])
        for draw, curve in curves.get("lineas", {}).items()
        if any(row.get("divergence") == MAIN[0] for row in curve)
    }
    for method in WAYS:
        by_draw = curves.get(method, {})
        line: dict[str, Any] = {"system": method, "at": {}, "draws": len(by_draw)}
        for divergence in DIVERGENCES:
            at = [row for curve in by_draw.values() for row in curve if row.get("divergence") == divergence]
            if at:
                line["at"][divergence] = {
                    key: _spread([row[key] for row in at]) for key in ("share", "score", "perplexity")
                }
        reached = []
        for draw, curve in by_draw.items():
            if draw in levels and len(curve) > len(MAIN):
                turned = [{**row, "score": -sign * row["score"]} for row in curve]
                falling = never_rising(turned, "score")
                reached.append(crossing(falling, "score", -sign * levels[draw], -1, ("kl", "perplexity")))
        line["reached"] = [one for one in reached if one], len(reached)
        if by_draw:
            found.append(line)
    return found


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, None for a single value."""
    return mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def table(result: record.Result) -> str:
    """Return a line for each method, at both divergences and at equal effect."""
    rows = result.made
    sign = -1 if rows[0]["concept"] in FALLING else 1
    titles = ("method", *(f"{what} at {d:g} nats" for d in MAIN for what in ("mean score", "%", "perplexity")))
    titles += ("divergence at equal effect", "perplexity there", "draws")
    cells = []
    for line in lines(rows, sign):
        if "at" not in line:
            whole = [f"{line['score']:.3f}", f"{100 * line['share']:.1f}", f"{line['perplexity']:.1f}"]
            cells.append((line["system"], *whole, "", "", "", f"{line['kl']:.3f}", "", ""))
            continue
        parts: list[str] = [line["system"]]
        for divergence in MAIN:
            at = line["at"].get(divergence)
            parts += ["", "", ""] if at is None else [
                _text(at["score"], 1, 3), _text(at["share"], 100, 1), _text(at["perplexity"], 1, 1)
            ]  # fmt: skip
        reached, draws = line["reached"]
        if reached and len(reached) == draws:
            parts += [f"{mean(one['kl'] for one in reached):.3f}", f"{mean(one['perplexity'] for one in reached):.1f}"]
        else:
            parts += [f"not reached in {draws - len(reached)} of {draws} draws" if draws else "", ""]
        cells.append((*parts, str(line["draws"])))
    return markdown.table(titles, cells)


def plot(concept: str, model: str = "SmolLM2-135M-Instruct") -> Path:
    """Draw docs/equal-damage.png: the mean score against the divergence, a curve a method, means over draws."""
    from matplotlib import colormaps

    from lineas.reporting.plots import figure_of

    rows = [part.made for part in record.parts_of(f"equal/{concept}-{model}")]
    start = next(row for row in rows if row["system"] == UNTOUCHED)
    figure, (axis,) = figure_of(1)
    for color, method in enumerate(WAYS):
        means = [
            (divergence, mean(row["score"] for row in at))
            for divergence in sorted(DIVERGENCES)
            if (at := [row for row in rows if row["system"] == method and row["divergence"] == divergence])
        ]
        if means:
            x, y = zip((0.0, start["score"]), *means)
            bold = {"color": "black", "linewidth": 2.5} if method == "lineas" else {"color": colormaps["tab20"](color)}
            axis.plot(x, y, marker=".", label=method, **bold)
    axis.set(xlabel="divergence from the untouched model, nats a token", ylabel=f"mean score of {concept}")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    path = record.DOCS / "equal-damage.png"
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


def _text(value: tuple[float, float | None], factor: float, digits: int) -> str:
    """Return a mean and its standard error."""
    error = "" if value[1] is None else f" ± {factor * value[1]:.{digits}f}"
    return f"{factor * value[0]:.{digits}f}{error}"


if __name__ == "__main__":
    main()
