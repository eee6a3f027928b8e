"""Facts about a network's modules: which are norms, linears and blocks, their width, their device, their type."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a tensor type, without "torch.".

    >>> type_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation layer with one weight per neuron (LayerNorm, RMSNorm, ...)."""
    weight = getattr(module, "weight", None)
    return "Norm" in type(module).__name__ and isinstance(weight, torch.Tensor) and weight.dim() == 1


def is_norm_layer(module: nn.Module) -> bool:
    """Return whether a module is a normalisation layer, with or without weights (adaptive norms may have none)."""
    return "Norm" in type(module).__name__ and not isinstance(module, nn.ModuleList)


def blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the blocks of a transformer with their names: the longest list of modules that contain norms."""
    best: list[tuple[str, nn.Module]] = []
    for name, module in text_modules(network):
        if isinstance(module, nn.ModuleList) and len(module) > len(best) and any(map(is_norm, module[0].children())):
            best = [(f"{name}.{i}" if name else str(i), child) for i, child in enumerate(module)]
    return best


def smallest_blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the innermost repeated parts that contain norms, with their names (also a U-Net's residual blocks)."""
    parts: list[tuple[str, nn.Module]] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList):
            children = [(f"{name}.{i}" if name else str(i), child) for i, child in enumerate(module)]
            parts += [(at, child) for at, child in children if any(map(is_norm_layer, child.modules()))]
    names = [name for name, _ in parts]
    return [(name, part) for name, part in parts if not any(other.startswith(f"{name}.") for other in names)]


def text_config(network: Any) -> Any:
    """Return the config of the part that text passes through; None if a network has no config."""
    config: Any = getattr(network, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def non_text_modules(network: nn.Module) -> list[str]:
    """Return the names of the outermost parts that text never passes through, such as an image encoder."""
    if text_config(network) is getattr(network, "config", None):
        return []
    multimodal: Any = network
    text_parts = [multimodal.get_decoder(), multimodal.get_output_embeddings()]
    reached = {id(module) for part in text_parts if part is not None for module in part.modules()}
    names: list[str] = []
    for name, module in network.named_modules():
        holds_text = any(id(inner) in reached for inner in module.modules())
        if not holds_text and not name.startswith(tuple(f"{outer}." for outer in names)):
            names.append(name)
    return names


def text_modules(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that text passes through, with their names."""
    excluded = tuple(f"{name}." for name in non_text_modules(network))
    return [(name, module) for name, module in network.named_modules() if not f"{name}.".startswith(excluded)]


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is of a linear class: nn.Linear, Conv2d, or the transposed Conv1D of GPT-2."""
    return isinstance(module, (nn.Linear, nn.Conv2d)) or type(module).__name__ == "Conv1D"


def is_quantised(linear: nn.Module) -> bool:
    """Return whether a linear's weight is stored as anything but plain floating-point numbers."""
    weight: Any = linear.weight
    return type(weight.data) is not torch.Tensor or not weight.is_floating_point() or weight.element_size() < 2


def width_of(module: nn.Module) -> int | None:
    """Return the number of neurons of a norm's, linear's or convolution's output; None for other modules."""
    if is_norm(module):
        return module.weight.shape[0]  # pyright: ignore[reportIndexIssue, reportReturnType]
    widths = (getattr(module, name, None) for name in ("out_features", "out_channels", "nf"))
    return next((width for width in widths if isinstance(width, int)), None)


def input_device(network: nn.Module) -> torch.device:
    """Return the device of the first weight in memory, or accelerate's execution device if all are offloaded."""
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
    """Return the type of the first floating-point weight; float32 for a network without one."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
