"""The weights of modules with maps in them: computed in float32, rounded once, put in place, and taken back."""

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
from lineas.modules import is_linear, is_quantised, type_name


@dataclass(frozen=True)
class Taken:
    """The part of a fold that one module takes into its weight and bias.

    Args:
        arriving: the shift of the norm that it reads, `[d of its input]`.
        own: the map at its output.
        modulated: by place, the maps of what it modulates, in the order in which they act.
        sites: the sites that these come from, for messages.
    """

    arriving: torch.Tensor | None = None
    own: AffineMap | None = None
    modulated: Sequence[tuple[Modulation, AffineMap]] = ()
    sites: Sequence[str] = ()

    @property
    def shifts(self) -> bool:
        """Return whether the module needs a bias."""
        own = self.own is not None and bool(self.own.shift.any())
        return own or self.arriving is not None or bool(self.modulated)


@dataclass(frozen=True)
class Lost:
    """The scales and shifts that rounding takes away, of those that were to be written.

    Args:
        scales: rows of a weight of which less than half of the change is left, by float type.
        shifts: the same of the entries of a bias.
        of_scales: rows of a weight that were to change.
        of_shifts: entries of a bias that were to change.
    """

    scales: int = 0
    shifts: int = 0
    of_scales: int = 0
    of_shifts: int = 0

    def __add__(self, other: Lost) -> Lost:
        return Lost(
            self.scales + other.scales,
            self.shifts + other.shifts,
            self.of_scales + other.of_scales,
            self.of_shifts + other.of_shifts,
        )

    @property
    def everything(self) -> bool:
        """Return whether nothing is left."""
        return self.scales + self.shifts > 0 and (self.scales, self.shifts) == (self.of_scales, self.of_shifts)

    def __str__(self) -> str:
        parts = (("scales", self.scales, self.of_scales), ("shifts", self.shifts, self.of_shifts))
        return " and ".join(f"{lost} of {of} {what}" for what, lost, of in parts if lost)


def new_weights(module: Any, taken: Taken, kind: torch.dtype) -> tuple[dict[str, torch.Tensor], Lost]:
    """Return what a module's weight and bias become; those that stay as they are are left out.

    Args:
        module: as it is; one without a bias gets one where it needs it.
        taken: what goes in.
        kind: the type of a bias that is not there yet.

    Raises:
        LineasError: when one is not finite in its type.
    """
    device, bias = module.weight.device, getattr(module, "bias", None)
    if bias is None and taken.shifts:
        bias = torch.zeros(_outputs(module), dtype=kind, device=device)
    before: dict[str, torch.Tensor] = {"bias": bias} if bias is not None else {}
    exact = {"bias": bias.float()} if bias is not None else {}
    if taken.arriving is not None:
        exact["bias"] = exact["bias"] + _through(module, taken.arriving.to(device), kind)
    if taken.own is not None:
        scale = taken.own.scale.to(device)
        if bias is not None:
            exact["bias"] = exact["bias"] * scale + taken.own.shift.to(device)
        if bool((scale != 1).any()):
            before["weight"], exact["weight"] = module.weight, _scaled(module, scale)
    if taken.modulated:
        before["weight"], weight = module.weight, exact.get("weight", module.weight.float())
        for place, map_ in taken.modulated:
            weight, exact["bias"] = with_map(weight, exact["bias"], place, map_)
        exact["weight"] = weight
    new = {key: value.to(before[key].dtype) for key, value in exact.items()}
    for key, value in new.items():
        if not bool(value.isfinite().all()):
            raise LineasError(
                f"the {key} that takes the map at {taken.sites[0]} is not finite in {type_name(value.dtype)}, so "
                "nothing was folded; take a smaller strength, or a type that holds more."
            )
    lost = Lost()
    if "weight" in new:
        axis = 1 if is_linear(module) and not isinstance(module, (nn.Linear, nn.Conv2d)) else 0
        counted = _count(*(one["weight"].movedim(axis, 0).flatten(1) if one["weight"].dim() > 1 else
                           one["weight"].unsqueeze(1) for one in (before, exact, new)))  # fmt: skip
        lost += Lost(scales=counted[0], of_scales=counted[1])
    if bias is not None and taken.shifts:
        counted = _count(*(one["bias"].unsqueeze(1) for one in (before, exact, new)))
        lost += Lost(shifts=counted[0], of_shifts=counted[1])
    return new, lost


def put(network: Any, name: str, new: dict[str, torch.Tensor], undo: ExitStack | None) -> None:
    """Write a module's new weight and bias, which from then on serve it alone.

    Args:
        network: the network.
        name: the module's.
        new: what to write, under "weight" and "bias".
        undo: where to leave what takes it back; None where nobody will ask.
    """
    module: Any = network.get_submodule(name)
    for key, value in new.items():
        _unshare(network, module, key, undo)
        old: torch.Tensor = getattr(module, key)
        remember(undo, old.data.copy_, old.detach().clone() if undo is not None else None)
        old.data.copy_(value)


def remember(undo: ExitStack | None, how: Callable[..., Any], *arguments: Any) -> None:
    """Leave a call that takes something back, where somebody may ask for it."""
    if undo is not None:
        undo.callback(how, *arguments)


def _unshare(network: Any, module: Any, key: str, undo: ExitStack | None) -> None:
    """Give a module whose weight serves another one too (an output layer tied to the embedding) one of its own."""
    shared = getattr(module, key)
    if sum(value is shared for m in network.modules() for value in m._parameters.values()) < 2:
        return
    remember(undo, setattr, module, key, shared)
    setattr(module, key, nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad))
    config: Any = getattr(network, "config", None)
    parts = [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config]
    for part in parts:
        if getattr(part, "tie_word_embeddings", False):
            remember(undo, setattr, part, "tie_word_embeddings", True)
            part.tie_word_embeddings = False


def _outputs(linear: Any) -> int:
    """Return how many neurons a linear puts out."""
    found = (getattr(linear, name, None) for name in ("out_features", "out_channels", "nf"))
    return next(width for width in found if width is not None)


def _scaled(module: Any, scale: torch.Tensor) -> torch.Tensor:
    """A weight that makes an output `scale` times as large, in float32."""
    weight = module.weight.float()
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    if is_linear(module):  # GPT-2's, transposed
        return weight * scale
    offset = norm_offset(module)
    assert offset is not None
    return (weight + offset) * scale - offset


def _through(linear: Any, shift: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """`V b` of a linear, in float32; a quantised one is asked for it."""
    if not is_quantised(linear):
        return shift @ (linear.weight.float().T if isinstance(linear, nn.Linear) else linear.weight.float())
    kind = kind if linear.bias is None else linear.bias.dtype
    both = linear(torch.stack([shift, torch.zeros_like(shift)]).to(kind)).float()
    return both[0] - both[1]


def _count(before: torch.Tensor, exact: torch.Tensor, new: torch.Tensor) -> tuple[int, int]:
    """Count the rows that were to change, `[n, k]`, and those that keep less than half once they are rounded."""
    wanted = exact - before.float()
    size = wanted.square().sum(1)
    got = ((new.float() - before.float()) * wanted).sum(1) if new.dtype != torch.float32 else size
    return int(((size > 0) & (got < size / 2)).sum()), int((size > 0).sum())
