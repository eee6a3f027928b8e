"""How well a text model predicts given sentences: perplexity, and divergence from the untouched model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from lineas.errors import LineasError
from lineas.models.batches import PaddedPart
from lineas.models.scoring import predictions, scored_parts, token_mean
from lineas.models.text import TextModel


@torch.no_grad()
def perplexities(model: TextModel, sentences: Sequence[str], max_length: int = 50, prefix: str = "") -> list[float]:
    """Per sentence `exp` of the mean negative log-likelihood of its tokens after the first.

    The paper averages these over sentences (arXiv 2503.10679, section 4: Wikipedia sentences of at most 50 tokens).

    Args:
        model: steered or not.
        sentences: those with a single token are left out.
        max_length: tokens of a sentence; the rest is cut.
        prefix: what stands before each sentence and is not counted.

    Returns:
        one number a sentence, in order.

    Raises:
        LineasError: when no sentence has two tokens.
    """
    before = _prefix(model, prefix)

    def one(part: PaddedPart) -> torch.Tensor:
        logits = predictions(model, part, before)
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), part.ids[:, 1:], reduction="none")
        return token_mean(part, losses).exp()

    return _per_sentence(model, sentences, max_length, one)


def perplexity(model: TextModel, sentences: Sequence[str], max_length: int = 50, prefix: str = "") -> float:
    """The mean of `perplexities` over the sentences."""
    values = perplexities(model, sentences, max_length, prefix)
    return sum(values) / len(values)


@torch.no_grad()
def divergences(
    model: TextModel,
    applied: Callable[[], AbstractContextManager[Any]],
    sentences: Sequence[str],
    max_length: int = 50,
    prefix: str = "",
) -> list[float]:
    """Per sentence the mean over its tokens of `KL(untouched || changed)` between next-token distributions, in nats.

    Args:
        model: untouched.
        applied: called without arguments, a context manager within which the model is changed.
        sentences: those with a single token are left out.
        max_length: tokens of a sentence; the rest is cut.
        prefix: what stands before each sentence in the changed model alone.

    Returns:
        one number a sentence, in order; 0 where nothing changes.

    Raises:
        LineasError: when no sentence has two tokens.
    """
    before = _prefix(model, prefix)

    def one(part: PaddedPart) -> torch.Tensor:
        plain = predictions(model, part).log_softmax(-1)
        with applied():
            changed = predictions(model, part, before).log_softmax(-1)
        return token_mean(part, (plain.exp() * (plain - changed)).sum(-1)).clamp_min(0)

    return _per_sentence(model, sentences, max_length, one)


def _per_sentence(
    model: TextModel, sentences: Sequence[str], max_length: int, measure: Callable[[PaddedPart], torch.Tensor]
) -> list[float]:
    """A measure of parts, as one number a sentence in their order."""
    encoded = [ids for ids in (model.tokenizer(sentence).input_ids[:max_length] for sentence in sentences) if ids[1:]]
    if not encoded:
        raise LineasError("perplexity needs at least one sentence of two tokens.")
    values = torch.zeros(len(encoded), dtype=torch.float64)
    for part in scored_parts(model, encoded):
        values[part.rows.cpu()] = measure(part).cpu()
    return values.tolist()


def _prefix(model: TextModel, text: str) -> torch.Tensor:
    """The ids of what stands before a sentence, `[p]`."""
    ids = model.tokenizer(text, add_special_tokens=False).input_ids if text else []
    return torch.tensor(ids, dtype=torch.long, device=model.device)
