"""Placement: where a network's inputs go, and in which type it computes, also where its weights are elsewhere."""

from __future__ import annotations

import torch
from torch import nn


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
