"""Adaptive layer norms: maps folded into the linear that produces a norm's scale and shift.

An adaptive layer norm computes `n (1 + s) + t`, where s and t are chunks of one linear's output (Peebles and Xie 2023,
arXiv 2212.09748, section 3.2). A map `T(z) = w z + b` after it turns `1 + s` into `w (1 + s)` and t into `w t + b`. A
map on n, before it, turns t into `t + b (1 + s)` instead. Both are linear in the linear's output.
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
"""For each class of adaptive norm in diffusers: the number of chunks of its linear, the index of s, the index of t."""
SECOND = (4, 3)
"""The indices of s and t of a block's second norm, among the chunks of the first norm's linear."""
BLOCKS = ("JointTransformerBlock", "FluxTransformerBlock")
"""Blocks in which the first norm's linear also modulates the second norm."""


@dataclass(frozen=True)
class Modulation:
    """The chunks of a linear's output that modulate a norm.

    Args:
        chunks: number of equal parts of the output.
        scale: index of the part that is s.
        shift: index of the part that is t.
        after: True if a map acts on the modulated activation, False if it acts on the norm's output before that.
    """

    linear: str
    chunks: int
    scale: int
    shift: int
    after: bool


def modulation(network: nn.Module, name: str) -> Modulation | None:
    """Return the linear that produces this norm's scale and shift; None if there is none, or it is shared."""
    kind = type(network.get_submodule(name)).__name__
    parent, _, own = name.rpartition(".")
    parent_kind = type(network.get_submodule(parent)).__name__
    if kind in CHUNKS:
        norm, chunks = name, CHUNKS[kind]
    elif own == "norm" and parent_kind in CHUNKS and parent_kind != "SD35AdaLayerNormZeroX":
        norm, chunks = parent, CHUNKS[parent_kind]
    elif own.startswith("norm2") and parent_kind in BLOCKS:
        norm = f"{parent}.{own.replace('norm2', 'norm1')}"
        chunks = (CHUNKS[type(network.get_submodule(norm)).__name__][0], *SECOND)
    else:
        return None
    linear: Any = network.get_submodule(f"{norm}.linear")
    return None if linear.bias is None else Modulation(f"{norm}.linear", *chunks, after=kind in CHUNKS)


def with_map(
    weight: torch.Tensor, bias: torch.Tensor, place: Modulation, map_: AffineMap
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold a map into a linear's weight `[k d, c]` and bias `[k d]`: into the chunks s and t of its k chunks."""
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
