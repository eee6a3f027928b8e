"""Capture: the pooled activations of a batch at chosen sites, and gradients through them; only here hooks read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lineas.errors import LineasError
from lineas.learning.transport import Quantiles
from lineas.models.samples import Batch, Part, Samples
from lineas.modules import repeated
from lineas.sites import Pooling, Reading, Site
from lineas.steering import contexts


class Model(Protocol):
    """What learning needs of a model; text and images differ in these alone."""

    name: str
    revision: str | None

    @property
    def facts(self) -> dict[str, Any]: ...

    @property
    def network(self) -> nn.Module: ...

    def sites(self, pattern: str | Sequence[str] | None = None) -> list[Site]: ...

    def default_sites(self, pattern: str | None) -> list[Site]: ...

    def samples(self, prompts: Sequence[str], max_length: int = ...) -> Samples[Any]: ...

    def run(self, part: Any) -> None: ...


def warn_if_cut(samples: Samples[Any], side: str = "") -> None:
    """Warn where prompts, of the "source " say, were longer than what is read of them."""
    if samples.truncated:
        cut = f"{samples.truncated} of {len(samples)} {side}prompts were cut at {samples.longest} tokens."
        warnings.warn(cut, stacklevel=3)


SOME_TOKENS = 1024
"""Passes without gradients run this much at once."""


class _AllSeen(Exception):
    """Raised by the last site's hook: nothing after it needs computing."""


@torch.no_grad()
def activations(
    model: Model, samples: Samples[Any], sites: Sequence[Site], pooling: Pooling = "mean"
) -> dict[str, torch.Tensor]:
    """Return the samples' activations as `capture` does, without gradients and in small parts."""
    return capture(model, samples.batch(SOME_TOKENS), sites, pooling)


def capture(
    model: Model, batch: Batch[Any], sites: Sequence[Site], pooling: Pooling = "mean"
) -> dict[str, torch.Tensor]:
    """The activation of every sample at every site, averaged over its tokens (or pixels).

    The forward pass ends at the last site; gradients flow when they are enabled.

    Args:
        model: what to run.
        batch: n samples, from `model.samples(prompts).batch()`.
        sites: where to read, after whatever edits are in place there.
        pooling: "mean" over a sample's tokens, or "max".

    Returns:
        by site name, float32 `[n, d]`, rows in the order of the prompts; `[n, k, d]` where the network reaches the site
        k times for a prompt, once in every denoising step.

    Raises:
        LineasError: when a site's module takes no part in the forward pass.
    """
    rows: list[torch.Tensor] = []
    pooled: dict[str, list[torch.Tensor]] = {site.name: [] for site in sites}
    for part in batch.parts:
        seen = capture_part(model, part, sites, pooling)
        rows.append(part.rows)
        for name, activation in seen.items():
            pooled[name].append(activation)
    back = torch.cat(rows).argsort()
    return {name: torch.cat(parts)[back] for name, parts in pooled.items()}


def stacked(pooled: torch.Tensor) -> torch.Tensor:
    """What `capture` gives of a site, `[n, d]` or `[n, k, d]`, as samples that one map serves, `[n k, d]`."""
    return pooled.reshape(-1, pooled.shape[-1])


