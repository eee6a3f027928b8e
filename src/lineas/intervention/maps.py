"""AffineMap: the algebra of one site's map, `T(z) = scale * z + shift`, with one scale and one shift per neuron."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lineas.checks import as_number
from lineas.errors import LineasError, kind_of, shown
from lineas.modules import type_name

SUPPORT_TOLERANCE = 1e-5
"""A neuron is touched when `|scale - 1|` or `|shift|` exceeds this."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Number types that maps and gates accept; they become float32."""


@dataclass(frozen=True, eq=False)
class AffineMap:
    """The map `T(z) = scale * z + shift` on the d neurons of one site.

    Args:
        scale: factor of each neuron, `[d]`; float16, bfloat16 and float64 become float32. 1 changes nothing.
        shift: summand of each neuron, `[d]`, in units of the activation, of such a type. 0 changes nothing.

    Raises:
        LineasError: when one is no such tensor or not finite in float32, or the two differ in shape or device.

    >>> double = AffineMap(torch.tensor([2.0]), torch.tensor([1.0]))
    >>> double(torch.tensor([[3.0]]))
    tensor([[7.]])
    >>> double.at(0.5)(torch.tensor([[3.0]]))      # half way between 3 and 7
    tensor([[5.]])
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __post_init__(self) -> None:
        for name in ("scale", "shift"):
            check_numbers(getattr(self, name), f"a map's {name}")
        if self.scale.dim() != 1 or self.scale.shape != self.shift.shape or self.scale.device != self.shift.device:
            raise LineasError(
                f"a map needs a scale and a shift of one shape [d] on one device, not {list(self.scale.shape)} "
                f"and {list(self.shift.shape)} on {self.scale.device} and {self.shift.device}."
            )
        if not self.width:
            raise LineasError("a map needs at least one neuron, and a scale and a shift of shape [0] were given.")
        for name in ("scale", "shift"):
            object.__setattr__(self, name, in_float32(getattr(self, name), f"a map's {name}"))

    @classmethod
    def unchecked(cls, scale: torch.Tensor, shift: torch.Tensor) -> AffineMap:
        """Return a map of float32 tensors `[d]` without checks, for loops in which these would wait for a GPU."""
        map_ = object.__new__(cls)
        object.__setattr__(map_, "scale", scale)
        object.__setattr__(map_, "shift", shift)
        return map_

    @classmethod
    def identity(cls, width: int, device: torch.device | str | None = None) -> AffineMap:
        """Return the map over `width` neurons that changes nothing."""
        empty = cls.empty(width, device)
        return cls.unchecked(empty.scale.clone(), empty.shift.clone())

    @classmethod
    def empty(cls, width: int, device: torch.device | str | None = None) -> AffineMap:
        """Return the identity without memory for each neuron, for sites without a map; do not write into it."""
        if type(width) is not int or not 1 <= width < 2**63:
            raise LineasError(f"a map's width is a whole number from 1 on, not {shown(width)}.")
        one = torch.ones(1, device=device)
        return cls.unchecked(one.expand(width), torch.zeros_like(one).expand(width))

    @property
    def width(self) -> int:
        """The number of neurons, d."""
        return self.scale.shape[0]

    def __call__(self, z: torch.Tensor, axis: int = -1) -> torch.Tensor:
        """Apply the map in float32, or in z's type if that is wider, and return the result in z's type.

        Args:
            z: activations, `[..., d, ...]`.
            axis: axis of the neurons.

        Raises:
            LineasError: when z is no activation of d neurons along the axis.
        """
        if not isinstance(z, torch.Tensor) or not z.is_floating_point():
            raise LineasError(f"a map acts on an activation, a tensor of floating point numbers, not on {_kind(z)}.")
        if type(axis) is not int or not -z.dim() <= axis < z.dim():
            raise LineasError(f"an activation {list(z.shape)} has no axis {shown(axis)}.")
        if z.shape[axis] != self.width:
            raise LineasError(
                f"a map over {self.width} neurons cannot act on an activation {list(z.shape)} along axis {axis}."
            )
        return affine(z, self.scale, self.shift, axis)

    def at(self, strength: float) -> AffineMap:
        """Return the map `T_s(z) = (1 - s) z + s T(z)`, with scale `1 + s (w - 1)` and shift `s b`.

        Args:
            strength: strength s, a finite number.

        Raises:
            LineasError: when the strength is no finite number, or so large that the map is no longer finite.
        """
        s = as_number(strength)
        return _finite(
            _each(lambda w: 1 + s * (w - 1), self.scale),
            _each(lambda b: s * b, self.shift),
            f"at strength {s:g}; take a smaller strength",
        )

    def then(self, other: AffineMap) -> AffineMap:
        """Return this map followed by another one, `T2(T1(z)) = w2 w1 z + (w2 b1 + b2)`.

        Args:
            other: map that acts second.

        Raises:
            LineasError: when the widths differ, or the numbers are too large for the result to be finite.
        """
        if not isinstance(other, AffineMap):
            raise LineasError(f"a map is followed by another map, not by {_kind(other)}.")
        if self.width != other.width:
            raise LineasError(f"a map over {self.width} neurons cannot be followed by one over {other.width}.")
        w, b = other.scale.to(self.scale.device), other.shift.to(self.scale.device)
        return _finite(
            _each(torch.mul, w, self.scale),
            _each(lambda w2, b1, b2: w2 * b1 + b2, w, self.shift, b),
            "when one map follows the other; take smaller strengths",
        )

    def inverse(self) -> AffineMap:
        """Return the map `(z - b) / w` that undoes this one; it turns a removal into an induction.

        Raises:
            LineasError: when a scale is 0 (that neuron's value is lost), or so near 0 that its inverse is not finite.
        """
        lost = _each(lambda w: w == 0, self.scale)
        if bool(_few(lost).any()):
            raise LineasError(f"{int(lost.sum())} of {self.width} neurons have scale 0, so their map has no inverse.")
        return _finite(
            _each(torch.reciprocal, self.scale),
            _each(lambda w, b: -b / w, self.scale, self.shift),
            "in the inverse, as their scales are too near 0",
        )

    def support(self, tolerance: float = SUPPORT_TOLERANCE) -> torch.Tensor:
        """Return which neurons the map touches, bool `[d]`: those with `|w - 1|` or `|b|` above the tolerance."""
        tolerance = as_number(tolerance, "the tolerance")
        return _each(lambda w, b: ((w - 1).abs() > tolerance) | (b.abs() > tolerance), self.scale, self.shift)

    def is_identity(self) -> bool:
        """Return whether every scale is exactly 1 and every shift exactly 0."""
        return bool((_few(self.scale) == 1).all()) and bool((_few(self.shift) == 0).all())


def mix(weighted: Iterable[tuple[AffineMap, float]]) -> AffineMap:
    """Return the weighted sum of maps' changes, `T(z) = z + sum_k s_k (T_k(z) - z)`, in any order.

    Args:
        weighted: pairs of a map and its weight; weights need not sum to 1.

    Raises:
        LineasError: when there is no map, widths differ, or the sum is not finite.
    """
    checked = list(weighted) if isinstance(weighted, Iterable) else [weighted]
    for one in checked:
        if not isinstance(one, tuple) or len(one) != 2 or not isinstance(one[0], AffineMap):
            raise LineasError(f"mix takes pairs of a map and a weight, not {shown(one)}.")
    if not checked:
        raise LineasError("mix needs at least one map.")
    pairs = [(map_, as_number(weight, "the weight of a map")) for map_, weight in checked]
    if len({map_.width for map_, _ in pairs}) > 1:
        raise LineasError(f"maps of different widths cannot be mixed: {[m.width for m, _ in pairs]}.")
    device, weights = pairs[0][0].scale.device, [weight for _, weight in pairs]

    def total(*changes: torch.Tensor) -> torch.Tensor:
        return torch.stack([s * change for s, change in zip(weights, changes)]).sum(0)

    scale = _each(lambda *scales: 1 + total(*(w - 1 for w in scales)), *(m.scale.to(device) for m, _ in pairs))
    shift = _each(total, *(m.shift.to(device) for m, _ in pairs))
    return _finite(scale, shift, "in this mix; take smaller weights")


def check_numbers(value: Any, what: str) -> None:
    """Refuse anything but a plain tensor in memory, of one of FLOATS; `what` is its name in the error."""
    if not isinstance(value, torch.Tensor):
        raise LineasError(f"{what} is a tensor of numbers, not {_kind(value)}; torch.tensor(...) makes one.")
    if value.dtype not in FLOATS:
        kinds = ", ".join(map(type_name, FLOATS))
        raise LineasError(f"{what} is a tensor of one of {kinds}, not of {type_name(value.dtype)}.")
    if value.layout is not torch.strided or value.is_meta:
        raise LineasError(f"{what} is a plain tensor in memory, not a {'meta' if value.is_meta else 'sparse'} one.")


def in_float32(value: torch.Tensor, what: str) -> torch.Tensor:
    """Return a tensor of one of FLOATS in float32, if it is finite there; `what` is its name in the error."""
    single = _each(torch.Tensor.float, value) if value.dim() == 1 else value.float()
    wrong = int((~_few(single).isfinite()).sum())
    if wrong:
        overflow = "" if wrong == int((~_few(value).isfinite()).sum()) else " once it is float32, the type of maps"
        raise LineasError(f"{what} is not finite at {wrong} of {value.numel()} places{overflow}.")
    return single


def _finite(scale: torch.Tensor, shift: torch.Tensor, when: str) -> AffineMap:
    """Return the map of these numbers, if they are finite; `when` ends the sentence of the error."""
    wrong = _each(lambda w, b: ~(w.isfinite() & b.isfinite()), scale, shift)
    if bool(_few(wrong).any()):
        raise LineasError(f"the numbers of {int(wrong.sum())} of {len(scale)} neurons exceed float32 {when}.")
    return AffineMap.unchecked(scale, shift)


def _each(function: Callable[..., torch.Tensor], *numbers: torch.Tensor) -> torch.Tensor:
    """Apply a function of each neuron's numbers, `[d]`; it is computed once if all neurons have the same numbers."""
    same = all(one.stride(0) == 0 for one in numbers)
    return function(*map(_few, numbers)).expand(len(numbers[0])) if same else function(*numbers)


def _few(numbers: torch.Tensor) -> torch.Tensor:
    """Return only the first number of a tensor that stores one number for all neurons; else the tensor itself."""
    return numbers[:1] if numbers.dim() == 1 and len(numbers) and numbers.stride(0) == 0 else numbers


def _kind(value: Any) -> str:
    """Return the type of a value, or a text itself, for a message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)} of {type_name(value.dtype)}"
    return shown(value) if isinstance(value, str) else kind_of(value)


def affine(z: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, axis: int = -1) -> torch.Tensor:
    """Return `scale * z + shift`, computed in float32 or z's wider type, in z's type.

    Args:
        z: activations, `[..., d, ...]`; they are not changed in place.
        scale: factors, `[d]`, or `[batch, d]` for one map per row of z's first axis.
        shift: summands, of the same shape as the scale.
        axis: axis of the neurons.
    """
    shape = [1] * z.dim()
    shape[axis] = scale.shape[-1]
    if scale.dim() == 2:
        shape[0] = scale.shape[0]
    wide = torch.promote_types(z.dtype, torch.float32)
    scale, shift = scale.to(wide).view(shape), shift.to(wide).view(shape)
    if torch.is_grad_enabled() and scale.requires_grad:
        return _Affine.apply(z, scale, shift)
    return torch.addcmul(shift, z.to(wide), scale).to(z.dtype)


class _Affine(torch.autograd.Function):
    """The affine map while it is learned: it saves z for the backward pass in z's type, not as a float32 copy."""

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
