"""The path between sparse and dense: one solution of LinEAS a gamma, each beginning where the one before it ended."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from lineas import penalty
from lineas.edits import edited
from lineas.errors import LineasError
from lineas.intervention import Intervention
from lineas.learning.capture import Model, backpropagate
from lineas.learning.fitting import Task
from lineas.learning.lineas import LinEAS
from lineas.learning.memory import largest_part
from lineas.learning.run import learn
from lineas.learning.trained import TrainedMaps, units
from lineas.models.frozen import frozen
from lineas.sites import Pooling
from lineas.steering import steer
from lineas.transport import Quantiles

SHARE = 2
"""All solutions after the first together take this many times the steps of the first."""
WARM = 0.2
"""The learning rate of those others, with "relative" steps: they have few, and begin near their end."""


@dataclass(frozen=True)
class Solution:
    """One point of a path.

    Args:
        gamma: weight of the penalty.
        intervention: learned with it.
        cost: with the maps in place, without the penalty.
        unmet: how far it is from the optimality conditions, by the cost's gradient where learning begins: 0 is optimal.
        steps: that it took.
    """

    gamma: float
    intervention: Intervention
    cost: float
    unmet: float
    steps: int


def path(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    gammas: Sequence[float],
    method: LinEAS | None = None,
    sites: str | Sequence[str] | None = None,
    seed: int = 0,
    known: Mapping[float, Intervention] | None = None,
    **options: Any,
) -> Iterator[Solution]:
    """Learn along gamma, the largest first.

    A path of any number of solutions takes at most 3 times the steps of the first: the others share twice as many. It
    goes from sparse to dense because neurons enter a support in few steps and leave it in many: a solution that begins
    with a denser one keeps neurons that it would not have taken (docs/sparsity.md has the figures).

    Args:
        model: what to steer.
        source: prompts of the behaviour to leave.
        target: prompts of the behaviour to reach.
        gammas: weights of the penalty, 0 or more, in any order, all different.
        method: the recipe of the first solution; its own gamma is not used.
        sites: as in `lineas.learn`.
        seed: of everything random.
        known: by gamma, solutions of this path that are there already; they are not learned again.
        options: further arguments of `lineas.learn`.

    Raises:
        LineasError: for gammas that are no path, and whatever `learn` refuses.
    """
    method = LinEAS() if method is None else method
    ordered = check_gammas(gammas)
    later = later_steps(method.steps, len(ordered))
    start: Intervention | None = None
    for gamma in reversed(ordered):
        recipe = replace(method, gamma=gamma)
        if start is not None:
            warm = WARM if method.optimizer == "relative" and method.learning_rate is None else method.learning_rate
            recipe = replace(recipe, steps=later, learning_rate=warm)
        learned = (known or {}).get(gamma)
        if learned is None:
            learned = learn(model, source, target, recipe, sites, seed, start=start, **options)
        cost, left = optimality(model, source, target, learned, recipe, seed, **options)
        yield Solution(gamma, learned, cost, left, recipe.steps)
        start = learned


def later_steps(first: int, points: int) -> int:
    """Steps of every solution but the first.

    >>> later_steps(20, 10), later_steps(60, 10), later_steps(20, 1)
    (4, 13, 20)
    """
    return max(1, SHARE * first // (points - 1)) if points > 1 else first


def check_gammas(gammas: Sequence[float]) -> list[float]:
    """In ascending order.

    Raises:
        LineasError: when there is none, one is negative, or one comes twice.
    """
    wrong = [g for g in gammas if not 0 <= g < math.inf]
    if wrong:
        raise LineasError(f"gamma must be 0 or more, not {wrong[0]}.")
    if not gammas or len(set(gammas)) < len(gammas):
        raise LineasError("a path needs at least one gamma, each once.")
    return sorted(gammas)


def optimality(
    model: Model,
    source: Sequence[str],
    target: Sequence[str],
    learned: Intervention,
    method: LinEAS,
    seed: int = 0,
    max_length: int = 128,
    pooling: Pooling = "mean",
    on: Intervention | None = None,
    **_: Any,
) -> tuple[float, float]:
    """The cost with maps in place, and how far they are from the optimality conditions of the penalised cost.

    0 must lie in `gradient of the cost + gamma d(penalty)`; its distance, every neuron in its own unit (a shift's is
    the standard deviation, see `learning.trained.units`), is divided by the length of the gradient at the identity.

    Args:
        model: what was steered.
        source: what it was learned from.
        target: what it was learned from.
        learned: the maps.
        method: gamma and the weights of the penalty.
        seed: nothing here is random; as in `learn`.
        max_length: as in `learn`.
        pooling: as in `learn`.
        on: as in `learn`.
    """
    task = Task(model, source, target, list(learned.sites.values()), seed, max_length, pooling)
    with frozen(model.network), nullcontext() if on is None else steer(model, on):
        reached = task.reached()
        ways = units(task.left(), reached)
        cost, here = _unmet(task, reached, learned, method, ways)
        identity = _unmet(task, reached, None, replace(method, gamma=0.0), ways)[1]
    return cost, here / identity if identity > 0 else here


def _unmet(
    task: Task, reached: dict[str, torch.Tensor], learned: Intervention | None, method: LinEAS, ways: list[torch.Tensor]
) -> tuple[float, float]:
    """The cost of maps, the identity for None, and the norm of what is missing for them to be optimal."""
    trained = TrainedMaps(task.sites, reached, None if learned is None else learned.maps)
    targets = {name: Quantiles.of(v, len(task.source)) for name, v in reached.items()}
    neurons = sum(v.shape[-1] for v in reached.values())
    with edited(task.model.network, trained.edits):
        limit = largest_part(task.model, task.source, task.max_length, task.sites, neurons, task.memory)
        batch = task.model.batch(task.source, task.max_length, limit)
        cost = backpropagate(task.model, batch, task.sites, targets, task.pooling)
    total = 0.0
    for i, (parameter, unit) in enumerate(zip(trained.parameters, ways)):
        assert parameter.grad is not None
        z = parameter.detach() - (1.0 if i < len(trained.scales) else 0.0)
        missing = parameter.grad
        if method.gamma > 0:
            missing = method.gamma * penalty.unmet(z, missing / method.gamma, method.lambda_1, method.lambda_g)
        total += float((unit * missing).square().sum())
    return float(cost), total**0.5
