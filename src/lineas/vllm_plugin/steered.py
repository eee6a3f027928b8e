"""A network whose sites carry maps with a strength for every token, in buffers that compiled graphs read anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from lineas.errors import LineasError
from lineas.intervention.intervention import Intervention
from lineas.modules import width_of
from lineas.sites import Site
from lineas.vllm_plugin.limits import check_module

Strengths = Mapping[int, float]
"""By place, how strongly a request is steered by the intervention there."""


class SteeredNetwork:
    """The maps of several interventions in one network, and the strengths of the tokens that run through it now.

    A token of strengths s_k gets `T(z) = z + sum_k s_k (T_k(z) - z)`, as `lineas.mix` does; computed in float32, and
    exactly z where all s_k are 0.

    Args:
        network: whose forward pass has all tokens of a batch on the first axis; its sites' modules change their class.
        widths: by site, the number of its neurons.
        hidden: the width of the network's rows.
        places: how many interventions there can be at once.
        tokens: how many tokens a forward pass has at most.
        device: of the network.

    Raises:
        LineasError: for a site that this network has not, or has in another width.
    """

    def __init__(
        self,
        network: nn.Module,
        widths: Mapping[Site, int],
        hidden: int,
        places: int,
        tokens: int,
        device: torch.device,
    ) -> None:
        self.strengths = torch.zeros(tokens, places, device=device)
        self._staged = torch.zeros(tokens, places, pin_memory=device.type == "cuda")
        self._modules: dict[Site, nn.Module] = {}
        self._last = 0  # tokens whose strengths are not all 0
        modules = dict(network.named_modules())
        found = {site: _module(modules, site) for site in widths}  # before anything is changed
        for site, width in widths.items():
            check_module(site.name, found[site], width, hidden)
            _check_width(site, found[site], width)
        for site, width in widths.items():
            module = self._modules[site] = found[site]
            module.register_buffer("lineas_strengths", self.strengths, persistent=False)
            module.register_buffer("lineas_scales", torch.zeros(places, width, device=device), persistent=False)
            module.register_buffer("lineas_shifts", torch.zeros(places, width, device=device), persistent=False)
            module.__class__ = _steered(type(module))

    def put(self, place: int, intervention: Intervention) -> None:
        """Write an intervention into a place, in the buffers that are there.

        Raises:
            LineasError: for a site that carried no map when the network was prepared, a gated intervention, or numbers
                that are not finite.
        """
        intervention.check_affine("served by vLLM")
        self._check_sites(intervention)
        check_finite(intervention)
        self.clear(place)
        for name, map_ in intervention.maps.items():
            module: Any = self._modules[intervention.sites[name]]
            module.lineas_scales[place].copy_(map_.scale - 1)
            module.lineas_shifts[place].copy_(map_.shift)

    def clear(self, place: int) -> None:
        """Make a place's maps the identity."""
        for module in self._modules.values():
            module.lineas_scales[place].zero_()  # pyright: ignore[reportIndexIssue]
            module.lineas_shifts[place].zero_()  # pyright: ignore[reportIndexIssue]

    def lay_out(self, requests: Sequence[Strengths], counts: np.ndarray) -> None:
        """Say how strongly each token of the next forward pass is steered.

        Args:
            requests: of each request in the batch, in the batch's order.
            counts: how many tokens each request has in it, `[requests]`.
        """
        total = int(counts.sum())
        steered = any(requests)
        end = max(total if steered else 0, self._last)
        if end == 0:
            return
        staged = self._staged.numpy()
        staged[:end] = 0
        if steered:
            rows = np.zeros((len(requests), staged.shape[1]), dtype=np.float32)
            for row, strengths in zip(rows, requests):
                for place, strength in strengths.items():
                    row[place] = strength
            staged[:total] = rows.repeat(counts, axis=0)
        self.strengths[:end].copy_(self._staged[:end], non_blocking=True)
        self._last = total if steered else 0

    def _check_sites(self, intervention: Intervention) -> None:
        """Refuse an intervention with a site that carried no map when the network was prepared."""
        for name, map_ in intervention.maps.items():
            module: Any = self._modules.get(intervention.sites[name])
            if module is None:
                raise LineasError(
                    f"the intervention acts on {name!r}, which carries no map here; start the server "
                    "with LINEAS_SITES, a regular expression over modules that names it too."
                )
            if map_.width != module.lineas_shifts.shape[1]:
                raise LineasError(f"the intervention has {map_.width} neurons at {name!r}, this network has others.")


