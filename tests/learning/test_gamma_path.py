"""Learning that begins somewhere: from given maps, within a support, on top of others, and along gamma."""

from __future__ import annotations

from functools import partial

import families
import pytest
import torch
from families import OTHER_PROMPTS, PROMPTS, outputs

import lineas
from lineas import LinEAS, LineasError, MeanAcT, TextModel
from lineas.learning import penalty, transport
from lineas.learning.gamma_path import Objective, gamma_path, later_steps

relative = partial(LinEAS, optimizer="relative")
GAMMAS = [0.0, 2e-3, 4e-3, 6e-3, 8e-3, 1.2e-2]


def learn(model: TextModel, method: LinEAS | MeanAcT, **options) -> lineas.Intervention:
    return lineas.learn(model, PROMPTS, OTHER_PROMPTS, method, progress=False, **options)


def distance(model: TextModel, source: lineas.Intervention | None, target: lineas.Intervention | None = None) -> float:
    """The cost, from activations read by hand, of the source under one intervention from the target under another."""

    def means(prompts: list[str], under: lineas.Intervention | None) -> dict[str, torch.Tensor]:
        def read() -> dict[str, torch.Tensor]:
            return {
                site.name: torch.stack([tokens.mean(0) for tokens in outputs(model, prompts, site)])
                for site in model.sites()
            }

        if under is None:
            return read()
        with lineas.steer(model, under):
            return read()

    left, reached = means(PROMPTS, source), means(OTHER_PROMPTS, target)
    costs = [transport.cost(left[name], v) for name, v in reached.items()]
    return float(torch.stack(costs).mean())


def test_learning_begins_with_the_maps_that_are_given(stories: TextModel) -> None:
    first = learn(stories, relative(steps=10))
    again = learn(stories, relative(steps=10), start=first)
    assert again.facts["cost"][0] == pytest.approx(distance(stories, first), rel=1e-3)
    assert again.facts["cost"][-1] < again.facts["cost"][0] < first.facts["cost"][0] / 1.5
    assert again.facts["start"]["within_support"] is False


def test_within_a_support_no_other_neuron_is_touched_and_the_rest_is_freed_of_the_penalty(stories: TextModel) -> None:
    sparse = learn(stories, relative(steps=40, gamma=8e-3))
    freed = learn(stories, relative(steps=40), start=sparse, within_support=True)
    assert 0.05 < sparse.support() < 0.8
    for name, map_ in freed.maps.items():
        left_alone = ~sparse.maps[name].support()
        assert torch.equal(map_.scale[left_alone], torch.ones(int(left_alone.sum())))
        assert torch.equal(map_.shift[left_alone], torch.zeros(int(left_alone.sum())))
    assert distance(stories, freed) < 0.8 * distance(stories, sparse)


def test_a_refit_is_the_penalised_run_and_then_one_within_its_support(stories: TextModel) -> None:
    told: list[tuple[int, int]] = []
    refitted = lineas.learn(
        stories, PROMPTS, OTHER_PROMPTS, relative(steps=40, gamma=8e-3, refit=True),
        progress=lambda done, steps, _: told.append((done, steps)),
    )  # fmt: skip
    sparse = learn(stories, relative(steps=40, gamma=8e-3))
    by_hand = learn(stories, relative(steps=40), start=sparse, within_support=True)
    assert all(torch.equal(map_.scale, by_hand.maps[name].scale) for name, map_ in refitted.maps.items())
    assert all(torch.equal(map_.shift, by_hand.maps[name].shift) for name, map_ in refitted.maps.items())
    assert refitted.facts["cost"] == [*sparse.facts["cost"], *by_hand.facts["cost"]]
    assert (refitted.facts["method"]["gamma"], refitted.facts["method"]["refit"]) == (8e-3, True)
    assert told == [(done, 80) for done in range(1, 81)]
    with pytest.raises(LineasError, match="refit learns once more what a penalty has kept; give a gamma above 0"):
        LinEAS(refit=True)


def test_on_top_of_another_the_new_maps_account_for_it(stories: TextModel) -> None:
    """With it in place on both sides, the first step sees what is left between them, the last has less."""
    below = lineas.learn(stories, OTHER_PROMPTS, PROMPTS[::-1], MeanAcT(), progress=False)
    new = learn(stories, relative(steps=15), on=below)
    assert new.facts["cost"][0] == pytest.approx(distance(stories, below, below), rel=1e-3)
    assert new.facts["cost"][0] != pytest.approx(distance(stories, None), rel=0.05)
    assert distance(stories, below.then(new), below) == pytest.approx(new.facts["cost"][-1], rel=0.2)
    assert new.facts["on"] == below.facts


def test_a_start_that_means_nothing_is_refused(stories: TextModel) -> None:
    first = learn(stories, MeanAcT())
    with pytest.raises(LineasError, match="only LinEAS begins with given maps; MeanAcT takes no start"):
        learn(stories, MeanAcT(), start=first)
    with pytest.raises(LineasError, match="keeps to the neurons of a start; give one"):
        learn(stories, relative(steps=1), within_support=True)
    with pytest.raises(LineasError, match="none of the 1 sites to learn"):
        learn(stories, relative(steps=1), start=first, sites=r"model\.layers\.0\.post_attention_layernorm")


