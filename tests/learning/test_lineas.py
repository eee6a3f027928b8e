"""Learning end to end: what is reproducible, what sparsity does, and what happens when things go wrong."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lineas
from lineas import LinEAS, LineasError
from lineas.learning import check_sides, transport
from lineas.learning.capture import capture
from lineas.models.frozen import frozen
from lineas.models.loading import load_text
from lineas.steering.hooks import edited

SOURCE = ["The dog ran away from the house", "A bird sang", "He was sad and cried all day", "Tom lost his red ball"]
TARGET = [
    "The sun was warm and bright",
    "She smiled at her mom",
    "They played happily",
    "Lily found a nice toy",
    "Fun!",
]


def learn(model: lineas.TextModel, method: LinEAS, **options) -> lineas.Intervention:
    return lineas.learn(model, SOURCE, TARGET, method, progress=False, **options)


def test_cost_falls_a_lot(stories: lineas.TextModel) -> None:
    costs = learn(stories, LinEAS(optimizer="relative", steps=40)).facts["cost"]
    assert costs[-1] < 0.5 * costs[0]
    assert len(costs) == 40


def test_the_cost_is_that_of_the_steered_model(stories: lineas.TextModel) -> None:
    """Steering live with the maps of one step shows the cost that learning saw at its second step."""
    one = learn(stories, LinEAS(steps=1, learning_rate=0.3))
    seen = learn(stories, LinEAS(steps=2, learning_rate=0.3)).facts["cost"][1]
    sites = stories.sites()
    with torch.no_grad():
        target = capture(stories, stories.batch(TARGET), sites)
        with lineas.steer(stories, one):
            moved = capture(stories, stories.batch(SOURCE), sites)
    costs = [transport.cost(moved[name], v) for name, v in target.items()]
    assert float(torch.stack(costs).mean()) == pytest.approx(seen, rel=1e-5)


@pytest.mark.filterwarnings("ignore:nothing was learned")
def test_equal_sides_need_no_map_and_are_no_blow_up(stories: lineas.TextModel) -> None:
    """In float64, where it makes no difference to the last bit in which order prompts are run."""
    model = lineas.TextModel(copy.deepcopy(stories.network).double(), stories.tokenizer)
    learned = lineas.learn(model, SOURCE, SOURCE[::-1], LinEAS(steps=5), progress=False)
    assert max(learned.facts["cost"]) < 1e-6
    assert max(float((m.scale - 1).abs().max()) for m in learned.maps.values()) < 1e-4


def test_unequal_numbers_of_prompts_learn_with_the_exact_coupling(stories: lineas.TextModel) -> None:
    twice = lineas.learn(stories, SOURCE, TARGET * 2, LinEAS(steps=5, learning_rate=0.1), progress=False)
    once = learn(stories, LinEAS(steps=5, learning_rate=0.1))
    assert twice.facts["cost"] == pytest.approx(once.facts["cost"], rel=1e-4)


@pytest.mark.parametrize("factor", [2.0**10, 2.0**-10])
@pytest.mark.parametrize("method", [LinEAS(optimizer="relative", steps=6), LinEAS(divergence=1e-3)])
def test_the_unit_of_the_activations_does_not_matter(stories: lineas.TextModel, method: LinEAS, factor: float) -> None:
    """The same network with activations a thousand times larger at every site (and weights after them as much smaller)
    learns the same maps in its own unit: one default rate serves models of very different activations."""
    network: Any = copy.deepcopy(stories.network)
    with torch.no_grad():
        for layer in network.model.layers:
            layer.post_attention_layernorm.weight.mul_(factor)
            layer.mlp.gate_proj.weight.div_(factor)
            layer.mlp.up_proj.weight.div_(factor)
    here, there = (learn(m, method) for m in (stories, lineas.TextModel(network, stories.tokenizer)))
    assert there.facts["cost"] == pytest.approx([factor**2 * c for c in here.facts["cost"]], rel=1e-3)
    largest = max(float(m.shift.abs().max()) for m in here.maps.values())
    for name, map_ in here.maps.items():
        torch.testing.assert_close(there.maps[name].shift / factor, map_.shift, atol=0.01 * largest, rtol=0.01)
        torch.testing.assert_close(there.maps[name].scale, map_.scale, atol=1e-3, rtol=0)


def test_a_long_run_meets_the_optimality_conditions_of_the_penalised_cost(stories: lineas.TextModel) -> None:
    """At the end the cost's gradient is balanced by the penalty: gamma against the sign where a shift has moved, and
    no more than gamma where it is exactly 0 (lambda_g = 0), whatever unit a neuron's steps are measured in."""
    gamma = 2e-3
    learned = learn(stories, LinEAS(optimizer="relative", steps=400, gamma=gamma, lambda_g=0.0))
    sites = stories.sites()
    with torch.no_grad():
        reached = capture(stories, stories.batch(TARGET), sites)
    shifts = {site.name: learned.maps[site.name].shift.clone().requires_grad_() for site in sites}
    edits = {s: lambda z, s=s: z * learned.maps[s.name].scale + shifts[s.name] for s in sites}
    with frozen(stories.network), edited(stories.network, edits):
        moved = capture(stories, stories.batch(SOURCE), sites)
        torch.stack([transport.cost(moved[k], v) for k, v in reached.items()]).mean().backward()
    gradients = torch.cat([shifts[s.name].grad for s in sites])  # pyright: ignore[reportArgumentType]
    values = torch.cat([shifts[s.name].detach() for s in sites])
    still = values == 0
    assert 0.1 < still.float().mean() < 0.9
    assert (gradients[still].abs() <= 1.1 * gamma).float().mean() > 0.97
    balanced = (gradients[~still] + gamma * values[~still].sign()).abs() <= 0.1 * gamma
    assert balanced.float().mean() > 0.9


