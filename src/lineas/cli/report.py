"""`lineas report`: one HTML page with learning, effect and damage, samples, layers, neurons and overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lineas.checks import SHOWN
from lineas.cli import options
from lineas.cli.common import (
    as_strengths,
    load_interventions,
    model_for,
    names_of,
    parts_of,
    progress_bar,
    screen_for,
    write_json,
)
from lineas.cli.number_options import number, strengths_option
from lineas.cli.outputs import Output, check_outputs
from lineas.errors import LineasError
from lineas.files.ownership import HTML
from lineas.prompts import read_prompts
from lineas.reporting.report import STRENGTHS
from lineas.reporting.report import report as write_report


def report(
    intervention: Annotated[
        list[str],
        typer.Option(metavar="DIR ...", help="Interventions (folder, shipped name or hub id); a+b applies a, then b."),
    ],
    model: options.Model = None,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="File to write the page into.")] = Path("report.html"),
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE[:column]", help="Prompts to run on the model, for samples and for what moves each neuron."
        ),
    ] = None,
    examples: Annotated[int, number("--examples", SHOWN, "Number of prompts that are continued or drawn.")] = 4,
    strength: Annotated[list[str] | None, strengths_option(STRENGTHS)] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File evaluation.json of lineas evaluate, for effect and damage."),
    ] = None,
    neurons: Annotated[int, number("--neurons", SHOWN, "Number of neurons to show, the most changed ones.")] = 12,
    max_new_tokens: options.Tokens = 32,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    json: options.Json = None,
    force: options.Force = False,
) -> None:
    """Write one self-contained HTML page on interventions, which loads nothing from elsewhere."""
    place = Output("--out", out, HTML)
    check_outputs("report", json, place, force=force, inputs=[*intervention, prompts, evaluation, model])
    names = names_of(intervention)
    loaded = {names[source]: load_interventions(parts_of(source)) for source in intervention}
    texts = read_prompts(prompts) if prompts else []
    if len(texts) == 1:
        raise LineasError(f"{prompts} holds 1 prompt; give at least 2, since neurons are compared with their mean.")
    first = next(iter(loaded.values()))
    with progress_bar("reporting", len(loaded)) as advance:
        write_report(
            loaded, out, model=model_for(model, first, dtype) if texts else None, prompts=texts, examples=examples,
            strengths=as_strengths(strength or STRENGTHS, first), evaluation=evaluation, neurons=neurons,
            max_new_tokens=max_new_tokens, seed=seed, overwrite=force, progress=lambda name: advance(1, name),
        )  # fmt: skip
    screen_for(json).print(f"wrote {out} ({out.stat().st_size / 1000:.0f} kB)")
    write_json(json, {"out": str(out), "interventions": list(loaded), "prompts": len(texts)}, "report")
