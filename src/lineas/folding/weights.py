"""The new weights of modules that hold maps: computed in float32, rounded once, written, and restored on failure."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from operator import add
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError
from lineas.folding.adaptive_norms import Modulation, with_map
from lineas.folding.probes import norm_offset
from lineas.intervention.maps import AffineMap
from lineas.modules import is_linear, is_quantised, text_config, type_name, width_of


@dataclass
class ModuleMaps:
    """The maps that are folded into one module's weight and bias.

    Args:
        arriving: the shift of the norm whose output the module reads, `[d of its input]`; None for none.
        own: the map at the module's output; None for none.
        modulated: the maps at the norms that the module modulates, in the order in which they act.
    """

    arriving: torch.Tensor | None = None
    own: AffineMap | None = None
    modulated: list[tuple[Modulation, AffineMap]] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)

    @property
    def shifts(self) -> bool:
        """Whether the module needs a bias."""
        own = self.own is not None and bool(self.own.shift.any())
        return own or self.arriving is not None or bool(self.modulated)


@dataclass(frozen=True)
class RoundingLoss:
    """The numbers of scales and shifts whose change is lost (less than half is left after rounding), and of all."""

    scales: int = 0
    shifts: int = 0
    of_scales: int = 0
    of_shifts: int = 0

    def __add__(self, other: RoundingLoss) -> RoundingLoss:
        return RoundingLoss(*map(add, astuple(self), astuple(other)))

    @property
    def everything(self) -> bool:
        """Whether every change is lost."""
        return self.scales + self.shifts > 0 and (self.scales, self.shifts) == (self.of_scales, self.of_shifts)

    def __str__(self) -> str:
        parts = (("scales", self.scales, self.of_scales), ("shifts", self.shifts, self.of_shifts))
        return " and ".join(f"{lost} of {of} {what}" for what, lost, of in parts if lost)


def new_weights(module: Any, maps: ModuleMaps, kind: torch.dtype) -> tuple[dict[str, torch.Tensor], RoundingLoss]:
    """Return a module's new weight and bias, as far as they change, and the loss; `kind` is the type of a new bias."""
    device, bias = module.weight.device, getattr(module, "bias", None)
    if bias is None and maps.shifts:
        width = width_of(module)
        assert width is not None, "only linears need a new bias"
        bias = torch.zeros(width, dtype=kind, device=device)
    before = {"weight": module.weight, "bias": bias}
    exact = {} if bias is None else {"bias": bias.float()}
    if maps.arriving is not None:
        exact["bias"] = exact["bias"] + _times_weight(module, maps.arriving.to(device), kind)
    if maps.own is not None:
        scale = maps.own.scale.to(device)
        if bias is not None:
            exact["bias"] = exact["bias"] * scale + maps.own.shift.to(device)
        if bool((scale != 1).any()):
            exact["weight"] = _scaled(module, scale)
    for place, map_ in maps.modulated:
        weight = exact.get("weight", module.weight.float())
        exact["weight"], exact["bias"] = with_map(weight, exact["bias"], place, map_)
    new = {key: value.to(before[key].dtype) for key, value in exact.items()}
    for key, value in new.items():
        if not bool(value.isfinite().all()):
            raise LineasError(
                f"the {key} that takes the map at {maps.sites[0]} is not finite in {type_name(value.dtype)}, so "
                "nothing was folded; choose a smaller strength, or load the model in a type with a larger range."
            )
    scales = shifts = (0, 0)
    if "weight" in new:
        axis = 1 if is_linear(module) and not isinstance(module, (nn.Linear, nn.Conv2d)) else 0
        scales = _count(*(one["weight"].movedim(axis, 0) for one in (before, exact, new)))
    if bias is not None and maps.shifts:
        shifts = _count(*(one["bias"] for one in (before, exact, new)))
    return new, RoundingLoss(scales=scales[0], of_scales=scales[1], shifts=shifts[0], of_shifts=shifts[1])


def write_weights(network: Any, name: str, new: dict[str, torch.Tensor], undo: ExitStack | None) -> None:
    """Write a module's new weight and bias, with the calls that undo it; modules that shared the old ones keep them."""
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
    parts: tuple[Any, Any] = getattr(network, "config", None), text_config(network)
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
    """Count the rows of `[n, ...]` whose change is lost to rounding, and all rows with a change."""
    change = (exact - before.float()).reshape(len(exact), -1)
    size = change.square().sum(1)
    left = size if new.dtype == torch.float32 else ((new.float() - before.float()).reshape_as(change) * change).sum(1)
    return int(((size > 0) & (left < size / 2)).sum()), int((size > 0).sum())
