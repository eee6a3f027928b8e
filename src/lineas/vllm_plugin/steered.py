"""A network whose sites have maps with one strength per token, in buffers that compiled graphs read at each run."""

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
"""The strengths of a request, by the place of the intervention."""


class SteeredNetwork:
    """The maps of several interventions in one network, and the strengths of the tokens in the current forward pass.

    A token with strengths s_k gets `T(z) = z + sum_k s_k (T_k(z) - z)`, as in `lineas.mix`. It is computed in float32,
    and is exactly z if all s_k are 0.

    Args:
        network: the network, with all tokens of a batch on the first axis; the classes of its sites' modules change.
        widths: number of neurons of each site.
        hidden: number of neurons of the network's hidden states.
        places: maximum number of interventions at once.
        tokens: maximum number of tokens in a forward pass.
        device: the network's device.
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
        checked = {site: _module(modules, site) for site in widths}  # all are checked before one is changed
        for site, width in widths.items():
            check_module(site.name, checked[site], width, hidden)
            _check_width(site, checked[site], width)
        for site, width in widths.items():
            module = self._modules[site] = checked[site]
            module.register_buffer("lineas_strengths", self.strengths, persistent=False)
            module.register_buffer("lineas_scales", torch.zeros(places, width, device=device), persistent=False)
            module.register_buffer("lineas_shifts", torch.zeros(places, width, device=device), persistent=False)
            module.__class__ = _steered_class(type(module))

    def put(self, place: int, intervention: Intervention) -> None:
        """Write an intervention's maps into the buffers at a place; they must fit and be finite, without a gate."""
        intervention.check_affine("served by vLLM")
        self._check_maps(intervention)
        self.clear(place)
        for name, map_ in intervention.maps.items():
            module: Any = self._modules[intervention.sites[name]]
            module.lineas_scales[place].copy_(map_.scale - 1)
            module.lineas_shifts[place].copy_(map_.shift)

    def clear(self, place: int) -> None:
        """Set the maps at a place to the identity."""
        for module in self._modules.values():
            module.lineas_scales[place].zero_()  # pyright: ignore[reportIndexIssue]
            module.lineas_shifts[place].zero_()  # pyright: ignore[reportIndexIssue]

    def lay_out(self, requests: Sequence[Strengths], counts: np.ndarray) -> None:
        """Write the strengths of the tokens in the next forward pass.

        Args:
            requests: strengths of each request, in the batch's order.
            counts: number of tokens of each request in the batch, `[requests]`.
        """
        total = int(counts.sum()) if any(requests) else 0
        end = max(total, self._last)
        if end == 0:
            return
        staged = self._staged.numpy()
        staged[:end] = 0
        if total:
            rows = np.zeros((len(requests), staged.shape[1]), dtype=np.float32)
            for row, strengths in zip(rows, requests):
                for place, strength in strengths.items():
                    row[place] = strength
            staged[:total] = rows.repeat(counts, axis=0)
        self.strengths[:end].copy_(self._staged[:end], non_blocking=True)
        self._last = total

    def _check_maps(self, intervention: Intervention) -> None:
        """Refuse maps at a site without buffers of their width, or with numbers that are not finite in float32."""
        for name, map_ in intervention.maps.items():
            module: Any = self._modules.get(intervention.sites[name])
            if module is None:
                raise LineasError(
                    f"the intervention acts on {name!r}, which carries no map here; start the server with "
                    "LINEAS_SITES set to a regular expression that matches this module too."
                )
            if map_.width != module.lineas_shifts.shape[1]:
                raise LineasError(f"the intervention has {map_.width} neurons at {name!r}, this network has others.")
            # 0 * inf is NaN, so it would destroy all tokens
            if not all(values.float().isfinite().all() for values in (map_.scale, map_.shift)):
                raise LineasError(f"the map at {name!r} is not finite, so it is not served; learn it again.")


@cache
def _steered_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a module class that applies the maps in its buffers to the result."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = kind.forward(self, *args, **kwargs)
        halves = isinstance(result, tuple) and not _first_is_whole(kind)
        first = result[0] if isinstance(result, tuple) else result
        z = first + result[1] if halves else first  # a block's output is the sum of its two halves
        if z.dim() > 3 or (z.dim() == 3 and z.shape[0] != 1):  # networks of transformers have a batch axis of size 1
            raise LineasError(f"a {kind.__name__} has outputs with {z.dim()} axes; lineas needs [tokens, neurons].")
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
    """Return whether a tuple's first value is the whole activation: (normed, residual) or (output, bias)."""
    return "Norm" in kind.__name__ or "Linear" in kind.__name__


def _module(modules: Mapping[str, nn.Module], site: Site) -> nn.Module:
    """Return a site's module by its name or, if the engine nests layers elsewhere, by its name from `layers.` on."""
    if site.output != 0 or site.axis != -1:
        raise LineasError(f"the site {site.name!r} is not a module's first output with neurons last; steer it live.")
    if site.module in modules:
        return modules[site.module]
    start = site.module.find("layers.")
    suffix = site.module[start:]
    matches = [name for name in modules if start >= 0 and name.endswith(f".{suffix}")]
    if len(matches) != 1:
        raise LineasError(
            f"the intervention acts on {site.module!r}, which this engine's network does not have as a module of its "
            "own (it merges queries, keys and values, and the MLP's gate and up); steer it live, or fold it."
        )
    return modules[matches[0]]


def _check_width(site: Site, module: nn.Module, width: int) -> None:
    """Refuse a module that has another number of neurons, or only a part of them on this rank."""
    total = width_of(module) or getattr(module, "output_size", None)
    part = getattr(module, "output_size_per_partition", total)
    if total is not None and (total != width or part != total):
        raise LineasError(
            f"the intervention has {width} neurons at {site.name!r}, this network has {part} of {total} there."
        )
