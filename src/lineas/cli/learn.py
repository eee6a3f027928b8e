"""`lineas learn`: from two files of prompts to an intervention."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from lineas.checks import COUNT, SEED, as_bytes
from lineas.cli.common import (
    DenoisingStepsOption,
    DtypeOption,
    ForceOption,
    GuidanceOption,
    GuidanceScaleOption,
    JsonOption,
    ModelArgument,
    SizeOption,
    drawing,
    end_if_unfinished,
    load_interventions,
    load_quietly,
    progress_bar,
    say,
    write_json,
)
from lineas.cli.method_options import (
    METHODS,
    MaxLengthOption,
    MemoryOption,
    PoolingOption,
    SitesOption,
    method_of,
    with_method_options,
)
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.intervention import artifact
from lineas.intervention.intervention import Intervention
from lineas.learning import check_sides
from lineas.learning import learn as learn_intervention
from lineas.learning.learn import drawn_from
from lineas.prompts import draw, read_prompts
from lineas.sites import as_pooling


@with_method_options()
def learn(
    source: Annotated[str, typer.Option(metavar="FILE[:column]", help="Prompts of the behaviour to leave.")],
    target: Annotated[str, typer.Option(metavar="FILE[:column]", help="Prompts of the behaviour to reach.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make for the intervention.")],
    model: ModelArgument = None,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}, or MODULE:CLASS.")] = "lineas",
    sites: SitesOption = None,
    samples: Annotated[
        int | None, number("--samples", COUNT, "Draw so many prompts a side at random (by the seed).")
    ] = None,
    settings: Any = None,
    max_length: MaxLengthOption = 128,
    pooling: PoolingOption = "mean",
    memory: MemoryOption = None,
    start: Annotated[
        str | None, typer.Option(metavar="DIR", help="Begin with the maps of this intervention; lineas alone.")
    ] = None,
    within_support: Annotated[
        bool, typer.Option("--within-support", help="Touch no neuron that --start leaves as it is.")
    ] = False,
    on: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR ...", help="Interventions in place meanwhile, one after the other."),
    ] = None,
    denoising_steps: DenoisingStepsOption = None,
    guidance_scale: GuidanceScaleOption = None,
    guidance: GuidanceOption = None,
    size: SizeOption = None,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, number("--seed", SEED, "Of the draw of samples and of minibatches.")] = 0,
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Learn an intervention from two files of prompts, neither paired nor of one length."""
    place = Output("--out", out, artifact.KIND)
    check_outputs("learn", json, place, force=force, inputs=[source, target, model, start, on])
    recipe = method_of(method, settings)
    pooled, allowed = as_pooling(pooling), None if memory is None else as_bytes(memory)
    begin = None if start is None else Intervention.load(start)
    below = load_interventions(on) if on else None
    leave, reach = (draw(read_prompts(side), samples, seed) for side in (source, target))
    check_sides(leave, reach)  # before the model is loaded
    loaded = drawing(load_quietly(model, dtype), denoising_steps, guidance_scale, guidance, size)
    started = time.perf_counter()
    with progress_bar("learning", None) as advance:
        learned = learn_intervention(
            loaded,
            source=leave,
            target=reach,
            method=recipe,
            sites=sites,
            seed=seed,
            max_length=max_length,
            pooling=pooled,
            memory=allowed,
            start=begin,
            within_support=within_support,
            on=below,
            progress=lambda done, total, cost: advance(1, f"cost {cost:.4g}", total),
        )
    seconds = time.perf_counter() - started
    if settings["gamma"] and learned.support() == 0:
        gamma = f"--gamma {settings['gamma']:g}"
        warnings.warn(f"nothing was learned: {gamma} leaves no neuron; take a smaller one.", stacklevel=1)
    learned = drawn_from(learned, {"source": source, "target": target}, samples).with_facts(name=out.name)
    end_if_unfinished(learned, out)
    save_or_rescue(learned, out, force)
    costs = learned.facts["cost"]
    say(json).print(
        f"learned {out} in {seconds:.0f} s: cost {_course(costs)}, "
        f"{learned.support():.1%} of the neurons at {len(learned.maps)} sites changed"
    )
    write_json(
        json,
        {
            "out": str(out),
            "seconds": seconds,
            "support": learned.support(),
            "sites": list(learned.maps),
            **learned.facts,
        },
        "learn",
    )


def _course(costs: list[float]) -> str:
    if len(costs) == 1:
        return f"{costs[0]:.4g}"
    return f"{costs[0]:.4g} -> {costs[-1]:.4g} in {len(costs)} steps"
