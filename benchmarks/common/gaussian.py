"""Gaussian optimal transport in a few principal components (Nanfack et al. 2026, arXiv 2603.04355)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import lineas
from lineas.learning.capture import activations
from lineas.modules import blocks
from lineas.sites import Site
from lineas.steering.hooks import Edit, edited

Maps = dict[Site, tuple[torch.Tensor, ...]]
"""For each site the center `[d]`, the directions `[d, k]`, and the map of coordinates `[k, k]` and `[k]`."""


@dataclass(frozen=True)
class Transported:
    """The model whose activations are moved by the optimal map between two Gaussians in a subspace.

    Args:
        name: name in tables.
        maps: what is learned at every site.
        strength: share of the way; default: 1.
    """

    name: str
    maps: Maps = field(repr=False)
    strength: float = 1.0
    prefix: str = field(default="", init=False)

    @contextmanager
    def applied(self, model: lineas.TextModel) -> Iterator[Moving]:
        """Return a context within which the model is changed."""
        moving = self.moving()
        with edited(model.network, moving.edits(self.maps)):
            yield moving

    def moving(self) -> Moving:
        """Return the change, not in place yet."""
        return Moving(self.strength)

    def identity(self) -> dict[str, Any]:
        """Return the part of a cache key that names this system."""
        sums = {site.name: [float(one.double().sum()) for one in maps] for site, maps in self.maps.items()}
        return {"transport": sums, "strength": self.strength}


class Moving:
    """The change that transports activations; it can be switched off."""

    def __init__(self, strength: float) -> None:
        self._strength, self._on = strength, True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Return a context within which the model is untouched."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def edits(self, maps: Maps) -> dict[Site, Edit]:
        """Return the edit of each site."""
        return {site: partial(self._moved, *one) for site, one in maps.items()}

    def _moved(
        self,
        center: torch.Tensor,
        directions: torch.Tensor,
        factor: torch.Tensor,
        offset: torch.Tensor,
        z: torch.Tensor,
    ) -> torch.Tensor:
        """Return the activation z, moved a share of its way."""
        if not self._on:
            return z
        before = (z.float() - center) @ directions
        return z + (self._strength * (before @ factor.T + offset - before) @ directions.T).to(z)


def transport(
    model: lineas.TextModel, source: Sequence[str], target: Sequence[str], depths: Sequence[float], k: int
) -> Maps:
    """Learn Gaussian optimal transport in the first k principal components, on the outputs of blocks at some depths.

    Of coordinates y the map is `m_t + A (y - m_s)`, with `A = S^-1/2 (S^1/2 T S^1/2)^1/2 S^-1/2` for the covariances
    S and T of source and target. The authors take one or two blocks at 40 to 60 % of the depth.

    Args:
        depths: shares of the depth at which the blocks stand.
        k: number of components.
    """
    names = [name for name, _ in blocks(model.network)]
    sites = [Site(names[round(depth * (len(names) - 1))]) for depth in depths]
    before, after = (activations(model, model.samples(side), sites) for side in (source, target))
    maps: Maps = {}
    for site in sites:
        u, v = before[site.name].double(), after[site.name].double()
        center = torch.cat([u, v]).mean(0)
        directions = torch.linalg.svd(torch.cat([u, v]) - center, full_matrices=False).Vh[:k].T
        a, b = (u - center) @ directions, (v - center) @ directions
        s, t = (_covariance(one) for one in (a, b))
        root = _power(s, 0.5)
        factor = _power(s, -0.5) @ _power(root @ t @ root, 0.5) @ _power(s, -0.5)
        offset = b.mean(0) - factor @ a.mean(0)
        maps[site] = tuple(one.float() for one in (center, directions, factor, offset))
    return maps


def _covariance(samples: torch.Tensor) -> torch.Tensor:
    """Return the covariance `[k, k]` of `[n, k]`, with a hundredth of its mean variance added."""
    covariance = samples.T.cov()
    return covariance + 0.01 * covariance.trace() / len(covariance) * torch.eye(len(covariance)).double()


def _power(matrix: torch.Tensor, power: float) -> torch.Tensor:
    """Return a power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(1e-12) ** power) @ vectors.T
