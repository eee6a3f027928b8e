"""Batches of prompts ready to be drawn: each with noise of its own that stays the same from step to step."""

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
"""Pixels of the latents that count as one token: U-Nets do most of their work where sides are a quarter."""


@dataclass(frozen=True)
class DrawnPart:
    """Prompts that are drawn together.

    Args:
        prompts: b texts.
        seeds: of each one's noise.
        rows: which prompts of the whole batch these are, `[b]`.
        denoiser: the name of the module that runs once a step.
        tokens: of one image.
        encoded: the prompts' embeddings, filled in by the first run.
    """

    prompts: list[str]
    seeds: list[int]
    rows: torch.Tensor
    denoiser: str
    tokens: int
    encoded: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """All images' tokens."""
        return len(self.prompts) * self.tokens

    def passes(self, site: Site) -> int | None:
        """A text encoder is read once; the denoiser in every step."""
        return None if f"{site.module}.".startswith(f"{self.denoiser}.") else 1

    def running(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Nothing need hold while it runs."""
        return nullcontext()

    def pool(self, activation: torch.Tensor, site: Site, pooling: Reading = "mean") -> torch.Tensor:
        """The mean (or maximum) over each image's pixels or tokens, float32 `[b, d]`, of `[rows, ...]`.

        Under guidance the rows without prompts come first; the last b are the prompts'.
        """
        b = len(self.prompts)
        if activation.dim() < 2 or activation.shape[0] % b:
            raise LineasError(
                f"site {site.name} gives an activation of shape {list(activation.shape)} for {b} images; "
                "choose another module."
            )
        told = activation[-b:].to(torch.float32)
        others = [axis for axis in range(1, told.dim()) if axis != site.axis % told.dim()]
        if pooling == "none":
            return told.movedim(site.axis, -1).flatten(0, -2)
        if not others:
            return told
        return told.amax(others) if pooling == "max" else told.mean(others)


def seeds_of(prompts: Sequence[str], seed: int) -> list[int]:
    """A seed for the noise of each prompt: of its words, of how often they came before, and of `seed`."""
    before: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        text = f"{seed}\n{before[prompt]}\n{prompt}"
        found.append(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))
        before[prompt] += 1
    return found
