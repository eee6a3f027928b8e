"""Predictions of a text model for given tokens, in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lineas.models.text import TextModel
from lineas.models.text_batches import PaddedPart, pad
from lineas.modules import text_config

LOGITS = 2**26
"""Maximum number of logits in memory at once."""


def scored_parts(model: TextModel, encoded: Sequence[Sequence[int]], logits: int = LOGITS) -> list[PaddedPart]:
    """Cut texts into parts of similar length and at most this number of logits; a longer text is a part of its own."""
    model.check_length(max(map(len, encoded), default=0))
    return pad(encoded, max(1, logits // text_config(model.network).vocab_size), model.device, model.pad_id)


def predictions(model: TextModel, part: PaddedPart, prefix: torch.Tensor | None = None) -> torch.Tensor:
    """Return the logits for each token after the first, float32 `[b, t - 1, vocabulary]`.

    Args:
        part: b texts of at most t tokens.
        prefix: token ids put before each text (but after a token such as `<s>`), `[p]`; None for none.
    """
    ids, mask = part.ids, part.mask
    if prefix is not None:
        before, special = prefix.expand(len(ids), -1), model.special_before
        ids = torch.cat([ids[:, :special], before, ids[:, special:]], 1)
        mask = torch.cat([torch.ones_like(before), mask], 1)
        model.check_length(ids.shape[1])
    logits = model.network(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[:, ids.shape[1] - part.ids.shape[1] : -1].float()


def token_mean(part: PaddedPart, values: torch.Tensor) -> torch.Tensor:
    """Return the mean of `[b, t - 1]` over each text's tokens after the first, float64 `[b]`."""
    real = part.mask[:, 1:]
    return (values.double() * real).sum(1) / real.sum(1)
