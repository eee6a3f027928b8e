"""Checks that a network is as its weights and settings say: nobody steers it, no other code changes its results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules import module as every_module
from torch.nn.utils import parametrize

from lineas.errors import LineasError
from lineas.steering.exclusive import is_steered

LIBRARIES = ("lineas", "torch", "transformers", "accelerate", "diffusers", "peft")
"""Hooks and parametrizations of these change nothing that the digests leave out."""


class Unknowable(LineasError):
    """Something whose effect on the results cannot be put into a digest; the sentence says what."""


def refuse_steered(network: nn.Module, what: str) -> None:
    """Refuse a network on which lineas acts already.

    Args:
        network: the network that should be untouched.
        what: the verb that needs it so, such as "evaluate".

    Raises:
        LineasError: when somebody steers it.
    """
    if is_steered(network):
        raise LineasError(
            f"this network is being steered, and {what} needs it untouched; end the block of steer (or call detach()) "
            "first."
        )


def check_unchanged(network: nn.Module) -> None:
    """Refuse a network whose results other code changes as well.

    Raises:
        Unknowable: naming the module and what acts there.
    """
    everywhere = (*every_module._global_forward_hooks.values(), *every_module._global_forward_pre_hooks.values())
    for hook in everywhere:
        raise Unknowable(f"{_called(hook)} is a hook on all modules.")
    for name, module in network.named_modules():
        place = name or type(network).__name__
        for hook in _hooks(module):
            if _root(hook) not in LIBRARIES:
                raise Unknowable(f"{_called(hook)} is a hook on {place}.")
        for replaced in ("forward", "generate"):
            if replaced in vars(module) and not hasattr(module, "_hf_hook"):
                raise Unknowable(f"{place}.{replaced} was replaced.")
        for changes in module.parametrizations.values() if parametrize.is_parametrized(module) else ():  # pyright: ignore[reportCallIssue]
            for change in changes:
                if _root(type(change)) not in LIBRARIES:
                    raise Unknowable(f"{type(change).__name__} is a parametrization of {place}.")


def _hooks(module: nn.Module) -> Iterator[Any]:
    yield from list(module._forward_hooks.values())
    yield from list(module._forward_pre_hooks.values())


def _root(code: Any) -> str:
    """The package that a function, a method, a partial, or an object that can be called, comes from."""
    code = getattr(code, "func", code)
    where = getattr(code, "__module__", None) or type(code).__module__
    return str(where).partition(".")[0]


def _called(code: Any) -> str:
    code = getattr(code, "func", code)
    return str(getattr(code, "__qualname__", type(code).__name__))
