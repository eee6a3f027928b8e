"""`lineas learn`: from two files of prompts to an intervention."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lineas import artifact
from lineas.cli.common import (
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelArgument,
    check_writable,
    load_quietly,
    progress_bar,
    say,
    write_json,
)
from lineas.errors import LineasError
from lineas.learning import LinEAS, check_sides
from lineas.learning import learn as learn_intervention
from lineas.learning.memory import as_bytes
from lineas.prompts import draw, read_prompts

DEFAULTS = LinEAS()


def learn(
    source: Annotated[str, typer.Option(metavar="FILE[:column]", help="Prompts of the behaviour to leave.")],
    target: Annotated[str, typer.Option(metavar="FILE[:column]", help="Prompts of the behaviour to reach.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make for the intervention.")],
    model: ModelArgument = None,
    method: Annotated[str, typer.Option(help="lineas.")] = "lineas",
    sites: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Modules that carry maps; default: the norm before each MLP.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Draw so many prompts a side at random (by the seed).")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = DEFAULTS.steps,
    optimizer: Annotated[str, typer.Option(help="relative, adam or sgd.")] = DEFAULTS.optimizer,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate; default: by the optimizer.")] = None,
    gamma: Annotated[float, typer.Option(help="Weight of the sparse group lasso; 0 is dense.")] = DEFAULTS.gamma,
    lambda_1: Annotated[float, typer.Option("--lambda-1", help="Weight of single neurons in it.")] = DEFAULTS.lambda_1,
    lambda_g: Annotated[float, typer.Option("--lambda-g", help="Weight of whole groups in it.")] = DEFAULTS.lambda_g,
    batch_size: Annotated[int | None, typer.Option(help="Source prompts a step; default: all.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of a prompt; the rest is cut.")] = 128,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Beside the weights, such as 8GiB; default: half of the free."),
    ] = None,
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the draw of samples and of minibatches.")] = 0,
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Learn an intervention from two files of prompts, neither paired nor of one length."""
    if method != "lineas":
        raise LineasError(f"the method is 'lineas', not '{method}'.")
    if max_length < 1:
        raise LineasError(f"--max-length must be at least 1, not {max_length}.")
    recipe = LinEAS(
        steps=steps,
        optimizer=optimizer,  # type: ignore[arg-type]  # checked there
        learning_rate=lr,
        gamma=gamma,
        lambda_1=lambda_1,
        lambda_g=lambda_g,
        batch_size=batch_size,
    )
    allowed = None if memory is None else as_bytes(memory)
    artifact.check_free(out, force)
    check_writable(json)
    leave, reach = (draw(read_prompts(side), samples, seed) for side in (source, target))
    check_sides(leave, reach)  # before the model is loaded
    text_model = load_quietly(model, dtype)
    started = time.perf_counter()
    with progress_bar("learning", steps) as advance:
        learned = learn_intervention(
            text_model,
            source=leave,
            target=reach,
            method=recipe,
            sites=sites,
            seed=seed,
            max_length=max_length,
            memory=allowed,
            progress=lambda done, total, cost: advance(1, f"cost {cost:.4g}"),
        )
    seconds = time.perf_counter() - started
    files = {"source": {"file": source}, "target": {"file": target}}
    data = {side: {**files[side], **learned.facts["data"][side]} for side in files}
    learned = learned.with_facts(name=out.name, data=data, samples=samples)
    learned.save(out, overwrite=force)
    costs = learned.facts["cost"]
    say(json).print(
        f"learned {out} in {seconds:.0f} s: cost {costs[0]:.4g} -> {costs[-1]:.4g} in {len(costs)} steps, "
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
    )
