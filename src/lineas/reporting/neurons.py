"""The neurons of interventions: the largest ones, the prompts that excite them, and what interventions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from lineas.intervention.intervention import Intervention
from lineas.learning.capture import activations

NONE: Mapping[str, torch.Tensor] = MappingProxyType({})
LONG = 200
"""Maximum number of characters of a prompt beside a neuron."""


@dataclass(frozen=True)
class Neuron:
    """One neuron of an intervention.

    Args:
        site: name of the site.
        index: index among the site's neurons.
        scale: scale of the map.
        shift: shift of the map, in units of the activation.
        change: mean distance over prompts that the map moves the neuron, in its standard deviations; without prompts,
            `|scale - 1| + |shift|`.
        excited: prompts at which it is furthest from its mean, with the distance in standard deviations.
    """

    site: str
    index: int
    scale: float
    shift: float
    change: float
    excited: list[tuple[str, float]]


def activity(intervention: Intervention, model: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the activations of n prompts at each site of the untouched model, [n, d], means over tokens and steps."""
    seen = activations(model, model.samples(prompts), list(intervention.sites.values()))
    return {name: (z.mean(1) if z.dim() > 2 else z).float().cpu() for name, z in seen.items()}


def site_sizes(intervention: Intervention, active: Mapping[str, torch.Tensor] = NONE) -> dict[str, float]:
    """Return the size of each site's change: its root mean square, relative to that of the prompts about their mean.

    Without activations (see `activity`) it is the mean of `|scale - 1| + |shift|` over neurons.
    """
    sizes = {}
    for name, map_ in intervention.maps.items():
        scale, shift = map_.scale.double().cpu(), map_.shift.double().cpu()
        if name in active:
            z = active[name].double()
            moved = ((scale - 1) * z + shift).square().sum().sqrt()
            sizes[name] = float(moved / (z - z.mean(0)).square().sum().sqrt().clamp_min(1e-12))
        else:
            sizes[name] = float(((scale - 1).abs() + shift.abs()).mean())
    return sizes


def largest_neurons(
    intervention: Intervention,
    count: int,
    active: Mapping[str, torch.Tensor] = NONE,
    prompts: Sequence[str] = (),
    each: int = 3,
) -> list[Neuron]:
    """Return the `count` most changed neurons; `active` are the activations of the prompts (see `activity`)."""
    candidates: list[tuple[float, str, int]] = []
    levels: dict[str, torch.Tensor] = {}  # in deviations from the mean, [n, d]
    for name, map_ in intervention.maps.items():
        scale, shift = map_.scale.float().cpu(), map_.shift.float().cpu()
        if name in active:
            z = active[name]
            level = z.square().mean(0).sqrt()
            deviation = z.std(0, correction=0).maximum(1e-6 * torch.where(level > 0, level, 1.0))
            levels[name] = (z - z.mean(0)) / deviation
            size = (((scale - 1) * z + shift) / deviation).abs().mean(0)
        else:
            size = (scale - 1).abs().double() + shift.abs().double()
        size = torch.where(map_.support().cpu(), size, 0.0)
        top = size.topk(min(count, len(size)))
        candidates += [(float(v), name, int(i)) for v, i in zip(top.values, top.indices) if v > 0]
    neurons = []
    for change, name, i in sorted(candidates, reverse=True)[:count]:
        excited: list[tuple[str, float]] = []
        if name in levels:
            column = levels[name][:, i]
            furthest = column.abs().topk(min(each, len(column))).indices
            excited = [(_beginning(prompts[int(j)]), float(column[j])) for j in furthest]
        map_ = intervention.maps[name]
        neurons.append(Neuron(name, i, float(map_.scale[i]), float(map_.shift[i]), change, excited))
    return neurons


def _beginning(prompt: str) -> str:
    return prompt if len(prompt) <= LONG else f"{prompt[:LONG].rstrip()}…"


def overlap(one: Intervention, other: Intervention) -> float:
    """Return the share of neurons that both touch, among those that one of them touches (Jaccard index, 0 to 1).

    Sites of the same name and different widths share none.
    """
    both = either = 0
    for name in {*one.maps, *other.maps}:
        supports = [i.maps[name].support().cpu() for i in (one, other) if name in i.maps]
        either += sum(int(support.sum()) for support in supports)
        if len(supports) == 2 and len(supports[0]) == len(supports[1]):
            both += int((supports[0] & supports[1]).sum())
    either -= both  # counted twice
    return both / either if either else 1.0
