"""The strength of a live intervention: one number, or one for each row, and each map's scale and shift at it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from lineas.errors import LineasError, shown
from lineas.intervention.maps import AffineMap, affine
from lineas.steering import contexts

SPARSE_SHARE, SPARSE_NUMEL = 1 / 8, 2**17
"""A map that changes at most this share of the neurons is applied to those alone, on a CPU in half precision, if the
activation has at least this many numbers: selecting is then faster than converting (benchmarks/speed/steering.py)."""


def warn_if_outside(strength: float | torch.Tensor, stacklevel: int = 4) -> None:
    """Warn about strengths outside [0, 1]: they extrapolate beyond what was learned."""
    values = torch.as_tensor(strength)
    if bool(((values < 0) | (values > 1)).any()):
        warnings.warn(
            f"strength {values.tolist()} is outside 0 to 1, beyond what was learned; check what the model generates.",
            stacklevel=stacklevel,
        )


def as_strength(value: Any) -> float | torch.Tensor:
    """Return a strength as a number, or as a new float32 tensor `[batch]`."""
    expected = "strength is a finite number, or one number per row [batch]"
    try:
        strength = None if isinstance(value, (str, bytes, bool)) else torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        strength = None
    if strength is None or strength.is_complex() or strength.dtype == torch.bool:
        raise LineasError(f"{expected}, not {shown(value)}.")
    if strength.dim() > 1 or not strength.numel():
        raise LineasError(f"{expected}, not of shape {list(strength.shape)}.")
    strength = strength.to(torch.float32, copy=True)
    if not bool(torch.isfinite(strength).all()):
        raise LineasError(f"{expected}, not {shown(value)}.")
    return strength if strength.dim() else float(value)


class Setting:
    """A strength, a number or one per row `[batch]`, and every map's scale and shift at this strength."""

    def __init__(self, strength: float | torch.Tensor, maps: Iterable[LiveMap]) -> None:
        self.strength = strength
        self.acts = bool(torch.as_tensor(strength).any())
        self.by_row = strength if isinstance(strength, torch.Tensor) else None
        self.some_untouched = self.by_row is not None and not bool(self.by_row.all())
        self._values = {(live, device): live.at(strength, device) for live in maps for device in tuple(live.devices)}

    def values(self, live: LiveMap, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the scale and shift of a site's map on a device; see `LiveMap.at`."""
        if (live, device) not in self._values:
            live.devices.add(device)
            self._values[live, device] = live.at(self.strength, device)
        return self._values[live, device]


class LiveMap:
    """One site's map at any strength, `T_s`, with buffers for its current scale and shift.

    The buffers keep their addresses. So a network that was compiled, or captured in a CUDA graph, after it was steered
    also follows a new strength. Only such networks read the buffers.
    """

    def __init__(self, map_: AffineMap, device: torch.device) -> None:
        self.map = map_
        self.devices = {device}
        self._touched = map_.support(0.0).nonzero().squeeze(1)
        self._is_sparse = len(self._touched) <= SPARSE_SHARE * map_.width
        self._strength: float | torch.Tensor = 0.0
        self._buffers: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def update(self, setting: Setting) -> None:
        """Write a setting's scale and shift into the buffers: in place, unless the shape changes."""
        same = torch.as_tensor(setting.strength).shape == torch.as_tensor(self._strength).shape
        self._strength = setting.strength
        for device in tuple(self.devices):
            values = setting.values(self, device)
            if same and device in self._buffers:
                for buffer, value in zip(self._buffers[device], values):
                    buffer.copy_(value)
            else:
                with torch.inference_mode(False):
                    self._buffers[device] = tuple(value.clone() for value in values)

    def buffers(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the buffers on a device."""
        if device not in self._buffers:
            self._buffers[device] = self.at(self._strength, device)
        return self._buffers[device]

    @torch.inference_mode(False)  # the values are stored, and a later pass may need gradients
    def at(self, strength: float | torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return scale and shift on a device, `[d]`, or `[batch, d]` for one strength per row.

        For a sparse map on a CPU, the indices, scales and shifts of the changed neurons follow.
        """
        scale, shift = self.map.scale.to(device), self.map.shift.to(device)
        s = torch.as_tensor(strength, device=device).unsqueeze(-1)  # [1] or [batch, 1]
        scale, shift = 1 + s * (scale - 1), s * shift
        if not self._is_sparse or device.type != "cpu" or scale.dim() > 1:
            return scale, shift
        return scale, shift, self._touched, scale[self._touched], shift[self._touched]


def mapped(z: torch.Tensor, values: tuple[torch.Tensor, ...], axis: int) -> torch.Tensor:
    """Apply a map to an activation, to the changed neurons alone if that is faster."""
    scale, shift, *sparse = values
    if not sparse or z.dtype == torch.float32 or z.numel() < SPARSE_NUMEL:
        return affine(z, scale, shift, axis)
    index, scale, shift = sparse
    return z.index_copy(axis, index, affine(z.index_select(axis, index), scale, shift, axis))


def keeps_addresses(z: torch.Tensor) -> bool:
    """Return whether this computation is being compiled, or captured in a CUDA graph that is replayed later."""
    return contexts.is_compiling() or (z.is_cuda and torch.cuda.is_current_stream_capturing())
