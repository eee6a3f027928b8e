"""Nucleus sampling that sorts few tokens: on a CPU, sorting the whole vocabulary takes a third of generation."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

LARGEST = 256
"""Tokens looked at first; the whole vocabulary where they hold too little."""


class Nucleus(LogitsProcessor):
    """Temperature, then the smallest set of likeliest tokens that holds a share of the probability.

    Token j stays when the tokens likelier than it hold less than `top_p` (Holtzman et al. 2020, arXiv 1904.09751); as
    transformers' own, but for the order of equal logits.

    Args:
        temperature: above 0.
        top_p: 0 to 1; 1 keeps everything.
    """

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """The logits `[b, vocabulary]` with those outside at minus infinity."""
        scores = scores / self.temperature
        if self.top_p >= 1:
            return scores
        total = scores.logsumexp(-1, keepdim=True)
        for count in (min(LARGEST, scores.shape[-1]), scores.shape[-1]):
            values, tokens = scores.topk(count, dim=-1)  # likeliest first
            likely = (values - total).exp()
            before = likely.cumsum(-1) - likely  # what likelier tokens hold
            if count == scores.shape[-1] or bool((before[:, -1] >= self.top_p).all()):
                break
        kept = values.masked_fill(before >= self.top_p, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens, kept)
