"""What is judged: the untouched model, a steered one, a prompt before every text, a fine-tuned adapter."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lineas.intervention import Intervention
from lineas.models.adapters import attached
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.steering import steer


class System(Protocol):
    """A way of changing a model, at a strength (0 is the untouched model)."""

    @property
    def name(self) -> str: ...

    @property
    def strength(self) -> float: ...

    @property
    def prefix(self) -> str: ...

    def applied(self, model: Any) -> AbstractContextManager[Any]: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Untouched:
    """The model as it is."""

    name: str = field(default="untouched", init=False)
    strength: float = field(default=0.0, init=False)
    prefix: str = field(default="", init=False)

    def applied(self, model: TextModel | ImageModel) -> AbstractContextManager[Any]:
        """Nothing is changed within the block."""
        return nullcontext()

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
    """

    name: str
    intervention: Intervention = field(repr=False)
    strength: float = 1.0
    other_model: bool = False

    prefix: str = field(default="", init=False)

    def applied(self, model: TextModel | ImageModel) -> AbstractContextManager[Any]:
        """Within the block the model is steered."""
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

    @property
    def prefix(self) -> str:
        """What stands before every text."""
        return self.text + "\n"

    def applied(self, model: TextModel) -> AbstractContextManager[Any]:
        """Nothing is changed within the block."""
        return nullcontext()

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

    def applied(self, model: TextModel) -> AbstractContextManager[Any]:
        """Within the block the model carries the adapter."""
        return attached(model.network, Path(self.folder), self.strength)

    def identity(self) -> dict[str, Any]:
        """What tells its results from those of others."""
        files = sorted(Path(self.folder).glob("adapter_*"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        return {"adapter": digest, "strength": self.strength}
