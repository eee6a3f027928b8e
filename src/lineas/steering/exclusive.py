"""Exclusive use of a network: while one thread learns, evaluates or folds, other threads may not use it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import RLock
from typing import Any, ParamSpec, TypeVar

from torch import nn

from lineas.errors import LineasError
from lineas.steering import contexts

P = ParamSpec("P")
R = TypeVar("R")
_lock = RLock()
_BUSY = "another thread or task learns on this network, or evaluates or folds it; wait for it, or load a second model."


class _Guard(contexts.Hook):
    """A pre-hook that refuses the forward passes of other threads and tasks."""

    def __init__(self) -> None:
        self.key = object()

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not contexts.is_compiling() and self.key not in contexts.active():
            raise LineasError(_BUSY)


def check_free(network: nn.Module) -> None:
    """Refuse a network that another thread or task uses exclusively."""
    if any(guard.key not in contexts.active() for guard in _guards(network)):
        raise LineasError(_BUSY)


@contextmanager
def guarded(network: nn.Module) -> Iterator[None]:
    """Refuse, within the block, the network's forward passes in other threads and tasks."""
    with ExitStack() as stack:
        with _lock:
            check_free(network)
            outer = _guards(network)  # those of this thread
            guard = outer[0] if outer else _Guard()
            entries = [network, *(child for child in network.children() if any(child.children()))]
            for entry in [] if outer else entries:
                stack.enter_context(entry.register_forward_pre_hook(guard))
        stack.enter_context(contexts.activated(guard.key))
        yield


@contextmanager
def exclusive(network: nn.Module) -> Iterator[None]:
    """Reserve an unsteered network for this thread or task within the block; the block itself may steer it."""
    is_inner = bool(_guards(network))
    with guarded(network):
        if not is_inner and is_steered(network):
            raise LineasError(
                "this network is being steered; detach first (to learn on top of an intervention, give learn on=...)."
            )
        yield


def is_steered(network: nn.Module) -> bool:
    """Return whether an intervention is attached to a network, in any thread or task."""
    return any(hook.steers() for hook in contexts.hooks_in(network))


def exclusively(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that it uses the network of its argument `model` (or `task.model`) exclusively."""
    signature = inspect.signature(function)

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = signature.bind_partial(*args, **kwargs).arguments
        model: Any = arguments.get("model", getattr(arguments.get("task"), "model", None))
        network = model if isinstance(model, nn.Module) else getattr(model, "network", None)
        if not isinstance(network, nn.Module):  # the function itself refuses such a model
            return function(*args, **kwargs)
        with exclusive(network):
            return function(*args, **kwargs)

    return wrapper


def _guards(network: nn.Module) -> list[_Guard]:
    return [hook for hook in contexts.hooks_in(network) if isinstance(hook, _Guard)]
