"""The active keys of each thread and task: an intervention acts only where its key is active.

All threads share a module's hooks, so every hook of lineas checks its key here. A new task copies the active keys of
the task that starts it; a new thread begins without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError

_NOTHING: Mapping[object, Any] = MappingProxyType({})
_active: ContextVar[Mapping[object, Any]] = ContextVar("lineas", default=_NOTHING)  # replaced, never changed in place
is_compiling = torch.compiler.is_dynamo_compiling
"""Return whether a forward pass is being compiled. Compiled code cannot read context variables, so it acts in all
threads."""


def active() -> Mapping[object, Any]:
    """Return the active keys of this thread or task, and their values."""
    return _active.get()


def activate(key: object, value: Any = None) -> None:
    """Make a key active in this thread or task, or change its value."""
    _active.set({**_active.get(), key: value})


def deactivate(key: object) -> None:
    """Make a key inactive in this thread or task; an inactive key is no error."""
    _active.set({other: value for other, value in _active.get().items() if other is not key})


@contextmanager
def activated(key: object) -> Iterator[None]:
    """Make a key active within the block, if it is not active already."""
    if key in _active.get():
        yield
        return
    activate(key)
    try:
        yield
    finally:
        deactivate(key)


@contextmanager
def replaced(modules: Sequence[nn.Module], make: Callable[[nn.Module], Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward of modules within the block, in this thread or task alone."""
    key = object()
    before = [vars(module).get("forward") for module in modules]

    def chosen(module: nn.Module) -> Callable[..., Any]:
        plain, other = module.forward, make(module)
        return lambda *args, **kwargs: (other if key in active() else plain)(*args, **kwargs)

    for module in modules:
        vars(module)["forward"] = chosen(module)
    try:
        with activated(key):
            yield
    finally:
        for module, forward in zip(modules, before):
            if forward is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = forward


@contextmanager
def deactivated(key: object) -> Iterator[None]:
    """Make a key inactive within the block."""
    before = _active.get()
    deactivate(key)
    try:
        yield
    finally:
        if key in before:
            activate(key, before[key])


class Hook:
    """A hook of lineas on a module; a copy of the module does not get it, and it cannot be pickled."""

    def steers(self) -> bool:
        """Return whether the hook belongs to an attached intervention."""
        return False

    def is_compiled_in(self) -> bool:
        """Return whether the hook is part of compiled code and its intervention is still attached."""
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return removes_itself

    def __reduce__(self) -> Any:
        raise LineasError(
            "this network is steered, or learned on, and its hooks cannot be saved; detach first, or save its "
            "state_dict()."
        )


class Scoped(Hook):
    """A forward hook or pre-hook that acts where a key is active."""

    def __init__(self, key: object, hook: Callable[..., Any]) -> None:
        self._key, self._hook = key, hook

    def __call__(self, module: nn.Module, args: Any, *more: Any) -> Any:
        return self._hook(module, args, *more) if is_compiling() or self._key in _active.get() else None


def hooks_in(network: nn.Module) -> list[Hook]:
    """Return the hooks of lineas on all modules of a network."""
    registries = (r for module in network.modules() for r in (module._forward_pre_hooks, module._forward_hooks))
    # copied, since other threads add and remove hooks
    return [hook for registry in registries for hook in tuple(registry.values()) if isinstance(hook, Hook)]


def removes_itself(module: nn.Module, *_: Any) -> None:
    """Remove this hook from its module at the first call; a copied module has it in place of a hook of lineas."""
    if is_compiling():
        return
    for name, hooks in vars(module).items():
        if name in ("_forward_hooks", "_forward_pre_hooks"):
            for key in [key for key, hook in hooks.items() if hook is removes_itself]:
                del hooks[key]
