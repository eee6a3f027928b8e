"""A trial: a network's outputs for a few fixed inputs, by which two networks can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import nn

from lineas.models.frozen import frozen
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.modules import input_device, text_config
from lineas.sites import Site

ROWS, TOKENS = 2, 8
"""The shape of the token ids for a language model."""
SMALL = 16
"""The height and width of the image for a pipeline, in latent pixels, if the pipeline can draw that size."""
Trial = Callable[[nn.Module], torch.Tensor]
"""A function from a network to its outputs, `[n, ...]`."""


def trial_of(model: TextModel | ImageModel | nn.Module) -> Trial | None:
    """Return a trial for this model's network and similar ones; None if suitable inputs are not known.

    A language model reads a few token ids. A pipeline draws an empty prompt, and its denoiser's first output counts.
    """
    network: Any = model if isinstance(model, nn.Module) else model.network
    if isinstance(model, ImageModel):
        return lambda other: _first_prediction(model, other)
    if hasattr(network, "pipeline") and hasattr(network, "denoiser"):
        return lambda other: _first_prediction(ImageModel(network.pipeline), other)
    ids = _token_ids(network)
    return None if ids is None else lambda other: _logits(other, ids)


def outputs(model: Any, prompts: Sequence[str], max_length: int) -> torch.Tensor | None:
    """Return the network's outputs for prompts, flattened; None if the network itself is not called (pipelines)."""
    seen: list[torch.Tensor] = []
    see = model.network.register_forward_hook(lambda _, __, result: seen.append(Site("network").pick(result)))
    with see, torch.no_grad():
        for part in model.batch(prompts, max_length).parts:
            model.run(part)
    return torch.cat([one.flatten() for one in seen]) if seen else None


def _token_ids(network: Any) -> torch.Tensor | None:
    """Return random token ids `[rows, tokens]` that are not special; None if the network has no vocabulary."""
    config: Any = getattr(network, "config", None)
    text = text_config(network)
    vocabulary = getattr(text, "vocab_size", None)
    if not isinstance(vocabulary, int):
        return None
    special = {v for part in (config, text) for k, v in vars(part).items() if k.endswith(("_token_id", "_token_index"))
               if isinstance(v, int)}  # fmt: skip
    shuffled = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0)).tolist()
    plain = [token for token in shuffled[: 10 * ROWS * TOKENS] if token not in special] or [0]
    return torch.tensor([plain[i % len(plain)] for i in range(ROWS * TOKENS)]).view(ROWS, TOKENS)


@torch.no_grad()
def _logits(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with frozen(network) if network.training else nullcontext():
        return Site("network").pick(network(input_ids=ids.to(input_device(network)))).float().clone()


@torch.no_grad()
def _first_prediction(model: ImageModel, network: Any) -> torch.Tensor:
    """Return the denoiser's first output, for a small image if the pipeline can draw one."""
    side = SMALL * int(getattr(model.pipeline, "vae_scale_factor", 8))
    plain = model.with_network(network).set(guidance="both")
    seen: list[torch.Tensor] = []

    def see(_: Any, __: Any, result: Any) -> None:
        seen.append(Site("denoiser").pick(result).float().clone())
        raise _SeenError

    with network.denoiser.register_forward_hook(see):
        with suppress(Exception):  # the pipeline may not support this size
            plain.set(size=(side, side)).generate([""], output_type="latent")
        if not seen:
            with suppress(_SeenError):
                plain.generate([""], output_type="latent")
    return seen[0]


class _SeenError(Exception):
    """The signal to stop drawing after the denoiser's first output."""
