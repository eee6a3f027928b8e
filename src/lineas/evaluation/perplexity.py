"""Perplexity of a text model on given sentences: the damage a steered model has taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lineas.errors import LineasError
from lineas.models.text import TextModel


@torch.no_grad()
def perplexities(model: TextModel, sentences: Sequence[str], max_length: int = 50) -> list[float]:
    """Per sentence `exp` of the mean negative log-likelihood of its tokens after the first.

    The paper averages these over sentences (arXiv 2503.10679, section 4: Wikipedia sentences of at most 50 tokens).

    Args:
        model: steered or not.
        sentences: those with a single token are left out.
        max_length: tokens of a sentence; the rest is cut.

    Returns:
        one number a sentence, in order.

    Raises:
        LineasError: when no sentence has two tokens.
    """
    batch = model.padded_batch([s for s in sentences if len(model.tokenizer(s).input_ids) > 1], max_length)
    values = torch.zeros(batch.size)
    for part in batch.parts:
        for ids, mask, rows in zip(part.ids.split(32), part.mask.split(32), part.rows.split(32)):
            logits = model.network(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")  # [b, t-1]
            real = mask[:, 1:]
            values[rows.cpu()] = ((losses * real).sum(1) / real.sum(1)).exp().cpu()
    return values.tolist()


def perplexity(model: TextModel, sentences: Sequence[str], max_length: int = 50) -> float:
    """The mean of `perplexities` over the sentences."""
    values = perplexities(model, sentences, max_length)
    if not values:
        raise LineasError("perplexity needs at least one sentence of two tokens.")
    return sum(values) / len(values)
