"""AffineMap: the algebra of one site, `T(z) = scale * z + shift`, one pair of numbers per neuron."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lineas.errors import LineasError

SUPPORT_TOLERANCE = 1e-5
"""A neuron is touched when `|scale - 1|` or `|shift|` exceeds this."""


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The map `T(z) = scale * z + shift` on the d neurons of one site.

    Args:
        scale: float32 `[d]`; 1 leaves a neuron's spread as it is.
        shift: float32 `[d]`, in units of the activation; 0 leaves its level as it is.

    Raises:
        LineasError: when the two differ in shape or are not one-dimensional.

    >>> double = AffineMap(torch.tensor([2.0]), torch.tensor([1.0]))
    >>> double(torch.tensor([[3.0]]))
    tensor([[7.]])
    >>> double.at(0.5)(torch.tensor([[3.0]]))      # half way between 3 and 7
    tensor([[5.]])
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __post_init__(self) -> None:
        if self.scale.dim() != 1 or self.scale.shape != self.shift.shape:
            raise LineasError(
                f"a map needs a scale and a shift of one shape [d], not {list(self.scale.shape)} "
                f"and {list(self.shift.shape)}."
            )

    @classmethod
    def identity(cls, width: int, device: torch.device | str | None = None) -> AffineMap:
        """The map that changes nothing, over `width` neurons."""
        return cls(torch.ones(width, device=device), torch.zeros(width, device=device))

    @property
    def width(self) -> int:
        """The number of neurons, d."""
        return self.scale.shape[0]

    def __call__(self, z: torch.Tensor, axis: int = -1) -> torch.Tensor:
        """Apply the map to activations `[..., d, ...]` whose neurons lie along `axis`.

        Computes in float32 (or in z's type if that is wider) and returns z's type.
        """
        if z.shape[axis] != self.width:
            raise LineasError(
                f"a map over {self.width} neurons cannot act on an activation {list(z.shape)} along axis {axis}."
            )
        return affine(z, self.scale, self.shift, axis)

    def at(self, strength: float) -> AffineMap:
        """`T_s(z) = (1 - s) z + s T(z)`, again affine: scale `1 + s (w - 1)`, shift `s b`."""
        return AffineMap(1 + strength * (self.scale - 1), strength * self.shift)

    def then(self, other: AffineMap) -> AffineMap:
        """`other` after this map: `T2(T1(z)) = w2 w1 z + (w2 b1 + b2)`."""
        if self.width != other.width:
            raise LineasError(f"a map over {self.width} neurons cannot be followed by one over {other.width}.")
        return AffineMap(other.scale * self.scale, other.scale * self.shift + other.shift)

    def inverse(self) -> AffineMap:
        """The map `(z - b) / w` that undoes this one; turns a removal into an induction.

        Raises:
            LineasError: when a scale is 0 (that neuron's value is lost).
        """
        lost = int((self.scale == 0).sum())
        if lost:
            raise LineasError(f"{lost} of {self.width} neurons have scale 0, so their map has no inverse.")
        return AffineMap(1 / self.scale, -self.shift / self.scale)

    def support(self, tolerance: float = SUPPORT_TOLERANCE) -> torch.Tensor:
        """Which neurons the map touches: bool `[d]`, `|w - 1| > tolerance` or `|b| > tolerance`."""
        return ((self.scale - 1).abs() > tolerance) | (self.shift.abs() > tolerance)

    def is_identity(self) -> bool:
        """Whether every neuron is exactly untouched."""
        return bool((self.scale == 1).all()) and bool((self.shift == 0).all())


def mix(weighted: Iterable[tuple[AffineMap, float]]) -> AffineMap:
    """The weighted sum of changes: `T(z) = z + sum_k s_k (T_k(z) - z)`, order plays no part.

    Args:
        weighted: pairs of a map and its weight; weights need not sum to 1.
    """
    pairs = list(weighted)
    if not pairs:
        raise LineasError("mix needs at least one map.")
    if len({map_.width for map_, _ in pairs}) > 1:
        raise LineasError(f"maps of different widths cannot be mixed: {[m.width for m, _ in pairs]}.")
    scale = 1 + torch.stack([s * (m.scale - 1) for m, s in pairs]).sum(0)
    shift = torch.stack([s * m.shift for m, s in pairs]).sum(0)
    return AffineMap(scale, shift)


def affine(z: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """`scale * z + shift` along `axis`, computed in float32 or wider, returned in z's type.

    Args:
        z: activations `[..., d, ...]`; left as they are (nothing is written in place).
        scale: `[d]`, or `[batch, d]` for a map of its own per row of z's first axis.
        shift: same shape as scale.
    """
    shape = [1] * z.dim()
    shape[axis] = scale.shape[-1]
    if scale.dim() == 2:
        shape[0] = scale.shape[0]
    wide = torch.promote_types(z.dtype, torch.float32)
    scale, shift = scale.to(wide).view(shape), shift.to(wide).view(shape)
    if torch.is_grad_enabled() and scale.requires_grad:
        return _Affine.apply(z, scale, shift)  # type: ignore[no-any-return]
    return torch.addcmul(shift, z.to(wide), scale).to(z.dtype)


class _Affine(torch.autograd.Function):
    """The same while scale and shift are learned: keeps z in its own type instead of a float32 copy of it."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(z, scale)
        return torch.addcmul(shift, z.to(scale.dtype), scale).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        z, scale = ctx.saved_tensors
        grad = grad_outputs[0].to(scale.dtype)
        to_z = (grad * scale).to(z.dtype) if ctx.needs_input_grad[0] else None
        return to_z, (grad * z).sum_to_size(scale.shape), grad.sum_to_size(scale.shape)
