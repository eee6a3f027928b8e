"""`lineas export`: an intervention as a control vector of llama.cpp, and what of it stays behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lineas.cli.common import ForceOption, JsonOption, as_strength, say, write_json
from lineas.cli.number_options import strength_option
from lineas.cli.outputs import Output, check_outputs
from lineas.files.ownership import GGUF
from lineas.folding.control_vector import ControlVector
from lineas.intervention.intervention import Intervention


def export(
    intervention: Annotated[str, typer.Argument(metavar="DIR", help="Folder, name of a shipped one, or hub id.")],
    out: Annotated[Path, typer.Option(metavar="FILE.gguf", help="The file to write.")],
    strength: Annotated[str, strength_option("How much of it: a number or calibrated.")] = "1",
    json: JsonOption = None,
    force: ForceOption = False,
) -> None:
    """Write the shifts at the outputs of blocks as a control vector for llama.cpp, and say what is lost."""
    check_outputs("export", json, Output("--out", out, GGUF), force=force, inputs=[intervention])
    chosen = Intervention.load(intervention)
    s = as_strength(strength, chosen)
    made = ControlVector.of(chosen.at(s))
    made.write(out, chosen.base.architecture if chosen.base else "")
    console = say(json)
    if made.lost:
        table = Table("lost", "what", box=None)
        for name, what in made.lost.items():
            table.add_row(name, what)
        console.print(table)
    blocks = sorted(made.directions)
    console.print(f"{len(blocks)} of {len(chosen.maps)} sites are in {out}, for llama.cpp's --control-vector")
    write_json(json, {"out": str(out), "strength": s, "blocks": blocks, "lost": made.lost}, "export")
