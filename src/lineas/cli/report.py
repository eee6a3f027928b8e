"""`lineas report`: one HTML page: learning, effect and damage, samples, layers, neurons, overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lineas.checks import SEED, SHOWN, TOKENS
from lineas.cli.common import (
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelArgument,
    as_strengths,
    load_interventions,
    model_for,
    progress_bar,
    say,
    write_json,
)
from lineas.cli.evaluation_options import names_of, parts_of
from lineas.cli.number_options import number, strength_option
from lineas.cli.outputs import Output, check_outputs
from lineas.errors import LineasError
from lineas.files.ownership import HTML
from lineas.prompts import read_prompts
from lineas.reporting.report import STRENGTHS
from lineas.reporting.report import report as write_report


def report(
    intervention: Annotated[
        list[str],
        typer.Option(metavar="DIR ...", help="Folders, names or hub ids; a+b is one after the other."),
    ],
    model: ModelArgument = None,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page.")] = Path("report.html"),
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE[:column]", help="Runs the model: what moves neurons, and samples from the first."),
    ] = None,
    examples: Annotated[int, number("--examples", SHOWN, "Number of prompts that are continued or drawn.")] = 4,
    strength: Annotated[
        list[str] | None,
        strength_option("Strengths of the samples: numbers, or calibrated; default: 0, 0.5, 1.", several=True),
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="evaluation.json of lineas evaluate: effect and damage.")
    ] = None,
    neurons: Annotated[int, number("--neurons", SHOWN, "Number of the largest neurons that are shown.")] = 12,
    max_new_tokens: Annotated[int, number("--max-new-tokens", TOKENS, "Largest number of tokens of a sample.")] = 32,
    seed: Annotated[int, number("--seed", SEED, "Seed of the samples.")] = 0,
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Write one self-contained page, readable in light and dark; nothing in it is loaded from elsewhere."""
    place = Output("--out", out, HTML)
    check_outputs("report", json, place, force=force, inputs=[*intervention, prompts, evaluation, model])
    names = names_of(intervention)
    loaded = {names[source]: load_interventions(parts_of(source)) for source in intervention}
    texts = read_prompts(prompts) if prompts else []
    if len(texts) == 1:
        raise LineasError(f"{prompts} holds 1 prompt; what moves a neuron from its mean is seen from 2 on.")
    first = next(iter(loaded.values()))
    with progress_bar("reporting", len(loaded)) as advance:
        write_report(
            loaded, out, model=model_for(model, first, dtype) if texts else None, prompts=texts, examples=examples,
            strengths=as_strengths(strength or STRENGTHS, first), evaluation=evaluation, neurons=neurons,
            max_new_tokens=max_new_tokens, seed=seed, overwrite=force, progress=lambda name: advance(1, name),
        )  # fmt: skip
    say(json).print(f"wrote {out} ({out.stat().st_size / 1000:.0f} kB)")
    write_json(json, {"out": str(out), "interventions": list(loaded), "prompts": len(texts)}, "report")
