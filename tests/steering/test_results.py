"""Every kind of result, type and layout that a module may put out is steered and keeps its kind."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from families import BEFORE_5
from tiny_transformers import (
    FAMILIES,
    WIDTH,
    Returns,
    assert_same,
    by_hand,
    logits,
    prompt,
    some_intervention,
    some_map,
    tiny,
)
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from lineas import Intervention, LineasError, steer
from lineas.sites import Site

Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.5, 0.5])], ids=["number", "rows"])
@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda x: x, 0),
        (lambda x: (x, "kept"), 0),
        (lambda x: ("kept", x), 1),
        (lambda x: (x, None), 0),
        (lambda x: [x, "kept"], 0),
        (lambda x: Pair("kept", x), 1),
        (lambda x: {"kept": "kept", "hidden": x}, 1),
        (lambda x: BaseModelOutput(last_hidden_state=x, hidden_states=(x,)), 0),
    ],
    ids=["tensor", "tuple", "tuple:1", "tuple with None", "list", "namedtuple:1", "dict:1", "ModelOutput"],
)
def test_every_kind_of_result_can_be_steered_and_keeps_its_kind(wrap: Any, output: int, strength: Any) -> None:
    network = nn.Sequential(Returns(wrap))
    site, map_, x = Site("0", output), some_map(1), torch.randn(2, 3, WIDTH)
    with steer(network, Intervention({site.name: map_}, {site.name: site}), strength):
        result = network(x)
    original = network[0].result
    assert type(result) is type(original)
    assert_same(site.pick(result), map_.at(0.5)(x))
    assert torch.equal(site.pick(original), x)  # what the module returned, container included, is as it was
    if not isinstance(result, torch.Tensor):
        values, kept = (list(r.values()) if isinstance(r, dict) else list(r) for r in (result, original))  # pyright: ignore[reportArgumentType]
        assert len(values) == len(kept)
        assert all(now is then for i, (now, then) in enumerate(zip(values, kept)) if i != output)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.norm", torch.Tensor), ("model.layers.0.self_attn", tuple), ("model", dict), ("model.layers.0", object)],
)
def test_the_results_of_a_real_transformer_can_be_steered(name: str, kind: type) -> None:
    network, map_ = tiny("llama"), some_map(1)
    seen: list[Any] = []
    reader = network.get_submodule(name).register_forward_hook(lambda m, a, r: seen.append(r))
    plain = logits(network, prompt())
    assert isinstance(seen[0], kind)
    reader.remove()
    with steer(network, Intervention({name: map_})):
        network.get_submodule(name).register_forward_hook(lambda m, a, r: seen.append(r))
        steered = logits(network, prompt())
    assert type(seen[1]) is type(seen[0])
    assert_same(Site(name).pick(seen[1]), map_(Site(name).pick(seen[0])))
    assert not torch.equal(steered, plain)


def test_an_output_that_is_no_tensor_is_refused_in_a_sentence() -> None:
    network, site = tiny("llama"), Site("model.layers.0.self_attn", 1)
    with (
        steer(network, Intervention({site.name: some_map(0)}, {site.name: site})),
        pytest.raises(LineasError, match="self_attn is not a tensor"),
    ):
        logits(network, prompt())


@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.5, 0.5])], ids=["number", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_type_of_activation_keeps_its_type_and_is_computed_in_float32_or_wider(dtype: Any, strength: Any) -> None:
    network, map_ = nn.Sequential(nn.Identity()), some_map(0)
    x = torch.randn(2, 3, WIDTH, dtype=torch.float64).to(dtype)
    with steer(network, Intervention({"0": map_}), strength):
        z = network(x)
    assert z.dtype == dtype
    half = map_.at(0.5)
    exact = half.scale.double() * x.double() + half.shift.double()
    torch.testing.assert_close(
        z, exact.to(dtype), atol=1e-6, rtol=torch.finfo(dtype).eps if dtype.itemsize < 8 else 1e-7
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_of_any_type_is_steered_and_keeps_its_type(family: str, dtype: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    with steer(network, intervention):
        expected = logits(network, prompt())
    network.to(dtype)
    plain = logits(network, prompt())
    with steer(network, intervention):
        steered = logits(network, prompt())
    assert steered.dtype == plain.dtype == dtype
    wanted, got = (expected - plain.float()), (steered - plain).float()
    assert torch.nn.functional.cosine_similarity(wanted.flatten(), got.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("tokens", ["all", "prompt"])
@pytest.mark.parametrize("strength", [0.5, torch.tensor([0.0, 0.5])], ids=["number", "rows"])
@pytest.mark.parametrize(
    "device",
    [
        pytest.param("meta", marks=pytest.mark.skipif(BEFORE_5, reason="transformers 4 makes no masks on meta")),
        *(["cuda"] if torch.cuda.is_available() else []),
    ],
)
def test_maps_and_strengths_follow_the_activation_to_its_device(device: str, strength: Any, tokens: Any) -> None:
    network = tiny("opt").to(device)
    with steer(network, some_intervention(network), strength, tokens=tokens) as live:
        live.prompt_length = torch.tensor([2, 3])
        assert logits(network, prompt().to(device)).device.type == device


def test_channels_on_the_second_axis_are_steered_by_row() -> None:
    network, site, map_ = nn.Sequential(nn.Conv2d(3, 4, 1)), Site("0", axis=1), some_map(0, 4)
    x = torch.randn(2, 3, 5, 5)
    plain = network(x)
    with steer(network, Intervention({"0": map_}, {"0": site}), torch.tensor([1.0, 0.5])):
        steered = network(x)
    assert_same(steered[0], map_(plain, axis=1)[0])
    assert_same(steered[1], map_.at(0.5)(plain, axis=1)[1])


class Flattening(nn.Module):
    """A language model whose middle layer sees `[batch * tokens, d]`, as those of mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        z = self.embed(input_ids)
        return self.head(self.middle(z.flatten(0, 1)).unflatten(0, input_ids.shape))


def test_a_layer_that_flattens_batch_and_tokens_is_steered_by_row_and_by_token() -> None:
    torch.manual_seed(0)
    network, map_ = Flattening(), some_map(0, 4)
    ids = torch.randint(9, (2, 3))
    plain = network(ids)
    with by_hand(network, {"middle": map_}):
        full = network(ids)
    with by_hand(network, {"middle": map_.at(0.5)}):
        half = network(ids)
    intervention = Intervention({"middle": map_})
    with steer(network, intervention, torch.tensor([0.5, 1.0])):
        assert_same(network(ids), torch.stack([half[0], full[1]]))
    with steer(network, intervention, tokens="generated") as live:
        live.prompt_length = 2
        assert_same(network(ids), torch.cat([plain[:, :2], full[:, 2:]], 1))
