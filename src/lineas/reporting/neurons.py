"""What a report says of interventions: supports, largest neurons and what moves them, overlaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lineas.intervention.intervention import Intervention
from lineas.learning.capture import activations

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


def by_layer(intervention: Intervention) -> dict[str, list[tuple[int | None, int, int]]]:
    """By kind of module (its name with * for its layer), a row a layer: its number, neurons touched, neurons.

    >>> from lineas import AffineMap
    >>> by_layer(Intervention({f"layers.{i}.norm": AffineMap.identity(4) for i in range(2)}))
    {'layers.*.norm': [(0, 0, 4), (1, 0, 4)]}
    """
    found: dict[str, list[tuple[int | None, int, int]]] = {}
    for name, map_ in intervention.maps.items():
        number = re.search(r"(?<=\.)\d+(?=\.|$)", name)
        kind = name if number is None else f"{name[: number.start()]}*{name[number.end() :]}"
        row = (None if number is None else int(number[0]), int(map_.support().sum()), map_.width)
        found.setdefault(kind, []).append(row)
    return found


def largest_neurons(
    intervention: Intervention, count: int, model: Any = None, prompts: Sequence[str] = (), each: int = 3
) -> list[Neuron]:
    """The neurons that are changed most.

    Args:
        intervention: whose.
        count: how many.
        model: with prompts, what they run through, untouched.
        prompts: whose activations, averaged over tokens, tell what a neuron does without the map.
        each: prompts named for every neuron.
    """
    seen = activations(model, model.samples(prompts), list(intervention.sites.values())) if prompts else {}
    found: list[tuple[float, str, int]] = []
    levels: dict[str, torch.Tensor] = {}  # in deviations from the mean, [n, d]
    for name, map_ in intervention.maps.items():
        scale, shift = map_.scale.float().cpu(), map_.shift.float().cpu()
        if name in seen:
            z = seen[name].float().cpu()
            z = z.mean(1) if z.dim() > 2 else z  # over denoising steps
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
