"""The new weights of modules that hold maps: computed in float32, rounded once, written, and restored on failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.folding.adaptive_norms import Modulation, with_map
from lineas.folding.probes import norm_offset
from lineas.intervention.maps import AffineMap
from lineas.modules import is_linear, is_quantised, type_name, width_of


@dataclass(frozen=True)
class ModuleMaps:
    """The maps that are folded into one module's weight and bias.

    Args:
        arriving: the shift of the norm whose output the module reads, `[d of its input]`; None for none.
        own: the map at the module's output; None for none.
        modulated: the maps at the norms that the module modulates, in the order in which they act.
        sites: names of the sites of these maps, for messages.
    """

    arriving: torch.Tensor | None = None
    own: AffineMap | None = None
    modulated: Sequence[tuple[Modulation, AffineMap]] = ()
    sites: Sequence[str] = ()

    @property
    def shifts(self) -> bool:
        """Whether the module needs a bias."""
        own = self.own is not None and bool(self.own.shift.any())
        return own or self.arriving is not None or bool(self.modulated)


@dataclass(frozen=True)
class RoundingLoss:
    """The number of scales and shifts that are lost because weights are rounded.

    A change is lost if less than half of it is left after rounding.

    Args:
        scales: number of rows of weights whose change is lost.
        shifts: number of entries of biases whose change is lost.
        of_scales: number of rows of weights with a change.
        of_shifts: number of entries of biases with a change.
    """

    scales: int = 0
    shifts: int = 0
    of_scales: int = 0
    of_shifts: int = 0

    def __add__(self, other: RoundingLoss) -> RoundingLoss:
        return RoundingLoss(
            self.scales + other.scales,
            self.shifts + other.shifts,
            self.of_scales + other.of_scales,
            self.of_shifts + other.of_shifts,
        )

    @property
    def everything(self) -> bool:
        """Whether every change is lost."""
        return self.scales + self.shifts > 0 and (self.scales, self.shifts) == (self.of_scales, self.of_shifts)

    def __str__(self) -> str:
        parts = (("scales", self.scales, self.of_scales), ("shifts", self.shifts, self.of_shifts))
        return " and ".join(f"{lost} of {of} {what}" for what, lost, of in parts if lost)


def new_weights(module: Any, maps: ModuleMaps, kind: torch.dtype) -> tuple[dict[str, torch.Tensor], RoundingLoss]:
    """Return a module's new weight and bias, as far as they change, and what rounding takes away from them.

    Args:
        module: the module, which is not changed.
        kind: the type of a new bias, if the module has none and needs one.
    """
    device, bias = module.weight.device, getattr(module, "bias", None)
    if bias is None and maps.shifts:
        width = width_of(module)
        assert width is not None, "only linears need a new bias"
        bias = torch.zeros(width, dtype=kind, device=device)
    before: dict[str, torch.Tensor] = {"bias": bias} if bias is not None else {}
    exact = {"bias": bias.float()} if bias is not None else {}
    if maps.arriving is not None:
        exact["bias"] = exact["bias"] + _times_weight(module, maps.arriving.to(device), kind)
    if maps.own is not None:
        scale = maps.own.scale.to(device)
        if bias is not None:
            exact["bias"] = exact["bias"] * scale + maps.own.shift.to(device)
        if bool((scale != 1).any()):
            before["weight"], exact["weight"] = module.weight, _scaled(module, scale)
    if maps.modulated:
        before["weight"], weight = module.weight, exact.get("weight", module.weight.float())
        for place, map_ in maps.modulated:
            weight, exact["bias"] = with_map(weight, exact["bias"], place, map_)
        exact["weight"] = weight
    new = {key: value.to(before[key].dtype) for key, value in exact.items()}
    for key, value in new.items():
        if not bool(value.isfinite().all()):
            raise LineasError(
                f"the {key} that takes the map at {maps.sites[0]} is not finite in {type_name(value.dtype)}, so "
                "nothing was folded; choose a smaller strength, or load the model in a type with a larger range."
            )
    lost = RoundingLoss()
    if "weight" in new:
        axis = 1 if is_linear(module) and not isinstance(module, (nn.Linear, nn.Conv2d)) else 0
        scales, of_scales = _count(*(one["weight"].movedim(axis, 0).flatten(1) if one["weight"].dim() > 1 else
                                     one["weight"].unsqueeze(1) for one in (before, exact, new)))  # fmt: skip
        lost += RoundingLoss(scales=scales, of_scales=of_scales)
    if bias is not None and maps.shifts:
        shifts, of_shifts = _count(*(one["bias"].unsqueeze(1) for one in (before, exact, new)))
        lost += RoundingLoss(shifts=shifts, of_shifts=of_shifts)
    return new, lost


def write_weights(network: Any, name: str, new: dict[str, torch.Tensor], undo: ExitStack | None) -> None:
    """Write a module's new weight and bias; modules that shared the old ones keep them.

    Args:
        new: the new tensors, under "weight" and "bias".
        undo: stack for the calls that restore the network; None if it is never restored.
    """
    module: Any = network.get_submodule(name)
    for key, value in new.items():
        _unshare(network, module, key, undo)
        old: torch.Tensor = getattr(module, key)
        on_undo(undo, old.data.copy_, old.detach().clone() if undo is not None else None)
        old.data.copy_(value)


def on_undo(undo: ExitStack | None, function: Callable[..., Any], *arguments: Any) -> None:
    """Add a call that restores the network, if there is a stack for such calls."""
    if undo is not None:
        undo.callback(function, *arguments)


def _unshare(network: Any, module: Any, key: str, undo: ExitStack | None) -> None:
    """Give a module its own copy of a weight that it shares (an output layer tied to the embedding)."""
    shared = getattr(module, key)
    if sum(value is shared for m in network.modules() for value in m._parameters.values()) < 2:
        return
    on_undo(undo, setattr, module, key, shared)
    setattr(module, key, nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad))
    config: Any = getattr(network, "config", None)
    parts = [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config]
    for part in parts:
        if getattr(part, "tie_word_embeddings", False):
            on_undo(undo, setattr, part, "tie_word_embeddings", True)
            part.tie_word_embeddings = False


def _scaled(module: Any, scale: torch.Tensor) -> torch.Tensor:
    """Return the weight that makes the module's output `scale` times as large, in float32."""
    weight = module.weight.float()
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    if is_linear(module):  # the transposed weight of GPT-2
        return weight * scale
    offset = norm_offset(module)
    assert offset is not None
    return (weight + offset) * scale - offset


def _times_weight(linear: Any, shift: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Return `V b` for a linear with weight V, in float32; a quantised linear computes it itself."""
    if not is_quantised(linear):
        return shift @ (linear.weight.float().T if isinstance(linear, nn.Linear) else linear.weight.float())
    kind = kind if linear.bias is None else linear.bias.dtype
    both = linear(torch.stack([shift, torch.zeros_like(shift)]).to(kind)).float()
    return both[0] - both[1]


def _count(before: torch.Tensor, exact: torch.Tensor, new: torch.Tensor) -> tuple[int, int]:
    """Count the rows of `[n, k]` whose change is lost to rounding, and all rows with a change."""
    change = exact - before.float()
    size = change.square().sum(1)
    left = ((new.float() - before.float()) * change).sum(1) if new.dtype != torch.float32 else size
    return int(((size > 0) & (left < size / 2)).sum()), int((size > 0).sum())
