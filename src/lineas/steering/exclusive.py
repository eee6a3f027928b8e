"""Exclusive use of a network: learning and its like are refused while others use it, and keep them off."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import RLock
from typing import Any, ParamSpec, TypeVar

from torch import nn

from lineas.errors import LineasError
from lineas.steering import contexts

P = ParamSpec("P")
R = TypeVar("R")
_lock = RLock()


class _Guard(contexts.Hook):
    """A pre-hook that refuses forward passes of other threads and tasks."""

    def __init__(self) -> None:
        self.key = object()

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not contexts.is_compiling() and self.key not in contexts.here():
            raise _busy()


def check_free(network: nn.Module) -> None:
    """Refuse a network that needs to be left alone for what another thread or task does with it.

    Raises:
        LineasError: when it is learned on, judged or folded elsewhere.
    """
    if any(guard.key not in contexts.here() for guard in _guards(network)):
        raise _busy()


@contextmanager
def guarded(network: nn.Module) -> Iterator[None]:
    """Within the block forward passes of the network in other threads and tasks are refused in a sentence.

    Raises:
        LineasError: when another thread or task has the network for itself.
    """
    with _lock:
        check_free(network)
        guard = None if _guards(network) else _Guard()
        doors = [network, *(child for child in network.children() if any(child.children()))]  # no pass ends at these
        handles = [] if guard is None else [door.register_forward_pre_hook(guard) for door in doors]
    if guard is None:
        yield
        return
    try:
        with contexts.holding(guard.key):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def exclusive(network: nn.Module) -> Iterator[None]:
    """Within the block the network belongs to this thread or task; what is steered within the block is its own.

    Raises:
        LineasError: when the network is being steered, by whichever thread, or another one has it for itself.
    """
    is_inner = bool(_guards(network))
    with guarded(network):
        if not is_inner and is_steered(network):
            raise LineasError(
                "this network is being steered; detach first (learn takes what is to stay in place as on=...)."
            )
        yield


def is_steered(network: nn.Module) -> bool:
    """Return True where an intervention is in place on a network, in whichever thread or task."""
    return any(
        isinstance(hook, contexts.Hook) and hook.steers()
        for module in network.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )


def exclusively(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function have the network of its argument `model`, or of its `task`, for itself."""
    signature = inspect.signature(function)

    @wraps(function)
    def runs_alone(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind_partial(*args, **kwargs).arguments
        model: Any = given.get("model", getattr(given.get("task"), "model", None))
        network = model if isinstance(model, nn.Module) else getattr(model, "network", None)
        if not isinstance(network, nn.Module):  # the function says what is wrong with it
            return function(*args, **kwargs)
        with exclusive(network):
            return function(*args, **kwargs)

    return runs_alone


def _guards(network: nn.Module) -> list[_Guard]:
    return [
        hook
        for module in network.modules()
        for hook in tuple(module._forward_pre_hooks.values())  # at once: other threads add and remove
        if isinstance(hook, _Guard)
    ]


def _busy() -> LineasError:
    return LineasError(
        "another thread or task learns on this network, or judges or folds it; wait until that is done, or load the "
        "model twice."
    )
