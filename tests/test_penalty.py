"""The proximal step of the sparse group lasso: optimality conditions, and a convex solver."""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lineas import penalty

vectors = st.lists(st.floats(-3, 3), min_size=1, max_size=8).map(lambda x: torch.tensor(x, dtype=torch.float64))
weights = st.floats(0, 1)


@settings(max_examples=300)
@given(vectors, weights, weights, weights)
def test_the_result_meets_the_optimality_conditions(z: torch.Tensor, t: float, l1: float, lg: float) -> None:
    """0 must lie in `x - z + t d(value)(x)`: subgradients of both norms, worked out by hand."""
    x = penalty.prox(z, t, l1, lg)
    group = t * lg * len(z) ** 0.5
    if x.norm() > 0:
        smooth = x - z + group * x / x.norm()
        active = x != 0
        torch.testing.assert_close(smooth[active], -t * l1 * x.sign()[active], atol=1e-9, rtol=1e-9)
        assert (smooth[~active].abs() <= t * l1 + 1e-9).all()
    else:  # the smallest vector that subgradients of |.|_1 can leave over must fit into the group's ball
        left = (z.abs() - t * l1).clamp_min(0)
        assert left.norm() <= group + 1e-9


@settings(max_examples=25)
@given(vectors, weights, weights, weights)
def test_the_result_is_what_a_convex_solver_finds(z: torch.Tensor, t: float, l1: float, lg: float) -> None:
    x = cvxpy.Variable(len(z))
    value = l1 * cvxpy.norm1(x) + lg * np.sqrt(len(z)) * cvxpy.norm2(x)
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - z.numpy()) / 2 + t * value)).solve(solver="CLARABEL")
    np.testing.assert_allclose(penalty.prox(z, t, l1, lg).numpy(), x.value, atol=2e-4)


@given(vectors, vectors.flatmap(lambda _: weights), weights, weights)
def test_it_never_moves_points_apart(z: torch.Tensor, t: float, l1: float, lg: float) -> None:
    other = z.flip(0) + 0.1
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
