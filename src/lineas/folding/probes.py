"""Probes: whether a module computes what its weight and bias say, by its output for a few numbers, not by its class."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lineas.folding.wrappers import adapters_of
from lineas.modules import is_linear, is_quantised

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""By type, how far a module's output may be from what its weights say, relative to the largest; else 4 roundings."""
ON_A_GPU = 2e-3
"""The same for float32 there, where products may be taken in TF32."""


@torch.no_grad()
def why_not_linear(module: nn.Module) -> str:
    """Return the reason why a module's output is not `W x + c` with the weight and bias it holds; "" where it is."""
    reason = why_not_own(module)
    if reason or not is_linear(module):
        return reason or f"a {type(module).__name__} is no linear layer"
    more = f"a {type(module).__name__} does more than multiply by its weight"
    here = _as_it_is(module)
    weight, bias = _value(module, "weight"), _value(module, "bias")
    if here is None or weight is None:  # on no device: nothing can be tried
        return "" if type(module) in (nn.Linear, nn.Conv2d) or type(module).__name__ == "Conv1D" else more
    if is_quantised(module):
        return "" if _is_affine(here, module, bias) else more
    x = _inputs(module, weight).to(weight.dtype)
    made = _output(here, x)
    if isinstance(module, nn.Conv2d):
        wide = None if bias is None else bias.float()
        wanted = nn.Conv2d._conv_forward(module, x.float(), weight.float(), wide)
    else:
        rows = weight.float()
        wanted = x.float() @ (rows.T if isinstance(module, nn.Linear) else rows)
        wanted = wanted if bias is None else wanted + bias.float()
    return "" if _agree(made, wanted, weight.dtype) else more


@torch.no_grad()
def norm_offset(norm: nn.Module) -> float | None:
    """The number that a norm adds to its weight before it multiplies by it: 0, or 1 in Gemma's.

    None where its output is not `(weight + offset) n(z) + bias` with the weight and bias it holds.
    """
    if why_not_own(norm):
        return None
    try:
        probe: Any = (
            copy.deepcopy(norm).to_empty(device="cpu").float()
        )  # its own weights may lie anywhere, or on a disk
    except Exception:  # whatever a class does that cannot be copied, it is no plain norm
        return None
    for buffer in probe.buffers():
        buffer.fill_(1)
    if getattr(probe, "bias", None) is not None:
        probe.bias.zero_()
    width = probe.weight.shape[0]
    z = torch.linspace(-1, 2, 4 * width).view((1, width, 2, 2) if isinstance(probe, nn.GroupNorm) else (1, 4, width))
    kind: Any = norm.weight.dtype
    if kind.is_floating_point:
        z = z.to(kind).float()  # what the norm itself is given: else the rounding of z counts as a difference

    def of_weight(value: float) -> torch.Tensor | None:
        probe.weight.fill_(value)
        try:
            made = type(probe).forward(probe, z)  # without whatever hangs on it
        except Exception:  # it wants something else beside or in place of an activation
            return None
        return made if isinstance(made, torch.Tensor) else None

    for offset in (0.0, 1.0):
        nothing, one = of_weight(-offset), of_weight(1 - offset)
        if nothing is not None and one is not None and not nothing.any():
            return offset if _is_as_said(norm, z, one, offset) else None
    return None


def _is_as_said(norm: nn.Module, z: torch.Tensor, normalised: torch.Tensor, offset: float) -> bool:
    """Return whether a norm with its own weight, and all that hangs on it, gives `(weight + offset) n(z) + bias`."""
    here, weight, bias = _as_it_is(norm), _value(norm, "weight"), _value(norm, "bias")
    if here is None or weight is None:
        return True
    made = _output(here, z.to(weight.device, weight.dtype))
    shape = [1, -1, *[1] * (z.dim() - 2)] if isinstance(norm, nn.GroupNorm) else [-1]
    wanted = (weight.float().cpu() + offset).view(shape) * normalised
    if bias is not None:
        wanted = wanted + bias.float().cpu().view(shape)
    return _agree(made, wanted, weight.dtype)


