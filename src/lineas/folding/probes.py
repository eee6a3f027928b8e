"""Probes: run a module on a few numbers to check that it computes what its weight and bias say."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lineas.folding.wrappers import adapters_of
from lineas.modules import is_linear, is_quantised

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""For each type, the allowed difference from the expected output, relative to its maximum; for others 4 roundings."""
GPU_TOLERANCE = 2e-3
"""The allowed difference for float32 on a GPU, which may multiply in TF32."""


@torch.no_grad()
def reason_not_linear(module: nn.Module) -> str:
    """Return the reason why a module does not compute `W x + c` with its own weight and bias; "" if it does."""
    reason = reason_not_stored(module)
    if reason or not is_linear(module):
        return reason or f"a {type(module).__name__} is no linear layer"
    reason = f"a {type(module).__name__} does more than multiply by its weight"
    probe = _stand_in(module)
    weight, bias = _value(module, "weight"), _value(module, "bias")
    if probe is None or weight is None:  # without weights in memory only the class can be checked
        return "" if type(module) in (nn.Linear, nn.Conv2d) or type(module).__name__ == "Conv1D" else reason
    if is_quantised(module):
        return "" if _is_affine(probe, module, bias) else reason
    x = _inputs(module, weight).to(weight.dtype)
    output = _output(probe, x)
    bias = None if bias is None else bias.float()
    if isinstance(module, nn.Conv2d):
        expected = nn.Conv2d._conv_forward(module, x.float(), weight.float(), bias)
    else:
        expected = x.float() @ (weight.float().T if isinstance(module, nn.Linear) else weight.float())
        expected = expected if bias is None else expected + bias
    return "" if _agree(output, expected, weight.dtype) else reason


@torch.no_grad()
def norm_offset(norm: nn.Module) -> float | None:
    """Return the number that a norm adds to its weight before the multiplication: 0, or 1 in Gemma.

    None if its output is not `(weight + offset) n(z) + bias` with its own weight and bias.
    """
    if reason_not_stored(norm):
        return None
    try:
        probe: Any = copy.deepcopy(norm).to_empty(device="cpu").float()  # the norm's own weights may be offloaded
    except Exception:  # a class that cannot be copied is no plain norm
        return None
    for buffer in probe.buffers():
        buffer.fill_(1)
    if getattr(probe, "bias", None) is not None:
        probe.bias.zero_()
    width = probe.weight.shape[0]
    z = torch.linspace(-1, 2, 4 * width).view((1, width, 2, 2) if isinstance(probe, nn.GroupNorm) else (1, 4, width))
    kind: Any = norm.weight.dtype
    if kind.is_floating_point:
        z = z.to(kind).float()  # the norm itself gets z in its own type, so the rounding of z must not count

    def output_with(weight: float) -> torch.Tensor | None:
        probe.weight.fill_(weight)
        return _output(partial(type(probe).forward, probe), z)  # without hooks

    for offset in (0.0, 1.0):
        zero, normalised = output_with(-offset), output_with(1 - offset)
        if zero is not None and normalised is not None and not zero.any():
            return offset if _matches_weights(norm, z, normalised, offset) else None
    return None


def _matches_weights(norm: nn.Module, z: torch.Tensor, normalised: torch.Tensor, offset: float) -> bool:
    """Return whether a norm, with its weight and its hooks, computes `(weight + offset) n(z) + bias`."""
    probe, weight, bias = _stand_in(norm), _value(norm, "weight"), _value(norm, "bias")
    if probe is None or weight is None:
        return True
    output = _output(probe, z.to(weight.device, weight.dtype))
    shape = [1, -1, 1, 1] if isinstance(norm, nn.GroupNorm) else [-1]
    expected = (weight.float().cpu() + offset).view(shape) * normalised
    if bias is not None:
        expected = expected + bias.float().cpu().view(shape)
    return _agree(output, expected, weight.dtype)


def reason_not_stored(module: nn.Module) -> str:
    """Return the reason why a module's weight or bias is not a whole parameter of its own; "" if both are."""
    if adapters := adapters_of(module):
        return f"it carries the adapter {', '.join(map(repr, adapters))}; merge that first"
    has_bias = isinstance(getattr(module, "bias", None), torch.Tensor)
    for key in ("weight", "bias") if has_bias else ("weight",):
        if parametrize.is_parametrized(module, key):
            parts: Any = module.parametrizations[key]  # pyright: ignore[reportArgumentType, reportIndexIssue]
            return f"its {key} is computed by {' and '.join(_snake_case(part) for part in parts)}"
        if key not in module._parameters:
            makers = [_snake_case(hook) for hook in module._forward_pre_hooks.values() if hasattr(hook, "name")]
            return f"its {key} is " + (f"computed by {' and '.join(makers)}" if makers else "no parameter of its own")
        value: Any = module._parameters.get(key)
        if value is not None and any(kind.__name__ == "DTensor" for kind in type(value.data).__mro__):
            return f"its {key} is spread over devices (a DTensor)"
    return ""


