"""Systems to judge: the untouched model, a steered one, one with a prompt before every text, an adapter of peft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lineas.checks import as_number
from lineas.errors import LineasError
from lineas.intervention.intervention import Intervention
from lineas.models.adapters import attached
from lineas.models.digests import files_digest
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.steering.steer import steer
from lineas.versions import version_of


class Change(Protocol):
    """A change of a model, now in place."""

    def off(self) -> AbstractContextManager[Any]:
        """Return a context within which the model is untouched, to the bit."""
        ...


class Unchanged:
    """The change that changes nothing."""

    off = nullcontext


class System(Protocol):
    """A model with a change of some strength; strength 0 is the untouched model."""

    @property
    def name(self) -> str: ...

    @property
    def strength(self) -> float: ...

    @property
    def prefix(self) -> str: ...

    def applied(self, model: Any) -> AbstractContextManager[Change]: ...

    def identity(self) -> dict[str, Any]: ...


def check_systems(systems: Sequence[Any], only: tuple[type, ...] = ()) -> None:
    """Refuse a value that is no list of systems such as `[Untouched()]`; `only` are the allowed classes, if not all."""
    if isinstance(systems, str) or not isinstance(systems, Sequence):
        raise LineasError(f"what to judge is a list of systems such as [Untouched()], not a {type(systems).__name__}.")
    if not systems:
        raise LineasError("there is nothing to judge; give at least one system or strength.")
    for system in systems:
        lacks = [name for name in ("name", "strength", "prefix", "applied", "identity") if not hasattr(system, name)]
        if isinstance(system, type) or lacks or (only and not isinstance(system, only)):
            kinds = ", ".join(f"{kind.__name__}(...)" for kind in only or (Untouched, Steered, Prompted, Adapted))
            actual = f"the class {system.__name__}" if isinstance(system, type) else f"a {type(system).__name__}"
            raise LineasError(f"a system to judge is one of {kinds}, not {actual}.")


@dataclass(frozen=True)
class Untouched:
    """The untouched model."""

    name: str = field(default="untouched", init=False)
    strength: float = field(default=0.0, init=False)
    prefix: str = field(default="", init=False)

    def applied(self, model: TextModel | ImageModel) -> AbstractContextManager[Change]:
        """Return a context within which nothing is changed."""
        return nullcontext(Unchanged())

    def identity(self) -> dict[str, Any]:
        """Return the part of the cache key that names this system."""
        return {"system": "untouched"}


@dataclass(frozen=True)
class Steered:
    """The model with an intervention.

    Args:
        name: name in tables.
        intervention: intervention to apply.
        strength: strength of the intervention; default: 1.
        other_model: whether the model may be another one than it was learned on.

    Raises:
        LineasError: when `intervention` is no Intervention, or the strength is no finite number.
    """

    name: str
    intervention: Intervention = field(repr=False)
    strength: float = 1.0
    other_model: bool = False

    prefix: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.intervention, Intervention):
            raise LineasError(
                f"{self.name} needs an Intervention, not a {type(self.intervention).__name__}; load it with "
                "Intervention.load(DIR)."
            )
        object.__setattr__(self, "strength", as_number(self.strength, f"the strength of {self.name}"))

    def applied(self, model: TextModel | ImageModel) -> AbstractContextManager[Change]:
        """Return a context within which the model is steered."""
        return steer(model, self.intervention, self.strength, other_model=self.other_model)

    def identity(self) -> dict[str, Any]:
        """Return the part of the cache key that names this system."""
        return {"intervention": self.intervention.digest(), "strength": self.strength}


@dataclass(frozen=True)
class Prompted:
    """The untouched model with an instruction before every text, a baseline that needs no learning.

    Args:
        text: instruction, which becomes a line before every text.
        name: name in tables.
    """

    text: str
    name: str = "prompt"

    strength: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise LineasError(f"a prompt before every text is a text, not {self.text!r}.")

    @property
    def prefix(self) -> str:
        """The instruction, as a line before every text."""
        return self.text + "\n"

    def applied(self, model: TextModel) -> AbstractContextManager[Change]:
        """Return a context within which nothing is changed."""
        return nullcontext(Unchanged())

    def identity(self) -> dict[str, Any]:
        """Return the part of the cache key that names this system."""
        return {"prefix": self.prefix}


@dataclass(frozen=True)
class Adapted:
    """The model with a LoRA adapter of peft.

    Args:
        name: name in tables.
        folder: folder of the adapter, as peft saved it.
        strength: factor of its change of every weight; default: 1.
    """

    name: str
    folder: str | Path
    strength: float = 1.0

    prefix: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", as_number(self.strength, f"the strength of {self.name}"))

    def applied(self, model: TextModel) -> AbstractContextManager[Change]:
        """Return a context within which the model has the adapter."""
        return attached(model.network, Path(self.folder), self.strength)

    def identity(self) -> dict[str, Any]:
        """Return the part of the cache key that names this system."""
        return {
            "adapter": files_digest(Path(self.folder), "adapter_*"),
            "strength": self.strength,
            "peft": version_of("peft"),
        }


def systems_of(
    interventions: Mapping[str, Intervention], strengths: float | Sequence[float], other_model: bool = False
) -> list[System]:
    """Return the untouched model if 0 is among the strengths, and every intervention at every other strength.

    >>> [(one.name, one.strength) for one in systems_of({}, (0, 1))]
    [('untouched', 0.0)]
    """
    several = [strengths] if isinstance(strengths, (int, float)) else strengths
    pairs = [(name, strength) for name in interventions for strength in several if strength != 0]
    steered = [Steered(name, interventions[name], strength, other_model) for name, strength in pairs]
    return [*([Untouched()] if 0 in several else []), *steered]
