"""Norms that a time step modulates: where the linear that makes their scale and shift can take a map.

An adaptive layer norm computes `n (1 + s) + t` with s and t chunks of one linear's output (Peebles and Xie 2023,
arXiv 2212.09748, section 3.2). A map `T(z) = w z + b` behind it makes `1 + s` into `w (1 + s)` and t into `w t + b`;
one on n, before it, makes t into `t + b (1 + s)` instead. Both are linear in what the linear puts out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lineas.intervention.maps import AffineMap

CHUNKS = {
    "AdaLayerNormZero": (6, 1, 0),
    "AdaLayerNormZeroSingle": (3, 1, 0),
    "AdaLayerNormContinuous": (2, 0, 1),
    "SD35AdaLayerNormZeroX": (9, 1, 0),
}
"""By the class of a modulated norm in diffusers: how many chunks its linear puts out, which is s and which t."""
SECOND = (4, 3)
"""Which chunks of a block's first norm are s and t of its second one."""
BLOCKS = ("JointTransformerBlock", "FluxTransformerBlock")
"""Blocks whose first norm's linear modulates the second norm, too."""


@dataclass(frozen=True)
class Modulation:
    """The part of a linear that modulates a norm.

    Args:
        linear: its name in the network.
        chunks: how many equal parts its output has.
        scale: which of them is s.
        shift: which is t.
        after: whether the map acts on the modulated activation, or on what is modulated.
    """

    linear: str
    chunks: int
    scale: int
    shift: int
    after: bool


def modulation(network: nn.Module, name: str) -> Modulation | None:
    """What modulates the norm of this name; None where nothing does, or nothing of its own."""
    module = network.get_submodule(name)
    parent, _, own = name.rpartition(".")
    around = network.get_submodule(parent)
    if type(module).__name__ in CHUNKS:
        return _of(network, name, *CHUNKS[type(module).__name__], after=True)
    if own == "norm" and type(around).__name__ in CHUNKS and type(around).__name__ != "SD35AdaLayerNormZeroX":
        return _of(network, parent, *CHUNKS[type(around).__name__], after=False)
    if own.startswith("norm2") and type(around).__name__ in BLOCKS:
        first = f"{parent}.{own.replace('norm2', 'norm1')}"
        chunks = CHUNKS[type(network.get_submodule(first)).__name__][0]
        return _of(network, first, chunks, *SECOND, after=False)
    return None


def _of(network: nn.Module, norm: str, chunks: int, scale: int, shift: int, after: bool) -> Modulation | None:
    linear: Any = network.get_submodule(f"{norm}.linear")
    return None if linear.bias is None else Modulation(f"{norm}.linear", chunks, scale, shift, after)


def with_map(
    weight: torch.Tensor, bias: torch.Tensor, place: Modulation, map_: AffineMap
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight `[k d, c]` and bias `[k d]` of the linear with a map in them, of its k chunks in those of s and t."""
    w, b = map_.scale.to(weight.device), map_.shift.to(weight.device)
    weights, biases = list(weight.chunk(place.chunks)), list(bias.chunk(place.chunks))
    s, t = (weights[place.scale], biases[place.scale]), (weights[place.shift], biases[place.shift])
    rows = w.unsqueeze(1)
    weights[place.scale], biases[place.scale] = rows * s[0], w * (1 + s[1]) - 1
    if place.after:
        weights[place.shift], biases[place.shift] = rows * t[0], w * t[1] + b
    else:
        weights[place.shift], biases[place.shift] = t[0] + b.unsqueeze(1) * s[0], t[1] + b * (1 + s[1])
    return torch.cat(weights), torch.cat(biases)
