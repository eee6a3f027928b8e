"""Batches of prompts to be drawn, each with its own noise, which stays the same from step to step."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.sites import Reading, Site

AREA = 16
"""Number of latent pixels that count as one token: a U-Net works mostly at a quarter of the height and width."""


@dataclass(frozen=True)
class DrawnPart:
    """A batch's b prompts that are drawn together, with a seed for the noise of each.

    Args:
        rows: indices of these prompts in the whole batch, `[b]`.
        denoiser: name of the module that runs once per step.
        tokens: number of tokens that one image counts as.
        encoded: cache of the prompts' embeddings, filled by the first run.
    """

    prompts: list[str]
    seeds: list[int]
    rows: torch.Tensor
    denoiser: str
    tokens: int
    encoded: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The number of tokens that all images count as."""
        return len(self.prompts) * self.tokens

    def passes(self, site: Site) -> int | None:
        """Return how often a site is read: once in a text encoder; None in the denoiser, for once per step."""
        return None if f"{site.module}.".startswith(f"{self.denoiser}.") else 1

    def running(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return an empty block."""
        return nullcontext()

    def pool(self, activation: torch.Tensor, site: Site, pooling: Reading = "mean") -> torch.Tensor:
        """Return an activation pooled over each image's pixels or tokens, float32 `[b, d]`."""
        b = len(self.prompts)
        if activation.dim() < 2 or activation.shape[0] % b:
            raise LineasError(
                f"site {site.name} gives an activation of shape {list(activation.shape)} for {b} images; "
                "choose another module."
            )
        others = [axis for axis in range(1, activation.dim()) if axis != site.axis % activation.dim()]
        if pooling == "sum":  # also over the rows without prompts, which a map changes alike
            return activation.unflatten(0, (-1, b)).sum([0, *(axis + 1 for axis in others)], dtype=torch.float32)
        conditional = activation[-b:].to(torch.float32)  # with guidance, the rows without prompts come first
        if pooling == "none":
            return conditional.movedim(site.axis, -1).flatten(0, -2)
        if not others:
            return conditional
        return conditional.amax(others) if pooling == "max" else conditional.mean(others)


def seeds_of(prompts: Sequence[str], seed: int) -> list[int]:
    """Return a seed for each prompt's noise, from its text, the number of equal prompts before it, and `seed`."""
    counts: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        text = f"{seed}\n{counts[prompt]}\n{prompt}"
        seeds.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))
        counts[prompt] += 1
    return seeds
