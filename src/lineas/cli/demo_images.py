"""`lineas demo --images`: learn a style and the removal of an object on the small image model, and paint both."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from lineas.cli.common import end_if_unfinished, load_quietly, progress_bar, screen_for, write_json
from lineas.cli.outputs import Output, check_outputs
from lineas.cli.paint import STRENGTHS, STRIP, write_strips
from lineas.errors import LineasError
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.plan import Plan
from lineas.evaluation.variants import Steered
from lineas.files import writing
from lineas.files.ownership import FolderKind
from lineas.learning import learn
from lineas.models.image import ImageModel
from lineas.models.loading import SHAPES
from lineas.printable import as_label
from lineas.prompts import read_prompts
from lineas.reporting.samples import pictures_at
from lineas.reporting.tables import cell
from lineas.sites import Pooling

KIND = FolderKind("a folder of this demo", "demo", STRIP)
PAINTED = 4
"""Number of prompts in a strip."""


@dataclass(frozen=True)
class Lesson:
    """One intervention that the demo learns.

    Args:
        prompts: name of the shipped set of prompts, and of the folder to write.
        concept: concept that the judge looks for.
        title: heading on the screen.
        pooling: pooling over pixels; default: "mean".
    """

    prompts: str
    concept: str
    title: str
    pooling: Pooling = "mean"


LESSONS = (
    Lesson("night", "at night", "A style: night falls"),
    Lesson("sun", "sun", "An object disappears: the sun", "max"),  # it is small, so it hardly changes the mean
)


def demo_images(out: Path, json: Path | None, force: bool) -> None:
    """Teach the small image model a style and a removal from 32 + 32 prompts each, judge both, and write strips."""
    check_outputs("demo", json, *(Output("--out", out / one.prompts, KIND) for one in LESSONS), force=force)
    model = load_quietly(SHAPES)
    if not isinstance(model, ImageModel) or model.judge is None:
        raise LineasError(
            f"{SHAPES} is another model here than the one that ships with lineas; run the command in another folder."
        )
    screen, results = screen_for(json), []
    for lesson in LESSONS:
        sides = {side: read_prompts(f"lineas:{lesson.prompts}/{side}") for side in ("source", "target", "prompts")}
        screen.rule(f"{lesson.title}, from {len(sides['source'])} + {len(sides['target'])} prompts")
        started = time.perf_counter()
        with progress_bar("learning", None) as advance:
            learned = learn(
                model, sides["source"], sides["target"], pooling=lesson.pooling,
                progress=lambda done, total, cost, advance=advance: advance(1, f"cost {cost:.4g}", total),
            )  # fmt: skip
        end_if_unfinished(learned, out / lesson.prompts)
        seconds, costs = time.perf_counter() - started, learned.facts["cost"]
        screen.print(f"{len(costs)} steps in {seconds:.0f} s: distance to the target {costs[0]:.4f} -> {costs[-1]:.4f}")
        plan = Plan(sides["prompts"], concept=lesson.concept)
        with progress_bar("measuring", len(sides["prompts"]) * len(STRENGTHS)) as advance:
            systems = [Steered(lesson.prompts, learned, s) for s in STRENGTHS]
            judged = evaluate(model, systems, plan, progress=advance).rows
        table = Table("strength", f"shows '{lesson.concept}'", "likeness to the untouched picture, %", box=None)
        for row in judged:
            cells = (cell(row, name).split(" [")[0] for name in ("concept", "img_score"))
            table.add_row(as_label(row.strength), *cells)
        screen.print(table)
        prompts = sides["prompts"][:PAINTED]
        pictures = pictures_at(model, learned, STRENGTHS, prompts)
        with writing.new_folder(out / lesson.prompts, KIND, force) as beside:
            write_strips(beside, pictures, prompts, STRENGTHS)
            learned.with_facts(name=lesson.prompts).save(beside / "intervention")
        screen.print(f"saved {out / lesson.prompts}: strip.png, strip.gif, intervention\n")
        values = [{"strength": row.strength, **row.values} for row in judged]
        results.append({"lesson": lesson.prompts, "seconds": seconds, "cost": costs, "rows": values})
    write_json(json, {"model": model.name, **model.facts, "lessons": results}, "demo")
