"""`lineas report`: one HTML page: learning, effect and damage, samples, layers, neurons, overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lineas.checks import SEED, SHOWN, TOKENS
from lineas.cli.common import (
    DtypeOption,
    ForceOption,
    JsonOption,
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
from lineas.cli.paint import painted
from lineas.errors import LineasError
from lineas.files.ownership import HTML
from lineas.files.strict_json import loads, read_bytes
from lineas.files.writing import write_text
from lineas.intervention.intervention import Intervention
from lineas.models.image import ImageModel
from lineas.printable import as_label
from lineas.prompts import read_prompts
from lineas.reporting import Content, page
from lineas.reporting.image_grid import strip
from lineas.reporting.neurons import largest_neurons
from lineas.steering.steer import steer


def report(
    interventions: Annotated[list[str], typer.Argument(metavar="DIR ...", help="Folders, names or hub ids.")],
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="The page.")] = Path("report.html"),
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE[:column]", help="Runs the model: what moves neurons, and samples from the first."),
    ] = None,
    samples: Annotated[int, number("--samples", SHOWN, "Prompts that are continued or drawn.")] = 4,
    strength: Annotated[
        list[str] | None, strength_option("Of samples: numbers, or calibrated; default: 0, 0.5, 1.", several=True)
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="evaluation.json of lineas evaluate: effect and damage.")
    ] = None,
    neurons: Annotated[int, number("--neurons", SHOWN, "How many of the largest are shown.")] = 12,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Default: the one it was learned on.")] = None,
    max_new_tokens: Annotated[int, number("--max-new-tokens", TOKENS, "Of every sample.")] = 32,
    seed: Annotated[int, number("--seed", SEED, "Of the samples.")] = 0,
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Write one self-contained page, readable in light and dark; nothing in it is loaded from elsewhere."""
    place = Output("--out", out, HTML)
    check_outputs("report", json, place, force=force, inputs=[*interventions, prompts, evaluation, model])
    names = names_of(interventions)
    loaded = {names[source]: load_interventions(parts_of(source)) for source in interventions}
    texts = read_prompts(prompts) if prompts else []
    if len(texts) == 1:
        raise LineasError(f"{prompts} holds 1 prompt; what moves a neuron from its mean is seen from 2 on.")
    first = next(iter(loaded.values()))
    strengths = as_strengths(strength or (0, 0.5, 1), first)
    curves = {name: one.facts["measurements"] for name, one in loaded.items() if one.facts.get("measurements")}
    if evaluation is not None:
        curves = _curves(evaluation)
    running: Any = model_for(model, first, dtype) if texts else None
    with progress_bar("reporting", None) as advance:
        largest = {}
        for name, one in loaded.items():
            if running is not None:
                one.check_fits(running.network)
            largest[name] = largest_neurons(one, neurons, running, texts)
            advance(1, name, None)
        said, picture = _samples(running, first, texts[:samples], strengths, seed, max_new_tokens)
    write_text(out, page(Content(loaded, largest, curves, said, picture)))
    say(json).print(f"wrote {out} ({out.stat().st_size / 1000:.0f} kB)")
    write_json(json, {"out": str(out), "interventions": list(loaded), "prompts": len(texts)}, "report")


def _samples(
    model: Any, intervention: Intervention, prompts: list[str], strengths: list[float], seed: int, tokens: int
) -> tuple[list[tuple[str, dict[str, str]]], Any]:
    """Texts by prompt and strength, or a strip of pictures."""
    if model is None or not prompts:
        return [], None
    if isinstance(model, ImageModel):
        rows = painted(model, intervention, strengths, prompts, seed)
        return [], strip(rows, prompts, [as_label(s) for s in strengths])
    made = {}
    for s in strengths:
        with steer(model, intervention, s):
            made[as_label(s)] = model.generate(prompts, seed=seed, max_new_tokens=tokens)
    return [(prompt, {s: texts[i] for s, texts in made.items()}) for i, prompt in enumerate(prompts)], None


def _curves(file: Path) -> dict[str, list[dict[str, Any]]]:
    """By system, what an evaluation measured; each curve begins at the untouched model."""
    try:
        rows = loads(read_bytes(file))["rows"]
        told = [(str(row["system"]), _numbers({"strength": row["strength"], **row["values"]})) for row in rows]
    except (OSError, ValueError, LookupError, TypeError):
        raise LineasError(f"{file} is no evaluation; lineas evaluate --out DIR writes DIR/evaluation.json.") from None
    untouched = [values for system, values in told if system == "untouched"]
    names = dict.fromkeys(system for system, _ in told if system != "untouched")
    return {
        name: [*untouched, *sorted((v for system, v in told if system == name), key=lambda row: row["strength"])]
        for name in names
    }


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}
