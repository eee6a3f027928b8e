"""Gates: how much of a map a token gets, computed from the activation that the map moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lineas.errors import LineasError
from lineas.intervention.maps import check_numbers, in_float32


@dataclass(frozen=True, eq=False)
class Gate:
    """A token's share of a map, `g(z) = sigmoid(weight . z + bias)`; the gated map is `z + g(z) (T(z) - z)`.

    In "DSAS" (arXiv 2512.03661) a logistic regression on a few principal components separates tokens that need steering
    from those that do not. Here components and regression together are one vector.

    Args:
        weight: weight of each neuron, `[d]`; float16, bfloat16 and float64 become float32.
        bias: bias, a scalar tensor of such a type.

    Raises:
        LineasError: when one is no such tensor, is not finite in float32, or has a wrong shape or device.

    >>> gate = Gate(torch.tensor([1.0, 0.0]), torch.tensor(-2.0))
    >>> gate(torch.tensor([[2.0, 5.0], [102.0, 5.0]]))
    tensor([[0.5000],
            [1.0000]])
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):
            check_numbers(getattr(self, name), f"a gate's {name}")
        if self.weight.dim() != 1 or self.bias.dim() != 0 or self.weight.device != self.bias.device:
            raise LineasError(
                f"a gate needs a weight [d] and one bias on one device, not shapes {list(self.weight.shape)} and "
                f"{list(self.bias.shape)} on {self.weight.device} and {self.bias.device}."
            )
        if not self.width:
            raise LineasError("a gate needs at least one neuron, and a weight of shape [0] was given.")
        for name in ("weight", "bias"):
            object.__setattr__(self, name, in_float32(getattr(self, name), f"a gate's {name}"))

    @property
    def width(self) -> int:
        """The number of neurons that the gate reads, d."""
        return self.weight.shape[0]

    def __call__(self, z: torch.Tensor, axis: int = -1) -> torch.Tensor:
        """Return each token's share, 0 to 1, in float32 or z's wider type.

        Args:
            z: activations, `[..., d, ...]`.
            axis: axis of the neurons.

        Returns:
            Shares, `[..., 1, ...]`: z's shape with 1 along the axis of the neurons.
        """
        here = self.to(z.device)
        whole = z.to(torch.promote_types(z.dtype, torch.float32)).movedim(axis, -1)
        return ((whole @ here.weight.to(whole.dtype)).unsqueeze(-1) + here.bias).sigmoid().movedim(-1, axis)

    def to(self, device: torch.device) -> Gate:
        """Return the gate on a device; the gate itself if it is there."""
        return self if self.weight.device == device else Gate(self.weight.to(device), self.bias.to(device))

    def mixed(self, before: torch.Tensor, after: torch.Tensor, axis: int = -1) -> torch.Tensor:
        """Return the activation with every token's share of a change; unchanged values stay the same bit for bit.

        Args:
            before: activations before the map, `[..., d, ...]`.
            after: activations after the map, of the same shape.
            axis: axis of the neurons.
        """
        b = before.to(torch.promote_types(before.dtype, torch.float32))
        return (b + self(b, axis) * (after.to(b.dtype) - b)).to(before.dtype)
