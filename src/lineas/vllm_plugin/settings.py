"""What the environment says: which interventions a server starts with, and whether more may come."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from lineas.checks import PLACES, flag, whole
from lineas.errors import LineasError, shown
from lineas.vllm_plugin.requests import NAME

INTERVENTIONS = "LINEAS_INTERVENTIONS"
ROOM = "LINEAS_ROOM"
ADMIN_KEY = "LINEAS_ADMIN_KEY"
OTHER_MODEL = "LINEAS_OTHER_MODEL"
FORCE = "LINEAS_FORCE"
"""The old name of the one above, for one version."""
SITES = "LINEAS_SITES"
ROOM_WITH_KEY = 4
"""Places for interventions added later, where a key allows that and nothing says how many."""


@dataclass(frozen=True)
class Settings:
    """How a server steers; every one of its processes reads the same.

    Args:
        folders: by name, where the intervention comes from: a folder, the name of a shipped one, or a hub id.
        room: places for interventions added on the running server.
        admin_key: what a client must show to add and remove; None: nobody can.
        sites: a regular expression over modules where interventions added later may act, beyond those of the first
            ones; None: the model's default sites.
        force: accept what lineas cannot answer for: a checkpoint that an intervention was not learned on, as long as
            its sites and widths are there, or a connector that may mix steered prefixes up.
    """

    folders: dict[str, str]
    room: int = 0
    admin_key: str | None = None
    sites: str | None = None
    force: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings | None:
        """The settings of `LINEAS_...` variables; None where no intervention is named and none may be added.

        Raises:
            LineasError: when a variable does not say what it should.
        """
        said = os.environ if environment is None else environment
        folders: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in said.get(INTERVENTIONS, "").split(","))):
            name, _, folder = (bit.strip() for bit in part.partition("="))
            check_name(name)
            if not folder or name in folders:
                raise LineasError(f"{INTERVENTIONS} is 'name=DIR,name=DIR' with every name once, not {shown(part)}.")
            folders[name] = folder
        key = said.get(ADMIN_KEY) or None
        room = _room(said.get(ROOM, ""), ROOM_WITH_KEY * (key is not None))
        if not folders and not room:
            return None
        other_model, old = (flag(name, said.get(name, "")) for name in (OTHER_MODEL, FORCE))
        if old:
            warnings.warn(f"{FORCE} is called {OTHER_MODEL} now; the old name goes away.", stacklevel=2)
        return cls(folders, room, key, said.get(SITES) or None, other_model or old)

    @property
    def places(self) -> int:
        """How many interventions there can be at once."""
        return len(self.folders) + self.room


def _room(text: str, otherwise: int) -> int:
    """Return how many places a variable asks for."""
    if not text.strip():
        return otherwise
    try:
        room = whole(text)
    except ValueError:
        raise LineasError(f"{ROOM} is a number of interventions, not {shown(text)}.") from None
    return PLACES.check(ROOM, room)


def check_name(name: str) -> None:
    """Refuse a name that a request could not say.

    Raises:
        LineasError: saying what a name is made of.
    """
    if not NAME.fullmatch(name):
        raise LineasError(
            f"an intervention's name is letters, digits, '_', '-' and '.', at most 80 in all, not {shown(name)}."
        )
