"""Optimizers: the natural gradient, Adam in units of each neuron's deviation, and those of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

Sizes = Sequence[float | torch.Tensor]
"""The size of a step of each parameter, one number or one per neuron, which the proximal step needs."""
Prox = Callable[[Sizes], None]
"""The proximal step after a gradient step of these sizes."""

DECAY = 0.9
"""Decay of both running means of Adam, as in the paper."""
WARM_UP = 5
"""The warm-up takes the first 1/5 of the steps, since the running means need some steps to become reliable."""
LAST = 1e-3
"""Share of the learning rate at which the cosine ends."""
TINY = 1e-12
"""Positive number below every gradient and every deviation that matters."""
DAMPING = 0.1
"""Share of the mean Fisher information that is added to each parameter's own; 0.01 and 1 learn alike."""
FIRST_RATIO = 5.0
"""Measured divergence relative to the quadratic form of the diagonal, until it is measured; 4 to 8 on SmolLM2."""
NEAR, LAST_NEAR = 0.4, 0.02
"""Tolerance of the divergence after a step, and after the last step, relative to its goal."""
TRIALS = 12
"""Largest number of lengths that are tried for one step."""
BEGIN = 0.5
"""Largest distance at which learning begins from given maps, relative to the distance at its end."""


class NaturalGradient:
    """Natural gradient steps (Amari 1998), each as long as a budget of divergence allows.

    Step k of K moves all parameters by `-r g / (F + damping)`, with g the gradient, F the diagonal of the Fisher
    information, and r such that the measured divergence from the untouched model is `budget (k / K)^2`. The divergence
    of small changes grows with their square, so all steps have about the same length.

    Args:
        parameters: all scales, followed by all shifts; the parameters of the untouched model are 1 and 0.
        fisher: diagonal of the Fisher information, of the parameters' shapes.
        divergence: function that measures the divergence at the current parameters.
        budget: divergence after the last step.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        fisher: list[torch.Tensor],
        divergence: Callable[[], float],
        budget: float,
        steps: int,
    ) -> None:
        self._parameters, self._fisher, self._divergence = parameters, fisher, divergence
        half = len(fisher) // 2
        self._identities = [1.0] * half + [0.0] * half
        self._inverse = [1 / one for kind in (fisher[:half], fisher[half:]) for one in _damped(kind)]
        self._steps, self._done = steps, 0
        self._end = math.sqrt(budget)
        self.spent = 0.0
        self._begin = self._at_begin()

    @property
    def _distance(self) -> float:
        """The square root of the divergence, about proportional to the changes."""
        return math.sqrt(max(self.spent, 0.0))

    @torch.no_grad()
    def _at_begin(self) -> float:
        """Return the distance of the given maps, which are first shrunk if they are too far."""
        changes = self._changes()
        if not any(bool(change.any()) for change in changes):
            return 0.0

        def distance(share: float) -> float:
            return self._moved_to([i + share * change for i, change in zip(self._identities, changes)])

        if distance(1.0) > (goal := BEGIN * self._end):
            _search(distance, 0.0, goal, goal / self._distance, NEAR)
        return self._distance

    @torch.no_grad()
    def step(self, prox: Prox | None = None) -> None:
        """Move the parameters, take the proximal step, and clear the gradients."""
        self._done += 1
        goal = self._begin + (self._end - self._begin) * self._done / self._steps
        before = [p.detach().clone() for p in self._parameters]
        directions = [size * p.grad for size, p in zip(self._inverse, self._parameters) if p.grad is not None]

        def distance(length: float) -> float:
            sizes = [length * size for size in self._inverse]
            values = [begin - length * direction for begin, direction in zip(before, directions)]
            return self._moved_to(values, prox and partial(prox, sizes))

        if any(bool(direction.any()) for direction in directions):
            first = self._guess(directions, goal)
            _search(distance, self._distance, goal, first, LAST_NEAR if self._done == self._steps else NEAR)
        for parameter in self._parameters:
            parameter.grad = None

    def _moved_to(self, values: list[torch.Tensor], then: Callable[[], None] | None = None) -> float:
        """Set all parameters, do what comes then, and return the distance there."""
        for parameter, value in zip(self._parameters, values):
            parameter.copy_(value)
        if then is not None:
            then()
        self.spent = self._divergence()
        return self._distance

    def _changes(self) -> list[torch.Tensor]:
        return [p.detach() - identity for p, identity in zip(self._parameters, self._identities)]

    def _guess(self, directions: list[torch.Tensor], goal: float) -> float:
        """Return the length at which the quadratic form, scaled to what was measured so far, has the goal's divergence.

        It is the positive root r of `q(changes - r directions) = goal^2 / ratio`, with `q(d) = 1/2 d' F d`.
        """
        changes = self._changes()
        so_far, mixed, squared = (
            sum(float((f * a * b).sum()) for f, a, b in zip(self._fisher, one, other)) / 2
            for one, other in ((changes, changes), (changes, directions), (directions, directions))
        )
        ratio = self.spent / so_far if so_far > 0 and self.spent > 0 else FIRST_RATIO
        missing = max(goal**2 / ratio - so_far, TINY)
        return (mixed + math.sqrt(mixed**2 + squared * missing)) / max(squared, TINY**2)


def _damped(fisher: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the Fisher information of all scales, or of all shifts, with a share of its mean added."""
    mean = torch.cat([f.flatten() for f in fisher]).mean().clamp_min(TINY)
    return [f + DAMPING * mean for f in fisher]


