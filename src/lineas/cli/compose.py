"""`lineas compose`: several interventions as one, in order or mixed."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Annotated

import torch
import typer

from lineas.checks import STRENGTH
from lineas.cli.common import ForceOption, JsonOption, say, write_json
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.errors import LineasError
from lineas.intervention import artifact
from lineas.intervention.intervention import Intervention, mix
from lineas.steering.strength import warn_if_outside


def compose(
    interventions: Annotated[list[str], typer.Argument(metavar="DIR DIR ...", help="Folders, names or hub ids.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")],
    strength: Annotated[
        list[float] | None, number("--strength", STRENGTH, "One for each; default: 1 for all.", several="S")
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mix", help="Add their changes instead of taking one after the other.")
    ] = False,
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Make one intervention of several: one after the other, as learned with `learn --on`, or their changes added."""
    if len(interventions) < 2:
        raise LineasError(f"composing takes at least two interventions, not {len(interventions)}.")
    strengths = strength or [1.0] * len(interventions)
    if len(strengths) != len(interventions):
        raise LineasError(f"{len(interventions)} interventions take as many strengths, not {len(strengths)}.")
    check_outputs("compose", json, Output("--out", out, artifact.KIND), force=force, inputs=interventions)
    parts = [Intervention.load(source) for source in interventions]
    if mixed:
        whole, differs = mix(dict(zip(parts, strengths))), 0.0
    else:
        steps = [part if s == 1 else part.at(s) for part, s in zip(parts, strengths)]
        whole = reduce(Intervention.then, steps)
        differs = whole.distance(reduce(Intervention.then, reversed(steps)))
    warn_if_outside(torch.tensor(strengths))
    save_or_rescue(whole.with_facts(name=out.name), out, force)
    talk = say(json)
    talk.print(f"composed {out}: support {whole.support():.1%} of the neurons at {len(whole.maps)} sites")
    if not mixed:
        talk.print(f"order: the other way round its shifts differ by {differs:.1%}")
    write_json(
        json,
        {
            "out": str(out),
            "of": interventions,
            "strengths": strengths,
            "operation": "mix" if mixed else "then",
            "support": whole.support(),
            "other_order_differs": differs,
        },
        "compose",
    )
