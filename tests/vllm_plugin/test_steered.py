"""Maps with a strength for every token, on networks whose batch is one row of tokens, as an engine runs them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lineas
from lineas.errors import LineasError
from lineas.sites import Site
from lineas.vllm_plugin.steered import SteeredNetwork

WIDTH, TOKENS, PLACES = 6, 16, 3


class Block(nn.Module):
    """Norm and linear as an engine has them: the norm adds the residual, the linear returns its bias beside."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = FusedNorm(WIDTH)
        self.mlp = RowLinear(WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = self.norm(hidden, residual if residual is not None else torch.zeros_like(hidden))
        hidden, _ = self.mlp(hidden)
        return hidden, residual  # pyright: ignore[reportReturnType]


class FusedNorm(nn.LayerNorm):
    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(hidden + residual), hidden + residual


class RowLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x), None


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, residual = self.layers[0](x, None)
        hidden, residual = self.layers[1](hidden, residual)
        return hidden + residual


class Plain(nn.Module):
    """The same arithmetic with hooks for maps at norms, linears and blocks: the oracle."""

    def __init__(self, network: Network, maps: dict[str, Any]) -> None:
        super().__init__()
        self.network, self.maps = network, maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.network.layers):
            normed = self._at(f"layers.{i}.norm", nn.LayerNorm.forward(block.norm, x))  # pyright: ignore[reportArgumentType]
            out = self._at(f"layers.{i}.mlp", nn.Linear.forward(block.mlp, normed))  # pyright: ignore[reportArgumentType]
            x = self._at(f"layers.{i}", x + out)
        return x

    def _at(self, name: str, z: torch.Tensor) -> torch.Tensor:
        return self.maps[name](z) if name in self.maps else z


def some(seed: int, names: tuple[str, ...] = ("layers.0.norm", "layers.1.mlp", "layers.0")) -> lineas.Intervention:
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(2, WIDTH, generator=generator) for name in names}
    return lineas.Intervention({name: lineas.AffineMap(1 + n[0], n[1]) for name, n in noise.items()})


def prepared(*interventions: lineas.Intervention) -> tuple[Network, SteeredNetwork]:
    torch.manual_seed(0)
    network = Network()
    widths = {site: WIDTH for intervention in interventions for site in intervention.sites.values()}
    steered = SteeredNetwork(network, widths, WIDTH, PLACES, TOKENS, torch.device("cpu"))
    for place, intervention in enumerate(interventions):
        steered.put(place, intervention)
    return network, steered


def untouched() -> Network:
    torch.manual_seed(0)
    return Network()


def test_every_token_has_its_request_s_strengths() -> None:
    first, second = some(1), some(2)
    network, steered = prepared(first, second)
    x = torch.randn(9, WIDTH)
    asked = [{0: 0.7}, {}, {0: -0.5, 1: 1.5}, {1: 1.0}]
    counts = np.array([2, 3, 1, 3])
    steered.lay_out(asked, counts)
    found = network(x)
    start = 0
    for strengths, count in zip(asked, counts):
        weights = {[first, second][place]: s for place, s in strengths.items()}
        maps = lineas.mix(weights).maps if weights else {}
        expected = Plain(untouched(), maps)(x[start : start + count])
        torch.testing.assert_close(found[start : start + count], expected)
        start += count
    assert torch.equal(found[2:5], untouched()(x)[2:5])  # to the bit


def test_a_batch_leaves_nothing_for_the_next() -> None:
    network, steered = prepared(some(1))
    x = torch.randn(5, WIDTH)
    plain = untouched()(x)
    steered.lay_out([{0: 1.0}], np.array([5]))
    assert not torch.allclose(network(x), plain)
    steered.lay_out([{0: 1.0}, {}], np.array([1, 1]))
    assert torch.equal(network(x)[1:], plain[1:])  # also tokens that pad a batch
    steered.lay_out([{}], np.array([5]))
    assert torch.equal(network(x), plain)


