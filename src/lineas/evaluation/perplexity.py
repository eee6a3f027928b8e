"""Perplexity of a text model on sentences, and its divergence from the untouched model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from lineas.errors import DESTROYED, LineasError
from lineas.evaluation.variants import Change
from lineas.models.scoring import predictions, scored_parts, token_mean
from lineas.models.text import TextModel
from lineas.models.text_batches import PaddedPart


@torch.no_grad()
def perplexities(model: TextModel, sentences: Sequence[str], max_length: int = 50, prefix: str = "") -> list[float]:
    """Return for each sentence `exp` of the mean negative log-likelihood of its tokens after the first.

    The paper averages these over sentences (arXiv 2503.10679, section 4: Wikipedia sentences of at most 50 tokens).

    Sentences with a single token are left out, and tokens beyond `max_length` are cut. The prefix is a text before each
    sentence, which is not counted.
    """
    before = _prefix(model, prefix)

    def one(part: PaddedPart) -> list[torch.Tensor]:
        return [_perplexity(part, predictions(model, part, before).log_softmax(-1))]

    return _per_sentence(model, sentences, max_length, one)[0]


def perplexity(model: TextModel, sentences: Sequence[str], max_length: int = 50, prefix: str = "") -> float:
    """Return the mean of `perplexities` over the sentences."""
    values = perplexities(model, sentences, max_length, prefix)
    if not all(map(math.isfinite, values)):
        raise LineasError(DESTROYED)
    return sum(values) / len(values)


@torch.no_grad()
def damages(
    model: TextModel, change: Change, sentences: Sequence[str], max_length: int = 50, prefix: str = ""
) -> tuple[list[float], list[float]]:
    """Return for each sentence the changed model's perplexity and its divergence from the untouched model.

    The divergence is the mean over a sentence's tokens of `KL(untouched || changed)` between next-token distributions,
    in nats. Both need one pass of the changed and one of the untouched model. The arguments are those of
    `perplexities`, and the change, which is in place now; only the changed model reads the prefix.
    """
    before = _prefix(model, prefix)

    def both(part: PaddedPart) -> list[torch.Tensor]:
        with change.off():
            plain = predictions(model, part).log_softmax(-1)
        changed = predictions(model, part, before).log_softmax(-1)
        return [*compared(part, plain, changed)]

    values, divergences = _per_sentence(model, sentences, max_length, both)
    return values, divergences


def compared(part: PaddedPart, plain: torch.Tensor, changed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each text's perplexity with the changed predictions and its divergence from the plain ones, float64 `[b]`.

    Args:
        plain: log-probabilities of the untouched model, `[b, t - 1, vocabulary]`.
        changed: those of the changed one.
    """
    divergence = token_mean(part, (plain.exp() * (plain - changed)).sum(-1)).clamp_min(0)
    return _perplexity(part, changed), divergence


def sentence_parts(model: TextModel, sentences: Sequence[str], max_length: int = 50) -> list[PaddedPart]:
    """Return the sentences, cut to `max_length` tokens, in parts; those with a single token are left out."""
    encoded = [ids[:max_length] for ids in model.token_ids(sentences) if ids[1:max_length]]
    if not encoded:
        raise LineasError("perplexity needs at least one sentence of two tokens.")
    return scored_parts(model, encoded)


def _perplexity(part: PaddedPart, predicted: torch.Tensor) -> torch.Tensor:
    """Return the perplexity of each text, float64 `[b]`, from log-probabilities `[b, t - 1, vocabulary]`."""
    return token_mean(part, -predicted.gather(-1, part.ids[:, 1:].unsqueeze(-1)).squeeze(-1)).exp()


def _per_sentence(
    model: TextModel, sentences: Sequence[str], max_length: int, measure: Callable[[PaddedPart], list[torch.Tensor]]
) -> list[list[float]]:
    """Return each value that `measure` gives for a part, as one number for each sentence in their order."""
    parts = sentence_parts(model, sentences, max_length)
    rows = torch.cat([part.rows for part in parts]).cpu()
    return [torch.cat(column).cpu()[rows.argsort()].tolist() for column in zip(*map(measure, parts))]


def _prefix(model: TextModel, text: str) -> torch.Tensor:
    """Return the token ids of the text before a sentence, `[p]`."""
    ids = model.token_ids([text], special=False)[0] if text else []
    return torch.tensor(ids, dtype=torch.long, device=model.device)
