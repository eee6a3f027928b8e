"""What is judged: the untouched model, a steered one, a prompt before every text, a fine-tuned adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lineas.errors import LineasError
from lineas.intervention.intervention import Intervention
from lineas.models.adapters import attached
from lineas.models.digests import files_digest
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.steering.steer import steer
from lineas.versions import version_of


class Change(Protocol):
    """A change of a model that is in place."""

    def off(self) -> AbstractContextManager[Any]:
        """Return a block within which the model is as it was, to the bit."""
        ...


class Unchanged:
    """No change at all."""

    def off(self) -> AbstractContextManager[Any]:
        """Return a block within which the model is as it was, which it is anyway."""
        return nullcontext()


class System(Protocol):
    """A way of changing a model, at a strength (0 is the untouched model)."""

    @property
    def name(self) -> str: ...

    @property
    def strength(self) -> float: ...

    @property
    def prefix(self) -> str: ...

    def applied(self, model: Any) -> AbstractContextManager[Change]: ...

    def identity(self) -> dict[str, Any]: ...


def check_systems(systems: Sequence[Any], only: tuple[type, ...] = ()) -> None:
    """Refuse what is no list of things to be judged.

    Args:
        systems: such as `[Untouched(), Steered("calm", calm)]`.
        only: kinds that are judged here; empty for every kind.

    Raises:
        LineasError: saying what was given instead.
    """
    if isinstance(systems, str) or not isinstance(systems, Sequence):
        raise LineasError(f"what is judged is a list of systems such as [Untouched()], not a {type(systems).__name__}.")
    if not systems:
        raise LineasError("there is nothing to judge; give at least one system or strength.")
    for system in systems:
        lacks = [name for name in ("name", "strength", "prefix", "applied", "identity") if not hasattr(system, name)]
        if isinstance(system, type) or lacks or (only and not isinstance(system, only)):
            kinds = ", ".join(f"{kind.__name__}(...)" for kind in only or (Untouched, Steered, Prompted, Adapted))
            given = f"the class {system.__name__}" if isinstance(system, type) else f"a {type(system).__name__}"
            raise LineasError(f"a system that is judged is one of {kinds}, not {given}.")


def _strength(name: str, strength: Any) -> float:
    """A strength as a finite float."""
    try:
        number = math.nan if isinstance(strength, (bool, str)) else float(strength)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise LineasError(f"the strength of {name} is a finite number, not {strength!r}.")
    return number


@dataclass(frozen=True)
class Untouched:
    """The model as it is."""

    name: str = field(default="untouched", init=False)
    strength: float = field(default=0.0, init=False)
    prefix: str = field(default="", init=False)

    def applied(self, model: TextModel | ImageModel) -> AbstractContextManager[Change]:
        """Return a block within which nothing is changed."""
        return nullcontext(Unchanged())

    def identity(self) -> dict[str, Any]:
        """What tells its results from those of others."""
        return {"system": "untouched"}


@dataclass(frozen=True)
class Steered:
    """The model with an intervention.

    Args:
        name: as it stands in tables.
        intervention: what is applied.
        strength: of it.
        other_model: also where it was learned on another network.

    Raises:
        LineasError: when it is no intervention, or the strength no finite number.
    """

    name: str
    intervention: Intervention = field(repr=False)
    strength: float = 1.0
    other_model: bool = False

    prefix: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.intervention, Intervention):
            raise LineasError(
                f"{self.name} is judged by an Intervention, not by a {type(self.intervention).__name__}; load it with "
                "Intervention.load(DIR)."
            )
        object.__setattr__(self, "strength", _strength(self.name, self.strength))

    def applied(self, model: TextModel | ImageModel) -> AbstractContextManager[Change]:
        """Return a block within which the model is steered."""
        return steer(model, self.intervention, self.strength, other_model=self.other_model)

    def identity(self) -> dict[str, Any]:
        """What tells its results from those of others."""
        return {"intervention": self.intervention.digest(), "strength": self.strength}


@dataclass(frozen=True)
class Prompted:
    """The untouched model with an instruction before every text: the baseline that costs nothing.

    Args:
        text: the instruction; a line of its own.
        name: as it stands in tables.
    """

    text: str
    name: str = "prompt"

    strength: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise LineasError(f"a prompt before every text is a text, not {self.text!r}.")

    @property
    def prefix(self) -> str:
        """What stands before every text."""
        return self.text + "\n"

    def applied(self, model: TextModel) -> AbstractContextManager[Change]:
        """Return a block within which nothing is changed."""
        return nullcontext(Unchanged())

    def identity(self) -> dict[str, Any]:
        """What tells its results from those of others."""
        return {"prefix": self.prefix}


@dataclass(frozen=True)
class Adapted:
    """The model with a LoRA adapter of peft.

    Args:
        name: as it stands in tables.
        folder: where peft saved it.
        strength: by which its change of every weight is multiplied.
    """

    name: str
    folder: str | Path
    strength: float = 1.0

    prefix: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", _strength(self.name, self.strength))

    def applied(self, model: TextModel) -> AbstractContextManager[Change]:
        """Return a block within which the model carries the adapter."""
        return attached(model.network, Path(self.folder), self.strength)

    def identity(self) -> dict[str, Any]:
        """What tells its results from those of others."""
        return {
            "adapter": files_digest(Path(self.folder), "adapter_*"),
            "strength": self.strength,
            "peft": version_of("peft"),
        }


def of_interventions(interventions: Mapping[str, Intervention], strengths: float | Sequence[float]) -> list[System]:
    """Return every intervention at every strength, and the untouched model where 0 is among them.

    >>> [(one.name, one.strength) for one in of_interventions({}, (0, 1))]
    [('untouched', 0.0)]
    """
    several = [strengths] if isinstance(strengths, (int, float)) else strengths
    untouched: list[System] = [Untouched()] if 0 in several else []
    return [*untouched, *(Steered(name, one, s) for name, one in interventions.items() for s in several if s != 0)]
