"""Fingerprints: one checkpoint in every type of its weights, and what a fine-tune changes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import families
import pytest
import torch
from torch import nn

from lineas import LineasError
from lineas.intervention.fingerprint import Fingerprint, compared, norm_digest, same
from lineas.intervention.model_identity import ModelIdentity, fingerprint

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return families.network("llama")


@pytest.fixture(scope="module")
def copies(network: nn.Module) -> dict[str, nn.Module]:
    """The network in every type, and what was stored in one and loaded in another."""
    made = {name: copy.deepcopy(network).to(kind) for name, kind in TYPES.items()}
    for stored, loaded in (("float16", "float32"), ("bfloat16", "float32"), ("bfloat16", "float16")):
        made[f"{stored} in {loaded}"] = copy.deepcopy(made[stored]).to(TYPES[loaded])
    return made


def test_all_types_of_one_checkpoint_agree(copies: dict[str, nn.Module]) -> None:
    recorded = {name: fingerprint(one) for name, one in copies.items()}
    for (name, text), (other, one) in product(recorded.items(), copies.items()):
        assert compared(text, one) == ("same", ""), (name, other)
    assert all(same(a, b) for a, b in product(recorded.values(), repeat=2))
    assert max(map(len, recorded.values())) < 1000


def with_adapter(network: Any) -> None:
    from peft import LoraConfig

    network.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))


def with_bias(network: Any) -> None:
    network.model.layers[0].mlp.down_proj.bias = nn.Parameter(torch.ones(32))


def with_noise(share: float) -> Callable[[Any], None]:
    def add(network: Any) -> None:
        for layer in network.model.layers:
            weight = layer.self_attn.q_proj.weight.data
            weight += share * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

    return add


def with_rows_swapped(network: Any) -> None:
    weight = network.model.layers[1].mlp.up_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def with_more_tokens(network: Any) -> None:
    network.resize_token_embeddings(families.VOCABULARY + 8, mean_resizing=False)


CHANGES = {
    "an adapter": (with_adapter, "lora_A"),
    "a bias more": (with_bias, "down_proj.bias"),
    "noise of 2 %": (with_noise(0.02), "q_proj.weight"),
    "rows swapped": (with_rows_swapped, "up_proj.weight"),
    "more tokens": (with_more_tokens, "embed_tokens.weight"),
}


@pytest.mark.parametrize("case", list(CHANGES))
def test_other_weights_with_the_same_norms_are_accepted_with_a_warning_that_names_both(
    case: str, network: nn.Module, copies: dict[str, nn.Module]
) -> None:
    change, named = CHANGES[case]
    tuned = copy.deepcopy(network)
    change(tuned)
    for kind in TYPES:
        base = ModelIdentity("owner/base", "LlamaForCausalLM", fingerprint(copies[kind]))
        tuned.config._name_or_path = "owner/tuned"  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        with pytest.warns(UserWarning, match=rf"owner/base, and owner/tuned .* such as .*{named}"):
            base.check_is(tuned)


def test_a_share_of_a_thousandth_is_seen_in_the_type_that_was_recorded(network: nn.Module) -> None:
    for kind in (torch.float32, torch.bfloat16):
        tuned = copy.deepcopy(network)
        with_noise(1e-3)(tuned)
        assert compared(fingerprint(copy.deepcopy(network).to(kind)), tuned.to(kind))[0] == "close"


def test_other_norms_are_another_checkpoint(network: nn.Module) -> None:
    other = copy.deepcopy(network)
    other.model.norm.weight.data[:4] *= 1.3  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    for kind in TYPES.values():
        base = ModelIdentity.of(copy.deepcopy(network).to(kind), "base")
        with pytest.raises(LineasError, match="other norm weights, so it is another checkpoint"):
            base.check_is(other)
    assert not same(fingerprint(network), fingerprint(other))


@pytest.mark.parametrize("wrong", ["", "x", "v2:", "v2:AAAA", "v2:é", "F" * 64, "f" * 63, "f" * 65, "v3:" + "f" * 61])
def test_what_no_lineas_recorded_is_refused_where_it_is_read(wrong: str, network: nn.Module) -> None:
    with pytest.raises(LineasError, match="is no fingerprint of a network"):
        ModelIdentity("base", "LlamaForCausalLM", wrong)
    for right in (fingerprint(network), norm_digest(network)):
        assert ModelIdentity("base", "LlamaForCausalLM", right).fingerprint == right


def test_what_lineas_0_1_recorded_is_still_known(copies: dict[str, nn.Module]) -> None:
    digest = norm_digest(copies["float32"])
    assert compared(digest, copies["float32"]) == compared(digest, copies["bfloat16"]) == ("same", "")
    assert compared(digest, copies["float16"]) == ("unknown", "")  # rounded twice, its bits are gone
    assert compared(norm_digest(copies["float16"]), copies["float32"]) == ("same", "")
    assert compared(digest, families.network("llama", seed=1)) == ("other", "")
    assert same(digest, fingerprint(copies["bfloat16"]))
    assert same(norm_digest(copies["float16"]), fingerprint(copies["float32"]))
    assert not same("0" * 64, fingerprint(copies["float32"]))
    with pytest.warns(UserWarning, match="in float16, where it cannot be told whether it is base"):
        ModelIdentity("base", "LlamaForCausalLM", digest).check_is(copies["float16"])


def test_weights_that_are_quantised_or_elsewhere_are_not_compared(network: nn.Module) -> None:
    recorded = fingerprint(network)
    partly = copy.deepcopy(network)
    for layer in partly.model.layers:  # pyright: ignore[reportAttributeAccessIssue, reportGeneralTypeIssues]
        layer.mlp.down_proj.weight = nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
        layer.mlp.up_proj.to("meta")
    assert compared(recorded, partly) == ("same", "")
    assert compared(fingerprint(partly), network) == ("same", "")
    partly.model.norm.weight.data *= 2  # pyright: ignore[reportAttributeAccessIssue, reportOperatorIssue]
    assert compared(recorded, partly)[0] == "other"


@pytest.mark.parametrize("text", ["v2:", "v2:x", "v2:AAAA", "v2:" + "A" * 100, "v2:é"])
def test_a_damaged_fingerprint_is_said(text: str, network: nn.Module) -> None:
    with pytest.raises(LineasError, match="is no fingerprint of a network"):
        compared(text, network)


def test_a_fingerprint_reads_what_it_wrote(network: nn.Module) -> None:
    made = Fingerprint.of(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(Fingerprint.read(str(made))) == str(made)
