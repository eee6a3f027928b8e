"""Steps in units of their own: the same as torch's Adam in coordinates where every unit is 1."""

from __future__ import annotations

import math

import torch
from torch import nn

from lineas.learning.optimizers import DeviationAdam, PaperOptimizer

STEPS, RATE = 20, 0.1


def loss(x: torch.Tensor) -> torch.Tensor:
    return ((x - torch.tensor([3.0, -0.2, 700.0])) * torch.tensor([1.0, 30.0, 0.01])).square().sum()


def test_it_is_adam_in_coordinates_where_every_unit_is_one() -> None:
    unit = torch.tensor([1.0, 1e-2, 1e3])
    ours = nn.Parameter(torch.zeros(3))
    relative = DeviationAdam([ours], [unit], RATE, STEPS)
    theirs = nn.Parameter(torch.zeros(3))  # in units: x = unit * theirs
    adam = torch.optim.Adam([theirs], lr=RATE, betas=(0.9, 0.9), eps=0)
    factor = lambda k: min(1, (k + 1) / 5) * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * k / STEPS)) / 2)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, factor)
    for _ in range(STEPS):
        loss(ours).backward()
        relative.step()
        adam.zero_grad()
        loss(unit * theirs).backward()
        adam.step()
        schedule.step()
        torch.testing.assert_close(ours.detach(), unit * theirs.detach(), rtol=1e-4, atol=0)


def test_the_sizes_are_those_of_the_steps() -> None:
    """At the first step the mean gradient is the gradient itself: the parameter moves by size times gradient."""
    parameter = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    gradient = torch.tensor([0.5, -2.0, 0.0])
    parameter.grad = gradient.clone()
    (size,) = DeviationAdam([parameter], [torch.tensor([1.0, 0.1, 5.0])], RATE, 1).step()
    torch.testing.assert_close(torch.tensor([1.0, 2.0, 3.0]) - parameter.detach(), size * gradient)
    assert parameter.grad is None


def test_the_published_sizes_are_the_learning_rate_before_the_schedule_moves() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    published = PaperOptimizer("sgd", [parameter], 0.5, 2)
    sizes = []
    for _ in range(2):
        parameter.grad = torch.ones(2)
        sizes += published.step()
    assert sizes == [0.5, 0.5 * (1 + 1e-3) / 2]
    torch.testing.assert_close(parameter.detach(), torch.full((2,), -sum(sizes)))
