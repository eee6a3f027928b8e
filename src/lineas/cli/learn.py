"""`lineas learn`: learn an intervention from two files of prompts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lineas.checks import as_bytes
from lineas.cli import options
from lineas.cli.common import (
    end_if_unfinished,
    load_interventions,
    load_quietly,
    progress_bar,
    screen_for,
    with_image_settings,
    write_json,
)
from lineas.cli.method_options import METHODS, method_of, with_method_options
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.intervention import artifact, model_card
from lineas.intervention.intervention import Intervention
from lineas.learning import check_sides, check_takes_neutral
from lineas.learning import learn as learn_intervention
from lineas.learning.learn import drawn_from
from lineas.prompts import draw, read_prompts
from lineas.sites import as_pooling


@with_method_options()
def learn(
    source: options.Source,
    target: options.Target,
    out: options.Out,
    model: options.PlainModel = None,
    method: Annotated[str, typer.Option(help=f"Method of learning: {', '.join(METHODS)}, or MODULE:CLASS.")] = "lineas",
    sites: options.Sites = None,
    samples: options.Samples = None,
    settings: Any = None,
    max_length: options.MaxLength = 128,
    pooling: options.Pooling = "mean",
    memory: options.Memory = None,
    start: Annotated[
        str | None, typer.Option(metavar="DIR", help="Intervention whose maps learning begins with (method lineas).")
    ] = None,
    within_support: Annotated[
        bool, typer.Option("--within-support", help="Change only neurons that --start changes.")
    ] = False,
    neutral: Annotated[
        str | None,
        typer.Option(metavar="FILE[:column]", help="Neutral text that should stay as it is (optimizer natural)."),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR ...", help="Interventions to apply to the model while it learns, in order."),
    ] = None,
    denoising_steps: options.DenoisingSteps = None,
    guidance_scale: options.GuidanceScale = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    json: options.Json = None,
    force: options.Force = False,
) -> None:
    """Learn an intervention from two files of prompts, which need not be paired or equally long."""
    place = Output("--out", out, artifact.KIND)
    check_outputs("learn", json, place, force=force, inputs=[source, target, neutral, model, start, on])
    recipe = method_of(method, settings)
    checked_pooling, bytes_of_memory = as_pooling(pooling), None if memory is None else as_bytes(memory)
    start_intervention = None if start is None else Intervention.load(start)
    on_intervention = load_interventions(on) if on else None
    source_prompts, target_prompts = (draw(read_prompts(side), samples, seed) for side in (source, target))
    neutral_prompts = None if neutral is None else read_prompts(neutral)
    if neutral is not None:
        check_takes_neutral(recipe)
    check_sides(source_prompts, target_prompts)  # before the model is loaded
    loaded = with_image_settings(load_quietly(model, dtype), denoising_steps, guidance_scale, guidance, size)
    started = time.perf_counter()
    with progress_bar("learning", None) as advance:
        learned = learn_intervention(
            loaded, source_prompts, target_prompts, recipe, sites=sites, seed=seed, max_length=max_length,
            pooling=checked_pooling, memory=bytes_of_memory, start=start_intervention, within_support=within_support,
            on=on_intervention, neutral=neutral_prompts,
            progress=lambda done, total, cost: advance(1, f"cost {cost:.4g}", total),
        )  # fmt: skip
    seconds = time.perf_counter() - started
    if settings["gamma"] and learned.support() == 0:
        gamma = f"--gamma {settings['gamma']:g}"
        warnings.warn(f"nothing was learned: {gamma} leaves no neuron; take a smaller one.", stacklevel=1)
    files = {"source": source, "target": target, **({} if neutral is None else {"neutral": neutral})}
    learned = drawn_from(learned, files, samples).with_facts(name=out.name)
    end_if_unfinished(learned, out)
    save_or_rescue(learned, out, force)
    screen_for(json).print(
        f"learned {out} in {seconds:.0f} s: {_cost(learned.facts)}, "
        f"{learned.support():.1%} of the neurons at {len(learned.maps)} sites changed"
    )
    if damage := model_card.damage_learned(learned.facts):
        screen_for(json).print(damage)
    facts = {"out": str(out), "seconds": seconds, "support": learned.support(), "sites": list(learned.maps)}
    write_json(json, {**facts, **learned.facts}, "learn")


def _cost(facts: Mapping[str, Any]) -> str:
    costs = facts["cost"]
    if len(costs) > 1:
        return f"cost {costs[0]:.4g} -> {facts.get('cost_after', costs[-1]):.4g} in {len(costs)} steps"
    when = "before the only step" if "steps" in facts["method"] else "with the maps in place"
    return f"cost {costs[0]:.4g} {when}"
