"""Maps while they are trained by gradients: one scale and one shift a neuron, in place at every site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from lineas.intervention.maps import AffineMap, affine
from lineas.sites import Site
from lineas.steering.hooks import Edit

SCALE_UNIT = 0.05
"""Of a step of a scale, where a shift's is the neuron's standard deviation: shifts do most of the work."""


class TrainedMaps:
    """Maps that gradients reach, the identity at first.

    Args:
        sites: where they act.
        like: by site name, activations `[..., d]` that tell width and device.
        start: by site name, for some or all of the sites, the maps to begin with instead.
        within: whether neurons that the start leaves as they are stay so.
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
                parameter.data[~touched] = identity  # also what is smaller than counts
                parameter.register_hook(touched.to(parameter.dtype).mul)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All scales, then all shifts."""
        return [*self.scales.values(), *self.shifts.values()]

    def fix(self, scales: Iterable[str], shifts: Iterable[str]) -> None:
        """Keep the scales, and the shifts, of these sites at the identity."""
        for identity, fixed in ((1.0, [self.scales[n] for n in scales]), (0.0, [self.shifts[n] for n in shifts])):
            for parameter in fixed:
                parameter.data.fill_(identity)
                parameter.register_hook(torch.zeros_like)

    def maps(self) -> dict[str, AffineMap]:
        """A copy of the maps as they are now, by site name; nobody has looked whether they are finite."""
        return {
            # + 0.0: the prox leaves -0.0
            name: AffineMap.unchecked(scale.detach().clone(), self.shifts[name].detach() + 0.0)
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
