"""Biases for linears that have none: by the config's own settings, or in the Llama architecture where that is equal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from lineas.folding.slots import Switch, is_like_llama
from lineas.folding.weights import remember
from lineas.modules import is_linear


def with_biases(network: nn.Module, switches: Sequence[Switch] | None, undo: ExitStack | None) -> nn.Module:
    """A network that computes the same with the biases of these switches, or else with Llama's.

    Args:
        network: is changed.
        switches: of its config; None where none gives all that are needed.
        undo: where to leave what takes it back; None where nobody will ask.
    """
    if switches is None:
        assert is_like_llama(network)
        return _as_llama(network, undo)
    for switch in switches:
        for setting in switch.names:
            remember(undo, setattr, network.config, setting, getattr(network.config, setting))
            setattr(network.config, setting, True)
        for name, shape in switch.biases.items():
            _give_bias(network.get_submodule(name), shape, network.dtype, undo)  # pyright: ignore[reportArgumentType]
    return network


def _give_bias(linear: Any, shape: Sequence[int], kind: torch.dtype, undo: ExitStack | None) -> None:
    """Zeros for a bias, where there is none, of the network's type (a quantised weight has another)."""
    if linear.bias is None:
        remember(undo, setattr, linear, "bias", None)
        linear.bias = nn.Parameter(torch.zeros(*shape, dtype=kind, device=linear.weight.device))


def _as_llama(network: Any, undo: ExitStack | None) -> nn.Module:
    """The network in the Llama architecture, with every bias that has, those that are new being zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    known = LlamaConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    given = {key: value for key, value in network.config.to_dict().items() if key in known}
    config = LlamaConfig(**{**given, "attention_bias": True, "mlp_bias": True})
    config._attn_implementation = network.config._attn_implementation
    with torch.device("meta"):
        llama: Any = LlamaForCausalLM(config)
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config=config).to(network.device)  # its buffers are not saved
    linears = [name for name, module in network.named_modules() if is_linear(module) and name != "lm_head"]
    for name in linears:  # as they are, quantised or not
        linear = network.get_submodule(name)
        _give_bias(linear, [linear.out_features], network.dtype, undo)
        llama.set_submodule(name, linear)
    others = {
        key: value for key, value in network.state_dict().items() if not key.startswith(tuple(f"{n}." for n in linears))
    }
    llama.load_state_dict(others, strict=False, assign=True)
    for known_to_transformers in ("hf_quantizer", "is_quantized", "quantization_method"):
        if known_to_transformers in vars(network):
            setattr(llama, known_to_transformers, vars(network)[known_to_transformers])
    if hasattr(network.config, "quantization_config"):
        config.quantization_config = network.config.quantization_config
    llama.tie_weights()
    llama.generation_config = network.generation_config
    return llama.eval()
