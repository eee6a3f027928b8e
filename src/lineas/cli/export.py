"""`lineas export`: write an intervention as a control vector of llama.cpp, and list what is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lineas.cli import options
from lineas.cli.common import as_strength, screen_for, write_json
from lineas.cli.outputs import Output, check_outputs
from lineas.files.ownership import GGUF
from lineas.folding.control_vector import ControlVector
from lineas.intervention.intervention import Intervention


def export(
    intervention: options.Intervention,
    out: Annotated[Path, typer.Option(metavar="FILE.gguf", help="File to write the control vector into.")],
    strength: options.Strength = "1",
    json: options.Json = None,
    force: options.Force = False,
) -> None:
    """Write the shifts at block outputs as a control vector for llama.cpp, and list what is lost."""
    check_outputs("export", json, Output("--out", out, GGUF), force=force, inputs=[intervention])
    chosen = Intervention.load(intervention)
    s = as_strength(strength, chosen)
    vector = ControlVector.of(chosen.at(s))
    vector.write(out, chosen.base.architecture if chosen.base else "")
    screen = screen_for(json)
    if vector.lost:
        table = Table("site", "lost", box=None)
        for name, lost in vector.lost.items():
            table.add_row(name, lost)
        screen.print(table)
    blocks = sorted(vector.directions)
    screen.print(f"{len(blocks)} of {len(chosen.maps)} sites are in {out}, for llama.cpp's --control-vector")
    write_json(json, {"out": str(out), "strength": s, "blocks": blocks, "lost": vector.lost}, "export")
