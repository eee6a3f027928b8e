"""Slots: the weights and biases that can hold a site's map, or a part of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lineas.folding.adaptive_norms import Modulation, modulation
from lineas.folding.probes import norm_offset, reason_not_linear, reason_not_stored
from lineas.folding.wrappers import adapters_of
from lineas.modules import is_linear, is_norm, is_norm_layer, is_quantised
from lineas.sites import Site

Folding = Literal["exact", "scale", "shift", "no"]
AS_LLAMA = {f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2")}
"""Networks with the blocks of the Llama architecture, which has biases everywhere."""


@dataclass(frozen=True)
class Switch:
    """Settings of a config that, switched on together, add biases of these shapes to modules."""

    names: tuple[str, ...]
    biases: dict[str, torch.Size]


@dataclass(frozen=True)
class Slots:
    """The weights that can hold a site's map.

    Args:
        scale: whether the module's own weight can hold the scale.
        shift: names of the modules whose biases can hold the shift: the module itself, or those that read its output.
        reason: why scale or shift cannot be held; "" if both can.
        modulation: the linear that holds both, for an adaptive norm; else None.
    """

    scale: bool
    shift: tuple[str, ...]
    reason: str = ""
    modulation: Modulation | None = None

    @property
    def kind(self) -> Folding:
        """The part of the map that folds: "exact" for all of it, "scale", "shift", or "no"."""
        if self.scale and self.shift:
            return "exact"
        return "scale" if self.scale else "shift" if self.shift else "no"


def folding(network: nn.Module, site: Site) -> Folding:
    """Return which part of a map at this site folds; see `Slots.kind`."""
    return slots(network, site).kind


def slots(network: nn.Module, site: Site) -> Slots:
    """Return where a map at this site folds: into the module's own weights, or into its readers' biases."""
    module = network.get_submodule(site.module)
    if site.output != 0:
        return Slots(False, (), "only a module's first output is made by its weights")
    if is_linear(module):
        if reason := reason_not_linear(module):
            return Slots(False, (), reason)
        plain, biased = not is_quantised(module), _takes_bias(network, site.module, module)
        reason = "" if plain else "its weight is quantised"
        return Slots(plain, (site.module,) if biased else (), reason or _no_slot(network, biased, "it"))
    if place := modulation(network, site.module):
        linear = network.get_submodule(place.linear)
        if reason := "its weight is quantised" if is_quantised(linear) else reason_not_linear(linear):
            return Slots(False, (), f"{place.linear} modulates it, and {reason}")
        return Slots(True, (place.linear,), modulation=place)
    if not is_norm(module):
        if is_norm_layer(module):
            return Slots(False, (), "no linear of its own modulates it")
        reason = f"no weight makes the output of a {type(module).__name__}"
        return Slots(False, (), reason_not_stored(module) if adapters_of(module) else reason)
    if norm_offset(module) is None:
        reason = reason_not_stored(module) or f"a {type(module).__name__} does more with its weight than multiply"
        return Slots(False, (), reason)
    if getattr(module, "bias", None) is not None:
        return Slots(True, (site.module,))
    readers = _readers(network, site.module)
    if not readers:
        return Slots(True, (), "its output is read by modules other than linears, so no bias can hold the shift")
    for name, linear in readers:
        if reason := reason_not_linear(linear):
            return Slots(True, (), f"{name.rpartition('.')[2]} reads it, and {reason}")
    without = [name for name, linear in readers if not _takes_bias(network, name, linear)]
    if without:
        return Slots(True, (), _no_slot(network, False, without[0].rpartition(".")[2]))
    return Slots(True, tuple(name for name, _ in readers))


def switches_for(network: nn.Module, biases: set[str]) -> list[Switch] | None:
    """Return the config's switches that add the missing ones of these modules' biases; None if there are none."""
    missing = {name for name in biases if getattr(network.get_submodule(name), "bias", None) is None}
    on = [switch for switch in _switchable(network) if switch.biases.keys() & missing]
    return on if missing <= {name for switch in on for name in switch.biases} else None


def _no_slot(network: nn.Module, biased: bool, name: str) -> str:
    return "" if biased else f"{name} has no bias, and no setting of {type(network).__name__} gives it one"


def _readers(network: nn.Module, norm: str) -> list[tuple[str, nn.Module]]:
    """Return the linears that read a bias-free norm's output; none if other modules read it."""
    parent, _, own = norm.rpartition(".")
    siblings = dict(network.get_submodule(parent).named_children())
    before_mlp = {"post_attention_layernorm", "pre_feedforward_layernorm"} & siblings.keys()
    if own == "input_layernorm" and before_mlp:  # else attention and MLP are parallel (Cohere), and both read it
        reader = "self_attn"
    elif own == "pre_feedforward_layernorm" or (before_mlp == {own} and "input_layernorm" in siblings):
        reader = "mlp"
    else:
        return []
    parts = dict(siblings[reader].named_children()) if reader in siblings else {}
    inputs = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")
    if any(is_linear(part) and name not in (*inputs, "o_proj", "down_proj") for name, part in parts.items()):
        return []  # other linears read it too, or are in between (DeepSeek's latent attention)
    if parts.keys() & {"gate", "router", "experts"}:  # a mixture of experts
        return []
    return [(f"{parent}.{reader}.{name}", part) for name, part in parts.items() if name in inputs]


