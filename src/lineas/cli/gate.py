"""`lineas gate`: an intervention that acts where it is needed, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lineas.checks import COUNT, SEED
from lineas.cli.common import (
    DtypeOption,
    ForceOption,
    InterventionOption,
    JsonOption,
    ModelArgument,
    load_interventions,
    model_for,
    say,
    write_json,
)
from lineas.cli.method_options import MaxLengthOption
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.errors import LineasError
from lineas.intervention import artifact
from lineas.intervention.intervention import Intervention
from lineas.learning.gating import gate as learn_gates
from lineas.prompts import described, draw, read_prompts


def gate(
    intervention: InterventionOption,
    control: Annotated[str, typer.Option(metavar="FILE[:column]", help="Neutral prompts that need no steering.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make for the gated intervention.")],
    model: ModelArgument = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="FILE[:column]", help="Prompts that need it; default: what it was learned from."),
    ] = None,
    samples: Annotated[int | None, number("--samples", COUNT, "Draw so many control prompts (by the seed).")] = None,
    components: Annotated[int, number("--components", COUNT, "Principal components that a gate looks at.")] = 8,
    max_length: MaxLengthOption = 128,
    seed: Annotated[int, number("--seed", SEED, "Seed of the draw.")] = 0,
    dtype: DtypeOption = "auto",
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Let every token have as much of an intervention as it looks like the prompts that need it."""
    place = Output("--out", out, artifact.KIND)
    check_outputs("gate", json, place, force=force, inputs=[*intervention, control, source, model])
    learned = load_interventions(intervention)
    needing = read_prompts(source) if source is not None else _learned_from(learned)
    neutral = draw(read_prompts(control), samples, seed)
    loaded = model_for(model, learned, dtype)
    gated = learn_gates(loaded, learned, needing, neutral, components, max_length, seed)
    save_or_rescue(gated.with_facts(name=out.name), out, force)
    facts: dict[str, Any] = gated.facts["gate"]
    told = list(facts["sites"].values())
    shares = {side: sum(one[side] for one in told) / len(told) for side in ("source", "control")}
    say(json).print(
        f"gated {out}: {len(gated.gates)} sites; a source token gets {shares['source']:.0%} of the change, one of "
        f"the control {shares['control']:.0%} (area under the ROC curve {facts['area']:.2f})"
    )
    write_json(json, {"out": str(out), **facts}, "gate")


def _learned_from(learned: Intervention) -> list[str]:
    """The source prompts that an artifact says it was learned from, where they are still there.

    Raises:
        LineasError: when they are not, or have changed.
    """
    data = learned.facts.get("data", {}).get("source", {})
    file, refuse = data.get("file"), "name the prompts that need steering with --source FILE"
    if file is None:
        raise LineasError(f"this intervention does not say which file it was learned from; {refuse}.")
    try:
        prompts = draw(read_prompts(file), learned.facts.get("samples"), learned.facts.get("seed", 0))
    except LineasError as error:
        raise LineasError(f"{str(error).rstrip('.')}; {refuse}.") from None
    if described(prompts)["sha256"] != data.get("sha256"):
        raise LineasError(f"{file} is no longer what this intervention was learned from; {refuse}.")
    return prompts
