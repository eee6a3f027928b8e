"""`lineas compose`: make one intervention of several, in order or mixed."""

from __future__ import annotations

from functools import reduce
from typing import Annotated

import torch
import typer

from lineas.checks import STRENGTH
from lineas.cli import options
from lineas.cli.common import screen_for, write_json
from lineas.cli.number_options import number
from lineas.cli.outputs import Output, check_outputs, save_or_rescue
from lineas.errors import LineasError
from lineas.intervention import artifact
from lineas.intervention.intervention import Intervention, mix
from lineas.steering.strength import warn_if_outside


def compose(
    interventions: Annotated[
        list[str],
        typer.Argument(metavar="DIR DIR ...", help="Interventions in order: folders, shipped names or hub ids."),
    ],
    out: options.Out,
    strength: Annotated[
        list[float] | None, number("--strength", STRENGTH, "Strength of each intervention; default: 1.", several="S")
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mix", help="Add the changes instead of applying one after the other.")
    ] = False,
    json: options.Json = None,
    force: options.Force = False,
) -> None:
    """Make one intervention of several: applied one after the other, or with their changes added."""
    if len(interventions) < 2:
        raise LineasError(f"composing takes at least two interventions, not {len(interventions)}.")
    strengths = strength or [1.0] * len(interventions)
    if len(strengths) != len(interventions):
        raise LineasError(f"{len(interventions)} interventions take as many strengths, not {len(strengths)}.")
    check_outputs("compose", json, Output("--out", out, artifact.KIND), force=force, inputs=interventions)
    parts = [Intervention.load(source) for source in interventions]
    if mixed:
        composed, difference = mix(dict(zip(parts, strengths))), 0.0
    else:
        steps = [part if s == 1 else part.at(s) for part, s in zip(parts, strengths)]
        composed = reduce(Intervention.then, steps)
        difference = composed.distance(reduce(Intervention.then, reversed(steps)))
    warn_if_outside(torch.tensor(strengths))
    save_or_rescue(composed.with_facts(name=out.name), out, force)
    screen = screen_for(json)
    screen.print(f"composed {out}: support {composed.support():.1%} of the neurons at {len(composed.maps)} sites")
    if not mixed:
        screen.print(f"order: in the reverse order the shifts differ by {difference:.1%}")
    facts = {"out": str(out), "of": interventions, "strengths": strengths, "operation": "mix" if mixed else "then"}
    write_json(json, {**facts, "support": composed.support(), "other_order_differs": difference}, "compose")
