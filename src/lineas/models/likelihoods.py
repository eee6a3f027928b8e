"""Log-likelihoods of continuations after their contexts; a common beginning of many contexts is run once."""

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
"""Minimum number of tokens of a common beginning that is run once."""
TOGETHER = 8
"""Minimum number of texts with a common beginning that is run once."""
KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)
"""The kinds of cache layers with which a common beginning can be run once."""


@torch.no_grad()
def likelihoods(
    model: TextModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    longest: int,
    rows: int = 16,
    progress: Callable[[int], Any] | None = None,
) -> list[tuple[float, bool]]:
    """Return each continuation's log-likelihood after its context, in nats, and whether it is the greedy continuation.

    In few-shot tasks all contexts begin with the same examples. These run once, and their keys and values are reused.
    Continuations of one token after the same context share one run.

    Args:
        pairs: token ids of each context and its continuation, at least one token each.
        longest: maximum number of tokens that run; longer texts lose their beginning.
    """
    runs: dict[tuple[int, ...], list[int]] = {}  # for each text that runs, the indices of its pairs
    for i, (context, continuation) in enumerate(pairs):
        runs.setdefault(tuple([*context, *continuation][-longest - 1 : -1]), []).append(i)
    model.check_length(max(map(len, runs), default=0))
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    for texts in _by_beginning(list(runs)):
        first_read = min(len(text) - len(pairs[i][1]) for text in texts for i in runs[text])
        common = _common_beginning(texts)[:first_read]
        cache = _cache(model, common) if len(texts) >= TOGETHER and len(common) >= BEGINNING else None
        past = 0 if cache is None else len(common)
        texts = sorted(texts, key=len)
        for some in (texts[start : start + rows] for start in range(0, len(texts), rows)):
            for part in scored_parts(model, [text[past:] for text in some]):
                logits = _logits(model, part, cache, past)
                part_texts = [some[row] for row in part.rows.tolist()]
                for text, steps in zip(part_texts, logits):
                    for i in runs[text]:
                        results[i] = _likelihood(steps[: len(text) - past], pairs[i][1])
                if progress:
                    progress(sum(len(runs[text]) for text in part_texts))
    return results


def _by_beginning(texts: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Group texts by their first tokens; texts with a rare beginning form one group."""
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for text in texts:
        groups.setdefault(text[:BEGINNING], []).append(text)
    large = [group for group in groups.values() if len(group) >= TOGETHER]
    others = [text for group in groups.values() if len(group) < TOGETHER for text in group]
    return [*large, others] if others else large


def _common_beginning(texts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the tokens with which all texts begin: those common to the smallest and the largest in order."""
    first, last = min(texts), max(texts)
    return first[: next((k for k, (a, b) in enumerate(zip(first, last)) if a != b), len(first))]


def _cache(model: TextModel, ids: tuple[int, ...]) -> DynamicCache | None:
    """Return keys and values of a beginning; None if the network stores something else, such as recurrent states."""
    output = model.network(input_ids=torch.tensor([ids], device=model.device), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    whole = type(cache) is DynamicCache and all(type(layer) in KEYS_AND_VALUES for layer in cache.layers)
    return cache if whole else None


def _logits(model: TextModel, part: PaddedPart, cache: DynamicCache | None, past: int) -> torch.Tensor:
    """Return the logits of texts that continue a cached beginning, `[b, t, vocabulary]`."""
    if cache is None:
        return model.network(input_ids=part.ids, attention_mask=part.mask, use_cache=False).logits
    cache = copy.deepcopy(cache)  # since a run adds to it
    cache.batch_repeat_interleave(len(part.ids))
    mask = torch.cat([part.mask.new_ones(len(part.ids), past), part.mask], 1)
    return model.network(input_ids=part.ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits


def _likelihood(logits: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """Return a continuation's log-likelihood, and whether it is the greedy one, from the last of `[t, vocabulary]`."""
    ids = torch.tensor(continuation, device=logits.device)
    steps = logits[len(logits) - len(ids) :].float().log_softmax(-1)
    if bool(steps.isnan().any()):
        raise LineasError(DESTROYED)
    return float(steps.gather(-1, ids.unsqueeze(-1)).sum()), bool((steps.argmax(-1) == ids).all())
