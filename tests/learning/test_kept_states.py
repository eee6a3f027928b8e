"""Kept hidden states: shortened passes give the same to the bit, save blocks, and never act where they would not."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from torch import nn

import lineas
from lineas.learning.capture import capture
from lineas.learning.kept_states import blocks_before, keeping_states
from lineas.steering.hooks import edited


def layers(model: lineas.TextModel) -> Any:
    """Return the two blocks of a Llama."""
    return model.network.model.layers  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]


def counted(blocks: Any) -> list[int]:
    """Return a list of how often each block's MLP ran, which goes on counting."""
    ran = [0] * len(blocks)
    for i, block in enumerate(blocks):
        block.mlp.register_forward_hook(lambda *_, i=i: ran.__setitem__(i, ran[i] + 1))
    return ran


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3", "opt", "gpt2"])
def test_shortened_passes_are_the_same_to_the_bit(family: str) -> None:
    model = families.model(family)
    model.network.requires_grad_(False)
    samples = model.samples(families.PROMPTS)
    last = model.sites()[-1:]
    batch = samples.batch(20)
    kept = keeping_states(model, samples, last, batch.parts, 2**20)
    for factor in (1.0, 1.5):
        with torch.no_grad(), edited(model.network, {last[0]: lambda z, by=factor: z * by}):
            whole = capture(model, batch, last)
            for _ in range(2):
                assert torch.equal(capture(kept, batch, last)[last[0].name], whole[last[0].name])
            assert all(torch.equal(kept.predict(part), model.predict(part)) for part in batch.parts)


def test_the_blocks_before_the_first_site_run_once_for_each_part() -> None:
    model = families.model("llama")
    model.network.requires_grad_(False)
    samples, last = model.samples(families.PROMPTS), model.sites()[-1:]
    batch, other = samples.batch(20), samples.batch(20)
    kept = keeping_states(model, samples, last, batch.parts, 2**20)
    ran = counted(layers(model))
    with torch.no_grad():
        for _ in range(3):
            capture(kept, batch, last)
        assert ran[0] == len(batch.parts)
        capture(kept, other, last)  # parts that were not given
        capture(kept, other, last)
        assert ran[0] == 3 * len(batch.parts)
        model.run(batch.parts[0])  # the network itself is as it was
    assert ran == [3 * len(batch.parts) + 1, 1]
    assert not any("forward" in vars(block) for block in layers(model))


def test_states_that_exceed_the_memory_are_not_kept() -> None:
    model = families.model("llama")
    samples, last = model.samples(families.PROMPTS), model.sites()[-1:]
    batch = samples.batch(20)
    one = keeping_states(model, samples, last, batch.parts, 4 * 32 * 20)  # the trial, and no whole part
    ran = counted(layers(model))
    with torch.no_grad():
        for _ in range(2):
            capture(one, batch, last)
    assert ran[0] >= 2 * len(batch.parts) - 1


def test_a_network_whose_later_blocks_read_earlier_ones_runs_whole() -> None:
    """A block that adds what an earlier module put aside would add that of another prompt."""
    model = families.model("llama")
    first, second = layers(model)
    aside: list[torch.Tensor] = []
    plain = first.mlp.forward

    class Aside(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            aside.append(plain(x))
            return aside[-1]

    first.mlp = Aside()
    own = second.mlp.forward
    second.mlp.forward = lambda x: own(x) + aside.pop()
    samples, last = model.samples(families.PROMPTS), model.sites()[-1:]
    batch = samples.batch()
    kept = keeping_states(model, samples, last, batch.parts, 2**20)
    with torch.no_grad():
        assert all(torch.equal(kept.predict(part), model.predict(part)) for part in batch.parts * 2)


def test_only_blocks_before_every_site_are_left_out() -> None:
    model = families.model("llama")
    first, _ = layers(model)
    assert blocks_before(model.network, model.sites()) == []
    assert blocks_before(model.network, model.sites()[1:]) == [first]
    assert blocks_before(model.network, model.sites(r"model\.layers\.1")) == [first]
    assert blocks_before(model.network, model.sites(r"model\.embed_tokens|model\.layers\.1")) == []