def test_a_path_costs_three_runs_and_its_points_are_what_a_run_of_their_own_finds(stories: TextModel) -> None:
    method = relative(steps=100)
    solutions = list(gamma_path(stories, PROMPTS, OTHER_PROMPTS, GAMMAS, method, progress=False))
    assert [one.gamma for one in solutions] == GAMMAS[::-1]
    assert sum(one.steps for one in solutions) <= 3 * method.steps
    supports = [one.intervention.support() for one in solutions]
    assert supports == sorted(supports)
    assert supports[0] < 0.3
    objective = Objective(stories, PROMPTS, OTHER_PROMPTS, stories.sites())
    assert supports[-1] > 0.99
    for one in solutions[:-1]:
        alone = learn(stories, relative(steps=300, gamma=one.gamma))
        cost, left = objective.at(alone, relative(gamma=one.gamma))
        assert one.unmet < 0.1
        assert one.cost == pytest.approx(distance(stories, one.intervention), rel=1e-3)
        assert _objective(one.cost, one.intervention, one.gamma) < 1.1 * _objective(cost, alone, one.gamma)
        assert left < 0.1  # the cost is not convex: two ends that are both optimal may differ


def test_a_solution_that_begins_with_a_denser_one_keeps_neurons_that_it_would_not_have_taken(
    stories: TextModel,
) -> None:
    """The reason why a path goes from sparse to dense: the other way its sparse end is not sparse."""
    gammas = [*GAMMAS[:-1], 1.6e-2]
    first, last = relative(steps=20, gamma=gammas[0]), relative(steps=later_steps(20, 10), gamma=gammas[-1])
    from_the_dense_side = learn(stories, last, start=learn(stories, first))
    alone = learn(stories, relative(steps=400, gamma=gammas[-1]))
    as_a_path_does = next(
        gamma_path(stories, PROMPTS, OTHER_PROMPTS, gammas, relative(steps=20), progress=False)
    ).intervention
    assert from_the_dense_side.support() > 2 * alone.support()
    assert as_a_path_does.support() == pytest.approx(alone.support(), rel=0.5)


def _objective(cost: float, learned: lineas.Intervention, gamma: float) -> float:
    groups = [group for m in learned.maps.values() for group in (m.scale - 1, m.shift)]
    return cost + gamma * sum(float(penalty.value(group, 1.0, 1.0)) for group in groups)


def test_where_learning_begins_everything_is_missing_and_a_penalty_that_is_large_enough_asks_for_nothing(
    stories: TextModel,
) -> None:
    nothing = lineas.Intervention({s.name: lineas.AffineMap.identity(64) for s in stories.sites()})
    objective = Objective(stories, PROMPTS, OTHER_PROMPTS, stories.sites())
    _, left = objective.at(nothing, relative(gamma=0.0))
    assert left == pytest.approx(1)
    assert objective.at(nothing, relative(gamma=1.0))[1] == 0


def test_known_solutions_are_taken_as_they_are(stories: TextModel) -> None:
    method, asked = relative(steps=20), GAMMAS[:2:-1]
    whole = [one.intervention for one in gamma_path(stories, PROMPTS, OTHER_PROMPTS, asked, method, progress=False)]
    known = dict(zip(asked[:2], whole))
    again = [
        one.intervention
        for one in gamma_path(stories, PROMPTS, OTHER_PROMPTS, asked, method, known=known, progress=False)
    ]
    assert again[:2] == whole[:2]
    for name, map_ in again[2].maps.items():
        assert torch.equal(map_.shift, whole[2].maps[name].shift)


@pytest.mark.parametrize(
    ("gammas", "sentence"), [([], "each gamma once"), ([1.0, 1.0], "each gamma once"), ([-1.0], "0 or more")]
)
def test_gammas_that_are_no_path_are_refused(stories: TextModel, gammas: list[float], sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence):
        list(gamma_path(stories, PROMPTS, OTHER_PROMPTS, gammas))


def test_a_path_takes_no_start(stories: TextModel) -> None:
    with pytest.raises(LineasError, match="a path begins at the identity"):
        list(gamma_path(stories, PROMPTS, OTHER_PROMPTS, [0.0], start=learn(stories, MeanAcT())))


def test_what_folds_is_judged_by_the_numbers_that_may_move() -> None:
    """Only the scales of Gemma 2's norms fold, so shifts that would lower the cost are not counted as unmet."""
    method = relative(steps=30, foldable=True)
    one = next(gamma_path(families.model("gemma2"), PROMPTS, OTHER_PROMPTS, [0.0], method, progress=False))
    assert not any(map_.shift.any() for map_ in one.intervention.maps.values())
    assert one.unmet < 0.9 * one.objective.at(one.intervention, LinEAS())[1]


@pytest.mark.parametrize("points", range(1, 30))
def test_no_path_costs_more_than_three_single_runs(points: int) -> None:
    assert 20 + (points - 1) * later_steps(20, points) <= max(3 * 20, 20 + points - 1)