def check_finite(intervention: Intervention) -> None:
    """Refuse numbers that are not finite in float32: every token meets them, also at strength 0, where 0 * inf is NaN.

    Raises:
        LineasError: naming the site.
    """
    for name, map_ in intervention.maps.items():
        if not all(bool(values.float().isfinite().all()) for values in (map_.scale, map_.shift)):
            raise LineasError(f"the map at {name!r} is not finite, so it is not served; learn it anew.")


@cache
def _steered(kind: type[nn.Module]) -> type[nn.Module]:
    """A module class whose result is moved by the maps in its buffers; names and weights stay what they were."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = kind.forward(self, *args, **kwargs)
        halves = isinstance(result, tuple) and not _first_is_whole(kind)
        first = result[0] if isinstance(result, tuple) else result
        z = first + result[1] if halves else first  # a block's output is its two halves' sum
        if z.dim() > 3 or (z.dim() == 3 and z.shape[0] != 1):  # transformers' own networks put a batch of one around
            raise LineasError(f"a {kind.__name__} puts out {z.dim()} axes here; lineas needs tokens and neurons.")
        strengths = self.lineas_strengths[: z.shape[-2]]
        scale: Any = 0.0
        shift: Any = 0.0
        for place in range(strengths.shape[1]):
            s = strengths[:, place : place + 1]
            scale = scale + s * self.lineas_scales[place]
            shift = shift + s * self.lineas_shifts[place]
        wide = z.float()
        if halves:
            return ((first.float() + (scale * wide + shift)).to(first.dtype), *result[1:])
        moved = ((1 + scale) * wide + shift).to(first.dtype)
        return (moved, *result[1:]) if isinstance(result, tuple) else moved

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _first_is_whole(kind: type[nn.Module]) -> bool:
    """Whether a tuple's first value is the activation itself: norms give (normed, residual), linears (output, bias)."""
    return "Norm" in kind.__name__ or "Linear" in kind.__name__


def _module(modules: Mapping[str, nn.Module], site: Site) -> nn.Module:
    """The module of a site by its name or, where an engine nests the same layers elsewhere, by the part from `layers`.

    Raises:
        LineasError: when there is none, or the site is not a module's first output over tokens.
    """
    if site.output != 0 or site.axis != -1:
        raise LineasError(f"the site {site.name!r} is not a module's first output with neurons last; steer it live.")
    if site.module in modules:
        return modules[site.module]
    at = site.module.find("layers.")
    ending = site.module[at:]
    alike = [name for name in modules if at >= 0 and name.endswith(f".{ending}")]
    if len(alike) != 1:
        raise LineasError(
            f"the intervention acts on {site.module!r}, which this engine's network does not have as a module of its "
            "own (queries, keys and values, and the MLP's gate and up, are one each); steer it live, or fold it."
        )
    return modules[alike[0]]


def _check_width(site: Site, module: nn.Module, width: int) -> None:
    """Refuse a module that holds only a part of the neurons, or others."""
    here = width_of(module) or getattr(module, "output_size", None)
    part = getattr(module, "output_size_per_partition", here)
    if here is not None and (here != width or part != here):
        raise LineasError(
            f"the intervention has {width} neurons at {site.name!r}, this network has {part} of {here} there."
        )