def test_a_place_is_written_in_the_buffers_that_compiled_graphs_hold() -> None:
    network, steered = prepared(some(1))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    x = torch.randn(4, WIDTH)
    steered.lay_out([{0: 1.0}], np.array([4]))
    first = compiled(x)
    steered.put(0, some(2))
    torch.testing.assert_close(compiled(x), Plain(untouched(), some(2).maps)(x))
    steered.clear(0)
    torch.testing.assert_close(compiled(x), untouched()(x))
    assert not torch.allclose(first, untouched()(x))


def test_an_intervention_at_fewer_sites_forgets_those_of_the_one_before() -> None:
    network, steered = prepared(some(1))
    fewer = some(3, ("layers.0.norm",))
    steered.put(0, fewer)
    steered.lay_out([{0: 1.0}], np.array([4]))
    x = torch.randn(4, WIDTH)
    torch.testing.assert_close(network(x), Plain(untouched(), fewer.maps)(x))


def test_names_and_weights_stay_what_they_were() -> None:
    network, _ = prepared(some(1))
    assert list(network.state_dict()) == list(untouched().state_dict())
    assert type(network.layers[0].norm).__name__ == "FusedNorm"
    assert isinstance(network.layers[0].norm, FusedNorm)


@pytest.mark.parametrize(
    ("site", "width", "sentence"),
    [
        (Site("layers.7.norm"), WIDTH, "does not have as a module of its own"),
        (Site("norm"), WIDTH, "does not have as a module of its own"),
        (Site("layers.0.norm", output=1), WIDTH, "not a module's first output"),
        (Site("layers.0.norm", axis=1), WIDTH, "not a module's first output"),
        (Site("layers.0.norm"), 5, "'layers.0.norm' has 5 neurons, the network's rows have 6"),
    ],
)
def test_what_an_engine_lacks_is_refused_before_anything_is_changed(site: Site, width: int, sentence: str) -> None:
    network = untouched()
    with pytest.raises(LineasError, match=sentence):
        SteeredNetwork(network, {Site("layers.1.norm"): WIDTH, site: width}, WIDTH, 1, TOKENS, torch.device("cpu"))
    assert type(network.layers[1].norm) is FusedNorm


def test_a_later_intervention_elsewhere_is_refused() -> None:
    _, steered = prepared(some(1))
    with pytest.raises(LineasError, match=r"acts on 'layers.1.norm', which carries no map here; .* LINEAS_SITES"):
        steered.put(1, some(2, ("layers.1.norm",)))


@pytest.mark.parametrize(("kind", "value"), [("scale", torch.inf), ("shift", torch.nan), ("shift", 1e300)])
def test_numbers_that_are_not_finite_are_refused_and_reach_no_token(kind: str, value: float) -> None:
    network, steered = prepared(some(1))
    bad = some(2)
    map_ = lineas.AffineMap(torch.ones(WIDTH), torch.zeros(WIDTH))
    object.__setattr__(map_, kind, torch.full((WIDTH,), value, dtype=torch.float64))  # past the map's own checks
    bad.maps["layers.0"] = map_
    with pytest.raises(LineasError, match=r"the map at 'layers\.0' is not finite"):
        steered.put(1, bad)
    x = torch.randn(4, WIDTH)
    steered.lay_out([{}], np.array([4]))
    assert torch.equal(network(x), untouched()(x))


def test_layers_are_found_where_an_engine_nests_them_elsewhere() -> None:
    torch.manual_seed(0)
    outer = nn.ModuleDict({"language_model": Network()})
    steered = SteeredNetwork(outer, {Site("model.layers.0.norm"): WIDTH}, WIDTH, 1, TOKENS, torch.device("cpu"))
    map_ = lineas.AffineMap(torch.full((WIDTH,), 2.0), torch.ones(WIDTH))
    steered.put(0, lineas.Intervention({"model.layers.0.norm": map_}))
    steered.lay_out([{0: 1.0}], np.array([3]))
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(outer["language_model"](x), Plain(untouched(), {"layers.0.norm": map_})(x))
