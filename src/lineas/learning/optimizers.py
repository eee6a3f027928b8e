"""Optimizers: the natural gradient, Adam in units of each neuron's deviation, and those of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

Sizes = Sequence[float | torch.Tensor]
"""The size of a step of each parameter, or the unit of its changes: one number or one per neuron."""
Prox = Callable[[Sizes, Sizes], None]
"""The proximal step after a gradient step of these sizes, for a penalty on changes in these units."""

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
SHORT = 1e-3
"""Quadratic form of all steps in a line, in nats a token: a tenth and ten times as much learn alike on SmolLM2."""
RATIO = 5.0
"""Measured divergence relative to the quadratic form of the diagonal alone, as a first guess; 4 to 8 on SmolLM2."""
NEAR = 0.02
"""Tolerance of the divergence at the end, relative to the budget."""
TRIALS = 20
"""Largest number of lengths that are measured at the end."""


class NaturalGradient:
    """Short natural gradient steps (Amari 1998), whose sum is then stretched until a budget of divergence is spent.

    Each step moves all parameters by `-r g / (F + damping)`, with g the gradient and F the diagonal of the Fisher
    information. The length r is the same for all steps: K first steps in a line would cost SHORT nats by the quadratic
    form `1/2 d' F d`. So the direction is that of steepest descent for its divergence, and only the length is measured.
    Maps learned for two budgets differ by a factor alone.

    No step raises the perplexity of the neutral text, to first order: where it would, g is replaced by
    `g - (g' F^-1 h) / (h' F^-1 h) h`, with h the gradient of the surprise. Of all directions that leave the surprise as
    it is, the step is then that of steepest descent.

    A penalty acts on the changes `sqrt(F + damping) d`, in root nats. So these are plain proximal gradient steps of
    length r in the coordinates in which the divergence is half the squared distance.

    Args:
        parameters: all scales, followed by all shifts; the parameters of the untouched model are 1 and 0.
        fisher: diagonal of the Fisher information, of the parameters' shapes.
        surprise: gradient of the neutral text's surprise, of the parameters' shapes (see `surprise_gradients`).
        divergence: function that measures the divergence at the current parameters.
        budget: divergence at the end.
        steps: number of steps K.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        fisher: list[torch.Tensor],
        surprise: list[torch.Tensor],
        divergence: Callable[[], float],
        budget: float,
        steps: int,
    ) -> None:
        self._parameters, self._fisher, self._surprise = parameters, fisher, surprise
        self._divergence = divergence
        half = len(fisher) // 2
        self._identities = [1.0] * half + [0.0] * half
        self._inverse = [1 / one for kind in (fisher[:half], fisher[half:]) for one in _damped(kind)]
        self._budget, self._steps, self._length = budget, steps, 0.0

    @torch.no_grad()
    def step(self, prox: Prox | None = None) -> None:
        """Move the parameters, take the proximal step, and clear the gradients."""
        gradients = self._level([torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters])
        directions = [size * gradient for size, gradient in zip(self._inverse, gradients)]
        if not self._length and (form := self._form(directions)) > 0:
            self._length = math.sqrt(SHORT / form) / self._steps
        for parameter, direction in zip(self._parameters, directions):
            parameter.sub_(self._length * direction)
            parameter.grad = None
        if prox is not None and self._length:
            prox([self._length] * len(self._inverse), [size.sqrt() for size in self._inverse])

    @torch.no_grad()
    def stretch(self) -> float:
        """Multiply all changes by the number at which the budget is spent, and return the divergence there."""
        changes = [p.detach() - identity for p, identity in zip(self._parameters, self._identities)]
        measured = 0.0

        def distance(factor: float) -> float:
            """Multiply the changes, and return the square root of the divergence, about proportional to the factor."""
            nonlocal measured
            for parameter, identity, change in zip(self._parameters, self._identities, changes):
                parameter.copy_(identity + factor * change)
            measured = self._divergence()
            return math.sqrt(max(measured, 0.0))

        if (form := self._form(changes)) > 0:
            goal = math.sqrt(self._budget)
            search(distance, goal, goal / math.sqrt(RATIO * form), NEAR)
        return measured

    def _level(self, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the gradients without the part whose step raises the surprise."""
        rise, most = self._inner(gradients, self._surprise), self._inner(self._surprise, self._surprise)
        if rise >= 0:  # a step is minus the gradient, so the surprise falls
            return gradients
        return [g - rise / most * h for g, h in zip(gradients, self._surprise)]

    def _inner(self, first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
        """Return `a' (F + damping)^-1 b`."""
        return sum(float((a * size * b).sum()) for a, size, b in zip(first, self._inverse, second))

    def _form(self, changes: list[torch.Tensor]) -> float:
        """Return the quadratic form `1/2 d' F d` of changes."""
        return sum(float((f * d.square()).sum()) for f, d in zip(self._fisher, changes)) / 2


def _damped(fisher: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the Fisher information of all scales, or of all shifts, with a share of its mean added."""
    mean = torch.cat([f.flatten() for f in fisher]).mean().clamp_min(TINY)
    return [f + DAMPING * mean for f in fisher]


def search(distance: Callable[[float], float], goal: float, first: float, near: float) -> None:
    """Go to a factor whose distance is the goal, by secants in a bracket; to a smaller one if none has it.

    Args:
        distance: function that goes to a factor and returns the distance there, which rises from 0 at 0.
        first: first factor to try.
        near: tolerance of the squared distance, relative to the squared goal.
    """
    low, below, high, above = 0.0, 0.0, math.inf, math.inf
    factor = first
    for _ in range(TRIALS):
        reached = distance(factor)
        if abs((reached / goal) ** 2 - 1) <= near:
            return
        if reached < goal:
            low, below = factor, reached
        else:  # also where it is not finite
            high, above = factor, reached
        if math.isinf(high):
            factor = low * min(max(goal / below, 1.01), 4.0) if below > 0 else 4 * low
        else:
            share = (goal - below) / (above - below) if math.isfinite(above) else 0.0
            factor = low + min(max(share, 0.1), 0.9) * (high - low)
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
            prox(sizes, [1.0] * len(sizes))


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
            prox([rate] * len(self._parameters), [1.0] * len(self._parameters))
