"""Capture: pooled activations at chosen sites, and gradients through them; no other module has hooks that read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lineas.errors import LineasError
from lineas.learning.transport import Quantiles
from lineas.models.samples import Batch, Part, Samples
from lineas.modules import smallest_blocks
from lineas.sites import Pooling, Reading, Site
from lineas.steering import contexts

Activations = dict[str, torch.Tensor]
"""The activations of a batch by site name, each `[n, d]` (see `capture`)."""


class Model(Protocol):
    """The attributes and methods of a model that learning uses; only these differ between text and images."""

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
    def predict(self, part: Any) -> torch.Tensor: ...
    def divergences(self, untouched: torch.Tensor, changed: torch.Tensor, part: Any) -> torch.Tensor: ...
    def log_likelihoods(self, predicted: torch.Tensor, part: Any) -> torch.Tensor | None: ...
    def sampled_score(self, predicted: torch.Tensor, part: Any, generator: torch.Generator) -> torch.Tensor: ...


def warn_if_cut(samples: Samples[Any], side: str = "") -> None:
    """Warn when prompts were cut at the largest number of tokens; `side` is "" or their side and a space."""
    if samples.truncated:
        sentence = f"{samples.truncated} of {len(samples)} {side}prompts were cut at {samples.longest} tokens."
        warnings.warn(sentence, stacklevel=3)


SOME_TOKENS = 1024
"""Tokens (or drawings) that run at once in a pass without gradients."""


class _AllSeen(Exception):
    """Ends a forward pass at the last site, since nothing after it is needed."""


@torch.no_grad()
def activations(model: Model, samples: Samples[Any], sites: Sequence[Site], pooling: Pooling = "mean") -> Activations:
    """Return the activations of samples as `capture` does, without gradients and in small parts."""
    return capture(model, samples.batch(SOME_TOKENS), sites, pooling)


def capture(model: Model, batch: Batch[Any], sites: Sequence[Site], pooling: Pooling = "mean") -> Activations:
    """Return the activation of every sample at every site, pooled over its tokens (or pixels).

    The forward pass ends at the last site. Gradients flow when they are enabled.

    Args:
        sites: sites to read, after the edits that are in place there.

    Returns:
        Activations by site name, float32 `[n, d]`, rows in the order of the prompts; `[n, k, d]` at sites that run k
        times for a prompt, once in every denoising step.
    """
    pooled = [capture_part(model, part, sites, pooling) for part in batch.parts]
    order = torch.cat([part.rows for part in batch.parts]).argsort()
    return {site.name: torch.cat([of_part[site.name] for of_part in pooled])[order] for site in sites}


def stacked(pooled: torch.Tensor) -> torch.Tensor:
    """Return the activations of one site, `[n, d]` or `[n, k, d]`, as samples of one map, `[n k, d]`."""
    return pooled.reshape(-1, pooled.shape[-1])


def backpropagate(
    model: Model, batch: Batch[Any], sites: Sequence[Site], targets: Mapping[str, Quantiles], pooling: Pooling = "mean"
) -> torch.Tensor:
    """Return the cost of a batch, averaged over sites, and add its gradient to the parameters of the edits.

    The cost needs all samples together, the backward pass does not. A batch over the limit therefore runs twice. The
    first run gives the pooled activations, the cost, and the gradient with respect to them. The second run goes part by
    part, each backward from its rows of that gradient; this is the chain rule, so it is exact. A single part over the
    limit is one long prompt: it stores only the inputs of its blocks, and runs the blocks again.

    Args:
        model: model to run, with the edits that are learned in place.
        targets: quantiles of the target for as many samples as the batch has, by site name.
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
    last = list(pooled)[-1]  # sites are in the order in which they ran
    for part in batch.parts:
        is_long = batch.limit is not None and part.size > batch.limit
        checkpointing = _checkpointed(model, part, last) if is_long else nullcontext()
        with checkpointing, _read(model, part, sites, pooling) as moved:
            torch.autograd.backward(list(moved.values()), [pooled[name][part.rows] for name in moved])
    return torch.stack(costs).sum()


def capture_part(model: Model, part: Part, sites: Sequence[Site], pooling: Reading = "mean") -> Activations:
    """Return the activations of one part as `capture` does, rows in the part's order, sites in the order they ran.

    With pooling "none" a row is one token (or pixel).
    """
    with _read(model, part, sites, pooling) as pooled:
        return pooled


@contextmanager
def _read(model: Model, part: Part, sites: Sequence[Site], pooling: Reading) -> Iterator[Activations]:
    """Run a part and yield its activations by site; the hooks stay for blocks that the backward pass runs again."""
    passes = {site.name: part.passes(site) for site in sites}
    pooled: dict[str, list[torch.Tensor]] = {}
    reading = True  # off while blocks run again in the backward pass

    def reader(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            nonlocal reading
            # also in a second run: torch.utils.checkpoint expects as many saved tensors as in the first
            activation = part.pool(site.pick(result), site, pooling)
            if not reading or len(pooled.get(site.name, ())) == passes[site.name]:
                return
            pooled.setdefault(site.name, []).append(activation)
            if all(len(pooled.get(name, ())) == count for name, count in passes.items()):
                reading = False
                raise _AllSeen

        return hook

    key = object()
    with ExitStack() as stack:
        for site in sites:
            hook = contexts.Scoped(key, reader(site))
            stack.enter_context(model.network.get_submodule(site.module).register_forward_hook(hook))
        stack.enter_context(contexts.activated(key))
        with suppress(_AllSeen):
            model.run(part)
        reading = False
        unread = [site.name for site in sites if site.name not in pooled]
        if unread:
            raise LineasError(f"{unread[0]} takes no part in the forward pass, so it cannot carry a map; leave it out.")
        yield {name: torch.stack(steps, 1) if len(steps) > 1 else steps[0] for name, steps in pooled.items()}


def _checkpointed(model: Model, part: Part, last: str) -> AbstractContextManager[None]:
    """Make the network's blocks store only their inputs and run again in the backward pass."""
    # but not the block of the site `last`, whose forward pass ends early
    blocks = [block for name, block in smallest_blocks(model.network) if not last.startswith(f"{name}.")]

    def checkpointed(block: nn.Module) -> Callable[..., Any]:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            context, first_run = copy_context(), iter((plain,))

            def run_again(*args: Any, **kwargs: Any) -> Any:
                with part.running(model.network):
                    return plain(*args, **kwargs)

            def run(*args: Any, **kwargs: Any) -> Any:
                """Run the block; in the backward pass, which may have its own thread, in the first run's context."""
                return next(first_run, partial(context.run, run_again))(*args, **kwargs)

            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return forward

    return contexts.replaced([block for block in blocks if "forward" not in vars(block)], checkpointed)
