"""The sparse group lasso on one group of numbers: its value and its proximal step."""

from __future__ import annotations

import math

import torch

from lineas.errors import LineasError, kind_of, shown

NEWTON = 12
"""Number of Newton iterations; random groups with steps over ten decades need at most half of them."""
SMALLEST = 1e-60
"""Smallest step; a smaller one is raised to it, so that its inverse can be squared and cubed."""


def value(z: torch.Tensor, lambda_1: float, lambda_g: float) -> torch.Tensor:
    """Return `lambda_1 |z|_1 + lambda_G sqrt(d) |z|_2` (Simon et al. 2013; LinEAS, arXiv 2503.10679, section 3.3).

    LinEAS has two groups a site: `scale - 1` and `shift`.

    Args:
        z: one group, `[d]`.
        lambda_1: weight of the absolute values, which makes single neurons exactly zero.
        lambda_g: weight of the norm, which makes the whole group exactly zero.

    >>> value(torch.tensor([3.0, 4.0]), 1.0, 0.0), value(torch.tensor([3.0, -4.0, 0.0, 0.0]), 0.0, 1.0)
    (tensor(7.), tensor(10.))
    """
    _check(z, lambda_1, lambda_g)
    return lambda_1 * z.abs().sum() + lambda_g * z.numel() ** 0.5 * z.norm()


def prox(z: torch.Tensor, step: float | torch.Tensor, lambda_1: float, lambda_g: float) -> torch.Tensor:
    """Return the proximal operator `argmin_x sum_j (x_j - z_j)^2 / (2 step_j) + value(x)`.

    First z is soft-thresholded by `step lambda_1`, then the group is shrunk. With one step for all neurons this gives
    `max(1 - step lambda_G sqrt(d) / |z|, 0) z`. With one step per neuron it gives
    `r z_j / (r + step_j lambda_G sqrt(d))`, where r > 0 is the norm of the result, or 0 where the soft-thresholded z
    has `|z / step| <= lambda_G sqrt(d)`.

    Args:
        z: one group, `[d]`; it is not changed.
        step: size of the last gradient step times gamma, 0 or more; or one per neuron, `[d]`, each > 0.

    >>> prox(torch.tensor([3.0, -0.5]), 1.0, 1.0, 0.0)
    tensor([2., -0.])
    >>> prox(torch.tensor([3.0, -0.5]), torch.tensor([1.0, 0.25]), 1.0, 0.0)
    tensor([ 2.0000, -0.2500])
    """
    _check(z, lambda_1, lambda_g)
    if not isinstance(step, torch.Tensor) and not (isinstance(step, (int, float)) and 0 <= step < math.inf):
        raise LineasError(f"the step of the penalty is a finite number from 0 on, not {shown(step)}.")
    soft = z.sign() * (z.abs() - step * lambda_1).clamp_min(0)
    strength = lambda_g * z.numel() ** 0.5
    if strength == 0:
        return soft
    if isinstance(step, torch.Tensor):
        return _shrunk(soft, step * strength)
    shrink = (1 - step * strength / soft.norm().clamp_min(torch.finfo(z.dtype).tiny)).clamp_min(0)
    return shrink * soft


def _shrunk(z: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return `r z_j / (r + steps_j)` with r its own norm: the root of `sum_j (z_j / (r + steps_j))^2 = 1`, or 0.

    Newton's method runs on the inverse square root of that sum, which is concave in r. From 0 it approaches the root
    from below, a few times faster than on the sum itself (the secular equation of trust regions).
    """
    z_, steps_ = z.double(), steps.double().clamp_min(SMALLEST)
    root = torch.zeros((), dtype=torch.float64, device=z.device)
    for _ in range(NEWTON):  # a fixed number, so that nothing waits for a GPU
        ratio = z_ / (root + steps_)
        total = ratio.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
        slope = (ratio.square() / (root + steps_)).sum()
        root = (root + total * (total.sqrt() - 1) / slope.clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(0)
    return (root * z_ / (root + steps_)).to(z.dtype)


def unmet(z: torch.Tensor, gradient: torch.Tensor, lambda_1: float, lambda_g: float) -> torch.Tensor:
    """Return how far z violates the optimality conditions: the smallest element of `gradient + d(value)(z)`, `[d]`.

    It is 0 at an optimum, where the subdifferential `gradient + d(value)(z)` contains 0.

    Args:
        z: one group, `[d]`.
        gradient: gradient of the rest of the objective at z, `[d]`, divided by gamma.

    >>> z, gradient = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([-1.0, 0.5, -3.0])
    >>> unmet(z, gradient, 1.0, 0.0)      # balanced, rightly at zero, and one that should move
    tensor([ 0.,  0., -2.])
    """
    _check(z, lambda_1, lambda_g)
    strength, norm = lambda_g * z.numel() ** 0.5, z.norm()
    smooth = gradient + strength * z / norm if norm > 0 else gradient
    at_zero = smooth.sign() * (smooth.abs() - lambda_1).clamp_min(0)
    if norm > 0:
        return torch.where(z == 0, at_zero, smooth + lambda_1 * z.sign())
    return at_zero * (1 - strength / at_zero.norm().clamp_min(torch.finfo(z.dtype).tiny)).clamp_min(0)


def _check(z: torch.Tensor, lambda_1: float, lambda_g: float) -> None:
    """Refuse wrong types and weights; the numbers in z are not read, since that would wait for a GPU."""
    if not isinstance(z, torch.Tensor) or not z.is_floating_point() or z.dim() != 1:
        kind = f"{list(z.shape)} of {z.dtype}" if isinstance(z, torch.Tensor) else kind_of(z)
        raise LineasError(f"the penalty is of one group, a tensor of floating point numbers [d], not {kind}.")
    for name, weight in (("lambda_1", lambda_1), ("lambda_g", lambda_g)):
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise LineasError(f"{name} is a finite number from 0 on, not {shown(weight)}.")
