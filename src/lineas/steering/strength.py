"""Checks of a strength: a finite number, or one per row."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from lineas.errors import LineasError, shown


def warn_if_outside(strength: float | torch.Tensor) -> None:
    """Warn about strengths outside [0, 1]: they extrapolate beyond what was learned."""
    values = torch.as_tensor(strength)
    if bool(((values < 0) | (values > 1)).any()):
        warnings.warn(
            f"strength {values.tolist()} is outside 0 to 1, beyond what was learned; check what the model generates.",
            stacklevel=4,
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
