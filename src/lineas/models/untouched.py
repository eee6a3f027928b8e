"""Checks that nothing but a network's weights and settings determines its results: no steering, no foreign code."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as every_module
from torch.nn.utils import parametrize

from lineas.errors import LineasError
from lineas.steering.exclusive import is_steered

LIBRARIES = ("lineas", "torch", "transformers", "accelerate", "diffusers", "peft")
"""The packages whose hooks and parametrizations the digests cover."""


class Unknowable(LineasError):
    """The error for something whose effect on results no digest covers."""


def refuse_steered(network: nn.Module, what: str) -> None:
    """Refuse a network that any thread or task steers; `what` needs it unsteered, such as "evaluate"."""
    if is_steered(network):
        raise LineasError(
            f"this network is being steered, and {what} needs it untouched; end the block of steer (or call detach()) "
            "first."
        )


def check_unchanged(network: nn.Module) -> None:
    """Refuse a network whose results are changed by code that the digests do not cover.

    Raises:
        Unknowable: when there is such a hook, parametrization or replaced method; it names the module.
    """
    for hook in (*every_module._global_forward_hooks.values(), *every_module._global_forward_pre_hooks.values()):
        raise Unknowable(f"{_name(hook)} is a hook on all modules.")
    for name, module in network.named_modules():
        place = name or type(network).__name__
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if _package(hook) not in LIBRARIES:
                raise Unknowable(f"{_name(hook)} is a hook on {place}.")
        for replaced in ("forward", "generate"):
            if replaced in vars(module) and not hasattr(module, "_hf_hook"):
                raise Unknowable(f"{place}.{replaced} was replaced.")
        for changes in module.parametrizations.values() if parametrize.is_parametrized(module) else ():  # pyright: ignore[reportCallIssue]
            for kind in map(type, changes):
                if _package(kind) not in LIBRARIES:
                    raise Unknowable(f"{kind.__name__} is a parametrization of {place}.")


def _package(code: Any) -> str:
    """Return the package in which a function, method, partial or callable object is defined."""
    code = getattr(code, "func", code)
    where = getattr(code, "__module__", None) or type(code).__module__
    return str(where).partition(".")[0]


def _name(code: Any) -> str:
    code = getattr(code, "func", code)
    return str(getattr(code, "__qualname__", type(code).__name__))
