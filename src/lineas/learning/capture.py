"""Capture: the pooled activations of a batch at chosen sites, and gradients through them; only here hooks read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.sites import Site
from lineas.transport import Quantiles


class Part(Protocol):
    """Samples that run together: which rows of the batch they are, and how one activation is pooled to `[b, d]`."""

    @property
    def size(self) -> int: ...

    @property
    def rows(self) -> torch.Tensor: ...

    def pool(self, activation: torch.Tensor, site: Site) -> torch.Tensor: ...


class Batch(Protocol):
    """Samples ready to run, in parts; `at_once`: whether one backward pass may go through all of them."""

    @property
    def at_once(self) -> bool: ...

    @property
    def parts(self) -> Sequence[Any]: ...

    @property
    def size(self) -> int: ...


class Model(Protocol):
    """What learning needs of a model; text and images differ in these alone."""

    name: str
    revision: str | None

    @property
    def network(self) -> nn.Module: ...

    def sites(self, pattern: str | Sequence[str] | None = None) -> list[Site]: ...

    def batch(self, prompts: Sequence[str], max_length: int = ..., limit: int | None = ...) -> Any: ...

    def run(self, part: Any) -> None: ...


class _AllSeen(Exception):
    """Raised by the last site's hook: nothing after it needs computing."""


def capture(model: Model, batch: Batch, sites: Sequence[Site]) -> dict[str, torch.Tensor]:
    """The activation of every sample at every site, averaged over its tokens (or pixels).

    The forward pass ends at the last site; gradients flow when they are enabled.

    Args:
        model: what to run.
        batch: n samples, from `model.batch`.
        sites: where to read, after whatever edits are in place there.

    Returns:
        by site name, float32 `[n, d]`, rows in the order of the prompts.

    Raises:
        LineasError: when a site's module takes no part in the forward pass.
    """
    rows: list[torch.Tensor] = []
    pooled: dict[str, list[torch.Tensor]] = {site.name: [] for site in sites}
    for part in batch.parts:
        seen = capture_part(model, part, sites)
        rows.append(part.rows)
        for name, activation in seen.items():
            pooled[name].append(activation)
    back = torch.cat(rows).argsort()
    return {name: torch.cat(parts)[back] for name, parts in pooled.items()}  # [n, d]


def backpropagate(model: Model, batch: Batch, sites: Sequence[Site], targets: Mapping[str, Quantiles]) -> torch.Tensor:
    """The cost of a batch, averaged over sites; its gradient is added to whatever the activations depend on.

    The cost needs every sample, the backward pass does not. A batch that may not go through it at once runs twice:
    for the pooled activations alone, from which the cost and its gradient with respect to them follow; then part by
    part, each backward from its rows of that gradient (the chain rule, so exact).

    Args:
        model: what to run, with the edits that are learned in place.
        batch: n samples, from `model.batch`.
        sites: where to read.
        targets: by site name, for n samples.

    Returns:
        a scalar without gradient, on the network's device.
    """
    if batch.at_once:
        moved = capture(model, batch, sites)
        cost = torch.stack([targets[name].cost(u) for name, u in moved.items()]).mean()
        cost.backward()
        return cost.detach()
    with torch.no_grad():
        pooled = capture(model, batch, sites)
    costs = []
    for name, u in pooled.items():
        cost = targets[name].cost(u.requires_grad_()) / len(sites)
        (pooled[name],) = torch.autograd.grad(cost, u)
        costs.append(cost.detach())
    for part in batch.parts:
        seen = capture_part(model, part, sites)
        torch.autograd.backward(list(seen.values()), [pooled[name][part.rows] for name in seen])
    return torch.stack(costs).sum()


def capture_part(model: Model, part: Part, sites: Sequence[Site]) -> dict[str, torch.Tensor]:
    """The same for one part, rows in its own order."""
    seen: dict[str, torch.Tensor] = {}

    def reader(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            seen[site.name] = part.pool(site.pick(result), site)
            if len(seen) == len(sites):
                raise _AllSeen

        return hook

    handles: list[Any] = []
    try:
        for site in sites:
            handles.append(model.network.get_submodule(site.module).register_forward_hook(reader(site)))
        model.run(part)
    except _AllSeen:
        pass
    finally:
        for handle in handles:
            handle.remove()
    missing = [site.name for site in sites if site.name not in seen]
    if missing:
        raise LineasError(f"{missing[0]} takes no part in the forward pass, so it cannot carry a map; leave it out.")
    return seen
