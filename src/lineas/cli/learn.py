"""`lineas learn`: from two files of prompts to an intervention."""

from __future__ import annotations

import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from lineas.checks import COUNT, DEVIATIONS, PAIR, RATE, SEED, STEPS, TOKENS, WEIGHT, as_bytes
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
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.errors import LineasError
from lineas.intervention import artifact
from lineas.intervention.intervention import Intervention
from lineas.learning import CAA, AurA, GaussianAcT, ITIc, LinAcT, LinEAS, MeanAcT, Method, check_sides
from lineas.learning import learn as learn_intervention
from lineas.learning.learn import drawn_from
from lineas.prompts import draw, read_prompts
from lineas.sites import as_pooling

DEFAULTS = LinEAS()
METHODS: dict[str, type[Method]] = {
    "lineas": LinEAS,
    "mean-act": MeanAcT,
    "gaussian-act": GaussianAcT,
    "lin-act": LinAcT,
    "caa": CAA,
    "iti-c": ITIc,
    "aura": AurA,
}


def learn(
    source: Annotated[str, typer.Option(metavar="FILE[:column]", help="Prompts of the behaviour to leave.")],
    target: Annotated[str, typer.Option(metavar="FILE[:column]", help="Prompts of the behaviour to reach.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make for the intervention.")],
    model: ModelArgument = None,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")] = "lineas",
    sites: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Modules that carry maps; default: the method's own (norms before MLPs)."),
    ] = None,
    samples: Annotated[
        int | None, number("--samples", COUNT, "Draw so many prompts a side at random (by the seed).")
    ] = None,
    steps: Annotated[int | None, number("--steps", STEPS, f"Optimizer steps; default: {DEFAULTS.steps}.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="relative (default), adam or sgd.")] = None,
    lr: Annotated[float | None, number("--lr", RATE, "Largest learning rate; default: by the optimizer.")] = None,
    gamma: Annotated[
        float | None, number("--gamma", WEIGHT, "Weight of the sparse group lasso; default: 0, which is dense.")
    ] = None,
    lambda_1: Annotated[float | None, number("--lambda-1", WEIGHT, "Weight of single neurons in it; 1.")] = None,
    lambda_g: Annotated[float | None, number("--lambda-g", WEIGHT, "Weight of whole groups in it; 1.")] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="As many steps again, without the penalty, on the neurons that it has kept.")
    ] = False,
    batch_size: Annotated[int | None, number("--batch-size", PAIR, "Source prompts a step; default: all.")] = None,
    foldable: Annotated[
        bool, typer.Option("--foldable", help="Learn only what `lineas fold` can write into the weights.")
    ] = False,
    alpha: Annotated[float | None, number("--alpha", DEVIATIONS, "Deviations to move, of iti-c; default: 0.5.")] = None,
    layers: Annotated[str | None, typer.Option(help="middle (default) or all, of caa.")] = None,
    max_length: Annotated[int, number("--max-length", TOKENS, "Tokens of a prompt; the rest is cut.")] = 128,
    pooling: Annotated[
        str, typer.Option(help="mean of a prompt's tokens or pixels, or max, for what fills few of them.")
    ] = "mean",
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Beside the weights, such as 8GiB; default: half of the free."),
    ] = None,
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
    recipe = method_of(
        method,
        {
            "steps": steps,
            "optimizer": optimizer,
            "learning_rate": lr,
            "gamma": gamma,
            "lambda_1": lambda_1,
            "lambda_g": lambda_g,
            "refit": refit or None,
            "batch_size": batch_size,
            "foldable": foldable or None,
            "alpha": alpha,
            "layers": layers,
        },
    )
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
    if gamma and learned.support() == 0:
        warnings.warn(f"nothing was learned: --gamma {gamma:g} leaves no neuron; take a smaller one.", stacklevel=1)
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


def method_of(name: str, given: dict[str, Any]) -> Method:
    """The method of a name, with the options that were given."""
    if name not in METHODS:
        raise LineasError(f"the method is one of {', '.join(METHODS)}, not '{name}'.")
    settings = {key: value for key, value in given.items() if value is not None}
    takes = [field.name for field in fields(METHODS[name])]
    foreign = [key for key in settings if key not in takes]
    if foreign:
        option = {"learning_rate": "lr"}.get(foreign[0], foreign[0].replace("_", "-"))
        raise LineasError(f"the method {name} does not take --{option}; leave it out.")
    return METHODS[name](**settings)


def _course(costs: list[float]) -> str:
    if len(costs) == 1:
        return f"{costs[0]:.4g}"
    return f"{costs[0]:.4g} -> {costs[-1]:.4g} in {len(costs)} steps"
