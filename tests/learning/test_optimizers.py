"""Steps in units of their own: the same as torch's Adam in coordinates where every unit is 1."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from lineas.learning.lineas import LinEAS
from lineas.learning.optimizers import DAMPING, SHORT, DeviationAdam, NaturalGradient, PaperOptimizer, Sizes
from lineas.learning.trained_maps import TrainedMaps
from lineas.sites import Site

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
    DeviationAdam([parameter], [torch.tensor([1.0, 0.1, 5.0])], RATE, 1).step(lambda sizes, units: given.append(sizes))
    ((size,),) = given
    torch.testing.assert_close(torch.tensor([1.0, 2.0, 3.0]) - parameter.detach(), size * gradient)
    assert parameter.grad is None


def test_the_published_sizes_are_the_learning_rate_before_the_schedule_moves() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    published = PaperOptimizer("sgd", [parameter], 0.5, 2)
    sizes: list[Any] = []
    for _ in range(2):
        parameter.grad = torch.ones(2)
        published.step(lambda given, units: sizes.extend(given))
    assert sizes == [0.5, 0.5 * (1 + 1e-3) / 2]
    torch.testing.assert_close(parameter.detach(), torch.full((2,), -sum(sizes)))


FISHER = [torch.tensor([1.0, 100.0, 0.0, 9.0]), torch.tensor([0.01, 4.0, 0.0, 1.0])]
"""The Fisher information of one scale and one shift."""
LEVEL = [torch.zeros(4), torch.zeros(4)]
"""A surprise that no change raises."""


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
    natural = NaturalGradient(measured.parameters, FISHER, LEVEL, measured, 0.03, 3)
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
    natural = NaturalGradient(measured.parameters, FISHER, LEVEL, measured, 0.01, 4)
    expected = -torch.stack([g / (f + DAMPING * f.mean()) for g, f in zip(gradients, FISHER)])
    form = float((torch.stack(FISHER) * expected.square()).sum()) / 2
    length = (SHORT / form) ** 0.5 / 4
    for k in (1.0, 3.0):
        for parameter, gradient in zip(measured.parameters, gradients):
            parameter.grad = k * gradient
        natural.step()
    torch.testing.assert_close(changes(measured), (1 + 3) * length * expected)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_natural_step_is_the_steepest_that_does_not_raise_the_surprise(sign: float) -> None:
    """Among directions of the same length in the metric, none with `h' d <= 0` lowers the cost more."""
    g = [torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.3, 1.0, -1.0, 0.0])]
    h = [sign * torch.tensor([0.2, 0.1, -1.0, 0.3]), sign * torch.tensor([1.0, 0.5, 2.0, -0.1])]
    measured = Measured()
    for parameter, gradient in zip(measured.parameters, g):
        parameter.grad = gradient.clone()
    NaturalGradient(measured.parameters, FISHER, h, measured, 0.01, 1).step()
    found, gradient, surprise = changes(measured).flatten(), torch.cat(g), torch.cat(h)
    metric = torch.cat([f + DAMPING * f.mean() for f in FISHER])
    assert float(surprise @ found) <= 1e-6 * float(surprise.norm() * found.norm())
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(20000, 8, generator=generator) / metric.sqrt()
    others = torch.cat([others, found + 0.1 * found.norm() * others / others.norm(dim=1, keepdim=True)])
    others *= ((metric * found.square()).sum() / (metric * others.square()).sum(1, keepdim=True)).sqrt()
    allowed = others[others @ surprise <= 0]
    assert len(allowed) > 1000
    assert float((allowed @ gradient).min()) >= float(found @ gradient) * (1 + 1e-6)
    plain = -gradient / metric
    assert (float(surprise @ plain) > 0) == (sign > 0)  # so one sign needs the correction, and the other does not


def test_the_natural_step_is_a_plain_one_in_root_nats() -> None:
    """In the units that the proximal step is given, the step is `-r gradient`, and half its square the damped form."""
    measured, gradient = Measured(), torch.tensor([1.0, -2.0, 0.5, 3.0])
    for parameter in measured.parameters:
        parameter.grad = gradient.clone()
    given: list[tuple[Sizes, Sizes]] = []
    optimizer = NaturalGradient(measured.parameters, FISHER, LEVEL, measured, 0.01, 1)
    optimizer.step(lambda sizes, units: given.append((sizes, units)))
    ((sizes, units),) = given
    unit = torch.stack([torch.as_tensor(one) for one in units])
    assert sizes[0] == sizes[1]
    torch.testing.assert_close(changes(measured) / unit, -sizes[0] * unit * gradient)
    damped = torch.stack([f + DAMPING * f.mean() for f in FISHER])
    torch.testing.assert_close((changes(measured) / unit).square(), damped * changes(measured).square())


def test_a_penalty_keeps_what_saves_more_than_gamma_for_a_root_nat() -> None:
    maps = TrainedMaps([Site("a")], {"a": torch.zeros(4)})
    gradients, gamma = [torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([0.3, -1.0, -1.0, 0.0])], 0.7
    for parameter, gradient in zip(maps.parameters, gradients):
        parameter.grad = gradient.clone()
    method, length = LinEAS(gamma=gamma, lambda_g=0.0), []

    def prox(sizes: Sizes, units: Sizes) -> None:
        length.append(sizes[0])
        method._sparsen(maps, sizes, units)

    NaturalGradient(maps.parameters, FISHER, LEVEL, lambda: 0.0, 0.01, 1).step(prox)
    for parameter, gradient, f, identity in zip(maps.parameters, gradients, FISHER, (1.0, 0.0)):
        unit = (f + DAMPING * f.mean()).rsqrt()
        saved = unit * gradient
        kept = saved.abs() > gamma
        assert 0 < int(kept.sum()) < 4
        expected = -length[0] * unit * (saved - gamma * saved.sign()) * kept
        torch.testing.assert_close(parameter.detach() - identity, expected)


def test_without_a_gradient_nothing_moves_and_nothing_is_stretched() -> None:
    measured = Measured()
    natural = NaturalGradient(measured.parameters, FISHER, LEVEL, measured, 0.01, 1)
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

    natural = NaturalGradient(measured.parameters, FISHER, LEVEL, jumps, 0.03, 1)
    assert 0 < natural.stretch() < ceiling
    assert measured() < ceiling
