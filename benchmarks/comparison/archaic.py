"""A style induced: verses of the King James Bible from modern ones, methods against each other.

    python -m benchmarks.comparison.archaic [--draws 4] [--seeds 4] [--methods NAME ...] [--minutes M]

32 modern and 32 archaic verses that are no translations of each other; judged by a scikit-learn classifier fitted on
verses kept apart, on continuations of neutral openings and of the beginnings of other modern verses. Writes
benchmarks/results/archaic and docs/archaic.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lineas
from benchmarks.common import record, standings
from benchmarks.common.concepts import Sides
from benchmarks.common.contest import Contest, arguments
from benchmarks.common.splits import both, take


def main(given: list[str] | None = None) -> None:
    """Measure all methods on all draws, and plot them."""
    contest(arguments(__doc__).parse_args(given)).run()
    standings.plot("archaic", "concept")


def contest(options: argparse.Namespace) -> Contest:
    """Return the comparison."""
    from lineas.evaluation.classifiers import fitted

    model = record.text_model(options.model, dtype=options.dtype)
    is_archaic, area = fitted(*both("archaic", "judging", "archaic", ("archaic", "modern")))
    print(f"classifier: area under the ROC curve {area:.3f}", flush=True)
    openings, beginnings = (take("archaic", "judging", data) for data in ("lineas:openings", "archaic/beginnings"))
    continued = take("archaic", "learning", "archaic/beginnings")
    plan = lineas.Plan(
        prompts=[*openings, *beginnings][: options.prompts],
        neutral=take("archaic", "judging", "wikipedia"),
        classifiers={"concept": is_archaic},
        seeds=range(options.seeds),
        sampling={"batch_size": 64},
    )

    def sides(draw: int) -> Sides:
        count = options.samples
        modern, archaic = both("archaic", "learning", "archaic", ("modern", "archaic"), draw, 2 * count)
        return Sides(modern[:count], archaic[count:], continued)  # no verse on both sides

    def is_modern(texts: Sequence[str]) -> list[float]:
        return [1 - score for score in is_archaic(texts)]

    instruction = "Continue the text in the English of the King James Bible:"
    return Contest("archaic", model, plan, sides, instruction, is_modern, options)


def table(result: record.Result) -> str:
    """Return the tables at strength 1 and along strength."""
    return standings.table(result.made, "concept")


if __name__ == "__main__":
    main()