def _search(distance: Callable[[float], float], at_zero: float, goal: float, first: float, near: float) -> None:
    """Go to a length whose distance is the goal, by secants in a bracket; to a smaller one if none has it.

    Args:
        distance: function that goes to a length and returns the distance there, which rises from `at_zero` at 0.
        first: first length to try.
        near: tolerance of the squared distance, relative to the squared goal.
    """
    low, below, high, above = 0.0, at_zero, math.inf, math.inf
    length = first
    for _ in range(TRIALS):
        reached = distance(length)
        if abs((reached / goal) ** 2 - 1) <= near:
            return
        if reached < goal:
            low, below = length, reached
        else:  # also where it is not finite
            high, above = length, reached
        if math.isinf(high):
            slope = (below - at_zero) / low
            length = min((goal - at_zero) / slope if slope > 0 else math.inf, 4 * low)
        else:
            share = (goal - below) / (above - below) if math.isfinite(above) else 0.0
            length = low + min(max(share, 0.1), 0.9) * (high - low)
    distance(low)


class DeviationAdam:
    """Adam whose step of a parameter is measured in that parameter's own unit, with a warm-up and a cosine.

    Step k of K moves p by `unit rate_k m / sqrt(v)`, with m and v the corrected running means of the gradient and of
    its square (Kingma and Ba 2015, betas 0.9 and 0.9). `rate_k = rate min(1, k / (1 + K / 5)) cos`, with cos falling
    from 1 to 1/1000 over the steps.

    Args:
        units: unit of each parameter, of its shape: the distance that a learning rate of 1 moves it.
        rate: largest learning rate.
    """

    def __init__(self, parameters: list[nn.Parameter], units: list[torch.Tensor], rate: float, steps: int) -> None:
        self._parameters = parameters
        self._units = [unit.clamp_min(TINY) for unit in units]
        self._means = [torch.zeros_like(p) for p in parameters]
        self._squares = [torch.zeros_like(p) for p in parameters]
        self._rate, self._steps, self._done = rate, steps, 0

    @torch.no_grad()
    def step(self, prox: Prox | None = None) -> None:
        """Move the parameters, take the proximal step, and clear the gradients."""
        self._done += 1
        past = (self._done - 1) / self._steps
        rate = self._rate * (LAST + (1 - LAST) * (1 + math.cos(math.pi * past)) / 2)
        rate *= min(1.0, self._done / (1 + self._steps // WARM_UP))
        correction = 1 - DECAY**self._done  # since both means start at zero
        sizes: list[torch.Tensor] = []
        for parameter, unit, running, square in zip(self._parameters, self._units, self._means, self._squares):
            assert parameter.grad is not None
            running.lerp_(parameter.grad, 1 - DECAY)
            square.lerp_(parameter.grad.square(), 1 - DECAY)
            size = rate * unit / ((square / correction).sqrt() + TINY)
            parameter.sub_(size * running / correction)
            parameter.grad = None
            sizes.append(size)
        if prox is not None:
            prox(sizes)


class PaperOptimizer:
    """SGD without momentum, or Adam, with the cosine schedule, as in the paper (arXiv 2503.10679, section 4)."""

    def __init__(self, name: str, parameters: Sequence[nn.Parameter], rate: float, steps: int) -> None:
        self._parameters = list(parameters)
        if name == "sgd":
            self._optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=rate)
        else:
            self._optimizer = torch.optim.Adam(parameters, lr=rate, betas=(DECAY, DECAY))
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, steps, rate * LAST)

    def step(self, prox: Prox | None = None) -> None:
        """Move the parameters, take the proximal step, and clear the gradients."""
        rate = self._optimizer.param_groups[0]["lr"]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()
        if prox is not None:
            prox([rate] * len(self._parameters))
