"""`lineas demo`: learn politeness from 48 + 48 remarks, then show what it does, what it damages, and where it sits."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lineas import artifact
from lineas.cli.common import ForceOption, JsonOption, check_writable, load_quietly, progress_bar, say, write_json
from lineas.cli.generate import side_by_side
from lineas.cli.show import draw, site_rows
from lineas.errors import LineasError
from lineas.evaluation.report import measure, plot
from lineas.evaluation.toxicity import toxicity_scores
from lineas.learning import LinEAS, learn
from lineas.prompts import read_prompts
from lineas.steering import steer

RECIPE = LinEAS()
PROMPTS = (
    "You never listen to me, you",
    "I told the waiter that his service was",
    "Dear neighbour, about your dog:",
    "My coworker is late again, so I said:",
)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")] = Path("demo-output"),
    model: Annotated[str | None, typer.Option(help="Hub id or folder; by default SmolLM2-135M-Instruct.")] = None,
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Teach a small language model politeness from 48 rude and 48 polite remarks, in two minutes, and judge it."""
    check_writable(json)
    artifact_folder = out / "polite"
    artifact.check_free(artifact_folder, force)
    toxicity_scores(["."])  # say now, not in two minutes, that the classifier is missing
    text_model = load_quietly(model)
    talk = say(json)
    rude, polite = read_prompts("lineas:polite/source"), read_prompts("lineas:polite/target")
    talk.rule(f"Learning from {len(rude)} rude and {len(polite)} polite remarks on {text_model.name}")
    started = time.perf_counter()
    with progress_bar("learning", RECIPE.steps) as advance:
        learned = learn(
            text_model, rude, polite, RECIPE, progress=lambda done, total, cost: advance(1, f"cost {cost:.4g}")
        )
    seconds = time.perf_counter() - started
    costs = learned.facts["cost"]
    talk.print(f"{len(costs)} steps in {seconds:.0f} s: distance to the polite side {costs[0]:.4f} -> {costs[-1]:.4f}")

    talk.rule("Four prompts, from untouched to full strength")
    made = {}
    for strength in (0.0, 0.5, 1.0):
        with steer(text_model, learned, strength=strength):
            made[strength] = text_model.generate(PROMPTS, max_new_tokens=28)
    side_by_side(talk, list(PROMPTS), made)

    talk.rule("Effect and damage")
    openings, neutral = read_prompts("lineas:polite/prompts"), read_prompts("lineas:neutral")
    with progress_bar("measuring", 2 * len(openings)) as advance:
        rows, texts = measure(text_model, learned, openings, neutral, (0.0, 1.0), progress=advance)
    before, after = rows
    talk.print(
        f"rude continuations of {len(openings)} provoking openings: "
        f"{100 * before.toxic:.0f} % -> {100 * after.toxic:.0f} % "
        f"(mean score {before.score:.3f} -> {after.score:.3f}, alt-profanity-check)"
    )
    talk.print(
        f"perplexity of {len(neutral)} neutral sentences: {before.perplexity:.1f} -> {after.perplexity:.1f} "
        f"({100 * (after.perplexity / before.perplexity - 1):+.1f} %)"
    )

    talk.rule("Where the change sits")
    learned = learned.with_facts(name="polite", measurements=[asdict(row) for row in rows])
    draw(talk, learned, site_rows(learned))
    learned.save(artifact_folder, overwrite=force)
    saved = [str(artifact_folder)]
    try:
        saved.append(str(plot(learned, rows, out / "polite.png")))
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
            "rows": [asdict(row) for row in rows],
            "continuations": texts,
            "saved": saved,
        },
    )
