"""What a text model predicts for given tokens, in parts of similar length, as memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lineas.models.text import TextModel
from lineas.models.text_batches import PaddedPart, pad

LOGITS = 2**26
"""Numbers of logits that are held at once."""


def scored_parts(model: TextModel, encoded: Sequence[Sequence[int]], logits: int = LOGITS) -> list[PaddedPart]:
    """Texts, given as token ids, in parts that hold at most so many logits at once.

    Args:
        model: whose vocabulary counts.
        encoded: at least one token each.
        logits: numbers; one text that is longer makes a part of its own.
    """
    model.check_length(max(map(len, encoded), default=0))
    vocabulary: int = model.network.config.get_text_config().vocab_size  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    return pad(encoded, max(1, logits // vocabulary), model.device, model.pad_id)


def predictions(model: TextModel, part: PaddedPart, prefix: torch.Tensor | None = None) -> torch.Tensor:
    """Logits for each token after the first, float32 `[b, t - 1, vocabulary]`.

    Args:
        model: steered or not.
        part: b texts of at most t tokens.
        prefix: ids that stand before each text (but after a token such as `<s>`), `[p]`.
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
    """The mean over each text's tokens after the first, float64 `[b]`, of `[b, t - 1]`."""
    real = part.mask[:, 1:]
    return (values.double() * real).sum(1) / real.sum(1)
