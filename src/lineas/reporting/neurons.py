"""What a report says of interventions: supports, largest neurons and what moves them, overlaps."""

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
"""Characters of a prompt that are shown beside a neuron."""


@dataclass(frozen=True)
class Neuron:
    """One neuron of an intervention.

    Args:
        site: its name.
        index: among the site's neurons.
        scale: of its map.
        shift: of its map, in units of the activation.
        change: how far the map moves it, mean over prompts, in standard deviations of the neuron; without prompts,
            `|scale - 1| + |shift|`.
        excited: the prompts at which it is furthest from its mean, with by how many standard deviations.
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
    """Return how far the map of each site moves its neurons.

    Args:
        active: activations at each site, as `activity` returns them.

    Returns:
        by site, the root mean square of the move, where 1 is that of the prompts' distances from their mean; without
        activations the mean of `|scale - 1| + |shift|` over neurons.
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
    """Return the neurons that are changed most.

    Args:
        active: activations of the prompts at each site, as `activity` returns them, [n, d].
    """
    found: list[tuple[float, str, int]] = []
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
        found += [(float(v), name, int(i)) for v, i in zip(top.values, top.indices) if v > 0]
    neurons = []
    for change, name, i in sorted(found, reverse=True)[:count]:
        excited: list[tuple[str, float]] = []
        if name in levels:
            column = levels[name][:, i]
            furthest = column.abs().topk(min(each, len(column))).indices
            excited = [(_beginning(prompts[int(j)]), float(column[j])) for j in furthest]
        map_ = intervention.maps[name]
        neurons.append(Neuron(name, i, float(map_.scale[i]), float(map_.shift[i]), change, excited))
    return neurons


def _beginning(prompt: str) -> str:
    """So much of a prompt as tells it from others."""
    return prompt if len(prompt) <= LONG else f"{prompt[:LONG].rstrip()}…"


def overlap(one: Intervention, other: Intervention) -> float:
    """Of the neurons that either touches, the share that both do (Jaccard index), 0 to 1.

    Sites of the same name and different width, of networks of different size, share none.
    """
    both = either = 0
    for name in {*one.maps, *other.maps}:
        supports = [i.maps[name].support().cpu() for i in (one, other) if name in i.maps]
        either += sum(int(support.sum()) for support in supports)
        if len(supports) == 2 and len(supports[0]) == len(supports[1]):
            both += int((supports[0] & supports[1]).sum())
    either -= both  # counted twice
    return both / either if either else 1.0
