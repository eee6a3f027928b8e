"""Optimizers: Adam in units of each neuron's deviation, and those of the paper's implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

Sizes = Sequence[float | torch.Tensor]
"""The size of the last step of each parameter, one number or one per neuron, which the proximal step needs."""

DECAY = 0.9
"""Decay of both running means of Adam, as in the paper."""
WARM_UP = 5
"""The warm-up takes the first 1/5 of the steps, since the running means need some steps to become reliable."""
LAST = 1e-3
"""Share of the learning rate at which the cosine ends."""
TINY = 1e-12
"""Positive number below every gradient and every deviation that matters."""


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
    def step(self) -> Sizes:
        """Move the parameters, clear their gradients, and return the sizes of the steps."""
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
        return sizes


class PaperOptimizer:
    """SGD without momentum, or Adam, with the cosine schedule, as in the paper (arXiv 2503.10679, section 4)."""

    def __init__(self, name: str, parameters: Sequence[nn.Parameter], rate: float, steps: int) -> None:
        self._parameters = list(parameters)
        if name == "sgd":
            self._optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=rate)
        else:
            self._optimizer = torch.optim.Adam(parameters, lr=rate, betas=(DECAY, DECAY))
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, steps, rate * LAST)

    def step(self) -> Sizes:
        """Move the parameters, clear their gradients, and return the sizes of the steps."""
        rate = self._optimizer.param_groups[0]["lr"]
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()
        return [rate] * len(self._parameters)
