"""What folds: which parts of a site's map weights can take, and where they would be written."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lineas.modulation import Modulation, modulation
from lineas.sites import Site, is_norm, is_norm_layer

Folding = Literal["exact", "scale", "shift", "no"]
AS_LLAMA = {"llama", "mistral", "qwen2"}  # their blocks are the Llama architecture's, which has bias slots everywhere
SWITCHES = ("attention_bias", "mlp_bias")
"""What configs call the biases that an architecture can have."""


@dataclass(frozen=True)
class Slots:
    """Where weights can take a site's map.

    Args:
        scale: whether the module's own weight takes the scale.
        shift: the modules whose biases take the shift, the module itself or those that read it; empty where none does.
        reason: why not both; "" where both.
        modulation: the linear that takes both, where a time step modulates the norm.
    """

    scale: bool
    shift: tuple[str, ...]
    reason: str = ""
    modulation: Modulation | None = None

    @property
    def kind(self) -> Folding:
        """ "exact" for both, "scale" or "shift" for one of them, "no" where the map stays live."""
        if self.scale and self.shift:
            return "exact"
        return "scale" if self.scale else "shift" if self.shift else "no"


def folding(network: nn.Module, site: Site) -> Folding:
    """How a map at this site could become plain weights: see `Slots.kind`."""
    return slots(network, site).kind


def slots(network: nn.Module, site: Site) -> Slots:
    """Where weights can take a map: the module's weight and bias, or a norm's weight and its readers' biases."""
    module = network.get_submodule(site.module)
    if site.output != 0:
        return Slots(False, (), "only a module's first output is made by its weights")
    if is_linear(module):
        plain, biased = not is_quantised(module), _takes_bias(network, site.module, module)
        reason = "" if plain else "its weight is quantised"
        return Slots(plain, (site.module,) if biased else (), reason or _no_slot(network, biased, "it"))
    if (place := modulation(network, site.module)) and not is_quantised(network.get_submodule(place.linear)):
        return Slots(True, (place.linear,), modulation=place)
    if not is_norm(module):
        if is_norm_layer(module):
            return Slots(False, (), "no linear of its own modulates it")
        return Slots(False, (), f"no weight makes the output of a {type(module).__name__}")
    if norm_offset(module) is None:
        return Slots(False, (), f"a {type(module).__name__} does more with its weight than multiply")
    if getattr(module, "bias", None) is not None:
        return Slots(True, (site.module,))
    readers = _readers(network, site.module)
    if not readers:
        return Slots(True, (), "its output goes to others than linears that could take the shift into their biases")
    without = [name for name, linear in readers if not _takes_bias(network, name, linear)]
    if without:
        return Slots(True, (), _no_slot(network, False, without[0].rpartition(".")[2]))
    return Slots(True, tuple(name for name, _ in readers))


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer (nn.Linear, a convolution, or the transposed Conv1D of GPT-2)."""
    return isinstance(module, (nn.Linear, nn.Conv2d)) or type(module).__name__ == "Conv1D"


def is_quantised(linear: nn.Module) -> bool:
    """Whether a linear's weight is kept as anything but plain floating-point numbers."""
    weight: Any = linear.weight
    return type(weight.data) is not torch.Tensor or not weight.is_floating_point() or weight.element_size() < 2


@torch.no_grad()
def norm_offset(norm: nn.Module) -> float | None:
    """What a norm adds to its weight before it multiplies by it: 0, or 1 in Gemma's; None where it does neither."""
    probe: Any = copy.deepcopy(norm).to_empty(device="cpu").float()  # its own weights may lie anywhere, or on a disk
    for buffer in probe.buffers():
        buffer.fill_(1)
    bias = getattr(probe, "bias", None)
    if bias is not None:
        bias.zero_()
    width = probe.weight.shape[0]
    shape = (1, width, 2, 2) if isinstance(probe, nn.GroupNorm) else (1, 4, width)
    z = torch.linspace(-1, 2, 4 * width).view(shape)
    for offset in (0.0, 1.0):
        probe.weight.fill_(-offset)
        try:
            made = type(probe).forward(probe, z)  # without whatever hangs on it
        except (TypeError, ValueError, RuntimeError):  # it wants something else beside or in place of an activation
            return None
        if isinstance(made, torch.Tensor) and not made.any():
            return offset
    return None


def switches_for(network: nn.Module, biases: set[str]) -> dict[str, frozenset[str]] | None:
    """The switches of the config that give these modules biases, and all modules that get one; None where none do.

    Args:
        network: the network as it is.
        biases: names of modules that need a bias.
    """
    missing = {name for name in biases if getattr(network.get_submodule(name), "bias", None) is None}
    on = {switch: given for switch, given in _switchable(network).items() if given & missing}
    return on if missing <= frozenset().union(*on.values()) else None


def _no_slot(network: nn.Module, biased: bool, name: str) -> str:
    return "" if biased else f"{name} has no bias, and no setting of {type(network).__name__} gives it one"


def _readers(network: nn.Module, norm: str) -> list[tuple[str, nn.Module]]:
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
    """Whether a linear has a bias, or its architecture, or Llama's where that is the same, can give it one."""
    if getattr(linear, "bias", None) is not None or switches_for(network, {name}) is not None:
        return True
    return is_like_llama(network) and (".self_attn." in name or ".mlp." in name)


def is_like_llama(network: nn.Module) -> bool:
    """Whether a network computes what one of the Llama architecture does with the same weights."""
    config: Any = getattr(network, "config", None)
    return getattr(config, "model_type", None) in AS_LLAMA and not getattr(config, "sliding_window", None)


_SWITCHABLE: WeakKeyDictionary[nn.Module, dict[str, frozenset[str]]] = WeakKeyDictionary()


def _switchable(network: nn.Module) -> dict[str, frozenset[str]]:
    """By switch of the config, the modules that have a bias once it is on; asked of a twin on the meta device."""
    if network not in _SWITCHABLE:
        found: dict[str, frozenset[str]] = {}
        for switch in SWITCHES:
            config: Any = copy.deepcopy(getattr(network, "config", None))
            if not hasattr(config, switch):
                continue
            setattr(config, switch, True)
            with torch.device("meta"):
                twin = type(network)(config)
            found[switch] = frozenset(n for n, m in twin.named_modules() if getattr(m, "bias", None) is not None)
        _SWITCHABLE[network] = found
    return _SWITCHABLE[network]