def _snake_case(maker: Any) -> str:
    """Return a class as the name of its torch function: `_WeightNorm` becomes weight_norm."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(maker).__name__.lstrip("_")).lower()


def _stand_in(module: nn.Module) -> Any:
    """Return a copy of a module with the same weights and without lineas' hooks; None if its weights have no values."""
    weight: Any = module._parameters["weight"]
    if weight is None or (weight.is_meta and not hasattr(module, "_hf_hook")):
        return None
    try:
        stand_in: Any = copy.copy(module)
    except Exception:  # a class that does not allow copies
        return module
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        hooks: dict[int, Any] = getattr(module, name)
        own = [key for key, hook in hooks.items() if str(getattr(hook, "__module__", "")).startswith("lineas.")]
        vars(stand_in)[name] = OrderedDict((key, hook) for key, hook in hooks.items() if key not in own)
    try:
        vars(stand_in)["_buffers"] = {key: b if b is None else b.clone() for key, b in module._buffers.items()}
        vars(stand_in)["_modules"] = copy.deepcopy(module._modules)
    except Exception:  # parts that cannot be copied are shared
        vars(stand_in)["_buffers"], vars(stand_in)["_modules"] = module._buffers, module._modules
    return stand_in


def _value(module: nn.Module, key: str) -> torch.Tensor | None:
    """Return a module's weight or bias, also if accelerate has offloaded it; None if there is none."""
    value = module._parameters.get(key)
    if value is None or not value.is_meta:
        return value
    offloaded: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    return offloaded[key] if offloaded else None


def _inputs(module: Any, weight: torch.Tensor) -> torch.Tensor:
    """Return random inputs on the weight's device: a few rows, or one small image."""
    generator = torch.Generator().manual_seed(0)  # so that the global one does not change
    if isinstance(module, nn.Conv2d):
        sides = [step * (size - 1) + 2 for size, step in zip(module.kernel_size, module.dilation)]
        shape: Sequence[int] = (1, module.in_channels, *sides)
    else:
        features = getattr(module, "in_features", None)
        shape = (3, weight.shape[0 if features is None else 1] if features is None else features)
    return torch.randn(*shape, generator=generator).to(weight.device)


def _is_affine(probe: Any, module: Any, bias: torch.Tensor | None) -> bool:
    """Return whether a quantised linear maps zeros to its bias, and sums to sums."""
    weight: Any = module.weight
    kind = bias.dtype if bias is not None else weight.dtype if weight.is_floating_point() else torch.float32
    kind = kind if torch.finfo(kind).bits >= 16 else torch.float32
    a, b, _ = _inputs(module, weight)
    outputs = _output(probe, torch.stack([torch.zeros_like(a), a, b, a + b]).to(kind))
    if outputs is None:
        return False
    of_zero, of_a, of_b, of_sum = outputs.float()
    differences = torch.stack([of_zero - (0 if bias is None else bias.float()), of_sum - (of_a + of_b - of_zero)])
    return bool(differences.abs().max() <= _tolerance(kind, outputs) * outputs.float().abs().max())


def _output(probe: Any, x: torch.Tensor) -> torch.Tensor | None:
    """Return the output of a module or function; None if it fails or returns no tensor."""
    try:
        with torch.random.fork_rng(devices=[]):
            output = probe(x)
    except Exception:  # it needs other inputs than an activation
        return None
    return output if isinstance(output, torch.Tensor) else None


def _agree(output: torch.Tensor | None, expected: torch.Tensor, kind: torch.dtype) -> bool:
    if output is None or output.shape != expected.shape:
        return False
    tolerance = _tolerance(kind, output)
    output, expected = output.float().cpu(), expected.float().cpu()
    return bool((output - expected).abs().max() <= tolerance * expected.abs().max())


def _tolerance(kind: torch.dtype, output: torch.Tensor) -> float:
    if kind == torch.float32 and output.device.type != "cpu":
        return GPU_TOLERANCE
    return TOLERANCE.get(kind, 4 * torch.finfo(kind).eps)
