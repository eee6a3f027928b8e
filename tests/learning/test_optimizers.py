"""Steps in units of their own: the same as torch's Adam in coordinates where every unit is 1."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lineas.learning.optimizers import DAMPING, SHORT, DeviationAdam, NaturalGradient, PaperOptimizer, Sizes

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
"""The Fisher information of one scale and one shift."""


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


@pytest.mark.parametrize("factor", [0.001, 1.0, 6.0, 1000.0])
def test_natural_steps_are_stretched_to_the_budget(factor: float) -> None:
    """The budget is spent within 2 %, however far the quadratic form is off; few measurements suffice."""
    measured = Measured(factor)
    natural = NaturalGradient(measured.parameters, FISHER, measured, 0.03, 3)
    for k in range(3):
        for i, parameter in enumerate(measured.parameters):
            parameter.grad = torch.tensor([1.0, -2.0, 0.5, 3.0]) * (i + 0.1 * k + 1)
        natural.step()
        assert all(parameter.grad is None for parameter in measured.parameters)
    before = changes(measured)
    assert measured.calls == 0
    assert natural.stretch() == measured() == pytest.approx(0.03, rel=0.02)
    torch.testing.assert_close(changes(measured), before * (changes(measured)[0, 0] / before[0, 0]))
    assert measured.calls <= 12


def changes(measured: Measured) -> torch.Tensor:
    """Return the changes of scale and shift, `[2, 4]`."""
    return torch.stack([measured.parameters[0].detach() - 1, measured.parameters[1].detach()])


def test_natural_steps_are_gradients_in_the_metric_of_the_damped_diagonal() -> None:
    """All steps have the length at which the first, taken K times, costs SHORT."""
    measured = Measured()
    gradients = [torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.3, 1.0, -1.0, 0.0])]
    natural = NaturalGradient(measured.parameters, FISHER, measured, 0.01, 4)
    expected = -torch.stack([g / (f + DAMPING * f.mean()) for g, f in zip(gradients, FISHER)])
    form = float((torch.stack(FISHER) * expected.square()).sum()) / 2
    length = (SHORT / form) ** 0.5 / 4
    for k in (1.0, 3.0):
        for parameter, gradient in zip(measured.parameters, gradients):
            parameter.grad = k * gradient
        natural.step()
    torch.testing.assert_close(changes(measured), (1 + 3) * length * expected)


def test_the_proximal_step_has_the_sizes_of_the_natural_step() -> None:
    measured = Measured()
    for parameter in measured.parameters:
        parameter.grad = torch.tensor([1.0, -2.0, 0.5, 3.0])
    given: list[Sizes] = []
    NaturalGradient(measured.parameters, FISHER, measured, 0.01, 1).step(given.append)
    ((scale, shift),) = given
    gradient = torch.tensor([1.0, -2.0, 0.5, 3.0])
    torch.testing.assert_close(changes(measured), -torch.stack([scale * gradient, shift * gradient]))


def test_without_a_gradient_nothing_moves_and_nothing_is_stretched() -> None:
    measured = Measured()
    natural = NaturalGradient(measured.parameters, FISHER, measured, 0.01, 1)
    for parameter in measured.parameters:
        parameter.grad = torch.zeros(4)
    natural.step()
    assert natural.stretch() == 0
    assert not changes(measured).any()


@pytest.mark.parametrize("ceiling", [1e-4, 0.02])
def test_a_budget_that_no_length_spends_ends_at_most_there(ceiling: float) -> None:
    """A divergence that jumps from below the budget to infinity ends below it, finite."""
    measured = Measured()
    measured.parameters[1].data.fill_(1e-3)

    def jumps() -> float:
        return value if (value := measured()) < ceiling else math.inf

    natural = NaturalGradient(measured.parameters, FISHER, jumps, 0.03, 1)
    assert 0 < natural.stretch() < ceiling
    assert measured() < ceiling
