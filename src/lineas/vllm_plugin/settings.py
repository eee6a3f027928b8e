"""Settings of a server from environment variables: its interventions, and whether more may be added."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from lineas.checks import PLACES, flag
from lineas.errors import LineasError, shown
from lineas.vllm_plugin.requests import NAME

INTERVENTIONS = "LINEAS_INTERVENTIONS"
ROOM = "LINEAS_ROOM"
ADMIN_KEY = "LINEAS_ADMIN_KEY"
OTHER_MODEL = "LINEAS_OTHER_MODEL"
FORCE = "LINEAS_FORCE"
"""The old name of LINEAS_OTHER_MODEL, to be removed after this version."""
SITES = "LINEAS_SITES"
ROOM_WITH_KEY = 4
"""Default number of places for interventions that are added later, if there is an admin key."""


@dataclass(frozen=True)
class Settings:
    """The settings of a server, which all of its processes read from the environment.

    Args:
        folders: for each name, the intervention's folder, the name of a shipped intervention, or a hub id.
        room: number of places for interventions that are added to the running server, default 0.
        admin_key: key that a client needs to add and remove interventions; None (default) if nobody can.
        sites: regular expression for the modules on which added interventions may act, beyond the sites of the first
            ones; None (default) for the model's default sites.
        force: whether to accept a checkpoint that an intervention was not learned on, if it has the same sites and
            widths, and a KV connector that may mix up steered prefixes; default False.
    """

    folders: dict[str, str]
    room: int = 0
    admin_key: str | None = None
    sites: str | None = None
    force: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings | None:
        """Read the settings from the variables `LINEAS_...`; None if there are no interventions and no room for any."""
        variables = os.environ if environment is None else environment
        folders: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in variables.get(INTERVENTIONS, "").split(","))):
            name, _, folder = (bit.strip() for bit in part.partition("="))
            check_name(name)
            if not folder or name in folders:
                raise LineasError(f"{INTERVENTIONS} is 'name=DIR,name=DIR' with every name once, not {shown(part)}.")
            folders[name] = folder
        key = variables.get(ADMIN_KEY) or None
        text = variables.get(ROOM, "")
        room = PLACES.read(ROOM, text) if text.strip() else ROOM_WITH_KEY * (key is not None)
        if not folders and not room:
            return None
        other_model, old = (flag(name, variables.get(name, "")) for name in (OTHER_MODEL, FORCE))
        if old:
            warnings.warn(f"{FORCE} is called {OTHER_MODEL} now; the old name will be removed.", stacklevel=2)
        return cls(folders, room, key, variables.get(SITES) or None, other_model or old)

    @property
    def places(self) -> int:
        """The maximum number of interventions at once."""
        return len(self.folders) + self.room


def check_name(name: str) -> None:
    """Check that a name can be written in a request."""
    if not NAME.fullmatch(name):
        raise LineasError(
            f"an intervention's name is letters, digits, '_', '-' and '.', at most 80 in all, not {shown(name)}."
        )
