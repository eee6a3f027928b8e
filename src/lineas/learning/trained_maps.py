"""Maps while they are trained by gradients: one scale and one shift per neuron of every site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from lineas.intervention.maps import AffineMap, affine
from lineas.sites import Site
from lineas.steering.hooks import Edit

SCALE_UNIT = 0.05
"""Unit of a scale; a shift's unit is the neuron's standard deviation. Shifts do most of the work."""


class TrainedMaps:
    """Maps whose scales and shifts are parameters; they begin as the identity.

    Args:
        like: activations by site name, `[..., d]`, of the same width and device as the maps.
        start: maps to begin with, by site name, for some or all of the sites; None for the identity.
        within: whether neurons that the start does not change stay unchanged.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        like: Mapping[str, torch.Tensor],
        start: Mapping[str, AffineMap] | None = None,
        within: bool = False,
    ) -> None:
        begin = {name: (start or {}).get(name) or AffineMap.identity(v.shape[-1]) for name, v in like.items()}
        self.scales = {name: nn.Parameter(m.scale.to(like[name], copy=True)) for name, m in begin.items()}
        self.shifts = {name: nn.Parameter(m.shift.to(like[name], copy=True)) for name, m in begin.items()}
        self.edits: dict[Site, Edit] = {site: self._edit(site) for site in sites}
        for name, map_ in begin.items() if within else ():
            touched = map_.support().to(like[name].device)
            for identity, parameter in ((1.0, self.scales[name]), (0.0, self.shifts[name])):
                parameter.data[~touched] = identity  # also changes below the tolerance of the support
                parameter.register_hook(touched.to(parameter.dtype).mul)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All scales, followed by all shifts."""
        return [*self.scales.values(), *self.shifts.values()]

    def fix(self, scales: Iterable[str], shifts: Iterable[str]) -> None:
        """Keep the scales of some sites, and the shifts of some sites, at the identity."""
        for identity, fixed in ((1.0, [self.scales[n] for n in scales]), (0.0, [self.shifts[n] for n in shifts])):
            for parameter in fixed:
                parameter.data.fill_(identity)
                parameter.register_hook(torch.zeros_like)

    @torch.no_grad()
    def set(self, maps: Mapping[str, AffineMap]) -> None:
        """Take the values of maps; sites without one become the identity."""
        for name, scale in self.scales.items():
            scale.copy_(maps[name].scale if name in maps else torch.ones_like(scale))
            self.shifts[name].copy_(maps[name].shift if name in maps else torch.zeros_like(scale))

    def maps(self) -> dict[str, AffineMap]:
        """Return a copy of the current maps by site name; they may not be finite."""
        return {
            name: AffineMap.unchecked(scale.detach().clone(), self.shifts[name].detach() + 0.0)  # prox leaves -0.0
            for name, scale in self.scales.items()
        }

    def _edit(self, site: Site) -> Edit:
        scale, shift = self.scales[site.name], self.shifts[site.name]
        return lambda z: affine(z, scale, shift, site.axis)


def units(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the unit of every scale, SCALE_UNIT, then of every shift, the neuron's standard deviation over both sides.

    The activations are `[n, d]` and `[m, d]` by site name; of `[n, k, d]` and `[m, k, d]` the k passes are averaged.
    """
    deviations = [_deviation(source[name], v) for name, v in target.items()]
    return [torch.full_like(d, SCALE_UNIT) for d in deviations] + deviations


def _deviation(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation `[d]` over `[n, ..., d]` and `[m, ..., d]`, with the same weight for both sides."""
    within = (u.var(dim=0, correction=0) + v.var(dim=0, correction=0)) / 2
    variance = within + (u.mean(dim=0) - v.mean(dim=0)).square() / 4
    return variance.reshape(-1, u.shape[-1]).mean(dim=0).sqrt()
