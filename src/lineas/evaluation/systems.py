"""What is judged: the untouched model, a steered one, a prompt before every text, a fine-tuned adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lineas.errors import LineasError
from lineas.intervention import Intervention
from lineas.models.text import TextModel
from lineas.steering import Tokens, steer


class System(Protocol):
    """A way of changing a model, at a strength (0 is the untouched model)."""

    @property
    def name(self) -> str: ...

    @property
    def strength(self) -> float: ...

    @property
    def prefix(self) -> str: ...

    def applied(self, model: TextModel) -> AbstractContextManager[Any]: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Untouched:
    """The model as it is."""

    name: str = field(default="untouched", init=False)
    strength: float = field(default=0.0, init=False)
    prefix: str = field(default="", init=False)

    def applied(self, model: TextModel) -> AbstractContextManager[Any]:
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
        tokens: which are edited: "all", "prompt" or "generated".
        force: also where it was learned on another network.
    """

    name: str
    intervention: Intervention = field(repr=False)
    strength: float = 1.0
    tokens: Tokens = "all"
    force: bool = False

    prefix: str = field(default="", init=False)

    def applied(self, model: TextModel) -> AbstractContextManager[Any]:
        """Within the block the model is steered."""
        return steer(model, self.intervention, self.strength, self.tokens, self.force)

    def identity(self) -> dict[str, Any]:
        """What tells its results from those of others."""
        digest = hashlib.sha256()
        for name, map_ in sorted(self.intervention.maps.items()):
            digest.update(name.encode())
            for tensor in (map_.scale, map_.shift):
                digest.update(tensor.contiguous().numpy().tobytes())
        return {"intervention": digest.hexdigest(), "strength": self.strength, "tokens": self.tokens}


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
    """The model with an adapter of peft, such as LoRA.

    Args:
        name: as it stands in tables.
        folder: where peft saved it.
        strength: by which its change of every weight is multiplied.
    """

    name: str
    folder: Path
    strength: float = 1.0

    prefix: str = field(default="", init=False)

    @contextmanager
    def applied(self, model: TextModel) -> Iterator[None]:
        """Within the block the model carries the adapter."""
        try:
            from peft import PeftModel
            from peft.tuners.lora import LoraLayer
        except ImportError:
            raise LineasError("an adapter needs peft: pip install 'lineas[evaluate]'.") from None
        if not (self.folder / "adapter_config.json").exists():
            raise LineasError(f"{self.folder} holds no adapter of peft (adapter_config.json).")
        network = model.network
        asked = {name: p.requires_grad for name, p in network.named_parameters()}
        adapted: Any = PeftModel.from_pretrained(network, str(self.folder))  # type: ignore[arg-type]
        try:
            for module in adapted.modules():
                if isinstance(module, LoraLayer):
                    module.scale_layer(self.strength)
            adapted.eval()
            yield
        finally:
            adapted.unload()
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(asked[name])

    def identity(self) -> dict[str, Any]:
        """What tells its results from those of others."""
        files = sorted(self.folder.glob("adapter_*"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        return {"adapter": digest, "strength": self.strength}
