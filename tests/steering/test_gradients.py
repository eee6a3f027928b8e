"""Gradients through a steered network are those of the network with the maps applied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import FAMILIES, WIDTH, assert_same, by_hand, prompt, some_intervention, some_map, tiny
from torch import nn

from lineas import Intervention, steer


@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.5, 0.0])], ids=["number", "rows"])
def test_the_gradient_is_the_analytic_one(strength: Any) -> None:
    torch.manual_seed(0)
    network, map_ = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Identity()), some_map(0, 4)
    x, upstream = torch.randn(2, 3, requires_grad=True), torch.randn(2, 4)
    with steer(network, Intervention({"1": map_}), strength):
        (network(x) * upstream).sum().backward()
    scales = torch.stack([map_.at(float(s)).scale for s in torch.as_tensor(strength).expand(2)])
    assert_same(x.grad, (upstream * scales) @ network[0].weight)  # pyright: ignore[reportArgumentType, reportOperatorIssue]
    assert_same(network[0].weight.grad, (upstream * scales).T @ x.detach())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("strength", "tokens"), [(0.7, "all"), (torch.tensor([0.7, 0.0]), "all"), (torch.tensor([0.7, 0.2]), "generated")]
)
@pytest.mark.parametrize("family", ["gpt2", "opt"])  # Llama's norms round to float32, too coarse for differences
def test_gradients_reach_the_inputs_and_equal_finite_differences(family: str, strength: Any, tokens: Any) -> None:
    network = tiny(family).double().requires_grad_(False)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor) -> torch.Tensor:
        return network(inputs_embeds=x, use_cache=False).logits[:, -1]

    with steer(network, some_intervention(network), strength, tokens=tokens) as live:
        live.prompt_length = torch.tensor([1, 2])
        assert torch.autograd.gradcheck(run, x, fast_mode=True)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")  # its new name is not in 4.57
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_gets_the_gradient_of_the_steered_network_also_with_checkpointing(family: str) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    gradients = []
    for checkpointing in (None, False, True):  # None: by hand
        network.zero_grad()
        if checkpointing:
            network.gradient_checkpointing_enable()
            network.train()  # without dropout, see `tiny`
        with by_hand(network, intervention.maps) if checkpointing is None else steer(network, intervention):
            network(input_ids=prompt(), labels=prompt(), use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for other in gradients[1:]:
        for name, expected in gradients[0].items():
            assert_same(other[name], expected)


@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.5, 0.2])], ids=["number", "rows"])
def test_a_network_that_ran_in_inference_mode_can_be_differentiated_afterwards(strength: Any) -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), strength):
        with torch.inference_mode():
            network(input_ids=prompt())
        network(input_ids=prompt(), labels=prompt()).loss.backward()
    assert network.model.embed_tokens.weight.grad.abs().sum() > 0
