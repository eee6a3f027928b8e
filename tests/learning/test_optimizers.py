"""Steps in units of their own: the same as torch's Adam in coordinates where every unit is 1."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lineas.learning.optimizers import DAMPING, DeviationAdam, NaturalGradient, PaperOptimizer, Sizes

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
    given: list[Sizes] = []
    DeviationAdam([parameter], [torch.tensor([1.0, 0.1, 5.0])], RATE, 1).step(given.append)
    ((size,),) = given
    torch.testing.assert_close(torch.tensor([1.0, 2.0, 3.0]) - parameter.detach(), size * gradient)
    assert parameter.grad is None


def test_the_published_sizes_are_the_learning_rate_before_the_schedule_moves() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    published = PaperOptimizer("sgd", [parameter], 0.5, 2)
    sizes: list[Any] = []
    for _ in range(2):
        parameter.grad = torch.ones(2)
        published.step(sizes.extend)
    assert sizes == [0.5, 0.5 * (1 + 1e-3) / 2]
    torch.testing.assert_close(parameter.detach(), torch.full((2,), -sum(sizes)))


FISHER = [torch.tensor([1.0, 100.0, 0.0, 9.0]), torch.tensor([0.01, 4.0, 0.0, 1.0])]
"""Of one scale and one shift."""


class Measured:
    """One scale and one shift `[4]` whose divergence is `factor / 2 d' F d`, and the calls that measured it."""

    def __init__(self, factor: float = 6.0) -> None:
        self.parameters = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))]
        self.factor, self.calls = factor, 0

    def __call__(self) -> float:
        self.calls += 1
        scale, shift = self.parameters
        changes = (scale.detach() - 1, shift.detach())
        return self.factor * sum(float((f * d.square()).sum()) for f, d in zip(FISHER, changes)) / 2


@pytest.mark.parametrize("factor", [0.01, 1.0, 6.0, 1000.0])
def test_natural_steps_end_at_the_budget(factor: float) -> None:
    """Step k of K ends near `budget (k / K)^2`, the last within 2 %, whatever the quadratic form is off by."""
    measured = Measured(factor)
    natural = NaturalGradient(measured.parameters, FISHER, measured, 0.03, 5)
    for k in range(1, 6):
        for i, parameter in enumerate(measured.parameters):
            parameter.grad = torch.tensor([1.0, -2.0, 0.5, 3.0]) * (i + 0.1 * k + 1)
        natural.step()
        assert natural.spent == pytest.approx(0.03 * (k / 5) ** 2, rel=0.02 if k == 5 else 0.4)
        assert all(parameter.grad is None for parameter in measured.parameters)
    assert natural.spent == pytest.approx(measured(), rel=1e-6)
    assert measured.calls <= 18


def test_a_natural_step_is_the_gradient_in_the_metric_of_the_damped_diagonal() -> None:
    measured = Measured()
    gradients = [torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.3, 1.0, -1.0, 0.0])]
    for parameter, gradient in zip(measured.parameters, gradients):
        parameter.grad = gradient.clone()
    NaturalGradient(measured.parameters, FISHER, measured, 0.01, 1).step()
    moved = torch.stack([1 - measured.parameters[0].detach(), -measured.parameters[1].detach()])
    expected = torch.stack([g / (f + DAMPING * f.mean()) for g, f in zip(gradients, FISHER)])
    torch.testing.assert_close(moved, expected * (moved[0, 0] / expected[0, 0]))
    assert float(moved[0, 0]) > 0


def test_the_proximal_step_is_within_the_budget() -> None:
    """The step is long enough that the budget is spent after the proximal step, whose sizes are those of the step."""
    measured = Measured()
    for parameter in measured.parameters:
        parameter.grad = torch.tensor([1.0, -2.0, 0.5, 3.0])
    given: list[Sizes] = []

    def halve(sizes: Sizes) -> None:
        given.append(sizes)
        measured.parameters[0].sub_(1).mul_(0.5).add_(1)
        measured.parameters[1].mul_(0.5)

    natural = NaturalGradient(measured.parameters, FISHER, measured, 0.01, 1)
    natural.step(halve)
    assert measured() == natural.spent == pytest.approx(0.01, rel=0.02)
    scale_size = given[-1][0]
    moved = 2 * (1 - measured.parameters[0].detach())  # before it was halved
    torch.testing.assert_close(moved, scale_size * torch.tensor([1.0, -2.0, 0.5, 3.0]))


def test_maps_that_begin_beyond_the_budget_are_shrunk_and_a_gradient_of_zero_moves_nothing() -> None:
    measured = Measured()
    measured.parameters[1].data.fill_(3.0)
    natural = NaturalGradient(measured.parameters, FISHER, measured, 0.04, 2)
    assert natural.spent == pytest.approx(0.01, rel=0.4)  # half the distance of the budget
    shift = measured.parameters[1].detach().clone()
    torch.testing.assert_close(shift, shift[:1].expand(4))
    for parameter in measured.parameters:
        parameter.grad = torch.zeros(4)
    natural.step()
    assert torch.equal(measured.parameters[1], shift)
    for _ in range(1):
        for parameter in measured.parameters:
            parameter.grad = torch.ones(4)
        natural.step()
    assert natural.spent == pytest.approx(0.04, rel=0.02)
