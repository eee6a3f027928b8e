"""A style induced: verses of the King James Bible from modern ones, methods against each other.

    python -m benchmarks.comparison.archaic [--draws 4] [--seeds 4] [--methods NAME ...] [--minutes M]

32 modern and 32 archaic verses that are no translations of each other; judged by a scikit-learn classifier fitted on
verses kept apart, on continuations of neutral openings and of the beginnings of other modern verses. Writes
benchmarks/results/archaic and docs/archaic.png.
"""

from __future__ import annotations

import json
import random

import lineas
from benchmarks.common import standings
from benchmarks.common.contest import Contest, Sides, arguments
from benchmarks.common.record import DATA
from lineas.evaluation.classifiers import fitted
from lineas.evaluation.plan import Plan
from lineas.prompts import draw, read_prompts

FOR_CLASSIFIER, FOR_TRAINING = 1000, 64
NEUTRAL = 500
BEGINNING = 4
"""Words of a verse that are continued."""


def main(given: list[str] | None = None) -> None:
    """All methods on all draws."""
    options = arguments(__doc__).parse_args(given)
    model = lineas.load(options.model, dtype=options.dtype)
    pairs = [json.loads(line) for line in (DATA / "archaic" / "pairs.jsonl").open(encoding="utf-8")]
    random.Random(0).shuffle(pairs)
    judged_by, pairs = pairs[:FOR_CLASSIFIER], pairs[FOR_CLASSIFIER:]
    is_archaic, area = fitted([pair["archaic"] for pair in judged_by], [pair["modern"] for pair in judged_by])
    print(f"classifier: area under the ROC curve {area:.3f}", flush=True)
    learned_from, openings = pairs[:1000], pairs[1000:]
    beginnings = list(dict.fromkeys(" ".join(pair["modern"].split()[:BEGINNING]) for pair in openings))
    prompts = [*read_prompts("lineas:openings"), *beginnings[FOR_TRAINING:]][: options.prompts]

    def sides(seed: int) -> Sides:
        chosen = draw([str(i) for i in range(len(learned_from))], 2 * options.samples, seed)
        half = [learned_from[int(i)] for i in chosen]
        source, target = half[: options.samples], half[options.samples :]  # no verse on both sides
        return Sides([p["modern"] for p in source], [p["archaic"] for p in target], beginnings[:FOR_TRAINING])

    plan = Plan(
        prompts=prompts,
        neutral=draw(read_prompts(f"{DATA}/wikipedia/sentences.jsonl:text"), NEUTRAL, 0),
        classifiers={"concept": is_archaic},
        seeds=range(options.seeds),
        sampling={"batch_size": 64},
    )
    instruction = "Continue the text in the English of the King James Bible:"

    def modern(texts):  # type: ignore[no-untyped-def]
        return [1 - score for score in is_archaic(texts)]

    Contest("archaic", model, plan, sides, instruction, modern, options).run()
    standings.plot("archaic", "concept")


if __name__ == "__main__":
    main()
