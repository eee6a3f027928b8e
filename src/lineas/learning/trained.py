"""Maps while they are trained by gradients: one scale and one shift a neuron, in place at every site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from lineas.edits import Edit
from lineas.maps import AffineMap, affine
from lineas.sites import Site

SCALE_UNIT = 0.05
"""Of a step of a scale, where a shift's is the neuron's standard deviation: shifts do most of the work."""


class TrainedMaps:
    """Identity maps that gradients reach.

    Args:
        sites: where they act.
        like: by site name, activations `[..., d]` that tell width and device.
    """

    def __init__(self, sites: Sequence[Site], like: Mapping[str, torch.Tensor]) -> None:
        self.scales = {name: nn.Parameter(v.new_ones(v.shape[-1])) for name, v in like.items()}
        self.shifts = {name: nn.Parameter(v.new_zeros(v.shape[-1])) for name, v in like.items()}
        self.edits: dict[Site, Edit] = {site: self._edit(site) for site in sites}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All scales, then all shifts."""
        return [*self.scales.values(), *self.shifts.values()]

    def fix(self, scales: Iterable[str], shifts: Iterable[str]) -> None:
        """Let no gradient reach the scales, and the shifts, of these sites: they stay at the identity."""
        for parameter in (*(self.scales[name] for name in scales), *(self.shifts[name] for name in shifts)):
            parameter.register_hook(torch.zeros_like)

    def maps(self) -> dict[str, AffineMap]:
        """A copy of the maps as they are now, by site name."""
        return {
            name: AffineMap(scale.detach().clone(), self.shifts[name].detach() + 0.0)  # + 0.0: the prox leaves -0.0
            for name, scale in self.scales.items()
        }

    def _edit(self, site: Site) -> Edit:
        scale, shift = self.scales[site.name], self.shifts[site.name]
        return lambda z: affine(z, scale, shift, site.axis)


def units(left: Mapping[str, torch.Tensor], reached: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The unit of every scale, then of every shift: SCALE_UNIT, and the neuron's standard deviation over both sides.

    Args:
        left: by site name, the source's activations, `[n, d]`, or `[n, k, d]` of k passes, over which is averaged.
        reached: the target's, in the same way.
    """
    deviations = [_deviation(left[name], v) for name, v in reached.items()]
    return [torch.full_like(d, SCALE_UNIT) for d in deviations] + deviations


def _deviation(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The standard deviation `[d]` over `[n, ..., d]` and `[m, ..., d]`, which weigh the same whatever n and m."""
    within = (u.var(dim=0, correction=0) + v.var(dim=0, correction=0)) / 2
    variance = within + (u.mean(dim=0) - v.mean(dim=0)).square() / 4
    return variance.reshape(-1, u.shape[-1]).mean(dim=0).sqrt()
