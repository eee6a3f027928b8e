"""Maps at the strength of the moment: the numbers that hooks apply, found once for every strength."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lineas.intervention.maps import AffineMap, affine
from lineas.sites import Site
from lineas.steering import contexts

SPARSE_SHARE, SPARSE_NUMEL = 1 / 8, 2**17
"""On a CPU in half precision, maps of at most this share of neurons touch those alone, where the activation has at
least so many numbers: there converting all of them costs more than picking a few (benchmarks/speed/steering.py)."""


class Setting:
    """A strength and all that follows from it.

    Args:
        strength: a number, or one a row, `[batch]`.
        maps: whose values at this strength are found now, where they will be needed.
    """

    def __init__(self, strength: float | torch.Tensor, maps: Mapping[Site, LiveMap]) -> None:
        self.strength = strength
        self.acts = bool(torch.as_tensor(strength).any())
        self.by_row = strength if isinstance(strength, torch.Tensor) else None
        self.some_untouched = self.by_row is not None and not bool(self.by_row.all())
        self._values = {
            (live, device): live.at(strength, device) for live in maps.values() for device in tuple(live.devices)
        }

    def values(self, live: LiveMap, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Scale and shift of a site's map on a device; see `LiveMap.at`."""
        found = self._values.get((live, device))
        if found is None:
            live.devices.add(device)
            found = self._values[live, device] = live.at(self.strength, device)
        return found


class LiveMap:
    """One site's map at any strength, `T_s`, and buffers for it that a new strength is written into.

    The buffers keep their place in memory, so that a network that was compiled or captured in a graph after it was
    steered follows the strength too; nothing else reads them.
    """

    def __init__(self, map_: AffineMap, device: torch.device) -> None:
        self.map = map_
        self.devices = {device}
        self._touched = map_.support(0.0).nonzero().squeeze(1)
        self._is_sparse = len(self._touched) <= SPARSE_SHARE * map_.width
        self._strength: float | torch.Tensor = 0.0
        self._buffers: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    def take(self, setting: Setting) -> None:
        """Bring the buffers to a strength: in place, unless they change their shape."""
        same = torch.as_tensor(setting.strength).shape == torch.as_tensor(self._strength).shape
        self._strength = setting.strength
        for device in tuple(self.devices):
            values = setting.values(self, device)
            if same and device in self._buffers:
                for buffer, value in zip(self._buffers[device], values):
                    buffer.copy_(value)
            else:
                self._buffers[device] = _copies(values)

    def shared(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The buffers on a device."""
        if device not in self._buffers:
            self._buffers[device] = self.at(self._strength, device)
        return self._buffers[device]

    @torch.inference_mode(False)  # kept, so they must serve autograd as well
    def at(self, strength: float | torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Scale and shift on a device, `[d]`, or `[batch, d]` for a strength a row; then both for touched neurons."""
        scale, shift = self.map.scale.to(device), self.map.shift.to(device)
        s = torch.as_tensor(strength, device=device).unsqueeze(-1)  # [1] or [batch, 1]
        scale, shift = 1 + s * (scale - 1), s * shift
        if not self._is_sparse or device.type != "cpu" or scale.dim() > 1:
            return scale, shift
        return scale, shift, self._touched, scale[self._touched], shift[self._touched]


@torch.inference_mode(False)
def _copies(values: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(value.clone() for value in values)


def mapped(z: torch.Tensor, values: tuple[torch.Tensor, ...], axis: int) -> torch.Tensor:
    """The map on an activation, of the touched neurons alone where that is faster."""
    scale, shift, *few = values
    if not few or z.dtype == torch.float32 or z.numel() < SPARSE_NUMEL:
        return affine(z, scale, shift, axis)
    index, scale, shift = few
    return z.index_copy(axis, index, affine(z.index_select(axis, index), scale, shift, axis))


def keeps_addresses(z: torch.Tensor) -> bool:
    """Return True where what is computed now is compiled, or captured in a graph that is replayed later."""
    return contexts.is_compiling() or (z.is_cuda and torch.cuda.is_current_stream_capturing())
