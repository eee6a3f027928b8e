"""Mean-AcT, Gaussian-AcT and Lin-AcT: maps fitted layer by layer, each on what the maps before it have moved.

Rodriguez et al. 2024, arXiv 2410.23054.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from lineas.intervention.maps import AffineMap
from lineas.learning.capture import capture, capture_part, stacked
from lineas.learning.memory import largest_part
from lineas.learning.method import ATTENTION_OUT, Fit, FitMap, Task, acting, distance
from lineas.learning.transport import gaussian_map, linear_map, mean_map
from lineas.models.samples import Part
from lineas.sites import Site
from lineas.steering.exclusive import exclusively
from lineas.steering.hooks import Edit, edited


@dataclass(frozen=True)
class MeanAcT:
    """A shift to the target's mean, site by site.

    `w = 1, b = mean(target) - mean(source)` a neuron (Rodriguez et al. 2024, arXiv 2410.23054, section 3), where the
    source's activations have passed the maps of the sites before. Nothing is random in it.
    """

    default_sites: ClassVar[str | None] = ATTENTION_OUT

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map a site."""
        return fit_layerwise(task, mean_map)


@dataclass(frozen=True)
class GaussianAcT:
    """The optimal map between normal distributions, site by site.

    `w = sigma(target) / sigma(source), b = mu(target) - w mu(source)` a neuron, w = 1 where a deviation is at most 1e-4
    of the neuron's size (Rodriguez et al. 2024, arXiv 2410.23054, section 3), where the source's activations have
    passed the maps of the sites before. Nothing is random in it.
    """

    default_sites: ClassVar[str | None] = ATTENTION_OUT

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map a site."""
        return fit_layerwise(task, gaussian_map)


@dataclass(frozen=True)
class LinAcT:
    """The affine map nearest to optimal transport, site by site: the method that LinEAS improves on.

    `(w, b) = argmin sum_i (sort(target)_i - w sort(source)_i - b)^2` a neuron (Rodriguez et al. 2024, arXiv 2410.23054,
    equation 6; with the exact quantile coupling where the sides differ in number), where the source's activations have
    passed the maps of the sites before. Nothing is random in it.
    """

    default_sites: ClassVar[str | None] = ATTENTION_OUT

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map a site."""
        return fit_layerwise(task, linear_map)


@torch.no_grad()
def fit_layerwise(task: Task, fit_map: FitMap) -> Fit:
    """Fit every site's map on the source as the maps before it leave it ("causal", arXiv 2410.23054, section 3.2).

    One forward pass of the source is enough: each site's hook pools the activation that reaches it, fits its map, and
    hands the moved activation on. A source that does not fit into the memory at once takes a pass a site instead,
    part by part, with the same result.

    A site that is reached several times, once in every denoising step, has its map fitted anew each time, on what
    reached it so far: the last fit, on the samples of all steps, is the one that stays.

    Args:
        task: what is to be learned.
        fit_map: how one site's map follows from its activations.
    """
    model, sites = task.model, task.sites
    reached = task.target_activations()  # [m, d] or [m, k, d] a site
    neurons = sum(v[0].numel() for v in reached.values())
    limit = largest_part(model, task.source, sites, neurons, task.memory, backward=False)
    batch = task.source.batch(limit)
    first, *others = batch.parts
    maps: dict[str, AffineMap] = {}
    if not others:
        moved = _fit_within_a_pass(task, first, reached, fit_map, maps)
        several = any(v.dim() > 2 for v in reached.values())  # then the first steps passed the first fits alone
        return Fit(maps, [task.cost(maps, reached) if several else distance(moved, reached)])
    by_name = {site.name: site for site in sites}
    left: dict[str, torch.Tensor] = {}
    for name in capture_part(model, first, sites):  # in the order in which they run
        with edited(model.network, {by_name[done]: acting(map_, by_name[done]) for done, map_ in maps.items()}):
            before = capture(model, batch, [by_name[name]], task.pooling)[name]
        maps[name] = task.fitted(name, fit_map, stacked(before), stacked(reached[name]))
        left[name] = maps[name](before)
    return Fit(maps, [distance(left, reached) if task.pooling == "mean" else task.cost(maps, reached)])


def _fit_within_a_pass(
    task: Task, part: Part, reached: Mapping[str, torch.Tensor], fit_map: FitMap, maps: dict[str, AffineMap]
) -> dict[str, torch.Tensor]:
    """Fill `maps` while the pass runs; returns the moved activations, as `capture` does."""
    before: dict[str, list[torch.Tensor]] = {site.name: [] for site in task.sites}

    def fitter(site: Site) -> Edit:
        target = reached[site.name].reshape(len(reached[site.name]), -1, reached[site.name].shape[-1])  # [m, k, d]

        def edit(z: torch.Tensor) -> torch.Tensor:
            calls = before[site.name]
            if len(calls) < target.shape[1]:
                calls.append(part.pool(z, site, task.pooling))
                few = stacked(target[:, : len(calls)])
                maps[site.name] = task.fitted(site.name, fit_map, torch.cat(calls), few)
            return maps[site.name](z, site.axis)

        return edit

    with edited(task.model.network, {site: fitter(site) for site in task.sites}):
        return capture_part(
            task.model, part, task.sites, task.pooling
        )  # read after the edit, and the pass ends at the last site
