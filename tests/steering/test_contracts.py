"""Steering writes nothing in place, is removed completely, and a failure half-way leaves nothing behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_transformers import (
    FAMILIES,
    VOCABULARY,
    WIDTH,
    continued,
    hooks_and_attributes,
    logits,
    prompt,
    some_intervention,
    some_map,
    tiny,
)
from torch import nn

from lineas import Intervention, LineasError, steer
from lineas.sites import Site
from lineas.steering.hooks import edited

# ---- nothing is written in place, nothing is added to the state


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
@pytest.mark.parametrize("strength", [1.0, torch.tensor([0.3, 1.0])], ids=["number", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tensor_a_module_returned_is_left_as_it_was(family: str, strength: Any, tokens: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    returned: list[tuple[torch.Tensor, torch.Tensor]] = []
    for name in intervention.maps:  # hooks run in the order of registration, so these see what the module returned
        network.get_submodule(name).register_forward_hook(lambda m, a, z: returned.append((z, z.clone())))
    with steer(network, intervention, strength, tokens=tokens) as live:
        live.prompt_length = 2
        steered = logits(network, prompt())
    assert len(returned) == 2
    assert all(torch.equal(now, then) for now, then in returned)
    assert not torch.equal(steered, logits(network, prompt()))


@pytest.mark.parametrize("strength", [1.0, torch.tensor([0.0, 1.0])], ids=["number", "rows"])
def test_a_module_that_returns_its_input_does_not_let_steering_write_into_it(strength: Any) -> None:
    network = nn.Sequential(nn.Identity())
    x = torch.ones(2, 3, WIDTH)
    with steer(network, Intervention({"0": some_map(0)}), strength):
        assert not torch.equal(network(x), x)
    assert torch.equal(x, torch.ones(2, 3, WIDTH))


def test_the_state_dict_is_the_same_while_steered_and_afterwards() -> None:
    network = tiny("llama")
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    with steer(network, some_intervention(network), tokens="generated"):
        continued(network, prompt())
        during = network.state_dict()
        parameters = dict(network.named_parameters())
    for state in (during, network.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], weight) for name, weight in before.items())
    assert parameters.keys() == dict(network.named_parameters()).keys()


# ---- removal


@pytest.mark.parametrize("tokens", ["all", "prompt", "generated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_removal_is_complete_and_may_be_repeated(family: str, tokens: Any) -> None:
    network = tiny(family)
    ids = prompt()
    before, output, texts = hooks_and_attributes(network), logits(network, ids), continued(network, ids)
    with steer(network, some_intervention(network), tokens=tokens) as live:
        live.prompt_length = 2
        assert not torch.equal(logits(network, ids), output)
        continued(network, ids)
    for _ in range(2):
        assert hooks_and_attributes(network) == before
        assert network.generate.__func__ is type(network).generate
        assert torch.equal(logits(network, ids), output)
        assert continued(network, ids) == texts
        live.detach()


def test_the_block_detaches_when_an_error_leaves_it() -> None:
    network = tiny("llama")
    before = hooks_and_attributes(network)
    with (
        pytest.raises(IndexError),
        steer(network, some_intervention(network), torch.ones(2), tokens="prompt"),
    ):
        continued(network, torch.full((2, 3), VOCABULARY))  # no such token
    assert hooks_and_attributes(network) == before


def test_detaching_keeps_the_hooks_of_others_and_those_made_meanwhile() -> None:
    network = tiny("llama")
    calls: list[str] = []
    network.model.norm.register_forward_hook(lambda *_: calls.append("before"))
    with steer(network, some_intervention(network, "model.norm")):
        network.model.norm.register_forward_hook(lambda *_: calls.append("meanwhile"))
    logits(network, prompt())
    assert calls == ["before", "meanwhile"]


@pytest.mark.parametrize("tokens", ["all", "generated"])
def test_a_generate_of_the_users_own_is_still_there_afterwards(tokens: Any) -> None:
    network = tiny("llama")
    network.generate = own = lambda *args, **kwargs: "mine"
    with steer(network, some_intervention(network), tokens=tokens):
        assert network.generate(prompt()) == "mine"
    assert network.generate is own


def test_a_copy_made_while_steered_generates_with_its_own_weights() -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network)):
        twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert continued(twin, prompt()) == [[0] * 8] * 2
    assert continued(network, prompt()) != [[0] * 8] * 2


# ---- a failure half-way through installation


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("tokens", ["all", "generated"])
def test_a_failure_half_way_through_installation_rolls_back(tokens: Any, error: type[BaseException]) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    output = logits(network, prompt())

    def fails(*_: Any, **__: Any) -> None:
        raise error

    last = network.get_submodule(list(intervention.maps)[-1])
    last.register_forward_hook = fails
    before = hooks_and_attributes(network)
    with pytest.raises(error):
        steer(network, intervention, tokens=tokens)
    assert hooks_and_attributes(network) == before
    assert torch.equal(logits(network, prompt()), output)


def test_a_module_that_disappears_during_installation_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny("gpt2")
    intervention = some_intervention(network)
    gone = list(intervention.maps)[-1]
    find = network.get_submodule

    def find_most(name: str) -> nn.Module:
        if name == gone:
            raise AttributeError(name)
        return find(name)

    before = hooks_and_attributes(network)
    monkeypatch.setitem(network.__dict__, "get_submodule", find_most)
    with pytest.raises((LineasError, AttributeError)):
        steer(network, intervention, tokens="prompt")
    monkeypatch.undo()
    assert hooks_and_attributes(network) == before


def test_edits_roll_back_when_a_site_is_missing_and_end_with_the_block() -> None:
    network = tiny("llama")
    before, output = hooks_and_attributes(network), logits(network, prompt())
    with (
        pytest.raises((LineasError, AttributeError)),
        edited(network, {Site("model.norm"): torch.neg, Site("gone"): torch.neg}),
    ):
        pass
    assert hooks_and_attributes(network) == before
    with edited(network, {Site("lm_head"): torch.neg}):
        assert torch.equal(logits(network, prompt()), -output)
    assert hooks_and_attributes(network) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": "some"},
        {"strength": float("nan")},
        {"strength": float("inf")},
        {"strength": torch.tensor([1.0, float("nan")])},
        {"strength": torch.ones(2, 3)},
        {"strength": torch.ones(0)},
        {"intervention": []},
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_in_a_sentence_and_leaves_nothing_behind(wrong: dict[str, Any]) -> None:
    network = tiny("llama")
    before = hooks_and_attributes(network)
    with pytest.raises(LineasError):
        steer(network, **{"intervention": some_intervention(network), **wrong})
    assert hooks_and_attributes(network) == before
