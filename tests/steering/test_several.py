"""Several interventions at once, and steering within steering."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_transformers import (
    FAMILIES,
    assert_same,
    by_hand,
    hooks_and_attributes,
    logits,
    prompt,
    some_intervention,
    some_map,
    tiny,
)
from torch import nn

from lineas import Intervention, LineasError, steer
from lineas.intervention.model_identity import ModelIdentity
from lineas.sites import find_sites

# ---- several interventions


@pytest.mark.parametrize("family", FAMILIES)
def test_several_interventions_become_one_map_a_site_before_anything_is_hooked(family: str) -> None:
    network = tiny(family)
    norms, final = find_sites(network), find_sites(network, r".*(model.norm|ln_f|decoder.final_layer_norm)")
    first = Intervention({s.name: some_map(i) for i, s in enumerate(norms)})
    second = Intervention({s.name: some_map(10 + i) for i, s in enumerate([*norms[1:], *final])})
    third = Intervention({norms[1].name: some_map(20)})
    with by_hand(network, first.maps), by_hand(network, second.maps), by_hand(network, third.maps):
        expected = logits(network, prompt())
    hooks = torch.nn.modules.module.Module.register_forward_hook
    hooked: list[nn.Module] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_forward_hook", lambda m, *a, **k: hooked.append(m) or hooks(m, *a, **k))
        live = steer(network, [first, second, third])
    hooked = [module for module in hooked if module is not network]  # where passes are told apart
    sites = {network.get_submodule(name) for name in {**first.maps, **second.maps}}
    assert len(hooked) == len(sites)
    assert set(hooked) == sites
    assert all(len(module._forward_hooks) == 1 for module in sites)
    assert_same(logits(network, prompt()), expected)
    live.strength = 0.5
    half = logits(network, prompt())
    live.detach()
    with steer(network, first.then(second).then(third).at(0.5)):
        assert_same(logits(network, prompt()), half)


def test_several_interventions_may_come_as_a_tuple_and_order_counts() -> None:
    network = tiny("llama")
    a, b = some_intervention(network, seed=1), some_intervention(network, seed=2)
    with steer(network, (a, b)):
        a_then_b = logits(network, prompt())
    with steer(network, (b, a)):
        assert not torch.allclose(logits(network, prompt()), a_then_b, atol=1e-3)
    with steer(network, a):
        only_a = logits(network, prompt())
    with steer(network, [a]):
        assert torch.equal(logits(network, prompt()), only_a)


def test_interventions_of_different_networks_are_refused_together() -> None:
    network, other = tiny("llama"), tiny("llama", seed=1)
    before = hooks_and_attributes(network)
    maps = some_intervention(network).maps
    pair = [Intervention(maps, base=ModelIdentity.of(n, name)) for n, name in [(network, "mine"), (other, "yours")]]
    with pytest.raises(LineasError, match="mine and yours"):
        steer(network, pair)
    assert hooks_and_attributes(network) == before


# ---- one inside the other


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_nested_steering_acts_in_turn_and_detaches_in_any_order(family: str, order: tuple[int, ...]) -> None:
    network = tiny(family)
    before, plain = hooks_and_attributes(network), logits(network, prompt())
    parts = [some_intervention(network, seed=seed) for seed in range(3)]
    lives = {i: steer(network, part, 0.5) for i, part in enumerate(parts)}
    for gone in order:
        left = [parts[i].at(0.5) for i in lives]
        steered = logits(network, prompt())
        reference = tiny(family)
        with steer(reference, left):
            assert_same(steered, logits(reference, prompt()))
        lives.pop(gone).detach()
    assert hooks_and_attributes(network) == before
    assert torch.equal(logits(network, prompt()), plain)


def test_nested_blocks_leave_the_outer_one_in_force() -> None:
    network = tiny("llama")
    a, b = some_intervention(network, seed=1), some_intervention(network, seed=2)
    with steer(network, a) as outer:
        alone = logits(network, prompt())
        with steer(network, b) as inner:
            both = logits(network, prompt())
            outer.strength = 0.0  # each keeps a strength of its own
            only_b = logits(network, prompt())
            assert inner.strength == 1.0
            outer.strength = 1.0
        assert torch.equal(logits(network, prompt()), alone)
    with steer(network, [a, b]):
        assert_same(logits(network, prompt()), both)
    with steer(network, b):
        assert torch.equal(logits(network, prompt()), only_b)
