"""Biases for linears that have none: through the config's settings, or through the equivalent Llama architecture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from lineas.folding.slots import Switch, is_like_llama
from lineas.folding.weights import on_undo
from lineas.modules import is_linear


def with_biases(network: nn.Module, switches: Sequence[Switch] | None, undo: ExitStack | None) -> nn.Module:
    """Add zero biases to a network, which then computes the same, and the calls that remove them to `undo`.

    The config's `switches` add the biases; None changes the network to the Llama architecture instead.
    """
    if switches is None:
        assert is_like_llama(network)
        return _as_llama(network, undo)
    for switch in switches:
        for setting in switch.names:
            on_undo(undo, setattr, network.config, setting, getattr(network.config, setting))
            setattr(network.config, setting, True)
        for name, shape in switch.biases.items():
            _add_bias(network.get_submodule(name), shape, network.dtype, undo)  # pyright: ignore[reportArgumentType]
    return network


def _add_bias(linear: Any, shape: Sequence[int], kind: torch.dtype, undo: ExitStack | None) -> None:
    """Add a bias of zeros, if there is none, in the network's type (a quantised weight has another one)."""
    if linear.bias is None:
        on_undo(undo, setattr, linear, "bias", None)
        linear.bias = nn.Parameter(torch.zeros(*shape, dtype=kind, device=linear.weight.device))


def _as_llama(network: Any, undo: ExitStack | None) -> nn.Module:
    """Return the network in the Llama architecture with all of its biases; new ones are zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    names = LlamaConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    settings = {key: value for key, value in network.config.to_dict().items() if key in names}
    config = LlamaConfig(**{**settings, "attention_bias": True, "mlp_bias": True})
    config._attn_implementation = network.config._attn_implementation
    with torch.device("meta"):
        llama: Any = LlamaForCausalLM(config)
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config=config).to(network.device)  # its buffers are not saved
    linears = [name for name, module in network.named_modules() if is_linear(module) and name != "lm_head"]
    for name in linears:  # moved as whole modules, since their weights may be quantised
        linear = network.get_submodule(name)
        _add_bias(linear, [linear.out_features], network.dtype, undo)
        llama.set_submodule(name, linear)
    moved = tuple(f"{name}." for name in linears)
    others = {key: value for key, value in network.state_dict().items() if not key.startswith(moved)}
    llama.load_state_dict(others, strict=False, assign=True)
    for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
        if attribute in vars(network):
            setattr(llama, attribute, vars(network)[attribute])
    if hasattr(network.config, "quantization_config"):
        config.quantization_config = network.config.quantization_config
    llama.tie_weights()
    llama.generation_config = network.generation_config
    return llama.eval()
