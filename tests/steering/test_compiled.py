"""Compiled networks are steered or refused, and never silently left unsteered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_transformers import (
    Letters,
    assert_same,
    by_hand,
    continued,
    hooks_and_attributes,
    logits,
    prompt,
    some_intervention,
    some_map,
    tiny,
)
from torch import nn
from transformers import CompileConfig

from lineas import Intervention, LineasError, TextModel, steer

COMPILED: dict[str, Any] = {  # what cache_implementation="static" alone means on a GPU
    "cache_implementation": "static",
    "compile_config": CompileConfig(backend="eager", mode="default", fullgraph=False),
    "max_new_tokens": 4,
}
COMPILED["compile_config"]._compile_all_devices = True


@pytest.fixture
def compiler() -> Iterator[None]:
    """The compiler keeps what it made for a class of networks; here every test begins and ends without."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_as_a_whole(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")  # pyright: ignore[reportReturnType]


def compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


def compiled_block(network: nn.Module) -> nn.Module:
    network.model.layers[0].compile(backend="eager")  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    return network


def compiled_wrapped_block(network: nn.Module) -> nn.Module:
    network.model.layers[0] = torch.compile(network.model.layers[0], backend="eager")  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue, reportCallIssue, reportIndexIssue]
    return network


def compiled_forward(network: nn.Module) -> nn.Module:
    network.forward = torch.compile(network.forward, backend="eager")
    return network


def compiled_by_generate(network: nn.Module) -> nn.Module:
    continued(network, prompt(), **COMPILED)
    return network


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    "compile_",
    [
        compiled_as_a_whole,
        compiled_in_place,
        compiled_block,
        compiled_wrapped_block,
        compiled_forward,
        compiled_by_generate,
    ],
)
def test_a_compiled_network_is_refused_instead_of_left_unsteered(compile_: Callable[[nn.Module], nn.Module]) -> None:
    network = compile_(tiny("llama"))
    before = hooks_and_attributes(network)
    norm = next(name for name, _ in network.named_modules() if name.endswith(".input_layernorm"))
    for given in (network, TextModel(network, Letters())):
        with pytest.raises(LineasError, match="compiled"):
            steer(given, Intervention({norm: some_map(0)}))
    assert hooks_and_attributes(network) == before


@pytest.mark.usefixtures("compiler")
def test_steering_first_and_compiling_afterwards_works_as_the_error_says() -> None:
    torch.manual_seed(0)
    network, map_ = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)), some_map(0, 4)
    plain, x = copy.deepcopy(network), torch.randn(2, 4)
    with steer(network, Intervention({"1": map_})) as live:
        compiled = torch.compile(network, backend="eager")
        for s in (1.0, 0.25, 0.0):
            live.strength = s
            with by_hand(plain, {"1": map_.at(s)}):
                assert_same(compiled(x), plain(x))
        live.strength = 1.0
    assert_same(compiled(x), plain(x))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("compile_", [compiled_as_a_whole, compiled_in_place, compiled_block])
def test_a_compiled_network_follows_the_strength_without_being_compiled_again(compile_: Any) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    expected = {}
    for s in (0.3, 0.9, 0.0):
        with steer(network, intervention, s):
            expected[s] = logits(network, prompt())
    with steer(network, intervention, 0.5) as live:
        compiled = compile_(network)
        logits(compiled, prompt())
        with torch._dynamo.config.patch(error_on_recompile=True):
            for s in (0.3, 0.9, 0.3):
                live.strength = s
                torch.testing.assert_close(logits(compiled, prompt()), expected[s])
        for s in (0.0, 0.9, 0.0):  # switching off and on may compile again, but must be followed
            live.strength = s
            torch.testing.assert_close(logits(compiled, prompt()), expected[s])


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("compile_", [compiled_as_a_whole, compiled_in_place, compiled_block, compiled_forward])
def test_what_was_compiled_at_strength_0_is_not_silently_left_unsteered(compile_: Any) -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    with steer(network, intervention, 0.0) as live:
        compiled = compile_(network)
        logits(compiled, prompt())
        with pytest.raises(LineasError, match="compiled while its intervention was at strength 0"):
            live.strength = 1.0


@pytest.mark.usefixtures("compiler")
def test_a_network_that_generate_compiles_while_it_is_steered_is_steered_row_by_row_and_let_go() -> None:
    network = tiny("llama")
    intervention = some_intervention(network)
    plain = continued(network, prompt(), max_new_tokens=4)
    with steer(network, intervention):
        expected = continued(network, prompt(), max_new_tokens=4)
    with steer(network, intervention, torch.tensor([1.0, 0.0])) as live:
        assert continued(network, prompt(), **COMPILED) == [expected[0], plain[1]]
        live.strength = torch.tensor([0.0, 1.0])
        assert continued(network, prompt(), **COMPILED) == [plain[0], expected[1]]
    assert expected != plain
    assert continued(network, prompt(), **COMPILED) == plain
