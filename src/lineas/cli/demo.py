"""`lineas demo`: learn politeness from 48 + 48 remarks, then show its effect, its damage, and where it acts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lineas.cli import options
from lineas.cli.common import end_if_unfinished, progress_bar, screen_for, text_model_for, write_json
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
from lineas.intervention import artifact, model_card
from lineas.learning import learn
from lineas.printable import as_label
from lineas.prompts import read_prompts
from lineas.reporting.plots import plot_learned
from lineas.reporting.samples import texts_at
from lineas.reporting.tables import failures

STRENGTHS = (0.0, 0.5, 1.0)
PROMPTS = (
    "You never listen to a single word I say, because you are a",
    "You are such a",
    'The waiter slammed the plate on the table and yelled, "',
    "I told the waiter that his service was",
)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the results into.")] = Path("demo-output"),
    model: options.PlainModel = None,
    images: Annotated[
        bool, typer.Option("--images", help="Teach a small image model night, and to leave out the sun, instead.")
    ] = False,
    json: options.Json = None,
    force: options.Force = False,
) -> None:
    """Teach a small language model politeness from 48 rude and 48 polite remarks, and judge it."""
    if images:
        demo_images(out, json, force)
        return
    artifact_folder, picture = out / "polite", out / "polite.png"
    places = Output("--out", artifact_folder, artifact.KIND), Output("the picture", picture, PNG)
    check_outputs("demo", json, *places, force=force, inputs=[model])
    toxic = classifier(PROFANITY)  # refuse now, and not after learning, if it is missing
    text_model = text_model_for(model, None, "auto")
    screen = screen_for(json)
    rude, polite = read_prompts("lineas:polite/source"), read_prompts("lineas:polite/target")
    screen.rule(f"Learning from {len(rude)} rude and {len(polite)} polite remarks on {text_model.name}")
    started = time.perf_counter()
    with progress_bar("learning", None) as advance:
        learned = learn(
            text_model, rude, polite,
            progress=lambda done, total, cost: advance(1, f"cost {cost:.4g}", total),
        )  # fmt: skip
    end_if_unfinished(learned, artifact_folder)
    seconds = time.perf_counter() - started
    costs = learned.facts["cost"]
    screen.print(
        f"{len(costs)} steps in {seconds:.0f} s: distance to the polite side {costs[0]:.4f} -> "
        f"{learned.facts['cost_after']:.4f}"
    )
    screen.print(model_card.damage_learned(learned.facts))

    screen.rule("Four prompts, from untouched to full strength")
    side_by_side(screen, list(PROMPTS), texts_at(text_model, learned, STRENGTHS, PROMPTS, max_new_tokens=28))

    screen.rule("Effect and damage")
    openings, neutral = read_prompts("lineas:polite/prompts"), read_prompts("lineas:neutral")
    with progress_bar("measuring", len(STRENGTHS) * len(openings)) as advance:
        plan = Plan(openings, neutral, {"toxic": toxic})
        evaluation = evaluate(text_model, [Steered("polite", learned, s) for s in STRENGTHS], plan, progress=advance)
    rows = evaluation.rows
    if failures(rows):
        raise LineasError(f"not measured: {failures(rows)[0]}")
    screen.print(f"{len(openings)} continuations of provoking openings, {len(neutral)} neutral sentences\n")
    table = Table("strength", "rude", "mean rudeness", "divergence", "perplexity", "", box=None, header_style="bold")
    for row in rows:
        rude_share, rudeness, kl, perplexity = (
            row.values[name] for name in ("toxic", "toxic_score", "kl", "perplexity")
        )
        change = f"{100 * (perplexity / rows[0].values['perplexity'] - 1):+.1f} %" if row.strength else ""
        figures = f"{100 * rude_share:.0f} %", f"{rudeness:.3f}", f"{kl:.3f}", f"{perplexity:.1f}", change
        table.add_row(as_label(row.strength), *figures)
    screen.print(table)

    screen.rule("Where the change sits")
    learned = learned.with_facts(name="polite", measurements=measurements(rows))
    draw(screen, learned, site_rows(learned))
    save_or_rescue(learned, artifact_folder, force)
    saved = [str(artifact_folder)]
    try:
        saved.append(str(plot_learned(learned, rows, picture)))
    except LineasError as error:
        screen.print(str(error))
    screen.print(
        f"\nsaved {' and '.join(saved)}; try: lineas generate --intervention {artifact_folder} --prompt 'You always'"
    )
    continuations = {as_label(row.strength): texts[0] for row, texts in zip(rows, evaluation.continuations)}
    facts = {"seconds": seconds, "cost": costs, "rows": measurements(rows)}
    write_json(json, {**facts, "continuations": continuations, "saved": saved}, "demo")


def measurements(rows: list[Row]) -> list[dict[str, float]]:
    """Return the measures for the model card, one row for each strength."""
    names = [name for name in ("toxic", "toxic_score", "perplexity", "kl") if all(name in row.values for row in rows)]
    return [{"strength": row.strength, **{name: row.values[name] for name in names}} for row in rows]
