"""The proximal step of the sparse group lasso: optimality conditions, and a convex solver."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lineas import LineasError
from lineas.learning import penalty


def squarable(number: float) -> float:
    """The same, or 0 where the oracle's own norms would underflow."""
    return number if abs(number) > 1e-100 else 0.0


vectors = st.lists(st.floats(-3, 3).map(squarable), min_size=1, max_size=8).map(
    lambda x: torch.tensor(x, dtype=torch.float64)
)
weights = st.floats(0, 1).map(squarable)

pairs = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=8).map(
    lambda both: tuple(torch.tensor(one, dtype=torch.float64) for one in zip(*both))
)

one_step = st.tuples(vectors, weights)
a_step_a_neuron = st.lists(st.tuples(st.floats(-3, 3).map(squarable), st.floats(1e-4, 10)), min_size=1, max_size=8).map(
    lambda pairs: tuple(torch.tensor(side, dtype=torch.float64) for side in zip(*pairs))
)


@settings(max_examples=500)
@given(one_step | a_step_a_neuron, weights, weights)
def test_the_result_meets_the_optimality_conditions(given_: tuple, l1: float, lg: float) -> None:
    """0 must lie in `x - z + step d(value)(x)`: subgradients of both norms, worked out by hand."""
    z, step = given_
    x = penalty.prox(z, step, l1, lg)
    t = step * torch.ones_like(z)
    group = lg * len(z) ** 0.5
    if x.norm() > 0:
        smooth = x - z + t * group * x / x.norm()
        active = x != 0
        torch.testing.assert_close(smooth[active], -t[active] * l1 * x.sign()[active], atol=1e-9, rtol=1e-9)
        assert (smooth[~active].abs() <= t[~active] * l1 + 1e-9).all()
    else:  # the smallest vector that subgradients of |.|_1 can leave over must fit into the group's ball
        left = (z.abs() / t.clamp_min(1e-300) - l1).clamp_min(0) if t.any() else z
        assert left.norm() <= group + 1e-9


@settings(max_examples=40)
@given(one_step | a_step_a_neuron, weights, weights)
def test_the_result_is_what_a_convex_solver_finds(given_: tuple, l1: float, lg: float) -> None:
    z, step = given_
    x = cvxpy.Variable(len(z))
    value = l1 * cvxpy.norm1(x) + lg * np.sqrt(len(z)) * cvxpy.norm2(x)
    if isinstance(step, float):
        moved = cvxpy.sum_squares(x - z.numpy()) / 2 + step * value
    else:
        moved = cvxpy.sum(cvxpy.multiply(0.5 / step.numpy(), cvxpy.square(x - z.numpy()))) + value
    cvxpy.Problem(cvxpy.Minimize(moved)).solve(solver="CLARABEL")
    np.testing.assert_allclose(penalty.prox(z, step, l1, lg).numpy(), x.value, atol=1e-3)  # pyright: ignore[reportArgumentType, reportCallIssue]


@given(vectors, st.floats(0.01, 1), weights, weights)
def test_equal_steps_for_all_neurons_are_one_step(z: torch.Tensor, t: float, l1: float, lg: float) -> None:
    torch.testing.assert_close(penalty.prox(z, torch.full_like(z, t), l1, lg), penalty.prox(z, t, l1, lg))


def test_a_whole_network_of_steps_over_ten_decades_comes_to_its_root() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4096, generator=generator)
    steps = 10 ** (10 * torch.rand(4096, generator=generator) - 7)
    x = penalty.prox(z, steps, 0.0, 0.1).double()
    assert 0 < x.norm() < z.norm()
    ratio = z.double() / (x.norm() + steps.double() * 0.1 * 64)  # the secular equation of the result's own norm
    assert float(ratio.norm()) == pytest.approx(1, rel=1e-5)


@given(pairs, weights, weights, weights)
def test_it_never_moves_points_apart(points: tuple[torch.Tensor, torch.Tensor], t: float, l1: float, lg: float) -> None:
    z, other = points
    apart = (penalty.prox(z, t, l1, lg) - penalty.prox(other, t, l1, lg)).norm()
    assert apart <= (z - other).norm() + 1e-12


def test_zeros_are_exact_for_neurons_and_for_groups() -> None:
    z = torch.tensor([1.0, 0.05, -0.05])
    assert penalty.prox(z, 0.1, 1.0, 0.0).tolist() == pytest.approx([0.9, 0.0, 0.0])
    assert (penalty.prox(z, 0.1, 1.0, 0.0)[1:] == 0).all()
    assert (penalty.prox(z, 1.0, 0.0, 1.0) == 0).all()


@given(vectors, weights, weights)
def test_a_step_of_zero_changes_nothing(z: torch.Tensor, l1: float, lg: float) -> None:
    assert torch.equal(penalty.prox(z, 0.0, l1, lg), z)


def test_value_is_the_papers_formula() -> None:
    z = torch.tensor([3.0, -4.0])
    assert float(penalty.value(z, 0.5, 2.0)) == pytest.approx(0.5 * 7 + 2.0 * 2**0.5 * 5)


@settings(max_examples=40)
@given(one_step | a_step_a_neuron, weights, weights, st.booleans())
def test_what_is_missing_is_the_smallest_subgradient(given_: tuple, l1: float, lg: float, at_zero: bool) -> None:
    """A convex solver finds the same smallest `gradient + l1 s + lg sqrt(d) t`, s and t subgradients of both norms."""
    z, _ = given_
    z = torch.zeros_like(z) if at_zero else z
    gradient = torch.linspace(-2, 1.5, len(z), dtype=torch.float64)
    s, t = cvxpy.Variable(len(z)), cvxpy.Variable(len(z))
    rules = [cvxpy.abs(s) <= 1]
    active = (z != 0).numpy()
    if active.any():
        rules += [s[active] == z.sign().numpy()[active], t == (z / z.norm()).numpy()]
    else:
        rules += [cvxpy.norm2(t) <= 1]
    left = gradient.numpy() + l1 * s + lg * len(z) ** 0.5 * t
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(left)), rules)  # pyright: ignore[reportArgumentType]
    problem.solve(solver="CLARABEL")
    found = float(penalty.unmet(z, gradient, l1, lg).square().sum())
    assert found == pytest.approx(problem.value, abs=1e-5)


def test_nothing_is_missing_where_a_proximal_step_ends() -> None:
    z = torch.tensor([2.0, -0.3, 0.4, -3.0], dtype=torch.float64)
    x = penalty.prox(z, 0.5, 1.0, 0.5)
    assert float(penalty.unmet(x, (x - z) / 0.5, 1.0, 0.5).abs().max()) < 1e-12
    assert float(penalty.unmet(z, torch.zeros_like(z), 1.0, 0.5).abs().max()) > 1  # where the cost is flat, all of it


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -1.0, "1", None, True])
def test_weights_and_steps_that_are_no_numbers_are_refused(wrong) -> None:
    z = torch.ones(3)
    for refused in (
        lambda: penalty.value(z, wrong, 1.0),
        lambda: penalty.prox(z, 1.0, 1.0, wrong),
        lambda: penalty.unmet(z, z, wrong, 1.0),
    ):
        with pytest.raises(LineasError, match=r"lambda_. is a finite number from 0 on"):
            refused()
    with pytest.raises(LineasError, match="tensor of floating point numbers"):
        penalty.value(z.view(1, 3), 1.0, 1.0)
    if wrong is not True:
        with pytest.raises(LineasError, match="step of the penalty"):
            penalty.prox(z, wrong, 1.0, 1.0)
