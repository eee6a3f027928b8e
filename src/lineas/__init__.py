"""Steer generative models by small, sparse maps on their activations, learned from a handful of unpaired examples."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from lineas.errors import LineasError
    from lineas.evaluation import Plan, calibrate, evaluate
    from lineas.folding.fold import DoesNotFoldError, fold
    from lineas.intervention.intervention import Intervention, mix
    from lineas.intervention.maps import AffineMap
    from lineas.learning import CAA, AurA, DivergedError, GaussianAcT, ITIc, LinAcT, LinEAS, LoFITRL, MeanAcT, learn
    from lineas.learning.lora import LoRA
    from lineas.models import load
    from lineas.models.image import ImageModel
    from lineas.models.text import TextModel
    from lineas.reporting import report
    from lineas.steering.steer import steer
    from lineas.sweeping import sweep

__all__ = [
    "CAA",
    "AffineMap",
    "AurA",
    "DivergedError",
    "DoesNotFoldError",
    "GaussianAcT",
    "ITIc",
    "ImageModel",
    "Intervention",
    "LinAcT",
    "LinEAS",
    "LineasError",
    "LoFITRL",
    "LoRA",
    "MeanAcT",
    "Plan",
    "TextModel",
    "__version__",
    "calibrate",
    "evaluate",
    "fold",
    "learn",
    "load",
    "mix",
    "report",
    "steer",
    "sweep",
]

# Each is imported when it is first used, so that the command line shows its help before torch is imported.
_HOMES = {
    "lineas.errors": ("LineasError",),
    "lineas.evaluation": ("Plan", "calibrate", "evaluate"),
    "lineas.folding.fold": ("DoesNotFoldError", "fold"),
    "lineas.intervention.intervention": ("Intervention", "mix"),
    "lineas.learning": (
        "CAA", "AurA", "DivergedError", "GaussianAcT", "ITIc", "LinAcT", "LinEAS", "LoFITRL", "LoRA", "MeanAcT",
        "learn",
    ),
    "lineas.intervention.maps": ("AffineMap",),
    "lineas.models": ("load",),
    "lineas.models.image": ("ImageModel",),
    "lineas.models.text": ("TextModel",),
    "lineas.reporting": ("report",),
    "lineas.steering.steer": ("steer",),
    "lineas.sweeping": ("sweep",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Return a public name, or a module of lineas, imported when it is first asked for."""
    if name == "__version__":
        return import_module("lineas.versions").lineas_version()
    if name in _HOME:
        globals()[name] = value = getattr(import_module(_HOME[name]), name)
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"lineas.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"lineas.{name}":
                raise
    raise AttributeError(f"module 'lineas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
