"""Sampling from the nucleus, computed from few tokens since the whole vocabulary is slow; and a check for NaN."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from lineas.errors import DESTROYED, LineasError

LARGEST = 256
"""Number of likeliest tokens that are tried first; the whole vocabulary follows if they hold too little probability."""


class Finite(LogitsProcessor):
    """A check that logits are finite: from NaN, greedy decoding would generate token 0 for ever."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the logits unchanged, `[b, vocabulary]`; minus infinity is allowed for forbidden tokens."""
        if not bool(scores.amax(-1).isfinite().all()):
            raise LineasError(DESTROYED)
        return scores


class Nucleus(LogitsProcessor):
    """Temperature, then a draw from the nucleus: the smallest set of likeliest tokens with a share of the probability.

    Token j is in the nucleus if likelier tokens together have less than `top_p` (Holtzman et al. 2020, arXiv
    1904.09751). It equals transformers' own but for the order of equal logits and the use of random numbers.

    Args:
        temperature: divisor of the logits, above 0.
        top_p: share of the probability, from 0 to 1; 1 includes all tokens.
        seed: seed of a generator for these draws alone, so that threads do not share one; None for torch's own
            generator, which all threads share.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None = None) -> None:
        self.temperature, self.top_p, self._seed = temperature, top_p, seed
        self._generator: torch.Generator | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Draw a token per row, and return logits `[b, vocabulary]` with all others at minus infinity."""
        logits, tokens = self.nucleus(scores)
        if self._generator is None and self._seed is not None:
            self._generator = torch.Generator(scores.device).manual_seed(self._seed)
        drawn = tokens.gather(-1, torch.multinomial(logits.softmax(-1), 1, generator=self._generator))
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn, 0.0)

    def nucleus(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the likeliest tokens of logits `[b, vocabulary]`.

        Returns:
            logits divided by the temperature, minus infinity outside the nucleus, and token ids, both `[b, k]`; k is
            LARGEST if these tokens hold `top_p`, else the size of the vocabulary.
        """
        scores = scores / self.temperature
        if self.top_p >= 1:
            return scores, torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
        total = scores.logsumexp(-1, keepdim=True)
        for count in (min(LARGEST, scores.shape[-1]), scores.shape[-1]):
            values, tokens = scores.topk(count, dim=-1)  # likeliest first
            likely = (values - total).exp()
            before = likely.cumsum(-1) - likely  # the probability of likelier tokens
            if count == scores.shape[-1] or bool((before[:, -1] >= self.top_p).all()):
                break
        return values.masked_fill(before >= self.top_p, -torch.inf), tokens
