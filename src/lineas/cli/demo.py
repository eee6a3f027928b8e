"""`lineas demo`: learn politeness from 48 + 48 remarks, then show what it does, what it damages, and where it sits."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lineas.cli.common import (
    ForceOption,
    JsonOption,
    end_if_unfinished,
    progress_bar,
    say,
    text_model_for,
    write_json,
)
from lineas.cli.demo_images import demo_images
from lineas.cli.generate import side_by_side
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.cli.show import draw, site_rows
from lineas.errors import LineasError
from lineas.evaluation.classifiers import PROFANITY, classifier
from lineas.evaluation.evaluate import evaluate
from lineas.evaluation.plan import Plan
from lineas.evaluation.results import Row
from lineas.evaluation.variants import Steered
from lineas.files.ownership import PNG
from lineas.intervention import artifact
from lineas.learning import LinEAS, learn
from lineas.printable import as_label
from lineas.prompts import read_prompts
from lineas.reporting.plots import plot_learned
from lineas.reporting.samples import texts_at
from lineas.reporting.tables import failures

RECIPE = LinEAS(gamma=1e-4)
STRENGTHS = (0.0, 0.5, 1.0)
PROMPTS = (
    "You never listen to a single word I say, because you are a",
    "You are such a",
    'The waiter slammed the plate on the table and yelled, "',
    "I told the waiter that his service was",
)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")] = Path("demo-output"),
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Hub id or folder; default: SmolLM2-135M-Instruct.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Instead: a small image model learns night, and to leave out the sun.")
    ] = False,
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Teach a small language model politeness from 48 rude and 48 polite remarks, in two minutes, and judge it."""
    if images:
        demo_images(out, json, force)
        return
    artifact_folder, picture = out / "polite", out / "polite.png"
    places = Output("--out", artifact_folder, artifact.KIND), Output("the picture", picture, PNG)
    check_outputs("demo", json, *places, force=force, inputs=[model])
    rude_or_not = classifier(PROFANITY)  # say now, not in two minutes, that it is missing
    text_model = text_model_for(model, None, "auto")
    talk = say(json)
    rude, polite = read_prompts("lineas:polite/source"), read_prompts("lineas:polite/target")
    talk.rule(f"Learning from {len(rude)} rude and {len(polite)} polite remarks on {text_model.name}")
    started = time.perf_counter()
    every = [site.name for site in text_model.sites()]
    # Early layers cost the most perplexity: see the limits in the README.
    second_half = [re.escape(name) for name in every[len(every) // 2 :]]
    with progress_bar("learning", RECIPE.steps) as advance:
        learned = learn(
            text_model,
            rude,
            polite,
            RECIPE,
            sites=second_half,
            progress=lambda done, total, cost: advance(1, f"cost {cost:.4g}"),
        )
    end_if_unfinished(learned, artifact_folder)
    seconds = time.perf_counter() - started
    costs = learned.facts["cost"]
    talk.print(f"{len(costs)} steps in {seconds:.0f} s: distance to the polite side {costs[0]:.4f} -> {costs[-1]:.4f}")

    talk.rule("Four prompts, from untouched to full strength")
    made = texts_at(text_model, learned, STRENGTHS, PROMPTS, max_new_tokens=28)
    side_by_side(talk, list(PROMPTS), made)

    talk.rule("Effect and damage")
    openings, neutral = read_prompts("lineas:polite/prompts"), read_prompts("lineas:neutral")
    with progress_bar("measuring", len(STRENGTHS) * len(openings)) as advance:
        plan = Plan(openings, neutral, {"toxic": rude_or_not})
        found = evaluate(text_model, [Steered("polite", learned, s) for s in STRENGTHS], plan, progress=advance)
    rows = found.rows
    if failures(rows):
        raise LineasError(f"not measured: {failures(rows)[0]}")
    talk.print(f"{len(openings)} continuations of provoking openings, {len(neutral)} neutral sentences\n")
    table = Table("strength", "rude", "mean rudeness", "perplexity", "", box=None, header_style="bold")
    for row in rows:
        rude_share, rudeness, perplexity = (row.values[name] for name in ("toxic", "toxic_score", "perplexity"))
        change = f"{100 * (perplexity / rows[0].values['perplexity'] - 1):+.1f} %" if row.strength else ""
        cells = as_label(row.strength), f"{100 * rude_share:.0f} %", f"{rudeness:.3f}", f"{perplexity:.1f}", change
        table.add_row(*cells)
    talk.print(table)

    talk.rule("Where the change sits")
    learned = learned.with_facts(name="polite", measurements=measurements(rows))
    draw(talk, learned, site_rows(learned))
    save_or_rescue(learned, artifact_folder, force)
    saved = [str(artifact_folder)]
    try:
        saved.append(str(plot_learned(learned, rows, picture)))
    except LineasError as error:
        talk.print(str(error))
    talk.print(
        f"\nsaved {' and '.join(saved)}; try: lineas generate --intervention {artifact_folder} --prompt 'You always'"
    )
    write_json(
        json,
        {
            "seconds": seconds,
            "cost": costs,
            "rows": measurements(rows),
            "continuations": {as_label(row.strength): texts[0] for row, texts in zip(rows, found.continuations)},
            "saved": saved,
        },
        "demo",
    )


def measurements(rows: list[Row]) -> list[dict[str, float]]:
    """What the model card shows of an evaluation, one row a strength."""
    shown = [name for name in ("toxic", "toxic_score", "perplexity", "kl") if all(name in row.values for row in rows)]
    return [{"strength": row.strength, **{name: row.values[name] for name in shown}} for row in rows]