def test_the_same_seed_gives_the_same_bits(stories: lineas.TextModel) -> None:
    method = LinEAS(steps=4, batch_size=2)
    one, two, other = learn(stories, method, seed=1), learn(stories, method, seed=1), learn(stories, method, seed=2)
    for name, map_ in one.maps.items():
        assert torch.equal(map_.scale, two.maps[name].scale)
        assert torch.equal(map_.shift, two.maps[name].shift)
    assert one.facts["cost"] != other.facts["cost"]


def test_gamma_selects_neurons_and_sites_with_exact_zeros(stories: lineas.TextModel) -> None:
    supports = [
        learn(stories, LinEAS(optimizer="relative", steps=30, gamma=g)).support() for g in (0.0, 1e-3, 2e-3, 1e3)
    ]
    assert supports == sorted(supports, reverse=True)
    assert supports[0] > 0.99
    assert 0 < supports[2] < 0.8
    nothing = learn(stories, LinEAS(optimizer="relative", steps=30, gamma=1e3))
    assert nothing.is_identity()
    sparse = learn(stories, LinEAS(optimizer="relative", steps=30, gamma=2e-3))
    assert sum(int((m.shift == 0).sum()) for m in sparse.maps.values()) > 60
    assert sum(int((m.scale == 1).sum()) for m in sparse.maps.values()) > 60


def test_weights_are_never_changed_and_flags_come_back(stories: lineas.TextModel) -> None:
    before = {name: p.clone() for name, p in stories.network.named_parameters()}
    asked = {name: p.requires_grad for name, p in stories.network.named_parameters()}
    learn(stories, LinEAS(steps=2))
    for name, parameter in stories.network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad == asked[name]
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in stories.network.modules())


def test_dropout_is_off_while_learning_and_as_before_afterwards() -> None:
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2))
    network.train()
    network[1].eval()
    with frozen(network):
        assert not any(m.training for m in network.modules())
    assert (network.training, network[0].training, network[1].training) == (True, True, False)


def test_maps_are_float32_over_a_bfloat16_network(stories_folder: Path) -> None:
    half = load_text(stories_folder, dtype="bfloat16")
    learned = learn(half, LinEAS(steps=10))
    assert all(m.scale.dtype == m.shift.dtype == torch.float32 for m in learned.maps.values())
    assert learned.facts["cost"][-1] < learned.facts["cost"][0]
    assert learned.facts["dtype"] == "bfloat16"


