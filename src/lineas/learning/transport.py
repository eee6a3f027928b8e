"""1-D optimal transport per neuron: the exact quantile coupling, the cost, and the closed-form maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import torch

from lineas.errors import LineasError, shown
from lineas.intervention.maps import AffineMap, check_numbers

MIN_DEVIATION = 1e-4
"""A neuron whose standard deviation is at most this share of its size counts as constant, and its scale stays 1."""


@lru_cache(maxsize=64)
def coupling(n: int, m: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the optimal coupling of two sorted samples of sizes n and m with uniform weights.

    Sorted sample i of n covers the quantiles `[i/n, (i+1)/n]`. The mass of a pair (i, k) is the length of the overlap
    with `[k/m, (k+1)/m]`. It is computed in integers, so it is exact (Villani 2003, theorem 2.18: the monotone coupling
    is optimal on the line).

    Returns:
        (i, k, mass): index into the first sample, index into the second sample, mass in float64, each
        `[n + m - gcd(n, m)]`; the masses sum to 1.

    >>> i, k, mass = coupling(2, 3)
    >>> i.tolist(), k.tolist(), [round(x, 3) for x in mass.tolist()]
    ([0, 0, 1, 1], [0, 1, 1, 2], [0.333, 0.167, 0.167, 0.333])
    """
    if not isinstance(n, int) or not isinstance(m, int) or n < 1 or m < 1:
        raise LineasError(f"a coupling needs at least one sample a side, not {shown(n)} and {shown(m)}.")
    unit = gcd(n, m)
    step_n, step_m = m // unit, n // unit  # widths of one sample's interval, in units of gcd/(n m)
    total = n * step_n
    ends = torch.cat([torch.arange(1, n + 1) * step_n, torch.arange(1, m + 1) * step_m]).unique()
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return starts // step_n, starts // step_m, (ends - starts).double() / total


@dataclass(frozen=True)
class Quantiles:
    """A target as n source samples meet it, computed once.

    With the exact coupling `pi`, sorted sample i of n meets the mean `q_i = n sum_k pi_ik v_k` of its part of the
    target, and `n W_2^2 = sum_i (u_i - q_i)^2 + n sum_ik pi_ik (v_k - q_i)^2`: the second term does not depend on u.

    Args:
        means: target quantiles `q`, `[n, d]`; the sorted target itself if it has n samples.
        within: second term, averaged over neurons, a scalar; 0 if the target has n samples.
    """

    means: torch.Tensor
    within: torch.Tensor

    @classmethod
    def of(cls, v: torch.Tensor, n: int) -> Quantiles:
        """Return the quantiles of a target `[m, d]` for n source samples; `[m, k, d]` counts as k d neurons."""
        ordered = v.flatten(1).sort(dim=0).values
        if len(v) == n:
            return cls(ordered, ordered.new_zeros(()))
        i, k, mass = coupling(n, len(v))
        exact = ordered.detach().double().cpu()[k]  # [n + m - gcd, d]
        weights = (n * mass).unsqueeze(1)
        means = exact.new_zeros(n, ordered.shape[1]).index_add_(0, i, weights * exact)
        within = (weights * (exact - means[i]).square()).sum(0).mean()
        return cls(means.to(v), within.to(v))

    def cost(self, u: torch.Tensor) -> torch.Tensor:
        """Return the cost of source activations `[n, d]` (or `[n, k, d]`) in any order; gradients flow to them."""
        u = u.flatten(1)
        if u.shape != self.means.shape:
            raise LineasError(f"the cost compares {list(self.means.shape)} with the same, not with {list(u.shape)}.")
        return (u.sort(dim=0).values - self.means).square().sum(0).mean() + self.within


def cost(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return one site's cost: n times the squared 2-Wasserstein distance of each neuron, averaged over neurons.

    For n = m: `(1/d) sum_j sum_i (sort(u[:, j])_i - sort(v[:, j])_i)^2` (LinEAS, arXiv 2503.10679, equation 4, in the
    normalisation of the released code: sum over samples, mean over neurons). For n != m the exact quantile coupling.

    Args:
        u: source activations after the map, `[n, d]`, in any order; gradients flow to them.
        v: target activations, `[m, d]`, in any order.
    """
    _check_samples(u, v, 1, "the cost compares")
    return Quantiles.of(v, len(u)).cost(u)


def _check_samples(source: torch.Tensor, target: torch.Tensor, least: int, what: str = "a map is fitted to") -> None:
    """Refuse anything but two samples of the same neurons, `[n, d]` and `[m, d]`."""
    for side in (source, target):
        check_numbers(side, "a sample")
    if source.dim() != 2 or target.dim() != 2 or source.shape[1] != target.shape[1]:
        raise LineasError(f"{what} [n, d] with [m, d], not {list(source.shape)} with {list(target.shape)}.")
    if min(len(source), len(target)) < least:
        raise LineasError(f"{what} at least {least} samples a side, not {len(source)} and {len(target)}.")


def mean_map(source: torch.Tensor, target: torch.Tensor) -> AffineMap:
    """Return Mean-AcT's map, `w = 1, b = mean(target) - mean(source)` (Rodriguez et al. 2024, arXiv 2410.23054)."""
    _check_samples(source, target, 1)
    shift = target.float().mean(0) - source.float().mean(0)
    return AffineMap(torch.ones_like(shift), shift)


def gaussian_map(source: torch.Tensor, target: torch.Tensor) -> AffineMap:
    """Return Gaussian-AcT's map, the optimal one between normal distributions: `w = sigma2 / sigma1, b = mu2 - w mu1`.

    Neurons that vary too little on either side keep `w = 1` (`MIN_DEVIATION`).
    """
    _check_samples(source, target, 2)
    s, t = source.double(), target.double()
    spread_s, spread_t = s.std(0), t.std(0)
    size = _size(s.square().mean(0), t.square().mean(0))
    varies = (spread_s > MIN_DEVIATION * size) & (spread_t > MIN_DEVIATION * size)
    scale = torch.where(varies, spread_t / torch.where(varies, spread_s, 1.0), 1.0)
    return AffineMap(scale.float(), (t.mean(0) - scale * s.mean(0)).float())


def linear_map(source: torch.Tensor, target: torch.Tensor) -> AffineMap:
    """Return Lin-AcT's map: least squares of the sorted target on the sorted source (arXiv 2410.23054, equation 6).

    Samples of different sizes are paired by the exact quantile coupling and weighted by its masses. Neurons that vary
    too little in the source keep `w = 1` (`MIN_DEVIATION`).

    >>> x = torch.tensor([[3.0], [1.0], [2.0]])
    >>> fitted = linear_map(x, 2 * x + 1)
    >>> fitted.scale, fitted.shift
    (tensor([2.]), tensor([1.]))
    """
    _check_samples(source, target, 1)
    i, k, mass = (x.to(source.device) for x in coupling(source.shape[0], target.shape[0]))
    x = source.double().sort(dim=0).values[i]  # [n + m - gcd, d]
    y = target.double().sort(dim=0).values[k]
    mean_x, mean_y = mass @ x, mass @ y
    variance = mass @ (x - mean_x).square()
    covariance = mass @ ((x - mean_x) * (y - mean_y))
    varies = variance.sqrt() > MIN_DEVIATION * _size(mass @ x.square(), mass @ y.square())
    scale = torch.where(varies, covariance / torch.where(varies, variance, 1.0), 1.0)
    return AffineMap(scale.float(), (mean_y - scale * mean_x).float())


def _size(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the size of each neuron's activations, `[d]`, in their unit, from its mean squares on both sides."""
    return ((source + target) / 2).sqrt()
