"""What folds: which parts of a site's map weights can take, and where they would be written."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lineas.folding.adaptive_norms import Modulation, modulation
from lineas.folding.probes import norm_offset, why_not_linear, why_not_own
from lineas.folding.wrappers import adapters_of
from lineas.modules import is_linear, is_norm, is_norm_layer, is_quantised
from lineas.sites import Site

Folding = Literal["exact", "scale", "shift", "no"]
AS_LLAMA = {f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2")}
"""Networks whose blocks are the Llama architecture's, which has bias slots everywhere."""


@dataclass(frozen=True)
class Switch:
    """Settings of a config that give modules biases.

    Args:
        names: of the settings, which go on together.
        biases: by name of a module that gets one, the shape of its bias.
    """

    names: tuple[str, ...]
    biases: dict[str, torch.Size]


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
        if more := why_not_linear(module):
            return Slots(False, (), more)
        plain, biased = not is_quantised(module), _takes_bias(network, site.module, module)
        reason = "" if plain else "its weight is quantised"
        return Slots(plain, (site.module,) if biased else (), reason or _no_slot(network, biased, "it"))
    if place := modulation(network, site.module):
        linear = network.get_submodule(place.linear)
        if more := "its weight is quantised" if is_quantised(linear) else why_not_linear(linear):
            return Slots(False, (), f"{place.linear} modulates it, and {more}")
        return Slots(True, (place.linear,), modulation=place)
    if not is_norm(module):
        if is_norm_layer(module):
            return Slots(False, (), "no linear of its own modulates it")
        more = f"no weight makes the output of a {type(module).__name__}"
        return Slots(False, (), why_not_own(module) if adapters_of(module) else more)
    if norm_offset(module) is None:
        more = why_not_own(module) or f"a {type(module).__name__} does more with its weight than multiply"
        return Slots(False, (), more)
    if getattr(module, "bias", None) is not None:
        return Slots(True, (site.module,))
    readers = _readers(network, site.module)
    if not readers:
        return Slots(True, (), "its output goes to others than linears that could take the shift into their biases")
    for name, linear in readers:
        if more := why_not_linear(linear):
            return Slots(True, (), f"{name.rpartition('.')[2]} reads it, and {more}")
    without = [name for name, linear in readers if not _takes_bias(network, name, linear)]
    if without:
        return Slots(True, (), _no_slot(network, False, without[0].rpartition(".")[2]))
    return Slots(True, tuple(name for name, _ in readers))


def switches_for(network: nn.Module, biases: set[str]) -> list[Switch] | None:
    """The switches of the config that give these modules biases; None where none do.

    Args:
        network: the network as it is.
        biases: names of modules that need a bias.
    """
    missing = {name for name in biases if getattr(network.get_submodule(name), "bias", None) is None}
    on = [switch for switch in _switchable(network) if switch.biases.keys() & missing]
    return on if missing <= {name for switch in on for name in switch.biases} else None


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
    of_transformers = type(network).__name__ in AS_LLAMA and hasattr(config, "model_type")
    return of_transformers and not getattr(config, "sliding_window", None)


_SWITCHABLE: WeakKeyDictionary[nn.Module, tuple[str, list[Switch]]] = WeakKeyDictionary()


def _switchable(network: nn.Module) -> list[Switch]:
    """The switches of a network's config that give modules biases and do nothing else; none of an unknown class.

    Asked of twins on the meta device. Those that the config does not take alone are asked for all at once.
    """
    config: Any = getattr(network, "config", None)
    if not hasattr(config, "to_dict"):
        return []
    as_it_is = repr(vars(config))  # it may have been changed since
    if network not in _SWITCHABLE or _SWITCHABLE[network][0] != as_it_is:
        off = [name for name, value in vars(config).items() if value is False and "bias" in name]
        alone = [_tried(network, (name,)) for name in off]
        invalid = tuple(name for name, found in zip(off, alone) if found is None)
        together = _tried(network, invalid) if len(invalid) > 1 else None
        _SWITCHABLE[network] = as_it_is, [found for found in (*alone, together) if found is not None and found.biases]
    return _SWITCHABLE[network][1]


def _tried(network: nn.Module, names: tuple[str, ...]) -> Switch | None:
    """The effect of settings that are on together; None where the config does not allow it, or cannot be asked."""
    config: Any = copy.deepcopy(network.config)
    try:
        for name in names:
            setattr(config, name, True)
        if hasattr(config, "validate"):  # else it would be found out when the config is saved
            config.validate()
        again = type(config).from_dict(config.to_dict())
        if not all(getattr(again, name) for name in names):
            return None
        with torch.device("meta"):
            twin: Any = type(network)(config)
    except Exception:  # whatever a class of others wants beside a config, it has no switches that are known
        return None
    here, there = (dict(made.named_parameters(remove_duplicate=False)).keys() for made in (network, twin))
    new = there - here
    if not all(key.endswith(".bias") for key in new):
        return Switch(names, {})
    given = [key.rpartition(".")[0] for key in new]
    return Switch(names, {name: twin.get_submodule(name).bias.shape for name in given})
