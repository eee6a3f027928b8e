"""`lineas demo --images`: learn a style and the removal of a thing on the small image model, and paint both."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from lineas.cli.common import end_if_unfinished, load_quietly, progress_bar, say, write_json
from lineas.cli.outputs import Output, check_outputs
from lineas.cli.paint import STRENGTHS, STRIP, write_strips
from lineas.errors import LineasError
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.plan import Plan
from lineas.evaluation.variants import Steered
from lineas.files import writing
from lineas.files.ownership import FolderKind
from lineas.learning import LinEAS, learn
from lineas.models.image import ImageModel
from lineas.models.loading import SHAPES
from lineas.printable import as_label
from lineas.prompts import read_prompts
from lineas.reporting.samples import pictures_at
from lineas.reporting.tables import cell
from lineas.sites import Pooling

KIND = FolderKind("a folder of this demo", "demo", STRIP)
PAINTED = 4
"""Prompts of which strips are shown."""


@dataclass(frozen=True)
class Lesson:
    """What is learned.

    Args:
        prompts: the set of prompts that ships, and the folder that is made.
        concept: what the judge looks for.
        title: what is said of it.
        pooling: how the pixels become one activation.
    """

    prompts: str
    concept: str
    title: str
    pooling: Pooling = "mean"


LESSONS = (
    Lesson("night", "at night", "A style: night falls"),
    Lesson("sun", "sun", "A thing that goes: the sun", "max"),  # it is small: the mean of all pixels hardly knows of it
)


def demo_images(out: Path, json: Path | None, force: bool) -> None:
    """Teach the small image model a style and a removal from 32 + 32 prompts each, judge both, and write strips."""
    check_outputs("demo", json, *(Output("--out", out / one.prompts, KIND) for one in LESSONS), force=force)
    model = load_quietly(SHAPES)
    if not isinstance(model, ImageModel) or model.judge is None:
        raise LineasError(f"{SHAPES} here is another model than the one that comes with lineas; run this elsewhere.")
    talk, told = say(json), []
    for lesson in LESSONS:
        sides = {side: read_prompts(f"lineas:{lesson.prompts}/{side}") for side in ("source", "target", "prompts")}
        talk.rule(f"{lesson.title}, from {len(sides['source'])} + {len(sides['target'])} prompts")
        started = time.perf_counter()
        with progress_bar("learning", LinEAS().steps) as advance:
            learned = learn(
                model, sides["source"], sides["target"], pooling=lesson.pooling,
                progress=lambda done, total, cost, advance=advance: advance(1, f"cost {cost:.4g}"),
            )  # fmt: skip
        end_if_unfinished(learned, out / lesson.prompts)
        seconds, costs = time.perf_counter() - started, learned.facts["cost"]
        talk.print(f"{len(costs)} steps in {seconds:.0f} s: distance to the target {costs[0]:.4f} -> {costs[-1]:.4f}")
        plan = Plan(sides["prompts"], concept=lesson.concept)
        with progress_bar("measuring", len(sides["prompts"]) * len(STRENGTHS)) as advance:
            found = evaluate(model, [Steered(lesson.prompts, learned, s) for s in STRENGTHS], plan, None, advance)
        table = Table("strength", f"shows '{lesson.concept}'", "likeness to the untouched picture, %", box=None)
        for row in found.rows:
            cells = (cell(row, name).split(" [")[0] for name in ("concept", "img_score"))
            table.add_row(as_label(row.strength), *cells)
        talk.print(table)
        shown = sides["prompts"][:PAINTED]
        rows = pictures_at(model, learned, STRENGTHS, shown)
        with writing.new_folder(out / lesson.prompts, KIND, force) as beside:
            write_strips(beside, rows, shown, STRENGTHS)
            learned.with_facts(name=lesson.prompts).save(beside / "intervention")
        talk.print(f"saved {out / lesson.prompts}: strip.png, strip.gif, intervention\n")
        values = [{"strength": row.strength, **row.values} for row in found.rows]
        told.append({"lesson": lesson.prompts, "seconds": seconds, "cost": costs, "rows": values})
    write_json(json, {"model": model.name, **model.facts, "lessons": told}, "demo")
