"""The path from sparse to dense: one solution of LinEAS per gamma, each starting from the one before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from lineas.checks import WEIGHT, as_bytes
from lineas.errors import LineasError
from lineas.intervention.intervention import Intervention
from lineas.intervention.maps import AffineMap
from lineas.learning import penalty
from lineas.learning.capture import Model, backpropagate
from lineas.learning.interruption import discard_partial
from lineas.learning.learn import learn
from lineas.learning.lineas import LinEAS, freeze_unfoldable
from lineas.learning.memory import largest_part
from lineas.learning.method import Task
from lineas.learning.trained_maps import TrainedMaps, units
from lineas.learning.transport import Quantiles
from lineas.models.frozen import frozen
from lineas.sites import Pooling, Site
from lineas.steering.hooks import edited
from lineas.steering.steer import steer

SHARE = 2
"""Steps of all later solutions together, as a multiple of the steps of the first one."""
WARM = 0.2
"""Learning rate of the later solutions with "relative" steps: they start near their end and take few steps."""


class Objective:
    """The penalised cost of any maps; what does not depend on the maps is computed once, at the first use."""

    def __init__(
        self,
        model: Model,
        source: Sequence[str],
        target: Sequence[str],
        sites: Sequence[Site],
        max_length: int = 128,
        pooling: Pooling = "mean",
        memory: int | str | None = None,
        on: Intervention | None = None,
    ) -> None:
        limit = None if memory is None else as_bytes(memory)
        encoded = [model.samples(prompts, max_length) for prompts in (source, target)]
        self._task = Task(model, encoded[0], encoded[1], sites, pooling=pooling, memory=limit)
        self._on = on
        self._gradient_at_identity: float | None = None

    def at(self, learned: Intervention, method: LinEAS) -> tuple[float, float]:
        """Return the cost of maps, and how far they are from the optimum of the penalised cost.

        At an optimum `gradient of the cost + gamma d(penalty)` contains 0. The distance from that (`penalty.unmet`) is
        measured in each neuron's unit (see `learning.trained_maps.units`), and divided by the length of the gradient at
        the identity; 0 is optimal.
        """
        network = self._task.model.network
        with frozen(network), nullcontext() if self._on is None else steer(network, self._on):
            if self._gradient_at_identity is None:
                self._gradient_at_identity = self._distance({}, LinEAS())[1]
            cost, distance = self._distance(learned.maps, method)
            scale = self._gradient_at_identity
        return cost, distance / scale if scale > 0 else distance

    @cached_property
    def _sides(self) -> tuple[dict[str, torch.Tensor], dict[str, Quantiles], list[torch.Tensor]]:
        """The target's activations, their quantiles, and the units of scales and shifts."""
        target = self._task.target_activations()
        quantiles = {name: Quantiles.of(v, len(self._task.source)) for name, v in target.items()}
        return target, quantiles, units(self._task.source_activations(), target)

    @cached_property
    def _batch(self) -> Any:
        """The source in parts that fit into memory, measured with maps in place."""
        task, neurons = self._task, sum(v.shape[-1] for v in self._sides[0].values())
        return task.source.batch(largest_part(task.model, task.source, task.sites, neurons, task.memory))

    def _distance(self, maps: Mapping[str, AffineMap], method: LinEAS) -> tuple[float, float]:
        """Return the cost of maps, and the norm of the violation of the optimality conditions."""
        task, (target, quantiles, all_units) = self._task, self._sides
        trained = TrainedMaps(task.sites, target, maps)
        if method.foldable:
            freeze_unfoldable(task.model.network, task.sites, trained)
        with edited(task.model.network, trained.edits):
            cost = backpropagate(task.model, self._batch, task.sites, quantiles, task.pooling)
        total = 0.0
        for i, (parameter, unit) in enumerate(zip(trained.parameters, all_units)):
            assert parameter.grad is not None
            z = parameter.detach() - (1.0 if i < len(trained.scales) else 0.0)
            violation = parameter.grad
            if method.gamma > 0:
                violation = method.gamma * penalty.unmet(z, violation / method.gamma, method.lambda_1, method.lambda_g)
            total += float((unit * violation).square().sum())
        return float(cost), total**0.5


