"""The 1-D cost against scipy and POT, and the closed-form maps against independent fits."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from lineas import LineasError
from lineas.learning import transport

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**31)


def samples(n: int, m: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return source, 2 * torch.randn(m, d, generator=generator, dtype=torch.float64) + 0.5


@settings(max_examples=60)
@given(sizes, sizes, seeds)
def test_cost_is_n_times_the_squared_wasserstein_distance_of_pot(n: int, m: int, seed: int) -> None:
    u, v = samples(n, m, 3, seed)
    expected = n * np.mean([ot.wasserstein_1d(u[:, j].numpy(), v[:, j].numpy(), p=2) for j in range(3)])
    assert float(transport.cost(u, v)) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


@settings(max_examples=40)
@given(sizes, sizes, seeds)
def test_coupling_gives_scipys_first_wasserstein_distance(n: int, m: int, seed: int) -> None:
    u, v = samples(n, m, 1, seed)
    i, k, mass = transport.coupling(n, m)
    ours = float(mass @ (u.sort(0).values[i, 0] - v.sort(0).values[k, 0]).abs())
    assert ours == pytest.approx(scipy.stats.wasserstein_distance(u[:, 0].numpy(), v[:, 0].numpy()), rel=1e-9)


@settings(max_examples=15)
@given(st.integers(1, 6), st.integers(1, 6), seeds)
def test_cost_is_the_optimum_of_the_transport_linear_programme(n: int, m: int, seed: int) -> None:
    u, v = samples(n, m, 1, seed)
    distances = (u - v.T).square().numpy().ravel()
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    marginals = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    solved = linprog(distances, A_eq=np.concatenate([rows, columns]), b_eq=marginals)
    assert float(transport.cost(u, v)) == pytest.approx(n * solved.fun, rel=1e-7, abs=1e-9)


@given(sizes, sizes)
def test_coupling_has_the_right_marginals_and_no_more_pieces_than_needed(n: int, m: int) -> None:
    i, k, mass = transport.coupling(n, m)
    assert len(mass) == n + m - np.gcd(n, m)
    assert (mass > 0).all()
    torch.testing.assert_close(torch.zeros(n).double().index_add(0, i, mass), torch.full((n,), 1 / n).double())
    torch.testing.assert_close(torch.zeros(m).double().index_add(0, k, mass), torch.full((m,), 1 / m).double())


def test_the_exact_formula_for_equal_sizes() -> None:
    u = torch.tensor([[3.0, 0.0], [1.0, 4.0]])
    v = torch.tensor([[2.0, 1.0], [5.0, 1.0]])
    # neuron 0: (1-2)^2 + (3-5)^2 = 5; neuron 1: (0-1)^2 + (4-1)^2 = 10; mean over neurons, sum over samples
    assert float(transport.cost(u, v)) == pytest.approx(7.5)


@settings(max_examples=20)
@given(st.integers(2, 8), st.integers(2, 8), seeds)
def test_repeating_every_target_sample_changes_nothing(n: int, m: int, seed: int) -> None:
    u, v = samples(n, m, 2, seed)
    once, twice = transport.cost(u, v), transport.cost(u, v.repeat(2, 1))
    assert float(once) == pytest.approx(float(twice), rel=1e-9)


@pytest.mark.parametrize("m", [6, 4, 9])
def test_gradient_is_that_of_finite_differences(m: int) -> None:
    u, v = samples(6, m, 3, seed=1)
    assert torch.autograd.gradcheck(lambda x: transport.cost(x, v), u.requires_grad_())


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LineasError, match=r"\[2, 3\] with \[2, 4\]"):
        transport.cost(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(LineasError, match="at least one sample"):
        transport.coupling(0, 3)


@settings(max_examples=20)
@given(st.integers(3, 20), seeds)
def test_lin_act_is_the_least_squares_line_through_the_sorted_samples(n: int, seed: int) -> None:
    u, v = samples(n, n, 2, seed)
    fitted = transport.linear_map(u, v)
    for j in range(2):
        slope, intercept = np.polyfit(np.sort(u[:, j].numpy()), np.sort(v[:, j].numpy()), 1)
        assert float(fitted.scale[j]) == pytest.approx(slope, rel=1e-4, abs=1e-5)
        assert float(fitted.shift[j]) == pytest.approx(intercept, rel=1e-4, abs=1e-5)


@settings(max_examples=20)
@given(st.integers(3, 12), st.integers(2, 12), seeds)
def test_lin_act_of_unequal_sizes_is_the_fit_of_both_repeated_to_one_size(n: int, m: int, seed: int) -> None:
    u, v = samples(n, m, 2, seed)
    common = transport.linear_map(u.repeat_interleave(m, 0), v.repeat_interleave(n, 0))
    fitted = transport.linear_map(u, v)
    torch.testing.assert_close(fitted.scale, common.scale, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fitted.shift, common.shift, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fit", [transport.gaussian_map, transport.linear_map])
def test_an_affine_shift_of_distribution_is_recovered_exactly(fit) -> None:
    u, _ = samples(32, 1, 4, seed=3)
    w, b = torch.tensor([0.5, 1.0, 2.0, 3.0]).double(), torch.tensor([-1.0, 0.0, 1.0, 2.0]).double()
    fitted = fit(u, (w * u + b)[torch.randperm(32)])
    torch.testing.assert_close(fitted.scale, w.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fitted.shift, b.float(), atol=1e-4, rtol=1e-4)


def test_mean_map_moves_the_mean_and_nothing_else() -> None:
    u, v = samples(7, 5, 3, seed=4)
    fitted = transport.mean_map(u, v)
    assert (fitted.scale == 1).all()
    torch.testing.assert_close(fitted(u.float()).mean(0), v.float().mean(0))


@pytest.mark.parametrize("fit", [transport.gaussian_map, transport.linear_map])
def test_constant_neurons_keep_their_scale(fit) -> None:
    fitted = fit(torch.full((4, 1), 2.0), torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    assert float(fitted.scale[0]) == 1.0
    assert float(fitted.shift[0]) == pytest.approx(-0.5)


@pytest.mark.parametrize("unit", [1e-30, 1e-5, 1.0, 1e5, 1e15])
@pytest.mark.parametrize("fit", [transport.gaussian_map, transport.linear_map])
def test_scales_do_not_depend_on_the_unit_of_the_activations(fit, unit: float) -> None:
    u, v = samples(12, 9, 4, seed=5)
    u[:, 3], v[:, 2] = 2.0, 3.0  # constant, on one side and on the other
    plain, fitted = fit(u, v), fit(unit * u, unit * v)
    torch.testing.assert_close(fitted.scale, plain.scale)
    torch.testing.assert_close(fitted.shift.double() / unit, plain.shift.double())
    assert (plain.scale[:2] != 1).all()
    assert float(plain.scale[3]) == 1.0


@pytest.mark.parametrize("level", [2e-7, 3.0, 1e4])
@pytest.mark.parametrize("fit", [transport.gaussian_map, transport.linear_map])
def test_a_neuron_that_varies_by_rounding_alone_is_constant(fit, level: float) -> None:
    u, v = samples(16, 16, 1, seed=6)
    rounded = (level * (1 + 1e-7 * u)).float()
    assert rounded.std() > 0
    assert float(fit(rounded, level * v.float()).scale) == 1.0
    assert float(fit((1e-9 * level * u).float(), level * v.float()).scale) == 1.0  # all but dead


def test_samples_that_are_none_are_refused() -> None:
    u = torch.ones(4, 2)
    for fit in (transport.mean_map, transport.gaussian_map, transport.linear_map):
        for wrong, sentence in (
            ([[1.0, 2.0]], "tensor of numbers"),
            (u.long(), "int64"),
            (u[0], r"\[2\]"),
            (u[:, :1], r"\[4, 1\]"),
            (u[:0], "samples a side, not"),
            (u * torch.nan, "not finite"),
        ):
            with pytest.raises(LineasError, match=sentence):
                fit(wrong, u)  # pyright: ignore[reportArgumentType]
    with pytest.raises(LineasError, match="at least 2 samples a side, not 1 and 4"):
        transport.gaussian_map(u[:1], u)
    with pytest.raises(LineasError, match=r"at least one sample a side, not 1\.5"):
        transport.coupling(1.5, 2)
