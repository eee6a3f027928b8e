"""Every method of learning: what its maps are, against independent ways of finding them, and that all of them go
through everything an intervention can do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from families import OTHER_PROMPTS, PROMPTS, outputs
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score

import lineas
from lineas import CAA, AurA, GaussianAcT, ITIc, LinAcT, LinEAS, LineasError, MeanAcT, TextModel
from lineas.learning import Method, transport
from lineas.learning.aura import auroc
from lineas.learning.method import Task
from lineas.sites import Site

METHODS: list[Method] = [
    LinEAS(steps=3),
    MeanAcT(),
    GaussianAcT(),
    LinAcT(),
    CAA(),
    CAA(layers="all"),
    ITIc(),
    AurA(),
]
CAUSAL: dict[type, Callable[[torch.Tensor, torch.Tensor], lineas.AffineMap]] = {
    MeanAcT: transport.mean_map,
    GaussianAcT: transport.gaussian_map,
    LinAcT: transport.linear_map,
}


def learn(model: TextModel, method: Method, **options: Any) -> lineas.Intervention:
    return lineas.learn(model, PROMPTS, OTHER_PROMPTS, method, progress=False, **options)


def pooled(model: TextModel, prompts: list[str], site: Site, pooling: str = "mean") -> torch.Tensor:
    """By hand, `[n, d]`."""
    return torch.stack(
        [tokens.amax(0) if pooling == "max" else tokens.mean(0) for tokens in outputs(model, prompts, site)]
    )


# ------------------------------------------------------------------------------------------------- what the maps are


@pytest.mark.parametrize("method", [MeanAcT(), GaussianAcT(), LinAcT()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt"])
def test_layerwise_maps_are_those_fitted_site_after_site_on_the_steered_network(
    family: str, pooling: str, method: Method
) -> None:
    """One pass gives what is found the slow way: steer with the maps so far, look at the next site, fit, go on."""
    model = families.model(family)
    learned = learn(model, method, pooling=pooling)
    assert len(learned.maps) == families.LAYERS
    so_far: dict[str, lineas.AffineMap] = {}
    for name, site in learned.sites.items():
        reached = pooled(model, OTHER_PROMPTS, site, pooling)
        if so_far:
            with lineas.steer(model, lineas.Intervention(so_far)):
                left = pooled(model, PROMPTS, site, pooling)
        else:
            left = pooled(model, PROMPTS, site, pooling)
        expected = CAUSAL[type(method)](left, reached)
        torch.testing.assert_close(learned.maps[name].scale, expected.scale, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(learned.maps[name].shift, expected.shift, atol=1e-3, rtol=1e-3)
        so_far[name] = learned.maps[name]


def test_layerwise_learning_takes_one_pass_of_each_side_and_with_little_memory_the_same_maps(
    stories: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TextModel(copy.deepcopy(stories.network), stories.tokenizer)
    model.batch(PROMPTS)  # the first batch of a network finds out whether it packs
    calls = families.count_calls(model.network)
    whole = learn(model, LinAcT())
    assert calls() == 3  # target, source, and what of it a token takes
    monkeypatch.setattr("lineas.learning.act.largest_part", lambda *_, **__: 20)
    parts = learn(model, LinAcT())
    assert calls() > 10
    for name, map_ in whole.maps.items():
        torch.testing.assert_close(parts.maps[name].scale, map_.scale, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(parts.maps[name].shift, map_.shift, atol=1e-4, rtol=1e-3)
    assert parts.facts["cost"] == pytest.approx(whole.facts["cost"], rel=1e-3)


def test_steered_means_and_deviations_are_the_targets(stories: TextModel) -> None:
    for method in (MeanAcT(), GaussianAcT()):
        learned = learn(stories, method, sites=r".*\.[024]\.self_attn\.o_proj")
        for site in learned.sites.values():
            reached = pooled(stories, OTHER_PROMPTS, site)
            with lineas.steer(stories, learned):
                moved = pooled(stories, PROMPTS, site)
            torch.testing.assert_close(moved.mean(0), reached.mean(0), atol=1e-4, rtol=1e-3)
            if isinstance(method, GaussianAcT):
                torch.testing.assert_close(moved.std(0), reached.std(0), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("layers", ["all", "middle"])
def test_caa_adds_the_difference_of_the_mean_hidden_states(layers: Any) -> None:
    model = families.model("llama", num_hidden_layers=5)

    def hidden(prompts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            runs = [
                model.network(torch.tensor([model.tokenizer(p).input_ids]), output_hidden_states=True) for p in prompts
            ]
        return torch.stack([torch.stack([h[0].mean(0) for h in run.hidden_states[1:]]) for run in runs]).mean(0)

    vectors = hidden(OTHER_PROMPTS) - hidden(PROMPTS)  # [layers, d]; the last of transformers' has passed a norm
    learned = learn(model, CAA(layers=layers))
    expected = {"model.layers.2": 2} if layers == "middle" else {f"model.layers.{i}": i for i in range(5)}
    assert list(learned.maps) == list(expected)
    for name, i in expected.items():
        assert bool((learned.maps[name].scale == 1).all())
        if i < 4:
            torch.testing.assert_close(learned.maps[name].shift, vectors[i], atol=1e-5, rtol=1e-4)


def test_iti_moves_alpha_deviations_along_the_direction_of_the_best_linear_classifier() -> None:
    """Against the penalised logistic regression minimised by scipy."""
    model = families.model("llama")
    learned = learn(model, ITIc(alpha=0.7))
    for name, site in learned.sites.items():
        left, reached = (pooled(model, side, site).double().numpy() for side in (PROMPTS, OTHER_PROMPTS))
        x = np.concatenate([left, reached])
        y = np.array([-1.0] * len(left) + [1.0] * len(reached))

        def loss(p: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> float:
            return float(0.5 * p[:-1] @ p[:-1] + np.logaddexp(0, -y * (x @ p[:-1] + p[-1])).sum())

        best = minimize(loss, np.zeros(x.shape[1] + 1), method="L-BFGS-B", tol=1e-12).x[:-1]
        direction = best / np.linalg.norm(best)
        expected = 0.7 * (x @ direction).std() * direction
        shift = learned.maps[name].shift.double().numpy()
        assert np.linalg.norm(shift - expected) < 0.01 * np.linalg.norm(expected)
        assert bool((learned.maps[name].scale == 1).all())
        assert (reached - left.mean(0)).mean(0) @ shift > 0  # towards the target


def test_aura_dampens_by_the_auroc_of_the_largest_activation() -> None:
    model = families.model("llama")
    learned = learn(model, AurA())
    assert len(learned.maps) == 3 * families.LAYERS
    assert 0.2 < learned.support() < 0.8
    for name, site in learned.sites.items():
        left, reached = (
            torch.stack([tokens.amax(0) for tokens in outputs(model, side, site)]) for side in (PROMPTS, OTHER_PROMPTS)
        )
        labels = [1] * len(left) + [0] * len(reached)
        scores = torch.cat([left, reached]).numpy()
        areas = np.array([roc_auc_score(labels, scores[:, j]) for j in range(scores.shape[1])])
        expected = np.where(areas > 0.5, 1 - 2 * (areas - 0.5), 1.0)
        np.testing.assert_allclose(learned.maps[name].scale.numpy(), expected, atol=1e-6)
        assert bool((learned.maps[name].shift == 0).all())


def test_auroc_counts_ties_half() -> None:
    generator = torch.Generator().manual_seed(0)
    left, reached = (torch.randint(0, 4, (n, 6), generator=generator).float() for n in (9, 5))
    labels = [1] * 9 + [0] * 5
    expected = [roc_auc_score(labels, torch.cat([left, reached])[:, j].numpy()) for j in range(6)]
    assert auroc(left, reached).tolist() == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------- what all of them do


def name_of(method: Method) -> str:
    return f"{type(method).__name__}{''.join(map(str, asdict(method).values()))}"


def all_but(*kinds: type) -> pytest.MarkDecorator:
    """Run a test of what is learned for every method that is none of these."""
    left = [method for method in METHODS if not isinstance(method, kinds)]
    return pytest.mark.parametrize("method", left, ids=name_of, indirect=True)


@pytest.fixture(scope="module", params=METHODS, ids=name_of)
def method(request: pytest.FixtureRequest) -> Method:
    return request.param


@pytest.fixture(scope="module")
def learned(method: Method, stories: TextModel) -> lineas.Intervention:
    return learn(stories, method, seed=3)


def logits(model: TextModel) -> torch.Tensor:
    with torch.no_grad():
        return model.network(torch.tensor([model.tokenizer(PROMPTS[0]).input_ids])).logits


def test_the_maps_are_finite_float32_and_say_how_they_were_made(method: Method, learned: lineas.Intervention) -> None:
    assert all(bool(m.scale.isfinite().all() and m.shift.isfinite().all()) for m in learned.maps.values())
    assert {t.dtype for m in learned.maps.values() for t in (m.scale, m.shift)} == {torch.float32}
    facts = json.loads(json.dumps(learned.facts))
    assert facts["method"]["name"] == type(method).__name__
    assert facts["method"].get("layers") == asdict(method).get("layers")
    assert facts["seed"] == 3
    assert facts["folds"].keys() == learned.maps.keys()


@all_but(LinEAS)  # whose cost is from before its last update; tested in test_lineas.py
def test_the_cost_is_that_of_the_steered_network(learned: lineas.Intervention, stories: TextModel) -> None:
    costs = []
    for site in learned.sites.values():
        reached = pooled(stories, OTHER_PROMPTS, site)
        with lineas.steer(stories, learned):
            costs.append(float(transport.cost(pooled(stories, PROMPTS, site), reached)))
    assert learned.facts["cost"] == [pytest.approx(sum(costs) / len(costs), rel=1e-3)]


def test_save_and_load_give_the_same_maps(learned: lineas.Intervention, tmp_path: Path) -> None:
    learned.save(tmp_path / "saved")
    again = lineas.Intervention.load(tmp_path / "saved")
    for name, map_ in learned.maps.items():
        assert torch.equal(again.maps[name].scale, map_.scale)
        assert torch.equal(again.maps[name].shift, map_.shift)


def test_steering_moves_the_output_by_strength_and_leaves_it_at_zero(
    learned: lineas.Intervention, stories: TextModel
) -> None:
    plain = logits(stories)
    with lineas.steer(stories, learned, strength=0.0) as live:
        assert torch.equal(logits(stories), plain)
        moved = []
        for strength in (0.25, 1.0):
            live.strength = strength
            moved.append(float((logits(stories) - plain).norm()))
    assert 0 < moved[0] < moved[1]
    assert torch.equal(logits(stories), plain)


def test_composition_is_one_after_the_other(learned: lineas.Intervention, stories: TextModel) -> None:
    other = learn(stories, LinEAS(steps=2), sites=list(learned.sites))
    with lineas.steer(stories, [learned.at(0.5), other]):
        at_once = logits(stories)
    with lineas.steer(stories, learned, strength=0.5), lineas.steer(stories, other):
        torch.testing.assert_close(logits(stories), at_once, atol=1e-4, rtol=1e-4)
    with lineas.steer(stories, lineas.mix({learned: 1.0, other: 0.0})), torch.no_grad():
        mixed = logits(stories)
    with lineas.steer(stories, learned):
        torch.testing.assert_close(mixed, logits(stories), atol=1e-4, rtol=1e-4)


@all_but(CAA)
def test_what_folds_gives_the_same_network_as_steering(learned: lineas.Intervention, stories: TextModel) -> None:
    with lineas.steer(stories, learned, strength=0.5):
        live = logits(stories)
    folded = logits(lineas.fold(stories, learned, strength=0.5))
    assert float((folded - live).abs().max()) <= 1e-5 * float(live.abs().max())


@pytest.mark.parametrize("method", [m for m in METHODS if isinstance(m, CAA)], ids=name_of, indirect=True)
def test_what_acts_on_blocks_does_not_fold_and_says_why(learned: lineas.Intervention, stories: TextModel) -> None:
    with pytest.raises(LineasError, match="no weight makes the output of a LlamaDecoderLayer"):
        lineas.fold(stories, learned)


def test_the_same_seed_gives_the_same_maps(method: Method, learned: lineas.Intervention, stories: TextModel) -> None:
    again = learn(stories, method, seed=3)
    for name, map_ in learned.maps.items():
        assert torch.equal(again.maps[name].scale, map_.scale)
        assert torch.equal(again.maps[name].shift, map_.shift)


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_wrong_settings_are_said() -> None:
    with pytest.raises(LineasError, match="'middle' or 'all', not 'last'"):
        CAA(layers="last")  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match="alpha must be a positive number, not 0"):
        ITIc(alpha=0)


@pytest.mark.filterwarnings("ignore:prompts of tiny-llama are padded")
@pytest.mark.parametrize("method", [MeanAcT(), LinAcT(), CAA(), ITIc()], ids=lambda m: type(m).__name__)
def test_activations_that_overflow_are_refused(method: Method) -> None:
    model = families.model("llama")
    network: Any = model.network
    with torch.no_grad():
        network.model.layers[0].self_attn.o_proj.weight.fill_(torch.inf)
    with pytest.raises(LineasError, match=r"the map at model\.layers\.\d.* is not finite, so nothing was learned"):
        learn(model, method)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_default_sites_are_there_in_every_family(family: str) -> None:
    model = families.model(family)
    per_block = {CAA: 1, LinAcT: 1}
    for method, count in per_block.items():
        assert len(model.sites(method.default_sites)) == count * families.LAYERS
    assert len(model.sites(AurA.default_sites)) >= families.LAYERS


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_method_by_itself_is_not_fitted_on_a_steered_network(method: Method) -> None:
    model = families.model("llama")
    sites = model.default_sites(method.default_sites)
    task = Task(model, model.samples(PROMPTS), model.samples(OTHER_PROMPTS), sites)
    change = lineas.AffineMap(torch.ones(32), torch.ones(32))
    with (
        lineas.steer(model, lineas.Intervention({"model.norm": change})),
        pytest.raises(LineasError, match="being steered; detach first"),
    ):
        method.fit(task)