@dataclass(frozen=True)
class Solution:
    """One point of a path; its cost is computed at the first use.

    Args:
        intervention: intervention that was learned.
        method: method that learned it, with its gamma.
        objective: penalised cost that it minimises.
    """

    intervention: Intervention
    method: LinEAS
    objective: Objective = field(repr=False)

    @property
    def gamma(self) -> float:
        """The weight of the penalty."""
        return self.method.gamma

    @property
    def steps(self) -> int:
        """The number of steps that were taken."""
        return self.method.steps

    @property
    def cost(self) -> float:
        """The cost with the maps in place, without the penalty."""
        return self._cost_and_unmet[0]

    @property
    def unmet(self) -> float:
        """The distance from the optimality conditions, relative to the gradient at the identity; 0 is optimal."""
        return self._cost_and_unmet[1]

    @cached_property
    def _cost_and_unmet(self) -> tuple[float, float]:
        return self.objective.at(self.intervention, self.method)


def gamma_path(
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
    """Learn one solution per gamma, the largest gamma first.

    With the natural gradient, which ends where its budget is spent, each solution begins at the identity and takes all
    steps. With the other optimizers, the later solutions together take twice the steps of the first one, and at least
    one step each. The path goes from sparse to dense, because neurons enter a support in few steps and leave it in
    many. A solution that started from a denser one would keep neurons that it does not need.

    Args:
        model: model to steer.
        source: prompts of the behaviour to leave.
        target: prompts of the behaviour to reach.
        gammas: weights of the penalty, 0 or more, in any order, all different.
        method: settings of the first one; default `LinEAS(optimizer="relative")`. Its gamma and refit are not used.
        sites: regular expression over module names, or several; None for the norms before the MLPs.
        seed: seed of everything random.
        known: solutions of this path that were learned before, by gamma; they are not learned again. A solution that is
            added after it was yielded is the start of the next one.
        options: further arguments of `lineas.learn`, except `start` and `within_support`.

    Yields:
        Each solution as soon as it is learned.

    Raises:
        LineasError: when there is no gamma, or one is negative or given twice; when a known solution belongs to another
            network; or when `learn` refuses an argument.
        KeyboardInterrupt: when it is interrupted; a partly learned solution is discarded.
    """
    method = for_path(LinEAS() if method is None else method)
    if not options.keys().isdisjoint(("start", "within_support")):
        raise LineasError("a path begins at the identity, and each later solution at the one before; give no start.")
    ordered = check_gammas(gammas)
    natural = method.optimizer == "natural"
    later = method.steps if natural else later_steps(method.steps, len(ordered))
    start: Intervention | None = None
    objective: Objective | None = None
    for gamma in reversed(ordered):
        recipe = replace(method, gamma=gamma, refit=False)
        if start is not None and not natural:
            warm = WARM if method.optimizer == "relative" and method.learning_rate is None else method.learning_rate
            recipe = replace(recipe, steps=later, learning_rate=warm)
        learned = (known or {}).get(gamma)
        if learned is None:
            with discard_partial():
                learned = learn(model, source, target, recipe, sites, seed, start=None if natural else start, **options)
        else:
            learned.check_fits(model.network)
        if objective is None:
            settings = {name: value for name, value in options.items() if name != "progress"}
            objective = Objective(model, source, target, list(learned.sites.values()), **settings)
        yield Solution(learned, recipe, objective)
        start = (known or {}).get(gamma, learned)


def for_path(method: LinEAS) -> LinEAS:
    """Return the method with its open settings chosen; "auto" is "relative", which ends where the penalty balances."""
    auto = method.optimizer == "auto" and method.divergence is None
    return (replace(method, optimizer="relative") if auto else method).resolved(for_texts=True)


def later_steps(first: int, points: int) -> int:
    """Return the number of steps of every solution after the first.

    >>> later_steps(20, 10), later_steps(60, 10), later_steps(20, 1)
    (4, 13, 20)
    """
    return max(1, SHARE * first // (points - 1)) if points > 1 else first


def check_gammas(gammas: Sequence[float]) -> list[float]:
    """Return gammas, the weights of the penalty, in ascending order."""
    gammas = [WEIGHT.check("gamma", gamma) for gamma in gammas]
    if not gammas or len(set(gammas)) < len(gammas):
        raise LineasError("a path needs at least one gamma, and each gamma once.")
    return sorted(gammas)
