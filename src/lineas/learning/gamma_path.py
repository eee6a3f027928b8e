"""The path between sparse and dense: one solution of LinEAS a gamma, each beginning where the one before it ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
"""All solutions after the first together take this many times the steps of the first."""
WARM = 0.2
"""The learning rate of those others, with "relative" steps: they have few, and begin near their end."""


class Objective:
    """The penalised cost of two sides at any maps; what does not depend on the maps is found once, when first asked.

    Args:
        model: what is steered.
        source: prompts of the behaviour to leave.
        target: prompts of the behaviour to reach.
        sites: where maps act.
        max_length: as in `lineas.learn`.
        pooling: as in `lineas.learn`.
        memory: as in `lineas.learn`.
        on: as in `lineas.learn`.
    """

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
        allowed = None if memory is None else as_bytes(memory)
        encoded = [model.samples(prompts, max_length) for prompts in (source, target)]
        self._task = Task(model, encoded[0], encoded[1], sites, pooling=pooling, memory=allowed)
        self._on = on

    def at(self, learned: Intervention, method: LinEAS) -> tuple[float, float]:
        """The cost with maps in place, and how far they are from the optimality conditions of the penalised cost.

        0 must lie in `gradient of the cost + gamma d(penalty)`. What is missing (`penalty.unmet`), every neuron in its
        own unit (a shift's is the standard deviation, see `learning.trained.units`), is divided by the length of the
        gradient at the identity.

        Args:
            learned: the maps.
            method: gamma and the weights of the penalty.
        """
        whole = self._gradient_at_identity
        with self._in_place():
            cost, missing = self._missing(learned.maps, method)
        return cost, missing / whole if whole > 0 else missing

    @cached_property
    def _sides(self) -> tuple[dict[str, torch.Tensor], dict[str, Quantiles], list[torch.Tensor]]:
        """The target's activations, what costs are taken from, and the units of scales and shifts."""
        reached = self._task.target_activations()
        targets = {name: Quantiles.of(v, len(self._task.source)) for name, v in reached.items()}
        return reached, targets, units(self._task.source_activations(), reached)

    @cached_property
    def _gradient_at_identity(self) -> float:
        with self._in_place():
            return self._missing({}, LinEAS(gamma=0.0))[1]

    @cached_property
    def _batch(self) -> Any:
        """The source, in parts that fit; first asked for with maps in place."""
        task, neurons = self._task, sum(v.shape[-1] for v in self._sides[0].values())
        return task.source.batch(largest_part(task.model, task.source, task.sites, neurons, task.memory))

    def _missing(self, maps: Mapping[str, AffineMap], method: LinEAS) -> tuple[float, float]:
        """The cost of maps, and the norm of what is missing for them to be optimal."""
        task, (reached, targets, ways) = self._task, self._sides
        trained = TrainedMaps(task.sites, reached, maps)
        if method.foldable:
            freeze_unfoldable(task.model.network, task.sites, trained)
        with edited(task.model.network, trained.edits):
            cost = backpropagate(task.model, self._batch, task.sites, targets, task.pooling)
        total = 0.0
        for i, (parameter, unit) in enumerate(zip(trained.parameters, ways)):
            assert parameter.grad is not None
            z = parameter.detach() - (1.0 if i < len(trained.scales) else 0.0)
            missing = parameter.grad
            if method.gamma > 0:
                missing = method.gamma * penalty.unmet(z, missing / method.gamma, method.lambda_1, method.lambda_g)
            total += float((unit * missing).square().sum())
        return float(cost), total**0.5

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        network = self._task.model.network
        with frozen(network), nullcontext() if self._on is None else steer(network, self._on):
            yield


@dataclass(frozen=True)
class Solution:
    """One point of a path; what is said of its cost is computed when it is asked for.

    Args:
        intervention: learned with the method.
        method: gamma among its settings.
        objective: that it was learned for.
    """

    intervention: Intervention
    method: LinEAS
    objective: Objective = field(repr=False)

    @property
    def gamma(self) -> float:
        """Weight of the penalty."""
        return self.method.gamma

    @property
    def steps(self) -> int:
        """That it took."""
        return self.method.steps

    @property
    def cost(self) -> float:
        """With the maps in place, without the penalty."""
        return self._found[0]

    @property
    def unmet(self) -> float:
        """How far it is from the optimality conditions, by the cost's gradient where learning begins: 0 is optimal."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[float, float]:
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
    """Learn along gamma, the largest first.

    A path takes at most 3 times the steps of the first solution: the others share twice as many, with one each at
    least. It goes from sparse to dense because neurons enter a support in few steps and leave it in many: a solution
    that begins with a denser one keeps neurons that it would not have taken.

    Args:
        model: what to steer.
        source: prompts of the behaviour to leave.
        target: prompts of the behaviour to reach.
        gammas: weights of the penalty, 0 or more, in any order, all different.
        method: the recipe of the first solution; its own gamma is not used, nor is a refit.
        sites: as in `lineas.learn`.
        seed: of everything random.
        known: by gamma, solutions of this path that are there already; they are not learned again. Whoever adds one to
            it, when it is yielded, has the next one begin with that, such as with what was saved of it.
        options: further arguments of `lineas.learn`, but no start: each solution has its own.

    Raises:
        LineasError: for gammas that are no path, known solutions of another network, and whatever `learn` refuses.
        KeyboardInterrupt: when it is interrupted; a solution that is not complete is none.
    """
    method = LinEAS() if method is None else method
    if not options.keys().isdisjoint(("start", "within_support")):
        raise LineasError(
            "a path begins at the identity, and every later solution at the one before it; give no start."
        )
    ordered = check_gammas(gammas)
    later = later_steps(method.steps, len(ordered))
    start: Intervention | None = None
    objective: Objective | None = None
    for gamma in reversed(ordered):
        recipe = replace(method, gamma=gamma, refit=False)
        if start is not None:
            warm = WARM if method.optimizer == "relative" and method.learning_rate is None else method.learning_rate
            recipe = replace(recipe, steps=later, learning_rate=warm)
        learned = (known or {}).get(gamma)
        if learned is None:
            with discard_partial():
                learned = learn(model, source, target, recipe, sites, seed, start=start, **options)
        else:
            learned.check_fits(model.network)
        if objective is None:
            settings = {name: value for name, value in options.items() if name != "progress"}
            objective = Objective(model, source, target, list(learned.sites.values()), **settings)
        yield Solution(learned, recipe, objective)
        start = (known or {}).get(gamma, learned)


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
    gammas = [WEIGHT.check("gamma", gamma) for gamma in gammas]
    if not gammas or len(set(gammas)) < len(gammas):
        raise LineasError("a path needs at least one gamma, each once.")
    return sorted(gammas)
