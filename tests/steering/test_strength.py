"""Strength: exact at 0, the map at 1, a number or one a row, changed while the network runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import (
    FAMILIES,
    Letters,
    assert_same,
    by_hand,
    continued,
    logits,
    prompt,
    some_intervention,
    tiny,
)
from torch import nn

from lineas import AffineMap, Intervention, LineasError, TextModel, steer
from lineas.intervention.maps import affine
from lineas.steering.strength import SPARSE_NUMEL


@pytest.mark.parametrize("tokens", ["all", "prompt"])
@pytest.mark.parametrize("strength", [0.0, torch.zeros(2)], ids=["number", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_strength_0_is_the_identity_bit_for_bit(family: str, dtype: Any, strength: Any, tokens: Any) -> None:
    network = tiny(family).to(dtype)
    with steer(network, some_intervention(network), strength, tokens=tokens):
        at_0 = logits(network, prompt())
        texts = continued(network, prompt())
    assert torch.equal(at_0, logits(network, prompt()))
    assert texts == continued(network, prompt())


def test_at_strength_0_no_site_is_hooked_and_a_site_of_the_identity_never_is() -> None:
    network = tiny("llama")
    maps = some_intervention(network).maps
    first, *others = maps
    intervention = Intervention({**maps, first: AffineMap.identity(32)})

    def hooked() -> list[str]:
        return [name for name, module in network.named_modules() if name and module._forward_hooks]

    with steer(network, intervention, 0.5) as live:
        assert hooked() == others
        for nothing in (0.0, torch.zeros(2)):
            live.strength = nothing
            assert hooked() == []
        live.strength = torch.tensor([0.0, 0.1])
        assert hooked() == others
    with steer(network, intervention, 0.0):
        assert hooked() == []


def test_interventions_keep_their_order_when_one_is_switched_off_and_on() -> None:
    network = tiny("llama")
    one, two = some_intervention(network, seed=1), some_intervention(network, seed=2)
    with steer(network, one) as first, steer(network, two):
        expected = logits(network, prompt())
        first.strength = 0.0
        alone = logits(network, prompt())
        first.strength = 1.0
        assert torch.equal(logits(network, prompt()), expected)
    with steer(network, two), steer(network, one, 0.0) as second:
        assert torch.equal(logits(network, prompt()), alone)
        second.strength = 1.0
        assert not torch.equal(logits(network, prompt()), expected)  # the order matters for these two


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_touching_few_neurons_alone_gives_what_touching_all_gives(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.LayerNorm(512)).to(dtype)
    map_ = AffineMap.identity(512)
    map_.scale[7], map_.shift[7], map_.shift[300] = 1.5, -0.25, 0.75
    x = torch.randn(64, 5, 512).to(dtype)
    assert x.numel() > SPARSE_NUMEL
    plain = network(x)
    with steer(network, Intervention({"0": map_})) as live:
        for s in (1.0, 0.3):
            live.strength = s
            steered = network(x)
            assert torch.equal(steered, affine(plain, *(getattr(map_.at(s), k) for k in ("scale", "shift"))))
            assert (steered != plain).any(0).any(0).nonzero().flatten().tolist() == [7, 300]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_at_strength_0_is_untouched_bit_for_bit_beside_steered_rows(family: str, dtype: Any) -> None:
    network = tiny(family).to(dtype)
    plain = logits(network, prompt(3))
    with steer(network, some_intervention(network), torch.tensor([1.0, 0.0, 0.5])):
        steered = logits(network, prompt(3))
    assert torch.equal(steered[1], plain[1])
    assert not torch.equal(steered[0], plain[0])
    assert not torch.equal(steered[2], plain[2])


@pytest.mark.parametrize("strength", [0.0, torch.zeros(1)], ids=["number", "row"])
def test_strength_0_keeps_even_values_that_arithmetic_would_not(strength: Any) -> None:
    x = torch.tensor([[[-0.0, float("inf"), float("nan"), 1e-42] * 2]])
    network, map_ = nn.Sequential(nn.Identity()), AffineMap(torch.full((8,), 2.0), torch.tensor([1.0] * 4 + [-1.0] * 4))
    with steer(network, Intervention({"0": map_}), strength):
        assert torch.equal(network(x).view(torch.int32), x.view(torch.int32))


@pytest.mark.parametrize("strength", [1.0, torch.ones(2)], ids=["number", "rows"])
@pytest.mark.parametrize("family", FAMILIES)
def test_strength_1_is_the_map_applied_by_hand(family: str, strength: Any) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    with by_hand(network, intervention.maps):
        expected = logits(network, prompt())
    with steer(network, intervention, strength):
        assert_same(logits(network, prompt()), expected)


@pytest.mark.parametrize("s", [0.25, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_strength_between_is_the_map_at_that_strength(family: str, s: float) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    with by_hand(network, {name: map_.at(s) for name, map_ in intervention.maps.items()}):
        expected = logits(network, prompt())
    with steer(network, intervention, s) as live:
        assert_same(logits(network, prompt()), expected)
        live.strength = torch.tensor([s, s])
        assert_same(logits(network, prompt()), expected)
    with steer(network, intervention.at(s)):
        assert_same(logits(network, prompt()), expected)


@pytest.mark.parametrize("strength", [-0.5, 1.5, torch.tensor([0.5, 2.0])], ids=str)
def test_a_strength_outside_0_to_1_warns_and_extrapolates(strength: Any) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    with pytest.warns(UserWarning, match="outside 0 to 1"), steer(network, intervention, strength):
        steered = logits(network, prompt())
    for row, s in enumerate(torch.as_tensor(strength).expand(2).tolist()):
        with by_hand(network, {name: map_.at(s) for name, map_ in intervention.maps.items()}):
            assert_same(steered[row], logits(network, prompt())[row])


def test_strengths_within_0_to_1_do_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), 0.0) as live:
        live.strength = 1
        live.strength = torch.tensor([0.0, 1.0])
    assert not recwarn.list


def test_strength_changes_at_once() -> None:
    network, plain = tiny("llama"), tiny("llama")
    intervention = some_intervention(network)
    with steer(network, intervention) as live:
        for s in (1.0, 0.3, 0.0, torch.tensor([0.2, 0.9]), torch.tensor([0.0, 0.4]), 0.8):
            live.strength = s
            steered = logits(network, prompt())
            assert torch.equal(torch.as_tensor(live.strength), torch.as_tensor(s))
            for row, of_row in enumerate(torch.as_tensor(s).expand(2).tolist()):
                with by_hand(plain, intervention.at(of_row).maps):
                    assert_same(steered[row], logits(plain, prompt())[row])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_strength_changes_between_two_calls_of_generate(family: str, use_cache: bool) -> None:
    network = tiny(family)
    intervention = some_intervention(network)
    plain = continued(network, prompt(), use_cache=use_cache)
    with by_hand(network, intervention.at(0.6).maps):
        expected = continued(network, prompt(), use_cache=use_cache)
    with steer(network, intervention, 0.6) as live:
        assert continued(network, prompt(), use_cache=use_cache) == expected != plain
        live.strength = 0.0
        assert continued(network, prompt(), use_cache=use_cache) == plain
        live.strength = torch.tensor([0.0, 0.6])
        assert continued(network, prompt(), use_cache=use_cache) == [plain[0], expected[1]]


def test_strength_changes_in_the_middle_of_generate() -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    ids = prompt(1)
    expected = ids
    for step in range(8):
        with by_hand(network, intervention.at(1.0 if step < 4 else 0.25).maps):
            expected = torch.cat([expected, logits(network, expected)[:, -1:].argmax(-1)], 1)
    with steer(network, intervention, 1.0) as live:

        def weaken_after_four(made: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            live.strength = 1.0 if made.shape[1] - 5 < 3 else 0.25
            return scores

        made = continued(network, ids, use_cache=False, logits_processor=[weaken_after_four])
    assert made == expected[:, 5:].tolist() != continued(network, ids)


def test_the_strength_kept_is_the_strength_applied_whatever_is_done_to_the_tensor_given() -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    given = torch.ones(2)
    with steer(network, intervention, given) as live:
        logits(network, prompt())
        given.fill_(0.5)
        live.strength[0] = 0.25  # pyright: ignore[reportIndexIssue]
        steered, said = logits(network, prompt()), live.strength
    assert isinstance(said, torch.Tensor)
    for row, s in enumerate(said.tolist()):
        with by_hand(network, intervention.at(s).maps):
            assert_same(steered[row], logits(network, prompt())[row])


@pytest.mark.parametrize(("strengths", "rows"), [(3, 2), (2, 3), (4, 2), (2, 1), (2, 4)])
def test_strengths_for_another_number_of_rows_are_refused(strengths: int, rows: int) -> None:
    network = tiny("llama")
    with (
        steer(network, some_intervention(network), torch.ones(strengths)),
        pytest.raises(LineasError, match=rf"{strengths} strengths.* {rows} rows"),
    ):
        logits(network, prompt(rows))


def test_generate_refuses_strengths_for_another_number_of_prompts() -> None:
    network = tiny("llama")
    with steer(network, some_intervention(network), torch.tensor([0.0, 1.0])), pytest.raises(LineasError):
        continued(network, prompt(4))  # not "two beams each"


def test_strengths_a_row_belong_to_the_prompts_in_the_order_given() -> None:
    model = TextModel(tiny("llama"), Letters())
    prompts = ["a long prompt", "short", "the middle"]
    greedy: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 8}
    intervention = some_intervention(model.network)
    expected = []
    for text, s in zip(prompts, (0.0, 1.0, 0.5)):
        with steer(model, intervention, s):
            expected += model.generate([text], **greedy)
    with steer(model, intervention, torch.tensor([0.0, 1.0, 0.5])):
        assert model.generate(prompts, **greedy) == expected
