"""`verify` tells whether the output moves, and is not deceived."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from tiny_transformers import FAMILIES, WIDTH, logits, prompt, some_intervention, some_map, tiny
from torch import nn

from lineas import AffineMap, Intervention, LineasError, steer


@pytest.mark.parametrize("strength", [1.0, torch.tensor([0.0, 0.5])], ids=["number", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_verify_returns_the_largest_change_of_the_output(family: str, strength: Any) -> None:
    network = tiny(family)
    before = logits(network, prompt())
    with steer(network, some_intervention(network), strength) as live:
        after = logits(network, prompt())
        change = live.verify(input_ids=prompt(), use_cache=False)
        assert change == pytest.approx(float((after - before).abs().max()), rel=1e-4)
        assert live.verify() > 0  # on eight tokens of its own
        assert torch.equal(torch.as_tensor(live.strength), torch.as_tensor(strength))
        assert torch.equal(logits(network, prompt()), after)  # and the network is steered as before


@pytest.mark.parametrize("tokens", ["prompt", "generated"])
def test_verify_is_one_call_for_every_choice_of_tokens(tokens: Any) -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), tokens=tokens) as live:
        assert live.verify() > 0
        live.prompt_length = 2
        assert live.verify(input_ids=prompt()) > 0


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.used(x), 0.5, self.training)


def test_verify_raises_when_the_output_does_not_move() -> None:
    network, x = WithUnused().eval(), torch.randn(2, 4)
    with steer(network, Intervention({"unused": some_map(0, 4)})) as live:
        with pytest.raises(LineasError, match="did not move"):
            live.verify(x=x)
        assert live.strength == 1.0
    with steer(network, Intervention({"used": some_map(0, 4)})) as live:
        assert live.verify(x=x) > 0
        live.strength = 0.0
        with pytest.raises(LineasError, match="strength 0"):
            live.verify(x=x)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_verify_refuses_a_destroyed_model(family: str) -> None:
    network = tiny(family)
    found = some_intervention(network)
    enormous = {name: AffineMap(m.scale, torch.full_like(m.shift, 3e38)) for name, m in found.maps.items()}
    with steer(network, Intervention(enormous, found.sites)) as live, pytest.raises(LineasError, match="is destroyed"):
        live.verify()


def test_verify_looks_at_numbers_alone_where_a_network_masks_some() -> None:
    network, x = WithUnused().eval(), torch.randn(2, 4)
    network.register_forward_hook(lambda _, __, result: result.index_fill(1, torch.tensor([2]), -torch.inf))
    with steer(network, Intervention({"used": some_map(0, 4)})) as live:
        assert 0 < live.verify(x=x) < torch.inf


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_verify_finds_where_the_inputs_of_an_offloaded_network_go(offload: Any, tmp_path: Any) -> None:
    network = tiny("llama")
    found = some_intervention(network)
    with steer(network, found) as live:
        moved = live.verify()
    offload(network, *([tmp_path] if offload is disk_offload else []), execution_device=torch.device("cpu"))
    with steer(network, found) as live:
        assert live.verify() == pytest.approx(moved)


def test_verify_is_not_deceived_by_dropout() -> None:
    network = WithUnused().train()
    with (
        steer(network, Intervention({"unused": some_map(0, 4)})) as live,
        pytest.raises(LineasError, match="did not move"),
    ):
        live.verify(x=torch.randn(2, 4))


def test_verify_is_fine_for_an_intervention_that_changes_nothing() -> None:
    network = tiny("llama")
    with steer(network, Intervention({"model.norm": AffineMap.identity(WIDTH)})) as live:
        assert live.verify() == 0.0


def test_verify_asks_for_inputs_where_it_cannot_make_its_own() -> None:
    with (
        steer(WithUnused(), Intervention({"used": some_map(0, 4)})) as live,
        pytest.raises(LineasError, match="inputs"),
    ):
        live.verify()
