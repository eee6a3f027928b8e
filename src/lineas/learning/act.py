"""Mean-AcT, Gaussian-AcT and Lin-AcT: maps fitted layer by layer (Rodriguez et al. 2024, arXiv 2410.23054)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from lineas.intervention.maps import AffineMap
from lineas.learning.capture import capture, capture_part, stacked
from lineas.learning.memory import largest_part
from lineas.learning.method import ATTENTION_OUT, Fit, FitMap, Task, distance, edit_of
from lineas.learning.transport import gaussian_map, linear_map, mean_map
from lineas.models.samples import Part
from lineas.sites import Site
from lineas.steering.exclusive import exclusively
from lineas.steering.hooks import Edit, edited


@dataclass(frozen=True)
class MeanAcT:
    """A shift to the target's mean, site by site.

    Per neuron `w = 1, b = mean(target) - mean(source)` (Rodriguez et al. 2024, arXiv 2410.23054, section 3). The
    source's activations have passed the maps of the earlier sites. The seed is not used.
    """

    default_sites: ClassVar[str | None] = ATTENTION_OUT

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map per site."""
        return fit_layerwise(task, mean_map)


@dataclass(frozen=True)
class GaussianAcT:
    """The optimal map between normal distributions, site by site.

    Per neuron `w = sigma(target) / sigma(source), b = mu(target) - w mu(source)`, with w = 1 where a deviation is at
    most 1e-4 of the neuron's size (Rodriguez et al. 2024, arXiv 2410.23054, section 3). The source's activations have
    passed the maps of the earlier sites. The seed is not used.
    """

    default_sites: ClassVar[str | None] = ATTENTION_OUT

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map per site."""
        return fit_layerwise(task, gaussian_map)


@dataclass(frozen=True)
class LinAcT:
    """The affine map nearest to optimal transport, site by site: the method that LinEAS improves on.

    Per neuron `(w, b) = argmin sum_i (sort(target)_i - w sort(source)_i - b)^2` (Rodriguez et al. 2024, arXiv
    2410.23054, equation 6), with the exact quantile coupling where the sides differ in number. The source's activations
    have passed the maps of the earlier sites. The seed is not used.
    """

    default_sites: ClassVar[str | None] = ATTENTION_OUT

    @exclusively
    def fit(self, task: Task) -> Fit:
        """Learn one map per site."""
        return fit_layerwise(task, linear_map)


@torch.no_grad()
def fit_layerwise(task: Task, fit_map: FitMap) -> Fit:
    """Fit every site's map on source activations that the earlier maps have moved ("causal", arXiv 2410.23054, 3.2).

    One forward pass of the source is enough: each site's hook pools the activation, fits the map, and passes the moved
    activation on. A source that does not fit into memory at once takes one pass per site, part by part, with the same
    result.

    A site that runs several times, once in every denoising step, has its map fitted again each time, on the
    activations of all steps so far. The last fit, on the samples of all steps, is the result.
    """
    model, sites = task.model, task.sites
    target = task.target_activations()  # [m, d] or [m, k, d] per site
    neurons = sum(v[0].numel() for v in target.values())
    limit = largest_part(model, task.source, sites, neurons, task.memory, backward=False)
    batch = task.source.batch(limit)
    first, *others = batch.parts
    maps: dict[str, AffineMap] = {}
    if not others:
        moved = _fit_within_a_pass(task, first, target, fit_map, maps)
        several = any(v.dim() > 2 for v in target.values())  # then the first steps passed the first fits alone
        return Fit(maps, [task.cost(maps, target) if several else distance(moved, target)])
    by_name = {site.name: site for site in sites}
    moved: dict[str, torch.Tensor] = {}
    for name in capture_part(model, first, sites):  # in the order in which they run
        with edited(model.network, {by_name[done]: edit_of(map_, by_name[done]) for done, map_ in maps.items()}):
            source = capture(model, batch, [by_name[name]], task.pooling)[name]
        maps[name] = task.fitted(name, fit_map, stacked(source), stacked(target[name]))
        moved[name] = maps[name](source)
    return Fit(maps, [distance(moved, target) if task.pooling == "mean" else task.cost(maps, target)])


def _fit_within_a_pass(
    task: Task, part: Part, target: Mapping[str, torch.Tensor], fit_map: FitMap, maps: dict[str, AffineMap]
) -> dict[str, torch.Tensor]:
    """Fill `maps` while the pass runs, and return the moved activations as `capture` does."""
    source: dict[str, list[torch.Tensor]] = {site.name: [] for site in task.sites}

    def fitter(site: Site) -> Edit:
        steps = target[site.name].reshape(len(target[site.name]), -1, target[site.name].shape[-1])  # [m, k, d]

        def edit(z: torch.Tensor) -> torch.Tensor:
            pooled = source[site.name]
            if len(pooled) < steps.shape[1]:
                pooled.append(part.pool(z, site, task.pooling))
                so_far = stacked(steps[:, : len(pooled)])
                maps[site.name] = task.fitted(site.name, fit_map, torch.cat(pooled), so_far)
            return maps[site.name](z, site.axis)

        return edit

    with edited(task.model.network, {site: fitter(site) for site in task.sites}):
        return capture_part(task.model, part, task.sites, task.pooling)  # its hooks read after the edits