def _takes_bias(network: nn.Module, name: str, linear: nn.Module) -> bool:
    """Return whether a linear has a bias, or can get one from its config or from the equivalent Llama architecture."""
    if getattr(linear, "bias", None) is not None or switches_for(network, {name}) is not None:
        return True
    return is_like_llama(network) and (".self_attn." in name or ".mlp." in name)


def is_like_llama(network: nn.Module) -> bool:
    """Return whether a network computes the same as a Llama with the same weights."""
    config: Any = getattr(network, "config", None)
    of_transformers = type(network).__name__ in AS_LLAMA and hasattr(config, "model_type")
    return of_transformers and not getattr(config, "sliding_window", None)


_SWITCHABLE: WeakKeyDictionary[nn.Module, tuple[str, list[Switch]]] = WeakKeyDictionary()


def _switchable(network: nn.Module) -> list[Switch]:
    """Return the switches of a network's config that add biases and do nothing else; none for unknown classes.

    Each setting is tried on a twin on the meta device. Settings that are invalid alone are tried together.
    """
    config: Any = getattr(network, "config", None)
    if not hasattr(config, "to_dict"):
        return []
    settings = repr(vars(config))  # cached only as long as the config does not change
    if network not in _SWITCHABLE or _SWITCHABLE[network][0] != settings:
        off = [name for name, value in vars(config).items() if value is False and "bias" in name]
        alone = [_switch(network, (name,)) for name in off]
        invalid = tuple(name for name, switch in zip(off, alone) if switch is None)
        together = _switch(network, invalid) if len(invalid) > 1 else None
        _SWITCHABLE[network] = settings, [one for one in (*alone, together) if one is not None and one.biases]
    return _SWITCHABLE[network][1]


def _switch(network: nn.Module, names: tuple[str, ...]) -> Switch | None:
    """Return what settings add when they are on together; None if the config does not allow it, or is unknown."""
    config: Any = copy.deepcopy(network.config)
    try:
        for name in names:
            setattr(config, name, True)
        if hasattr(config, "validate"):  # an invalid config could not be saved
            config.validate()
        reloaded = type(config).from_dict(config.to_dict())
        if not all(getattr(reloaded, name) for name in names):
            return None
        with torch.device("meta"):
            twin: Any = type(network)(config)
    except Exception:  # the class needs more than a config
        return None
    before, after = (dict(one.named_parameters(remove_duplicate=False)).keys() for one in (network, twin))
    only_biases = all(key.endswith(".bias") for key in after - before)
    modules = [key.removesuffix(".bias") for key in after - before] if only_biases else []
    return Switch(names, {name: twin.get_submodule(name).bias.shape for name in modules})
