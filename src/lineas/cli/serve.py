"""`lineas serve`: serve a model on vLLM, where each request chooses its interventions."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from lineas.checks import PLACES, PORT
from lineas.cli import options
from lineas.cli.common import accepts_other
from lineas.cli.number_options import number
from lineas.cli.terminal import print_aside
from lineas.errors import LineasError
from lineas.intervention.intervention import Intervention
from lineas.models import checkpoint
from lineas.vllm_plugin.settings import ADMIN_KEY, INTERVENTIONS, OTHER_MODEL, ROOM, SITES, check_name

GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins")


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or folder.")],
    intervention: Annotated[
        list[str],
        typer.Option(
            "--intervention",
            metavar="NAME=DIR ...",
            help="Interventions that requests may name; a folder or a shipped name alone will do.",
        ),
    ] = [],  # noqa: B006
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, number("--port", PORT, "Port to listen on.")] = 8000,
    room: Annotated[
        int | None,
        number(
            "--room", PLACES, f"Number of interventions to add later; default: 4 if {ADMIN_KEY} is set, otherwise 0."
        ),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Further modules where interventions that are added later may act."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", hidden=True, help="The old name of --other-model.")] = False,
    other_model: options.OtherModel = False,
) -> None:
    """Serve MODEL on vLLM; a request asks for MODEL:calm@0.7, or passes {"lineas": "calm:0.7"} in vllm_xargs.

    Further options, such as --max-model-len 4096, go to `vllm serve`.
    """
    folders = dict(_name_and_folder(source) for source in intervention)
    if len(folders) < len(intervention):
        raise LineasError("two interventions have one name; write NAME=DIR.")
    key = os.environ.get(ADMIN_KEY)
    if not folders and not room and not key:
        raise LineasError("name at least one --intervention; without any, `vllm serve` does the same.")
    interventions = {name: Intervention.load(folder) for name, folder in folders.items()}
    for chosen in interventions.values():
        chosen.check_affine("served by vLLM")
    if Path(model).is_dir():
        network = checkpoint.skeleton_of(Path(model))
        for chosen in interventions.values():
            other_model = accepts_other(other_model, force, chosen, network)
            chosen.check_fits(network, other_model)
    if importlib.util.find_spec("vllm") is None:
        raise LineasError("vLLM is not installed; pip install 'lineas[vllm]' (on a CPU: see docs/guides/serve.md).")
    environment = os.environ | {INTERVENTIONS: ",".join(f"{name}={folder}" for name, folder in folders.items())}
    if room is not None:
        environment[ROOM] = str(room)
    if sites is not None:
        environment[SITES] = sites
    if other_model or force:
        environment[OTHER_MODEL] = "1"
    plugins = environment.get("VLLM_PLUGINS")  # endpoints load only if named here, and then all plugins must be named
    known = {point.name for group in GROUPS for point in entry_points(group=group)}
    names = known if plugins is None else set(filter(None, plugins.split(",")))
    environment["VLLM_PLUGINS"] = ",".join(sorted(names | {"lineas"}))
    print_aside(f"serving {model} with {', '.join(folders) or 'no intervention yet'} on http://{host}:{port}/v1")
    sys.stdout.flush()
    command = [sys.executable, "-m", "lineas.vllm_plugin", "serve", model, "--host", host, "--port", str(port)]
    os.execve(sys.executable, [*command, *context.args], environment)


def _name_and_folder(source: str) -> tuple[str, str]:
    """Return the name and the absolute folder of `calm=DIR`; a folder or shipped name alone is its own name."""
    name, equals, folder = source.partition("=")
    folder = folder if equals else source
    name = name if equals else Path(source).name
    check_name(name)
    if not folder:
        raise LineasError(f"the intervention {name!r} needs a folder; write {name}=DIR.")
    if "," in folder:
        raise LineasError(f"the folder of an intervention to serve must have no comma in its name, not {folder!r}.")
    return name, str(Path(folder).resolve()) if Path(folder).is_dir() else folder
