"""Questions put to a network's modules: which are norms, linears and blocks, how wide they are, where they compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a type of numbers.

    >>> type_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation layer with a weight per neuron (LayerNorm, RMSNorm, ...)."""
    weight = getattr(module, "weight", None)
    return "Norm" in type(module).__name__ and isinstance(weight, torch.Tensor) and weight.dim() == 1


def is_norm_layer(module: nn.Module) -> bool:
    """Return whether a module normalises, also without a weight of its own, as where a time step modulates it."""
    return "Norm" in type(module).__name__ and not isinstance(module, nn.ModuleList)


def blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The repeated blocks of a transformer, by name: the children of its longest list of modules with norms in them."""
    best: list[tuple[str, nn.Module]] = []
    for name, module in text_modules(network):
        if isinstance(module, nn.ModuleList) and len(module) > len(best):
            children = [(f"{name}.{i}" if name else str(i), child) for i, child in enumerate(module)]
            if any(is_norm(part) for part in children[0][1].children()):
                best = children
    return best


def repeated(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The smallest repeated parts with norms in them, by name: a transformer's blocks, a U-Net's residual and
    transformer blocks."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList):
            children = [(f"{name}.{i}" if name else str(i), child) for i, child in enumerate(module)]
            found += [(at, child) for at, child in children if any(map(is_norm_layer, child.modules()))]
    names = [name for name, _ in found]
    return [(name, part) for name, part in found if not any(other.startswith(f"{name}.") for other in names)]


def non_text_modules(network: nn.Module) -> list[str]:
    """Return the names of the parts that text alone never reaches, such as a tower for pictures, without their own."""
    config: Any = getattr(network, "config", None)
    if not hasattr(config, "get_text_config") or config.get_text_config() is config:
        return []
    made: Any = network
    text = [part for part in (made.get_decoder(), made.get_output_embeddings()) if part is not None]
    reached = {id(module) for part in text for module in part.modules()}
    beside: list[str] = []
    for name, module in network.named_modules():
        holds_some = any(id(inner) in reached for inner in module.modules())
        if not holds_some and not any(name.startswith(f"{part}.") for part in beside):
            beside.append(name)
    return beside


def text_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return a network's modules by name, without those that text alone never reaches."""
    beside = non_text_modules(network)
    return [
        (name, module)
        for name, module in network.named_modules()
        if not any(f"{name}.".startswith(f"{part}.") for part in beside)
    ]


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is called a linear layer (nn.Linear, Conv2d, or the transposed Conv1D of GPT-2)."""
    return isinstance(module, (nn.Linear, nn.Conv2d)) or type(module).__name__ == "Conv1D"


def is_quantised(linear: nn.Module) -> bool:
    """Return whether a linear's weight is kept as anything but plain floating-point numbers."""
    weight: Any = linear.weight
    return type(weight.data) is not torch.Tensor or not weight.is_floating_point() or weight.element_size() < 2


def width_of(module: nn.Module) -> int | None:
    """Return the number of neurons of a module's output; None of all but norms, linears and convolutions."""
    if is_norm(module):
        return module.weight.shape[0]  # pyright: ignore[reportIndexIssue, reportReturnType]
    found = (getattr(module, name, None) for name in ("out_features", "out_channels", "nf"))
    width = next((width for width in found if width is not None), None)
    return width if isinstance(width, int) else None


def input_device(network: nn.Module) -> torch.device:
    """Return the device of the first weight that is there; of a wholly offloaded network where accelerate runs it."""
    for weight in network.parameters():
        if not weight.is_meta:
            return weight.device
    for module in network.modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next((buffer.device for buffer in network.buffers() if not buffer.is_meta), torch.device("cpu"))


def weights_type(network: nn.Module) -> torch.dtype:
    """Return the type of the first weight with a fractional part; float32 of a network without weights."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