def why_not_own(module: nn.Module) -> str:
    """Return the reason why a module's weight or bias is not a tensor that it stores whole; "" where both are."""
    held = adapters_of(module)
    if held:
        return f"it carries the adapter {', '.join(map(repr, held))}; merge that first"
    for key in ("weight", "bias"):
        if key == "bias" and not isinstance(getattr(module, key, None), torch.Tensor):
            continue
        if parametrize.is_parametrized(module, key):
            parts: Any = module.parametrizations[key]  # pyright: ignore[reportArgumentType, reportIndexIssue]
            return f"its {key} is computed by {' and '.join(_in_words(part) for part in parts)}"
        if key not in module._parameters:
            makers = [_in_words(hook) for hook in module._forward_pre_hooks.values() if hasattr(hook, "name")]
            return f"its {key} is " + (f"computed by {' and '.join(makers)}" if makers else "no parameter of its own")
        value: Any = module._parameters.get(key)
        if value is not None and any(kind.__name__ == "DTensor" for kind in type(value.data).__mro__):
            return f"its {key} is spread over devices (a DTensor)"
    return ""


def _in_words(maker: Any) -> str:
    """`_WeightNorm` as weight_norm, as its users know it."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(maker).__name__.lstrip("_")).lower()


def _as_it_is(module: nn.Module) -> Any:
    """A stand-in that computes as a module does, with its weights, and leaves lineas' own hooks and its state alone.

    None where the weights are on no device.
    """
    weight: Any = module._parameters["weight"]
    if weight is None or (weight.is_meta and not hasattr(module, "_hf_hook")):
        return None
    try:
        stand_in: Any = copy.copy(module)
    except Exception:  # a class with rules of its own for copies
        return module
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        foreign = ((key, hook) for key, hook in getattr(module, hooks).items() if not _is_own(hook))
        vars(stand_in)[hooks] = OrderedDict(foreign)
    try:
        vars(stand_in)["_buffers"] = {key: b if b is None else b.clone() for key, b in module._buffers.items()}
        vars(stand_in)["_modules"] = copy.deepcopy(module._modules)
    except Exception:  # what cannot be copied is used as it is
        vars(stand_in)["_buffers"], vars(stand_in)["_modules"] = module._buffers, module._modules
    return stand_in


def _is_own(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("lineas.")


def _value(module: nn.Module, key: str) -> torch.Tensor | None:
    """A module's weight or bias, also where accelerate keeps it elsewhere until it is used; None where nowhere."""
    value = module._parameters.get(key)
    if value is None or not value.is_meta:
        return value
    elsewhere: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    return elsewhere[key] if elsewhere else None


def _inputs(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """A few rows, or one small picture, of random numbers, on the weight's device."""
    generator = torch.Generator().manual_seed(0)  # the global one is left as it was
    if isinstance(module, nn.Conv2d):
        sides = [step * (size - 1) + 2 for size, step in zip(module.kernel_size, module.dilation)]
        shape: Sequence[int] = (1, module.in_channels, *sides)
    else:
        features = getattr(module, "in_features", None)
        shape = (3, weight.shape[0 if features is None else 1] if features is None else features)
    return torch.randn(*shape, generator=generator).to(weight.device)


def _is_affine(here: Any, module: Any, bias: torch.Tensor | None) -> bool:
    """Return whether a quantised linear gives its bias for zeros, and sums for sums."""
    weight: Any = module.weight
    kind = bias.dtype if bias is not None else weight.dtype if weight.is_floating_point() else torch.float32
    kind = kind if torch.finfo(kind).bits >= 16 else torch.float32
    a, b, _ = _inputs(module, weight)
    made = _output(here, torch.stack([torch.zeros_like(a), a, b, a + b]).to(kind))
    if made is None:
        return False
    zero, of_a, of_b, of_sum = made.float()
    wanted = torch.zeros_like(zero) if bias is None else bias.float()
    size = made.float().abs().max()
    return all(
        bool((one - other).abs().max() <= _tolerance(kind, made) * size)
        for one, other in ((zero, wanted), (of_sum, of_a + of_b - zero))
    )


def _output(here: Any, x: torch.Tensor) -> torch.Tensor | None:
    """A module's output; None where it gives no tensor, or fails."""
    try:
        with torch.random.fork_rng(devices=[]):
            made = here(x)
    except Exception:  # it wants something else beside or in place of an activation
        return None
    return made if isinstance(made, torch.Tensor) else None


def _agree(made: torch.Tensor | None, wanted: torch.Tensor, kind: torch.dtype) -> bool:
    if made is None or made.shape != wanted.shape:
        return False
    tolerance = _tolerance(kind, made)
    made, wanted = made.float().cpu(), wanted.float().cpu()
    return bool((made - wanted).abs().max() <= tolerance * wanted.abs().max())


def _tolerance(kind: torch.dtype, made: torch.Tensor) -> float:
    if kind == torch.float32 and made.device.type != "cpu":
        return ON_A_GPU
    return TOLERANCE.get(kind, 4 * torch.finfo(kind).eps)
