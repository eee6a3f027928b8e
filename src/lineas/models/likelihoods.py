"""How likely continuations are after their contexts; what many contexts begin with is computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lineas.errors import DESTROYED, LineasError
from lineas.models.scoring import scored_parts
from lineas.models.text import TextModel
from lineas.models.text_batches import PaddedPart

BEGINNING = 32
"""Tokens that texts have in common at least where it is computed once for them."""
TOGETHER = 8
"""Texts with the same beginning, at least, where it is."""
KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)
"""What a layer may keep for texts that go on from a beginning."""


@torch.no_grad()
def likelihoods(
    model: TextModel,
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    longest: int,
    rows: int = 16,
    progress: Callable[[int], Any] | None = None,
) -> list[tuple[float, bool]]:
    """Of every continuation the log-likelihood after its context, and whether each of its tokens is the likeliest.

    Few-shot tasks put the same examples before every question: they run once, and their keys and values serve all.
    Continuations of one token after the same context are read off one run.

    Args:
        model: steered or not.
        asked: token ids of contexts and of their continuations, at least one each.
        longest: tokens that the network takes; longer texts lose their beginning.
        rows: texts that run together.
        progress: called with the number of continuations done.

    Returns:
        one pair a continuation, in order; log-likelihoods in nats, summed over tokens.

    Raises:
        LineasError: when the network's predictions are not finite, or a text has more tokens than it reads.
    """
    runs: dict[tuple[int, ...], list[int]] = {}  # what runs, and the continuations that are read off it
    for i, (context, continuation) in enumerate(asked):
        runs.setdefault(tuple([*context, *continuation][-longest - 1 : -1]), []).append(i)
    model.check_length(max(map(len, runs), default=0))
    found: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
    for texts in _alike(list(runs)):
        first_read = min(len(text) - len(asked[i][1]) for text in texts for i in runs[text])
        begins = _beginning(texts)[:first_read]
        cache = _cache(model, begins) if len(texts) >= TOGETHER and len(begins) >= BEGINNING else None
        past = 0 if cache is None else len(begins)
        texts = sorted(texts, key=len)
        for some in (texts[start : start + rows] for start in range(0, len(texts), rows)):
            for part in scored_parts(model, [text[past:] for text in some]):
                logits = _logits(model, part, cache, past)
                ran = [some[row] for row in part.rows.tolist()]
                for text, steps in zip(ran, logits):
                    for i in runs[text]:
                        found[i] = _read(steps[: len(text) - past], asked[i][1])
                if progress:
                    progress(sum(len(runs[text]) for text in ran))
    return found


def _alike(texts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Texts by what they begin with, and those that have too little in common with others together."""
    by_beginning: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for text in texts:
        by_beginning.setdefault(text[:BEGINNING], []).append(text)
    many = [some for some in by_beginning.values() if len(some) >= TOGETHER]
    alone = [text for some in by_beginning.values() if len(some) < TOGETHER for text in some]
    return [*many, alone] if alone else many


def _beginning(texts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """What all texts begin with: what the first and the last in order do."""
    first, last = min(texts), max(texts)
    return first[: next((k for k, (a, b) in enumerate(zip(first, last)) if a != b), len(first))]


def _cache(model: TextModel, ids: tuple[int, ...]) -> DynamicCache | None:
    """Keys and values of a beginning; None of a network that keeps something else, such as recurrent states."""
    output = model.network(input_ids=torch.tensor([ids], device=model.device), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    whole = type(cache) is DynamicCache and all(type(layer) in KEYS_AND_VALUES for layer in cache.layers)
    return cache if whole else None


def _logits(model: TextModel, part: PaddedPart, cache: DynamicCache | None, past: int) -> torch.Tensor:
    """The logits of texts, `[b, t, vocabulary]`, after what is in the cache."""
    if cache is None:
        return model.network(input_ids=part.ids, attention_mask=part.mask, use_cache=False).logits
    cache = copy.deepcopy(cache)  # a run adds to it
    cache.batch_repeat_interleave(len(part.ids))
    mask = torch.cat([part.mask.new_ones(len(part.ids), past), part.mask], 1)
    return model.network(input_ids=part.ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits


def _read(logits: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """The log-likelihood of a continuation, and whether it is the likeliest, from logits `[t, vocabulary]` of which the
    last are its own."""
    ids = torch.tensor(continuation, device=logits.device)
    steps = logits[len(logits) - len(ids) :].float().log_softmax(-1)
    if bool(steps.isnan().any()):
        raise LineasError(DESTROYED)
    return float(steps.gather(-1, ids.unsqueeze(-1)).sum()), bool((steps.argmax(-1) == ids).all())
