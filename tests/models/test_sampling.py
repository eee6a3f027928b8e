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
    expected = TemperatureLogitsWarper(temperature)(ids, scores)
    if top_p < 1:  # as generate does
        expected = TopPLogitsWarper(top_p)(ids, expected)
    before = scores.clone()
    found = Nucleus(temperature, top_p)(ids, scores)
    assert torch.equal(scores, before)
    differ = (found.isinf() != expected.isinf()).sum(-1)
    assert int(differ.max()) <= 1  # the last token in, where rounding of a sum of thousands decides
    assert int(differ.sum()) <= 1
    both = ~(found.isinf() | expected.isinf())
    torch.testing.assert_close(found[both], expected[both])
    assert bool((~found.isinf()).any(-1).all())
