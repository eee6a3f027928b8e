"""Nucleus sampling against transformers' own temperature and top-p."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from lineas.models.sampling import LARGEST, Nucleus


@pytest.mark.parametrize("top_p", [1e-9, 0.05, 0.3, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0], ids=["flat", "normal", "peaked"])
@pytest.mark.parametrize("vocabulary", [50, 4 * LARGEST])
def test_the_nucleus_is_transformers_own(top_p: float, temperature: float, spread: float, vocabulary: int) -> None:
    """Also where a few hundred tokens do not hold the share, and with rows already shut out."""
    generator = torch.Generator().manual_seed(0)
    scores = spread * torch.randn(6, vocabulary, generator=generator)
    scores[0, ::2] = -torch.inf
    ids = torch.zeros(6, 1, dtype=torch.long)
    expected = TemperatureLogitsWarper(temperature)(ids, scores)  # pyright: ignore[reportArgumentType]
    if top_p < 1:  # as generate does
        expected = TopPLogitsWarper(top_p)(ids, expected)  # pyright: ignore[reportArgumentType]
    before = scores.clone()
    kept, tokens = Nucleus(temperature, top_p).nucleus(scores)
    found = torch.full_like(scores, -torch.inf).scatter(-1, tokens, kept)
    assert torch.equal(scores, before)
    differ = (found.isinf() != expected.isinf()).sum(-1)
    assert int(differ.max()) <= 1  # the last token in, where rounding of a sum of thousands decides
    assert int(differ.sum()) <= 1
    both = ~(found.isinf() | expected.isinf())
    torch.testing.assert_close(found[both], expected[both])
    assert bool((~found.isinf()).any(-1).all())


@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(top_p: float) -> None:
    draws = 20_000
    scores = torch.tensor([2.0, -torch.inf, 0.5, 1.0, 0.0])
    expected = TemperatureLogitsWarper(0.7)(torch.zeros(1, 1), scores[None])  # pyright: ignore[reportArgumentType]
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(torch.zeros(1, 1), expected)  # pyright: ignore[reportArgumentType]
    likely = expected[0].softmax(-1)
    torch.manual_seed(0)
    drawn = Nucleus(0.7, top_p)(torch.zeros(draws, 1, dtype=torch.long), scores.expand(draws, -1))
    assert bool(((~drawn.isinf()).sum(-1) == 1).all())
    counts = drawn.argmax(-1).bincount(minlength=5) / draws
    assert bool((counts[likely == 0] == 0).all())
    assert torch.equal(counts > 0, likely > 0)
    torch.testing.assert_close(counts, likely, atol=4 * 0.5 / draws**0.5, rtol=0)  # four standard errors
