"""Sampling: a nucleus out of few tokens, as the whole vocabulary takes half of the time; and nothing out of NaN."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor

from lineas.errors import DESTROYED, LineasError

LARGEST = 256
"""Tokens looked at first; the whole vocabulary where they hold too little."""


class Finite(LogitsProcessor):
    """Logits as they are, as long as the likeliest is a number: greedy decoding would write token 0 for ever.

    Raises:
        LineasError: when they are not finite.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The same logits, `[b, vocabulary]`; minus infinity stands for tokens that may not follow."""
        if not bool(scores.amax(-1).isfinite().all()):
            raise LineasError(DESTROYED)
        return scores


class Nucleus(LogitsProcessor):
    """Temperature, then a draw from the smallest set of likeliest tokens that holds a share of the probability.

    Token j may be drawn when the tokens likelier than it hold less than `top_p` (Holtzman et al. 2020,
    arXiv 1904.09751); as transformers' own, but for the order of equal logits and for how random numbers are spent.

    Args:
        temperature: above 0.
        top_p: 0 to 1; 1 keeps everything.
        seed: of the draws, whose random numbers are their own: threads that sample at the same time share none. None
            takes them from torch's, which all threads share.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None = None) -> None:
        self.temperature, self.top_p, self._seed = temperature, top_p, seed
        self._generator: torch.Generator | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits `[b, vocabulary]` with all but the drawn token at minus infinity, so that the largest is the draw."""
        logits, tokens = self.nucleus(scores)
        if self._generator is None and self._seed is not None:
            self._generator = torch.Generator(scores.device).manual_seed(self._seed)
        drawn = tokens.gather(-1, torch.multinomial(logits.softmax(-1), 1, generator=self._generator))
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn, 0.0)

    def nucleus(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens of logits `[b, vocabulary]`, and their logits with those outside at minus infinity.

        Returns:
            logits over the temperature and token ids, `[b, k]` each; k is the vocabulary or, where few hold the
            share, LARGEST.
        """
        scores = scores / self.temperature
        if self.top_p >= 1:
            return scores, torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
        total = scores.logsumexp(-1, keepdim=True)
        for count in (min(LARGEST, scores.shape[-1]), scores.shape[-1]):
            values, tokens = scores.topk(count, dim=-1)  # likeliest first
            likely = (values - total).exp()
            before = likely.cumsum(-1) - likely  # what likelier tokens hold
            if count == scores.shape[-1] or bool((before[:, -1] >= self.top_p).all()):
                break
        return values.masked_fill(before >= self.top_p, -torch.inf), tokens
