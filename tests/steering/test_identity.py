"""An intervention fits the network it was learned on, and any other is refused unless forced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import (
    Letters,
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

from lineas import Intervention, LineasError, TextModel, steer
from lineas.intervention.model_identity import ModelIdentity


def learned_on(network: nn.Module, pattern: str | None = None) -> Intervention:
    plain = some_intervention(network, pattern)
    return Intervention(plain.maps, plain.sites, ModelIdentity.of(network, "home/model"))


def assert_forced(network: Any, intervention: Intervention) -> None:
    with by_hand(network, intervention.maps):
        expected = logits(network, prompt())
    with steer(network, intervention, other_model=True):
        assert_same(logits(network, prompt()), expected)


def test_another_architecture_is_refused_by_name_unless_forced() -> None:
    network, intervention = tiny("mistral"), learned_on(tiny("llama"))
    before = hooks_and_attributes(network)
    with pytest.raises(LineasError, match=r"home/model \(LlamaForCausalLM\), not on a Mistral.*other_model=True"):
        steer(network, intervention)
    assert hooks_and_attributes(network) == before
    assert_forced(network, intervention)


def test_another_checkpoint_is_refused_by_its_norm_weights_unless_forced() -> None:
    network, intervention = tiny("llama", seed=1), learned_on(tiny("llama"))
    with pytest.raises(LineasError, match=r"home/model.*other norm weights.*other_model=True"):
        steer(network, intervention)
    assert_forced(network, intervention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_same_checkpoint_in_another_type_is_accepted(dtype: Any) -> None:
    network = tiny("llama").to(dtype)
    with steer(network, learned_on(tiny("llama"))) as live:
        assert live.verify() > 0


@pytest.mark.parametrize("force", [False, True])
def test_a_missing_module_is_refused_by_name_even_when_forced(force: bool) -> None:
    network = tiny("gpt2")
    with pytest.raises(
        LineasError, match=r"'model.layers.0.post_attention_layernorm' and 1 other.* GPT2LMHeadModel does not have"
    ):
        steer(network, learned_on(tiny("llama")), other_model=force)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.norm"),
        ("llama", "model.layers.0.self_attn.o_proj"),
        ("gpt2", "transformer.h.0.attn.c_proj"),
        ("gpt2", "transformer.ln_f"),
    ],
)
def test_another_width_is_refused_with_both_widths_even_when_forced(family: str, name: str, force: bool) -> None:
    network = tiny(family)
    with pytest.raises(LineasError, match=r"16 .*32 "):
        steer(network, Intervention({name: some_map(0, 16)}), other_model=force)


@pytest.mark.parametrize("width", [1, 16])
@pytest.mark.parametrize("strength", [1.0, torch.ones(2)], ids=["number", "rows"])
@pytest.mark.parametrize("name", ["model.layers.0", "model.layers.0.mlp"])
def test_a_width_known_only_when_the_network_runs_is_refused_then(name: str, strength: Any, width: int) -> None:
    network = tiny("llama")
    with (
        steer(network, Intervention({name: some_map(0, width)}), strength),
        pytest.raises(LineasError, match=rf"{width} neurons"),
    ):
        logits(network, prompt())


def test_a_bare_module_works_as_well_as_a_text_model() -> None:
    model = TextModel(tiny("llama"), Letters())
    intervention = learned_on(model.network)
    with steer(model, intervention, 0.6):
        through_model = logits(model.network, prompt())
        texts = model.generate(["one", "three"], temperature=0)
    with steer(model.network, intervention, 0.6):
        assert torch.equal(logits(model.network, prompt()), through_model)
        assert model.generate(["one", "three"], temperature=0) == texts
    assert model.generate(["one", "three"], temperature=0) != texts
    network, map_, x = nn.Sequential(nn.Linear(3, 4)), some_map(0, 4), torch.randn(2, 3)
    expected = map_(network(x))
    with steer(network, Intervention({"0": map_})):  # not even a transformer
        assert_same(network(x), expected)
