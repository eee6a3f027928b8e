"""Strengths as users give them: a finite number, or one a row."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from lineas.errors import LineasError, shown


def warn_if_outside(strength: float | torch.Tensor) -> None:
    """Warn about strengths outside [0, 1]: they extrapolate beyond what was learned."""
    given = torch.as_tensor(strength)
    if bool(((given < 0) | (given > 1)).any()):
        warnings.warn(
            f"strength {given.tolist()} is outside 0 to 1: this goes beyond what was learned, check the text.",
            stacklevel=4,
        )


def as_strength(value: Any) -> float | torch.Tensor:
    """A strength as a number, or as float32 `[batch]`, which nobody else holds.

    Raises:
        LineasError: when it is no finite number, nor one a row.
    """
    wanted = "strength is a finite number, or one number a row [batch]"
    try:
        given = None if isinstance(value, (str, bytes, bool)) else torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError):
        given = None
    if given is None or given.is_complex() or given.dtype == torch.bool:
        raise LineasError(f"{wanted}, not {shown(value)}.")
    if given.dim() > 1 or not given.numel():
        raise LineasError(f"{wanted}, not of shape {list(given.shape)}.")
    given = given.to(torch.float32, copy=True)
    if not bool(torch.isfinite(given).all()):
        raise LineasError(f"{wanted}, not {shown(value)}.")
    return given if given.dim() else float(value)