def test_ctrl_c_keeps_what_was_learned_so_far_and_says_so(stories: lineas.TextModel) -> None:
    def press(done: int, steps: int, cost: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted after 3 of 10 steps"):
        kept = lineas.learn(stories, SOURCE, TARGET, LinEAS(steps=10, learning_rate=0.05), progress=press)
    assert kept.facts["steps_done"] == 3
    assert kept.facts["interrupted"] == {"done": 3, "of": 10}
    assert kept.unfinished == kept.then(kept).unfinished == "3 of 10 steps"
    assert kept.support() > 0.9

    def press_at_once(done: int, steps: int, cost: float) -> None:
        raise AssertionError("no step was done")

    def never(*_: object) -> None:
        raise KeyboardInterrupt

    original, stories.run = stories.run, never  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with pytest.raises(KeyboardInterrupt):
            lineas.learn(stories, SOURCE, TARGET, LinEAS(steps=10), progress=press_at_once)
    finally:
        stories.run = original


@pytest.mark.parametrize("optimizer", ["relative", "adam", "sgd"])
def test_a_rate_that_blows_up_names_the_step_and_a_tenth(stories: lineas.TextModel, optimizer) -> None:
    with pytest.raises(
        lineas.DivergedError, match=r"blew up to .* at step \d+ of 20 with learning rate 1e\+04; .* try 1e\+03"
    ) as diverged:
        learn(stories, LinEAS(steps=20, optimizer=optimizer, learning_rate=1e4))
    assert (diverged.value.rate, diverged.value.suggestion) == (1e4, 1e3)
    again = pickle.loads(pickle.dumps(diverged.value))  # as from a worker of a sweep
    assert (str(again), again.suggestion) == (str(diverged.value), 1e3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"optimizer": "lbfgs"}, "'adam' or 'sgd', not 'lbfgs'"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"learning_rate": 0.0}, "positive number"),
        ({"learning_rate": float("nan")}, "positive number"),
        ({"gamma": -1.0}, "gamma must be 0 or more"),
        ({"lambda_g": float("inf")}, "lambda_g must be 0 or more"),
        ({"steps": 1.5}, "steps must be a whole number from 1 to 10000000, not 1.5"),
        ({"steps": True}, "steps must be a whole number"),
        ({"divergence": 0.0, "optimizer": "natural"}, "divergence must be a positive number, not 0"),
        ({"divergence": -1, "optimizer": "natural"}, "divergence must be a positive number, not -1"),
        ({"divergence": 0.1, "optimizer": "sgd"}, "budget of the optimizer 'natural', not of 'sgd'"),
        (
            {"learning_rate": 0.1, "optimizer": "natural"},
            "the natural gradient has no learning rate; give a",
        ),
        ({"batch_size": "4"}, "batch_size must be a whole number from 2 to 1000000000, not '4'"),
        ({"learning_rate": 1e39}, "learning_rate must be at most"),
        ({"refit": "yes"}, "refit must be True or False, not 'yes'"),
        ({"batch_size": 1}, "batch_size must be at least 2, not 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence):
        LinEAS(**options)


def test_prompts_that_are_too_few_empty_or_one_string_are_refused(stories: lineas.TextModel) -> None:
    with pytest.raises(LineasError, match="the target has 1 prompt"):
        lineas.learn(stories, SOURCE, ["one"], progress=False)
    with pytest.raises(LineasError, match="the source must be a list of prompts, not one string"):
        lineas.learn(stories, "one string", TARGET, progress=False)
    wrong: list[tuple[Any, str]] = [(None, "not None"), (iter(SOURCE), "only once"), ([1, 2], "number 1 of it is")]
    for source, sentence in wrong:
        with pytest.raises(LineasError, match=f"the source .*{sentence}"):
            check_sides(source, TARGET)


@pytest.mark.filterwarnings("ignore:5 of 5 target")
def test_prompts_cut_at_the_limit_are_counted(stories: lineas.TextModel) -> None:
    with pytest.warns(UserWarning, match="4 of 4 source prompts were cut at 3 tokens"):
        learn(stories, LinEAS(steps=1), max_length=3)


def test_the_papers_recipe_is_the_published_one() -> None:
    paper = LinEAS.paper()
    assert (paper.optimizer, paper.learning_rate, paper.steps, paper.gamma, paper.batch_size) == (
        "sgd", 0.1, 1000, 0.0, None,
    )  # fmt: skip
    assert (paper.lambda_1, paper.lambda_g) == (1.0, 1.0)


def test_the_facts_say_how_it_was_made(stories: lineas.TextModel) -> None:
    facts = learn(stories, LinEAS(optimizer="relative", steps=2), seed=7).facts
    assert facts["method"]["name"] == "LinEAS"
    assert facts["method"]["learning_rate"] == 0.1
    sgd = learn(stories, LinEAS(steps=2, optimizer="sgd")).facts["method"]
    assert sgd["learning_rate"] == pytest.approx(0.01 * 5 * 64 / 4)  # L d / n: what None stood for
    assert facts["seed"] == 7
    assert facts["data"]["source"]["count"] == 4
    assert len(facts["data"]["target"]["sha256"]) == 64
    assert set(facts["folds"].values()) == {"exact"}
    assert {"lineas", "torch", "transformers", "python"} <= facts["versions"].keys()


@pytest.fixture(autouse=True)
def _no_hooks_left(stories: lineas.TextModel) -> Iterator[None]:
    yield
    assert not any(module._forward_hooks for module in stories.network.modules())
