"""A trial: what a network puts out for a few fixed inputs, so that two of its kind can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import nn

from lineas.models.frozen import frozen
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.modules import input_device
from lineas.sites import Site

ROWS, TOKENS = 2, 8
"""Token ids that a language model reads."""
SMALL = 16
"""Latent pixels of a side, of a pipeline that draws so small."""
Trial = Callable[[nn.Module], torch.Tensor]
"""From a network to its outputs, `[n, ...]`."""


def trial_of(model: TextModel | ImageModel | nn.Module) -> Trial | None:
    """A trial for this model's network and others like it; None where no inputs are known for it.

    A language model reads a few token ids; a pipeline draws an empty prompt until its denoiser has run
    once, and that output counts.
    """
    network = model if isinstance(model, nn.Module) else model.network
    if isinstance(model, ImageModel):
        return lambda other: _drawn(model, other)
    if hasattr(network, "pipeline") and hasattr(network, "denoiser"):
        pipeline: Any = network.pipeline
        return lambda other: _drawn(ImageModel(pipeline), other)
    ids = _token_ids(network)
    return None if ids is None else lambda other: _read(other, ids)


def outputs(model: Any, prompts: Sequence[str], max_length: int) -> torch.Tensor | None:
    """Return what a model's network puts out while it runs prompts, flat; None where it is not run as one."""
    seen: list[torch.Tensor] = []
    hook = model.network.register_forward_hook(lambda _, __, result: seen.append(Site("network").pick(result)))
    try:
        with torch.no_grad():
            for part in model.batch(prompts, max_length).parts:
                model.run(part)
    finally:
        hook.remove()
    return torch.cat([one.flatten() for one in seen]) if seen else None


def _token_ids(network: Any) -> torch.Tensor | None:
    """Token ids `[rows, tokens]`, none with a meaning of its own; None where the network has no vocabulary."""
    config: Any = getattr(network, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None)
    if not isinstance(vocabulary, int):
        return None
    special = {v for part in (config, text) for k, v in vars(part).items() if k.endswith(("_token_id", "_token_index"))
               if isinstance(v, int)}  # fmt: skip
    drawn = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0)).tolist()
    plain = [token for token in drawn[: 10 * ROWS * TOKENS] if token not in special] or [0]
    return torch.tensor([plain[i % len(plain)] for i in range(ROWS * TOKENS)]).view(ROWS, TOKENS)


@torch.no_grad()
def _read(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with frozen(network) if network.training else nullcontext():
        return Site("network").pick(network(input_ids=ids.to(input_device(network)))).float().clone()


@torch.no_grad()
def _drawn(model: ImageModel, network: Any) -> torch.Tensor:
    """The denoiser's first output, for a small picture where the pipeline draws such."""
    side = SMALL * int(getattr(model.pipeline, "vae_scale_factor", 8))
    plain = model.with_network(network).set(guidance="both")
    seen: list[torch.Tensor] = []

    def see(_: Any, __: Any, result: Any) -> None:
        seen.append(Site("denoiser").pick(result).float().clone())
        raise _SeenError

    hook = network.denoiser.register_forward_hook(see)
    try:
        with suppress(Exception):  # of those that do not draw so small, too
            plain.set(size=(side, side)).generate([""], output_type="latent")
        if not seen:
            with suppress(_SeenError):
                plain.generate([""], output_type="latent")
    finally:
        hook.remove()
    return seen[0]


class _SeenError(Exception):
    """Raised when the denoiser has run: nothing after it is needed."""
