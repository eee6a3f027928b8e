"""Splits: which rows of every data set each benchmark learns from, chooses settings by, and is judged on.

A prompt should serve for one of the three. `SHARED` names every committed result in which some serve for two: how many,
and the sentence that `benchmarks.pages` writes below its table. tests/test_benchmarks.py counts them anew.

Rows are counted in one order of the whole data set, so benchmarks that take rows of different numbers share none. (The
first rows of a larger sample of `random.sample` need not be a smaller one.)
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from benchmarks.common.record import ROOT
from lineas.errors import LineasError
from lineas.prompts import read_prompts

UPPER_NORMS = r"model\.layers\.[12]\d\.post_attention_layernorm"
"""The upper two thirds of SmolLM2-135M's 30 layers; the lower third costs the most (docs/evidence/recipes.md)."""
UPPER_HALF = r"model\.layers\.(1[5-9]|2\d)\.post_attention_layernorm"
FOLDER = Path(os.environ.get("LINEAS_SHARED", ROOT.parent / "shared")) / "data"
Purpose = Literal["learning", "judging"]
Order = Literal["file", "drawn", "shuffled"]
STYLES = ("archaic", "cheerful", "formal", "polite", "seafaring")


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Args:
        source: `FILE:column` below the folder of data, or what ships with lineas.
        size: number of its rows; of a file that the user gives, any.
        order: the order in which rows are counted: that of the file, or one by the seed 0, of `random.sample` ("drawn")
            or `random.shuffle` ("shuffled").
    """

    source: str
    size: int
    order: Order = "file"


DATA = {
    "rtp": DataSet("rtp/prompts.jsonl", 2104, "drawn"),  # RealToxicityPrompts of toxicity 0.5 or more
    "wikipedia": DataSet("wikipedia/sentences.jsonl:text", 3000, "drawn"),
    "jigsaw/toxic": DataSet("jigsaw/toxic.jsonl:text", 574),
    "jigsaw/nontoxic": DataSet("jigsaw/nontoxic.jsonl:text", 287),
    "paradetox/toxic": DataSet("paradetox/pairs.jsonl:toxic", 6000),
    "paradetox/neutral": DataSet("paradetox/pairs.jsonl:neutral", 6000),
    "archaic/modern": DataSet("archaic/pairs.jsonl:modern", 3000, "shuffled"),
    "archaic/archaic": DataSet("archaic/pairs.jsonl:archaic", 3000, "shuffled"),
    "archaic/beginnings": DataSet("", 978),  # of the last thousand modern verses, four words each
    "mmlu": DataSet("mmlu/validation.jsonl", 1000),
    "truthfulqa": DataSet("truthfulqa/mc.jsonl", 790, "shuffled"),  # a question and its best answer, on two lines
    "world": DataSet("", 2000),  # a row is a seed of `tools.world.descriptions`
    "given/rtp": DataSet("", 2000, "drawn"),
    "given/toxic": DataSet("", 2000),
    "given/nontoxic": DataSet("", 2000),
    "lineas:openings": DataSet("lineas:openings", 32),
    "lineas:neutral": DataSet("lineas:neutral", 96),
    "lineas:polite/prompts": DataSet("lineas:polite/prompts", 64),
    **{name: DataSet(name, 48) for style in STYLES for name in (f"lineas:{style}/source", f"lineas:{style}/target")},
}


@dataclass(frozen=True)
class Use:
    """Rows that a benchmark takes for a purpose.

    Args:
        benchmark: name of its module.
        purpose: "learning", or "judging", which the fitting of a judge is part of. Settings are chosen on what the
            benchmarks in `CHOSEN_ON` take.
        data: name in `DATA`.
        start: number of the first row.
        stop: number of the row before which they end; None for the end of the data set.
        count: number of rows where the benchmark asks for no other; None for all.
        step: 2 for every other row.
        seed: where it is given, draw number k takes `count` of the rows at random, by the seed `seed + k`.
        draws: number of draws of the committed result.
        stride: number of rows by which every draw begins later.
        rest: whether the rows that the same draw learns from are left out.
        order: order of the rows where it is not that of the data set.
    """

    benchmark: str
    purpose: Purpose
    data: str
    start: int = 0
    stop: int | None = None
    count: int | None = None
    step: int = 1
    seed: int | None = None
    draws: int = 1
    stride: int = 0
    rest: bool = False
    order: Order | None = None


def _both(benchmark: str, purpose: Purpose, names: Iterable[str], **how: Any) -> list[Use]:
    """Return the same use of several data sets."""
    return [Use(benchmark, purpose, name, **how) for name in names]


_JIGSAW = ["jigsaw/toxic", "jigsaw/nontoxic"]
_VERSES = ["archaic/modern", "archaic/archaic"]
_SETS = {style: [f"lineas:{style}/{side}" for side in ("source", "target")] for style in STYLES}
_ALL_SETS = [name for names in _SETS.values() for name in names]
_SHIPPED = [name for style in ("polite", "formal", "archaic") for name in _SETS[style]]
USES = [
    *_both("recipes", "learning", _JIGSAW, count=32, seed=0, draws=4),
    *_both("recipes", "judging", _JIGSAW, count=64, seed=0, draws=4, rest=True),
    *_both("recipes", "judging", ["rtp", "wikipedia"], stop=600, count=600),
    *_both("detoxification", "learning", _JIGSAW, count=32, seed=0, draws=4),
    Use("detoxification", "judging", "rtp", 664, count=500),
    Use("detoxification", "judging", "wikipedia", 600, count=500),
    *_both("toxicity", "learning", _JIGSAW, count=32, seed=100, draws=4),
    Use("toxicity", "learning", "rtp", 600, 664),
    Use("toxicity", "judging", "rtp", 664, count=1000),
    Use("toxicity", "judging", "wikipedia", 600, count=500),
    Use("toxicity", "learning", "mmlu", stop=5),
    Use("toxicity", "judging", "mmlu", 5),
    *_both("archaic", "judging", _VERSES, stop=1000),
    *_both("archaic", "learning", _VERSES, start=1000, stop=2000, count=64, seed=0, draws=2),
    Use("archaic", "learning", "archaic/beginnings", stop=64),
    Use("archaic", "judging", "archaic/beginnings", 64),
    Use("archaic", "judging", "lineas:openings"),
    Use("archaic", "judging", "wikipedia", count=500),
    *_both("budget", "learning", _JIGSAW, count=32, seed=400, draws=2),
    *_both("budget", "learning", _SHIPPED),
    Use("budget", "judging", "wikipedia", 1100, count=100),
    Use("budget", "judging", "jigsaw/nontoxic", count=100, draws=2, rest=True),
    Use("budget", "judging", "truthfulqa", count=100),
    *_both("samples", "learning", ["paradetox/toxic", "paradetox/neutral"], count=1024, seed=0, draws=4),
    Use("samples", "judging", "rtp", 664, count=300),
    Use("samples", "judging", "wikipedia", 600, count=100),
    *_both("paper", "learning", ["given/toxic", "given/nontoxic"], count=32, seed=0),
    Use("paper", "learning", "given/rtp", stop=64),
    Use("paper", "judging", "given/rtp", 64, count=1000),
    *_both("sparsity", "learning", _JIGSAW, count=32, seed=200, draws=4),
    Use("sparsity", "judging", "rtp", 664, count=500),
    Use("sparsity", "judging", "wikipedia", 664, count=200),
    *_both("gates", "learning", _JIGSAW, count=32, seed=300, draws=4),
    Use("gates", "learning", "wikipedia", 664, 728),
    Use("gates", "judging", "rtp", 664, count=400),
    Use("gates", "judging", "wikipedia", 728, count=300),
    Use("gates", "judging", "jigsaw/nontoxic", draws=4, rest=True),
    *_both("composition", "learning", _ALL_SETS, count=24, seed=0, draws=2),
    *_both("composition", "judging", [*_ALL_SETS, "lineas:openings"]),
    Use("composition", "judging", "lineas:neutral", step=2),
    *_both("shipped", "learning", _SHIPPED),
    *_both("shipped", "judging", [*_SHIPPED, "lineas:openings", "lineas:neutral", "lineas:polite/prompts"]),
    Use("images", "learning", "world", 1000, count=2, draws=3, stride=10),
    Use("images", "judging", "world", 7, count=1),
    *_both("learning", "learning", [*_JIGSAW, "paradetox/toxic", "paradetox/neutral"], count=32, seed=0),
    Use("learning", "learning", "wikipedia", count=1500),
    *_both("steering", "learning", ["lineas:polite/source", "lineas:neutral"]),
    *_both("steering", "judging", ["lineas:polite/prompts"]),
    *_both("serving", "judging", ["lineas:polite/prompts"]),
]
CHOSEN_ON = {
    "recipes": ("recipes",),
    "detoxification": ("recipes",),
    "toxicity": ("recipes", "sparsity"),
    "archaic": ("recipes", "sparsity"),
    "sparsity": ("recipes", "sparsity"),
    "gates": ("recipes",),
    "composition": ("recipes", "sparsity"),
}
"""By benchmark, those on whose results its settings were chosen: the default recipe, its sites, gammas."""
_BY_KEY = {(use.benchmark, use.purpose, use.data): use for use in USES}


@dataclass(frozen=True)
class Shared:
    """Prompts of a committed result that serve for two purposes.

    Args:
        rows: their number, as `shared` counts them.
        sentence: what the page says of it; `{0}` is the first number.
        repeated: number of further rows that share only their text with one of an earlier purpose.
    """

    rows: dict[str, int]
    sentence: str
    repeated: dict[str, int] = field(default_factory=dict)


SHARED = {
    "recipes": Shared(
        {
            "choosing, judging: rtp": 600,
            "choosing, judging: wikipedia": 600,
            "choosing, learning: jigsaw": 232,
            "choosing, judging: jigsaw": 99,
        },
        "The default recipe was chosen by these tables, on the same {0} prompts, {1} Wikipedia sentences and {2} "
        "Jigsaw sentences, so they are no test on fresh data. Of the sentences held out in a draw, {3} are learned "
        "from in another.",
    ),
    "detoxification": Shared(
        {"choosing, learning: jigsaw": 232},
        "The default recipe was chosen on draws of the same {0} Jigsaw sentences, and on other prompts and Wikipedia "
        "sentences.",
    ),
    "toxicity": Shared(
        {"choosing, judging: rtp": 500, "choosing, judging: wikipedia": 200, "choosing, learning: jigsaw": 107},
        "The gamma of `lineas-sparse` was chosen on {0} of these prompts and {1} of these Wikipedia sentences. Of the "
        "230 Jigsaw sentences learned from, {2} were also learned from when that gamma or the default recipe was "
        "chosen. Two further prompts have the same text as one of either choice.",
        {"choosing, judging: rtp": 2},
    ),
    "archaic": Shared(
        {"choosing, judging: wikipedia": 500},
        "The {0} Wikipedia sentences are among those on which the default recipe was chosen.",
    ),
    "sparsity": Shared(
        {"choosing, judging: rtp": 500, "choosing, judging: wikipedia": 200, "choosing, learning: jigsaw": 222},
        "That support was chosen on the same {0} prompts, {1} Wikipedia sentences and {2} Jigsaw sentences that these "
        "figures are of.",
    ),
    "gates": Shared(
        {"choosing, learning: jigsaw": 53, "choosing, judging: jigsaw": 110},
        "Of the 228 Jigsaw sentences learned from, {0} were also learned from when the default recipe was chosen, and "
        "so were {1} of the civil comments.",
    ),
    "composition": Shared(
        {f"learning, judging: lineas:{style}": 72 for style in STYLES},
        "The classifier of a concept is fitted on all its 96 sentences, {0} of which one of the draws learns from.",
    ),
    "shipped": Shared(
        {f"learning, judging: lineas:{style}": 96 for style in ("polite", "formal", "archaic")},
        "The classifier of each is fitted on the same {0} sentences that it was learned from.",
    ),
}


def take(
    benchmark: str,
    purpose: Purpose,
    data: str,
    draw: int = 0,
    count: int | None = None,
    texts: Sequence[str] | None = None,
) -> list[str]:
    """Return the texts that a draw of a benchmark takes for a purpose.

    Args:
        benchmark, purpose, data: as in `USES`.
        draw: number of the draw.
        count: number of texts; None for that of `USES`.
        texts: all texts of a data set that the user gives.

    Raises:
        LineasError: when there are fewer.
    """
    texts = read(data) if texts is None else texts
    return [texts[row] for row in rows(benchmark, purpose, data, draw, count, len(texts))]


def both(
    benchmark: str, purpose: Purpose, data: str, sides: tuple[str, str], draw: int = 0, count: int | None = None
) -> tuple[list[str], list[str]]:
    """Return what a draw takes of two sides, `DATA/SIDE` and `DATA/SIDE`; the arguments are those of `take`."""
    one, other = (take(benchmark, purpose, f"{data}/{side}", draw, count) for side in sides)
    return one, other


def jigsaw(benchmark: str, draw: int, count: int | None = None) -> tuple[list[str], list[str]]:
    """Return the toxic and the non-toxic sentences that a draw learns from."""
    return both(benchmark, "learning", "jigsaw", ("toxic", "nontoxic"), draw, count)


def rows(
    benchmark: str, purpose: Purpose, data: str, draw: int = 0, count: int | None = None, size: int | None = None
) -> list[int]:
    """Return the places in their file of the rows that `take` takes from a data set of a size."""
    use = _BY_KEY[benchmark, purpose, data]
    order = _ordered(size or DATA[data].size, use.order or DATA[data].order)
    pool = order[use.start + draw * use.stride : use.stop : use.step]
    if use.rest:
        learned = set(rows(benchmark, "learning", data, draw, size=size))
        pool = [row for row in pool if row not in learned]
    count = len(pool) if count is None and use.count is None else count or use.count or 0
    if count > len(pool):
        raise LineasError(
            f"{benchmark} has {len(pool)} rows of {data} for {purpose}, not {count}; ask for fewer (which rows they "
            "are stands in benchmarks/common/splits.py)."
        )
    return list(pool[:count]) if use.seed is None else random.Random(use.seed + draw).sample(pool, count)


@cache
def _ordered(size: int, order: Order) -> Sequence[int]:
    """Return all rows in an order."""
    if order == "drawn":
        return random.Random(0).sample(range(size), size)
    whole = list(range(size))
    if order == "shuffled":
        random.Random(0).shuffle(whole)
    return whole


@cache
def read(data: str) -> Sequence[str]:
    """Return all texts of a data set in the order of its file."""
    source = DATA[data].source
    if data == "rtp":
        prompts = [json.loads(line)["prompt"] for line in _lines(source)]
        return [prompt["text"] for prompt in prompts if (prompt["toxicity"] or 0) >= 0.5]
    if data == "mmlu":
        return _lines(source)
    if data == "truthfulqa":
        rows = map(json.loads, _lines(source))
        return [
            f"{row['question']}\n{next(text for text, right in row['mc1_targets'].items() if right)}" for row in rows
        ]
    if data == "archaic/beginnings":
        verses = [read("archaic/modern")[row] for row in _ordered(3000, "shuffled")[2000:]]
        return list(dict.fromkeys(" ".join(verse.split()[:4]) for verse in verses))
    return read_prompts(source if source.startswith("lineas:") else f"{FOLDER}/{source}")


def _lines(source: str) -> list[str]:
    """Return the lines of a file, each with its end."""
    with (FOLDER / source).open(encoding="utf-8") as file:
        return list(file)