def backpropagate(
    model: Model, batch: Batch[Any], sites: Sequence[Site], targets: Mapping[str, Quantiles], pooling: Pooling = "mean"
) -> torch.Tensor:
    """The cost of a batch, averaged over sites; its gradient is added to whatever the activations depend on.

    The cost needs every sample, the backward pass does not. A batch that may not go through it at once runs twice:
    for the pooled activations alone, from which the cost and its gradient with respect to them follow; then part by
    part, each backward from its rows of that gradient (the chain rule, so exact). A part that alone is over the limit,
    one long prompt, keeps the inputs of its blocks instead of everything in them, and runs them again.

    Args:
        model: what to run, with the edits that are learned in place.
        batch: n samples, from `model.samples(prompts).batch()`.
        sites: where to read.
        targets: by site name, for n samples.
        pooling: "mean" over a sample's tokens, or "max".

    Returns:
        a scalar without gradient, on the network's device.
    """
    if batch.at_once:
        moved = capture(model, batch, sites, pooling)
        cost = torch.stack([targets[name].cost(u) for name, u in moved.items()]).mean()
        cost.backward()
        return cost.detach()
    with torch.no_grad():
        pooled = capture(model, batch, sites, pooling)
    costs = []
    for name, u in pooled.items():
        cost = targets[name].cost(u.requires_grad_()) / len(sites)
        (pooled[name],) = torch.autograd.grad(cost, u)
        costs.append(cost.detach())
    last = list(pooled)[-1]  # of the sites in the order in which they ran
    for part in batch.parts:
        is_long = batch.limit is not None and part.size > batch.limit
        again = _checkpointed(model, part, last) if is_long else nullcontext()
        with again, _read(model, part, sites, pooling) as seen:
            torch.autograd.backward(list(seen.values()), [pooled[name][part.rows] for name in seen])
    return torch.stack(costs).sum()


def capture_part(model: Model, part: Part, sites: Sequence[Site], pooling: Reading = "mean") -> dict[str, torch.Tensor]:
    """The same as `capture` for one part, rows in its own order, sites in the order in which they ran.

    With "none" a row is a token, or a pixel.
    """
    with _read(model, part, sites, pooling) as seen:
        return seen


@contextmanager
def _read(
    model: Model, part: Part, sites: Sequence[Site], pooling: Reading = "mean"
) -> Iterator[dict[str, torch.Tensor]]:
    """Run a part and read it; within the block the hooks stay, for blocks that run again during a backward pass."""
    passes = {site.name: part.passes(site) for site in sites}
    seen: dict[str, list[torch.Tensor]] = {}
    reading = True  # and not again while blocks run for the backward pass

    def reader(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            nonlocal reading
            pooled = part.pool(site.pick(result), site, pooling)  # also when it runs again: autograd counts tensors
            if not reading or len(seen.get(site.name, ())) == passes[site.name]:
                return
            seen.setdefault(site.name, []).append(pooled)
            if all(len(seen.get(name, ())) == count for name, count in passes.items()):
                reading = False
                raise _AllSeen

        return hook

    handles: list[Any] = []
    key = object()
    try:
        for site in sites:
            hook = contexts.Scoped(key, reader(site))
            handles.append(model.network.get_submodule(site.module).register_forward_hook(hook))
        contexts.put(key)
        with suppress(_AllSeen):
            model.run(part)
        reading = False
        missing = [site.name for site in sites if site.name not in seen]
        if missing:
            raise LineasError(
                f"{missing[0]} takes no part in the forward pass, so it cannot carry a map; leave it out."
            )
        yield {name: torch.stack(calls, 1) if len(calls) > 1 else calls[0] for name, calls in seen.items()}
    finally:
        contexts.drop(key)
        for handle in handles:
            handle.remove()


@contextmanager
def _checkpointed(model: Model, part: Part, last: str) -> Iterator[None]:
    """Within the block the network's blocks keep their inputs alone and run again in the backward pass.

    The block within which reading ends, at the site of this name, is left as it is: its forward pass is broken off.
    """
    found = [block for name, block in repeated(model.network) if not last.startswith(f"{name}.")]
    patched = [block for block in found if "forward" not in vars(block)]
    key = object()

    def of(block: nn.Module) -> Callable[..., Any]:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if key not in contexts.here():  # a pass of another thread
                return plain(*args, **kwargs)
            context, runs = copy_context(), iter((plain,))

            def anew(*args: Any, **kwargs: Any) -> Any:
                with part.running(model.network):
                    return plain(*args, **kwargs)

            def run(*args: Any, **kwargs: Any) -> Any:
                """The first time as it is; in the backward pass, be that in a thread of its own, with all that held."""
                return next(runs, partial(context.run, anew))(*args, **kwargs)

            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return forward

    for block in patched:
        vars(block)["forward"] = of(block)
    try:
        with contexts.holding(key):
            yield
    finally:
        for block in patched:
            del vars(block)["forward"]
