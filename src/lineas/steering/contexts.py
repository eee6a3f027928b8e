"""Contexts: interventions act in the threads and tasks that asked for them, and in those that begin with a copy of one.

Hooks live on modules that all threads share, so every hook of lineas looks here whether it is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError

_NOTHING: Mapping[object, Any] = MappingProxyType({})
_here: ContextVar[Mapping[object, Any]] = ContextVar("lineas", default=_NOTHING)  # replaced, never changed in place
is_compiling = torch.compiler.is_dynamo_compiling
"""Return True while a forward pass is compiled: a compiler cannot follow context variables, so a compiled network is
the same for all threads."""


def here() -> Mapping[object, Any]:
    """Return all that holds here, with the value of each."""
    return _here.get()


def put(key: object, value: Any = None) -> None:
    """Let something hold from now on, or give it another value."""
    _here.set({**_here.get(), key: value})


def drop(key: object) -> None:
    """End what holds, if it does."""
    _here.set({other: value for other, value in _here.get().items() if other is not key})


@contextmanager
def holding(key: object) -> Iterator[None]:
    """Let something hold within the block, if it does not already."""
    if key in _here.get():
        yield
        return
    put(key)
    try:
        yield
    finally:
        drop(key)


@contextmanager
def without(key: object) -> Iterator[None]:
    """Suspend within the block what holds."""
    before = _here.get()
    drop(key)
    try:
        yield
    finally:
        if key in before:
            put(key, before[key])


class Hook:
    """A hook of lineas on one module of one network: it stays behind when the module is copied, and is not pickled."""

    def steers(self) -> bool:
        """Return True where it belongs to an intervention that is in place."""
        return False

    def is_compiled_in(self) -> bool:
        """Return True where a compiler has seen it, and it is still in place."""
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return nothing

    def __reduce__(self) -> Any:
        raise LineasError(
            "this network is steered, or learned on, and its hooks cannot be saved; detach first, or save its "
            "state_dict()."
        )


class Scoped(Hook):
    """A hook that acts where a key holds.

    Args:
        key: what has to hold.
        hook: called like any forward hook or pre-hook.
    """

    def __init__(self, key: object, hook: Callable[..., Any]) -> None:
        self._key, self._hook = key, hook

    def __call__(self, module: nn.Module, args: Any, *more: Any) -> Any:
        if is_compiling() or self._key in _here.get():
            return self._hook(module, args, *more)
        return None


def nothing(module: nn.Module, *_: Any) -> None:
    """The hook that a copy has in place of one of lineas; it takes itself off when it is first called."""
    if is_compiling():
        return
    for name, hooks in vars(module).items():
        if name in ("_forward_hooks", "_forward_pre_hooks"):
            for key in [key for key, hook in hooks.items() if hook is nothing]:
                del hooks[key]
