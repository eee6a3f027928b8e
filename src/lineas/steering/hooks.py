"""Edits: forward hooks that write activations; the only place that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from lineas.sites import Site
from lineas.steering import contexts

Edit = Callable[[torch.Tensor], torch.Tensor]


@runtime_checkable
class ChoosesRows(Protocol):
    """A network that runs more than the prompts it was given, and says which rows an edit is for."""

    def edit_rows(self, site: Site, edit: Edit, z: torch.Tensor) -> torch.Tensor:
        """The activation with the edit on those rows."""
        ...


@contextmanager
def edited(network: nn.Module, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Within the block, the activation of every site passes through its edit, `z -> edit(z)`; of this thread or task.

    Args:
        network: the module whose submodules the sites name.
        edits: by site, a function of the activation that returns one of the same shape and type.
    """
    key = object()
    writers = {site: contexts.Scoped(key, _writer(network, site, edit)) for site, edit in edits.items()}
    hooks = install(network, writers)
    try:
        with contexts.holding(key):
            yield
    finally:
        for hook in hooks:
            hook.off()


class Placed:
    """A forward hook that can be taken off and put back at its old place among a module's hooks."""

    def __init__(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._hook = hook
        self._hooks: Any = module._forward_hooks
        self._handle = module.register_forward_hook(hook)

    def off(self) -> None:
        """Take it off; may be repeated."""
        self._handle.remove()

    def on(self) -> None:
        """Put it back, where it is off."""
        if self._handle.id in self._hooks:
            return
        keys = list(self._hooks)
        earlier = [place for place, key in enumerate(keys, 1) if key < self._handle.id]
        later = keys[earlier[-1] if earlier else 0 :]
        self._hooks[self._handle.id] = self._hook
        for key in later:
            self._hooks.move_to_end(key)


def install(network: nn.Module, hooks: Mapping[Site, Callable[..., Any]]) -> list[Placed]:
    """Hook every site's module, or none where one of them fails."""
    placed: list[Placed] = []
    try:
        for site, hook in hooks.items():
            placed.append(Placed(network.get_submodule(site.module), hook))
    except BaseException:
        for one in placed:
            one.off()
        raise
    return placed


def _writer(network: nn.Module, site: Site, edit: Edit) -> Callable[..., Any]:
    if isinstance(network, ChoosesRows):
        edit = partial(network.edit_rows, site, edit)

    def hook(module: nn.Module, args: Any, result: Any) -> Any:
        before = site.pick(result)
        after = edit(before)
        return None if after is before else site.replace(result, after)

    return hook
