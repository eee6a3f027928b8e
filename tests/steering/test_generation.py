"""Every way of running a language model is steered alike: caches, padding, beams, samples, assisted decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import PROMPT_LOOKUP
from tiny_transformers import FAMILIES, assert_same, by_hand, continued, logits, prompt, some_intervention, tiny

from lineas import steer


@pytest.mark.parametrize("s", [1.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_changes_nothing(family: str, s: float) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    with by_hand(network, intervention.at(s).maps):
        expected = continued(network, prompt(), use_cache=False)
    with steer(network, intervention, s):
        cached, uncached = continued(network, prompt(), use_cache=True), continued(network, prompt(), use_cache=False)
    assert cached == uncached == expected != continued(network, prompt())


def padded(lengths: list[int], side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and position ids `[b, t]` of rows of these lengths."""
    width = max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        where = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, where], mask[row, where] = prompt(1, length, seed=row)[0], 1
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("strength", [0.8, torch.tensor([0.8, 0.3, 0.0])], ids=["number", "rows"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_gives_each_row_what_it_gets_alone(family: str, side: str, strength: Any) -> None:
    network = tiny(family)
    lengths = [6, 3, 4]
    ids, mask, positions = padded(lengths, side)
    with steer(network, some_intervention(network), strength) as live:
        batch = logits(network, ids, attention_mask=mask, position_ids=positions)
        for row, s in enumerate(torch.as_tensor(strength).expand(3).tolist()):
            live.strength = s
            alone = logits(network, ids[row][mask[row] == 1].unsqueeze(0))
            assert_same(batch[row][mask[row] == 1], alone[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_padded_on_the_left_is_continued_as_each_row_alone(family: str) -> None:
    network = tiny(family)
    ids, mask, _ = padded([6, 3, 4], "left")
    strengths = torch.tensor([1.0, 0.3, 0.0])
    with steer(network, some_intervention(network), strengths) as live:
        batch = continued(network, ids, attention_mask=mask)
        for row in range(3):
            live.strength = float(strengths[row])
            assert continued(network, ids[row][mask[row] == 1].unsqueeze(0)) == [batch[row]]


@pytest.mark.parametrize("returned", [1, 3])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_beam_is_steered_by_the_strength_of_its_row(family: str, use_cache: bool, returned: int) -> None:
    network = tiny(family)
    ids = prompt(3)
    strengths = torch.tensor([0.0, 0.5, 1.0])
    beams = {"num_beams": 3, "num_return_sequences": returned, "use_cache": use_cache}
    with steer(network, some_intervention(network), strengths) as live:
        batch = continued(network, ids, **beams)
        alone = []
        for row in range(3):
            live.strength = float(strengths[row])
            alone += continued(network, ids[row : row + 1], **beams)
    assert batch == alone
    plain = continued(network, ids, **beams)
    assert batch[:returned] == plain[:returned]
    assert batch != plain


def test_every_sample_of_a_prompt_is_steered_by_the_strength_of_its_row() -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), torch.tensor([0.0, 1.0])) as live:
        batch = continued(network, prompt(), num_return_sequences=2, do_sample=True, top_k=1)
        assert batch[0] == batch[1]
        assert batch[2] == batch[3]
        for row in range(2):
            live.strength = float(row)
            assert continued(network, prompt()[row : row + 1]) == [batch[2 * row]]


@pytest.mark.parametrize("help_", ["assistant", "same weights", PROMPT_LOOKUP])
@pytest.mark.parametrize("strength", [0.3, torch.tensor([0.3])], ids=["number", "row"])
@pytest.mark.parametrize("family", FAMILIES)
def test_assisted_decoding_gives_the_steered_text(family: str, strength: Any, help_: str) -> None:
    network = tiny(family)
    ids = prompt(1, 4).repeat(1, 3)  # repeats itself, so that a look-up finds something
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if help_ != "prompt lookup":
        options = {"assistant_model": tiny(family, seed=1 if help_ == "assistant" else 0)}
        options["assistant_model"].generation_config.assistant_confidence_threshold = 0.0
    plain = continued(network, ids, max_new_tokens=12)
    with steer(network, some_intervention(network), strength):
        expected = continued(network, ids, max_new_tokens=12, use_cache=False)
        widths: list[int] = []
        network.lm_head.register_forward_pre_hook(lambda m, args: widths.append(args[0].shape[1]))
        assert continued(network, ids, max_new_tokens=12, **options) == expected != plain
    assert max(widths) > 1  # several tokens were checked at once
