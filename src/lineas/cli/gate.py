"""`lineas gate`: add gates to an intervention, so that it acts only on tokens that need it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from lineas.checks import COUNT
from lineas.cli import options
from lineas.cli.common import load_interventions, model_for, screen_for, write_json
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.errors import LineasError
from lineas.intervention import artifact
from lineas.intervention.intervention import Intervention
from lineas.learning.gating import gate as learn_gates
from lineas.prompts import described, draw, read_prompts


def gate(
    intervention: options.Interventions,
    control: Annotated[str, typer.Option(metavar="FILE[:column]", help="Neutral prompts that need no steering.")],
    out: options.Out,
    model: options.Model = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="FILE[:column]", help="Prompts that need steering; default: those it was learned from."),
    ] = None,
    samples: Annotated[
        int | None, number("--samples", COUNT, "Number of control prompts to draw at random; default: all.")
    ] = None,
    components: Annotated[int, number("--components", COUNT, "Number of principal components in a gate.")] = 8,
    max_length: options.MaxLength = 128,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    json: options.Json = None,
    force: options.Force = False,
) -> None:
    """Add gates: each token is steered as much as it resembles the prompts that need steering."""
    place = Output("--out", out, artifact.KIND)
    check_outputs("gate", json, place, force=force, inputs=[*intervention, control, source, model])
    learned = load_interventions(intervention)
    needing = read_prompts(source) if source is not None else _source_prompts(learned)
    neutral = draw(read_prompts(control), samples, seed)
    loaded = model_for(model, learned, dtype)
    gated = learn_gates(loaded, learned, needing, neutral, components, max_length, seed)
    save_or_rescue(gated.with_facts(name=out.name), out, force)
    facts: dict[str, Any] = gated.facts["gate"]
    sites = list(facts["sites"].values())
    shares = {side: sum(site[side] for site in sites) / len(sites) for side in ("source", "control")}
    screen_for(json).print(
        f"gated {out}: {len(gated.gates)} sites; a source token gets {shares['source']:.0%} of the change, one of "
        f"the control {shares['control']:.0%} (area under the ROC curve {facts['area']:.2f})"
    )
    write_json(json, {"out": str(out), **facts}, "gate")


def _source_prompts(learned: Intervention) -> list[str]:
    """Read the source prompts again from the file that the artifact names."""
    data = learned.facts.get("data", {}).get("source", {})
    file, remedy = data.get("file"), "name the prompts that need steering with --source FILE"
    if file is None:
        raise LineasError(f"this intervention does not say which file it was learned from; {remedy}.")
    try:
        prompts = draw(read_prompts(file), learned.facts.get("samples"), learned.facts.get("seed", 0))
    except LineasError as error:
        raise LineasError(f"{str(error).rstrip('.')}; {remedy}.") from None
    if described(prompts)["sha256"] != data.get("sha256"):
        raise LineasError(f"{file} is no longer what this intervention was learned from; {remedy}.")
    return prompts
