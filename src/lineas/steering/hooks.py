"""Edits: forward hooks that change activations; no other module does so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from lineas.sites import Site
from lineas.steering import contexts

Edit = Callable[[torch.Tensor], torch.Tensor]


@runtime_checkable
class ChoosesRows(Protocol):
    """A network whose batch has more rows than there are prompts, and which chooses the rows of an edit."""

    def edit_rows(self, site: Site, edit: Edit, z: torch.Tensor) -> torch.Tensor:
        """Return the activation `z` with the edit applied to the chosen rows."""
        ...


@contextmanager
def edited(network: nn.Module, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """Replace each site's output `z` by `edit(z)` of its shape and type within the block, in this thread or task."""
    key = object()
    with ExitStack() as stack:
        for site, edit in edits.items():
            hook = contexts.Scoped(key, _writer(network, site, edit))
            stack.enter_context(network.get_submodule(site.module).register_forward_hook(hook))
        stack.enter_context(contexts.activated(key))
        yield


class Placed:
    """A forward hook that can be removed and put back at its old position among the module's hooks."""

    def __init__(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._hook = hook
        self._hooks: Any = module._forward_hooks
        self._handle = module.register_forward_hook(hook)

    def off(self) -> None:
        """Remove the hook; does nothing if it is removed already."""
        self._handle.remove()

    def on(self) -> None:
        """Put the hook back, if it is removed."""
        if self._handle.id in self._hooks:
            return
        keys = list(self._hooks)
        earlier = [position for position, key in enumerate(keys, 1) if key < self._handle.id]
        later = keys[earlier[-1] if earlier else 0 :]
        self._hooks[self._handle.id] = self._hook
        for key in later:
            self._hooks.move_to_end(key)


def _writer(network: nn.Module, site: Site, edit: Edit) -> Callable[..., Any]:
    if isinstance(network, ChoosesRows):
        edit = partial(network.edit_rows, site, edit)

    def hook(module: nn.Module, args: Any, result: Any) -> Any:
        before = site.pick(result)
        after = edit(before)
        return None if after is before else site.replace(result, after)

    return hook
