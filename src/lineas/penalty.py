"""The sparse group lasso on one group of numbers: its value and its proximal step."""

from __future__ import annotations

import torch


def value(z: torch.Tensor, lambda_1: float, lambda_g: float) -> torch.Tensor:
    """`lambda_1 |z|_1 + lambda_G sqrt(d) |z|_2` (Simon et al. 2013; LinEAS, arXiv 2503.10679, section 3.3).

    LinEAS has two groups a site: `scale - 1` and `shift`.

    Args:
        z: one group, `[d]`.
        lambda_1: weight of the absolute values; makes single neurons exactly zero.
        lambda_g: weight of the norm; makes the whole group exactly zero.

    >>> value(torch.tensor([3.0, 4.0]), 1.0, 0.0), value(torch.tensor([3.0, -4.0, 0.0, 0.0]), 0.0, 1.0)
    (tensor(7.), tensor(10.))
    """
    return lambda_1 * z.abs().sum() + lambda_g * z.numel() ** 0.5 * z.norm()


def prox(z: torch.Tensor, step: float, lambda_1: float, lambda_g: float) -> torch.Tensor:
    """The proximal operator `argmin_x |x - z|^2 / 2 + step * value(x)`, in closed form.

    Soft-threshold by `step lambda_1`, then shrink the group: `max(1 - step lambda_G sqrt(d) / |z|, 0) z`.

    Args:
        z: one group, `[d]`; left as it is.
        step: the learning rate of the gradient step just taken (times gamma).
        lambda_1: as in `value`.
        lambda_g: as in `value`.

    Returns:
        `[d]`; zeros are exact.

    >>> prox(torch.tensor([3.0, -0.5]), 1.0, 1.0, 0.0)
    tensor([2., -0.])
    """
    soft = z.sign() * (z.abs() - step * lambda_1).clamp_min(0)
    if lambda_g == 0 or step == 0:
        return soft
    norm = soft.norm()
    shrink = (1 - step * lambda_g * z.numel() ** 0.5 / norm.clamp_min(torch.finfo(z.dtype).tiny)).clamp_min(0)
    return shrink * soft
