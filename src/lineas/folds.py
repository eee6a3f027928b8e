"""What folds: whether a site's map can be written into the weights exactly, in its scale only, or not at all."""

from __future__ import annotations

import copy
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lineas.sites import Site, is_norm

Folding = Literal["exact", "scale", "no"]
AS_LLAMA = {"llama", "mistral", "qwen2"}  # their blocks are the Llama architecture's, which has bias slots everywhere


def folding(network: nn.Module, site: Site) -> Folding:
    """How a map at this site could become plain weights.

    "exact": into weight and bias of the module, or into a norm's weight and the biases of the linears it feeds.
    "scale": the scale only, no bias takes the shift. "no": it stays live.
    """
    module = network.get_submodule(site.module)
    if site.output != 0:
        return "no"
    if is_linear(module):
        return "exact" if _takes_bias(network, site.module, module) else "scale"
    if not is_norm(module):
        return "no"
    if getattr(module, "bias", None) is not None:
        return "exact"
    consumers = _consumers(network, site.module)
    if consumers and all(_takes_bias(network, name, linear) for name, linear in consumers):
        return "exact"
    return "scale"


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer (nn.Linear, or the transposed Conv1D of GPT-2)."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _consumers(network: nn.Module, norm: str) -> list[tuple[str, nn.Module]]:
    """The linears that read a bias-free norm's output, by name; none where it goes straight into the residual."""
    parent, _, own = norm.rpartition(".")
    block = network.get_submodule(parent)
    siblings = dict(block.named_children())
    if own == "input_layernorm":
        if not {"post_attention_layernorm", "pre_feedforward_layernorm"} & siblings.keys():
            return []  # attention and MLP in parallel (Cohere): the MLP reads it too
        reader = "self_attn"
    elif own == "pre_feedforward_layernorm" or (
        own == "post_attention_layernorm"
        and "input_layernorm" in siblings
        and "pre_feedforward_layernorm" not in siblings
    ):
        reader = "mlp"
    else:
        return []
    inputs = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")
    found = [(f"{parent}.{reader}.{name}", part) for name, part in _children(siblings.get(reader)) if name in inputs]
    outputs = ("o_proj", "down_proj")
    if any(is_linear(part) and name not in inputs + outputs for name, part in _children(siblings.get(reader))):
        return []  # other linears read it too, or stand between (DeepSeek's latent attention)
    expert_mixture = any(name in ("gate", "router", "experts") for name, _ in _children(siblings.get(reader)))
    return [] if expert_mixture else found


def _children(module: nn.Module | None) -> list[tuple[str, nn.Module]]:
    return list(module.named_children()) if module is not None else []


def _takes_bias(network: nn.Module, name: str, linear: nn.Module) -> bool:
    """Whether a linear has a bias, or its architecture has a switch in its config that gives it one."""
    if getattr(linear, "bias", None) is not None:
        return True
    config: Any = getattr(network, "config", None)
    if getattr(config, "model_type", None) in AS_LLAMA and not getattr(config, "sliding_window", None):
        return ".self_attn." in name or ".mlp." in name
    return name in _switchable(network)


_SWITCHABLE: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def _switchable(network: nn.Module) -> frozenset[str]:
    """The modules that have a bias once the config's switches are on; asked of a twin on the meta device."""
    if network not in _SWITCHABLE:
        config: Any = copy.deepcopy(getattr(network, "config", None))
        switches = [s for s in ("attention_bias", "mlp_bias") if hasattr(config, s)]
        for switch in switches:
            setattr(config, switch, True)
        found: frozenset[str] = frozenset()
        if switches:
            with torch.device("meta"):
                twin = type(network)(config)
            found = frozenset(n for n, m in twin.named_modules() if getattr(m, "bias", None) is not None)
        _SWITCHABLE[network] = found
    return _SWITCHABLE[network]
