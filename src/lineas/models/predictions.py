"""Predictions of the next token: divergence from the untouched model, likelihood, and scores for Fisher information."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.models.text_batches import PackedPart, PaddedPart

TextPart = PackedPart | PaddedPart


def log_probabilities(network: nn.Module, part: TextPart) -> torch.Tensor:
    """Return the log-probabilities of the next token, float32 `[k, vocabulary]`, at the k tokens that others follow."""
    output: Any = part.run(network)
    if not isinstance(logits := getattr(output, "logits", None), torch.Tensor):
        raise LineasError(
            f"{type(network).__name__} predicts no tokens (its output has no logits), so the damage of a change cannot "
            'be measured; learn with optimizer="relative" (--optimizer relative).'
        )
    return logits[part.followed].float().log_softmax(-1)


def divergences(untouched: torch.Tensor, changed: torch.Tensor, part: TextPart) -> torch.Tensor:
    """Return each text's mean `KL(untouched || changed)` a token, in nats, `[b]`, from log-probabilities `[k, v]`."""
    owners, counts = _owners(part)
    per_token = nn.functional.kl_div(changed, untouched, reduction="none", log_target=True).sum(-1)
    return per_token.new_zeros(len(counts)).index_add(0, owners, per_token) / counts.clamp_min(1)


def log_likelihoods(predicted: torch.Tensor, part: TextPart) -> torch.Tensor:
    """Return the mean log-probability of each text's own next tokens, in nats a token, `[b]`."""
    owners, counts = _owners(part)
    own = predicted.gather(1, part.ids.roll(-1, 1)[part.followed][:, None]).squeeze(1)
    return own.new_zeros(len(counts)).index_add(0, owners, own) / counts.clamp_min(1)


def sampled_score(predicted: torch.Tensor, part: TextPart, generator: torch.Generator) -> torch.Tensor:
    """Return a random number whose gradients in each text have the Fisher information of its predictions as covariance.

    It is the log-likelihood of tokens that the model draws itself, one at each place, divided by the square root of
    their number in the text. Given the context, the draws are independent and their gradients have mean zero, so
    `E[gradient gradient']` is the mean over the text's tokens of `E_y[grad log p(y) grad log p(y)']`.

    Args:
        predicted: log-probabilities, `[k, v]`, from `log_probabilities`.
    """
    owners, counts = _owners(part)
    places = torch.rand(len(predicted), 1, generator=generator).to(predicted)
    drawn = torch.searchsorted(predicted.detach().exp().cumsum(-1), places).clamp_max(predicted.shape[1] - 1)
    return (predicted.gather(1, drawn).squeeze(1) / counts[owners].sqrt()).sum()


def _owners(part: TextPart) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the text of every token that another follows, `[k]`, and their number in each text, `[b]`."""
    owners = part.owners[part.followed]
    return owners, owners.bincount(minlength=len(part.rows))
