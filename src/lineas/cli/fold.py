"""`lineas fold`: write a checkpoint whose own weights do what an intervention does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lineas.checks import as_bytes
from lineas.cli import options
from lineas.cli.common import accepts_other, as_strength, load_interventions, model_for, screen_for, write_json
from lineas.cli.outputs import Output, check_outputs
from lineas.errors import LineasError
from lineas.folding.fold import DoesNotFoldError
from lineas.folding.fold import fold as fold_in
from lineas.folding.weights import RoundingLoss
from lineas.models import checkpoint
from lineas.printable import as_label


def fold(
    intervention: options.Interventions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the checkpoint into.")],
    model: options.Model = None,
    strength: options.Strength = "1",
    dtype: Annotated[
        str, typer.Option(help="Type of the weights: checkpoint (as stored), float32, bfloat16 or float16.")
    ] = "checkpoint",
    shard_size: Annotated[str, typer.Option(help="Largest size of a file of weights.")] = "5GB",
    json: options.Json = None,
    force: options.Force = False,
    other_model: options.OtherModel = False,
) -> None:
    """Write a plain checkpoint whose own weights do what the intervention does at one strength."""
    place = Output("--out", out, checkpoint.KIND)
    check_outputs("fold", json, place, force=force, inputs=[model, *intervention])
    largest = as_bytes(shard_size)
    chosen = load_interventions(intervention)
    s = as_strength(strength, chosen)
    chosen.check_affine("folded")
    base = model_for(model, chosen, dtype)
    other = accepts_other(other_model, force, chosen, base.network)
    screen = screen_for(json)
    try:
        folded = fold_in(base, chosen, s, other, in_place=True)
    except DoesNotFoldError as error:
        table = Table("does not fold", "reason", box=None)
        for name, reason in error.reasons.items():
            table.add_row(name, reason)
        screen.print(table)
        raise LineasError(
            f"{len(error.reasons)} of {error.total} sites do not fold into {type(base.network).__name__}, nothing was "
            "written; learn with --foldable, or steer live."
        ) from None
    folded.save_pretrained(out, overwrite=force, max_shard_size=largest)
    provenance: dict[str, Any] = folded.provenance or {}
    lost = str(RoundingLoss(**provenance["lost_to_rounding"]))
    screen.print(
        f"folded {' + '.join(intervention)} at strength {as_label(s)} into {len(provenance['sites'])} sites of "
        f"{base.name}: {out} "
        f"({provenance['architecture']}, {provenance['dtype']}{f', which loses {lost}' if lost else ''})"
    )
    write_json(json, {"out": str(out), **provenance}, "fold")
