"""Folding: an intervention written into weights, so that the network needs no lineas any more."""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import nn

from lineas import modulation
from lineas.alone import undisturbed
from lineas.base import accepts_other, known_by
from lineas.errors import LineasError
from lineas.folds import Slots, is_like_llama, is_linear, is_quantised, norm_offset, slots, switches_for
from lineas.intervention import Intervention
from lineas.maps import AffineMap
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.stamp import stamp

Foldable = TypeVar("Foldable", bound=TextModel | ImageModel | nn.Module)


@undisturbed
@torch.no_grad()
def fold(
    model: Foldable,
    intervention: Intervention,
    strength: float = 1.0,
    other_model: bool = False,
    in_place: bool = False,
    force: bool = False,
) -> Foldable:
    """A copy of a model whose own weights do what the intervention does to it at a strength.

    A map `T(z) = w z + b` behind a linear `z = W x + c` becomes `(w W) x + (w c + b)`; behind a LayerNorm or GroupNorm
    its weight and bias change in the same way, behind a norm that a time step modulates the linear that does so; behind
    an RMSNorm w goes into its weight and b, through every linear `V z + c` that reads it, into `c + V b`. Computed in
    float32 and rounded once to the weights' type. Architectures
    whose linears have biases only when their config says so get it said; Mistral and Qwen2 become the Llama
    architecture where they compute the same.

    Args:
        model: a TextModel, an ImageModel, or a network of transformers.
        intervention: what to fold.
        strength: how much of it; every strength folds.
        other_model: fold into another network than the one it was learned on (the widths must still fit).
        in_place: change the model itself and give it back, to spare the memory of a copy.
        force: the old name of `other_model`; it goes away after this version.

    Returns:
        a model of the same kind with `save_pretrained` and `provenance`, or a bare network where one was given.

    Raises:
        LineasError: naming every site that does not fold and the reason, before anything is changed; or when the
            network cannot be copied, or not all of its weights are in memory.
    """
    network: nn.Module = model if isinstance(model, nn.Module) else model.network
    intervention.check_affine("folded")
    if any(weight.is_meta for weight in network.parameters()):
        raise LineasError("some weights of this model are not in memory; load it whole to fold it, without offloading.")
    wanted = intervention.at(strength)
    wanted.check_fits(network, accepts_other(other_model, force))
    places = all_places = _places(network, wanted)
    refused = _refused(wanted, places)
    if refused:
        listed = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise LineasError(f"{len(refused)} of {len(wanted.maps)} sites do not fold: {listed}.")
    biases = {slot for name, at in places.items() if wanted.maps[name].shift.any() for slot in at.shift}
    switches = switches_for(network, biases)
    folded = _with_biases(network if in_place else _copy(network), switches)
    modulated = {name: at.modulation for name, at in places.items() if at.modulation is not None}
    for name, at in sorted(modulated.items(), key=lambda item: item[1].after):  # what acts first, first
        modulation.write(folded, at, wanted.maps[name])
    places = {name: at for name, at in places.items() if name not in modulated}
    own = {wanted.sites[name].module: wanted.maps[name] for name in places}
    arriving = {
        reader: own[wanted.sites[name].module].shift
        for name, at in places.items()
        for reader in at.shift
        if reader != wanted.sites[name].module
    }
    for name in own.keys() | arriving.keys():
        _write(folded, name, own.get(name), arriving.get(name))
    if isinstance(model, nn.Module):
        return cast(Foldable, folded)
    made = model.with_network(folded)
    made.provenance = _provenance(network, made, intervention, strength, all_places)
    return cast(Foldable, made)


def why_not(network: nn.Module, intervention: Intervention) -> dict[str, str]:
    """By site name, why its map does not fold into this network's weights; empty where all do."""
    return _refused(intervention, _places(network, intervention))


def _places(network: nn.Module, intervention: Intervention) -> dict[str, Slots]:
    """By site name, where weights can take its map; sites whose map changes nothing are left out."""
    moving = [name for name, map_ in intervention.maps.items() if not map_.is_identity()]
    return {name: slots(network, intervention.sites[name]) for name in moving}


def _refused(intervention: Intervention, places: dict[str, Slots]) -> dict[str, str]:
    """By site name, why a part of its map that changes something has no place."""
    return {
        name: at.reason
        for name, at in places.items()
        if (not at.scale and (intervention.maps[name].scale != 1).any())
        or (not at.shift and intervention.maps[name].shift.any())
    }


def _copy(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise LineasError(f"this network cannot be copied ({reason}); fold it with in_place=True.") from None


# ---- biases


def _with_biases(network: nn.Module, switches: dict[str, frozenset[str]] | None) -> nn.Module:
    """A network that computes the same with the biases of these switches, or else with Llama's."""
    if switches is None:
        assert is_like_llama(network)
        return _as_llama(network)
    for switch, names in switches.items():
        setattr(network.config, switch, True)  # type: ignore[arg-type]
        for name in names:
            _give_bias(network.get_submodule(name), network.dtype)  # type: ignore[arg-type]
    return network


def _give_bias(linear: Any, kind: torch.dtype) -> None:
    """Zeros for a bias, where there is none, of the network's type (a quantised weight has another)."""
    if linear.bias is None:
        linear.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=kind, device=linear.weight.device))


def _as_llama(network: Any) -> nn.Module:
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
        _give_bias(linear, network.dtype)
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


# ---- weights


def _write(network: nn.Module, name: str, own: AffineMap | None, arriving: torch.Tensor | None) -> None:
    """Put into a module's weight and bias all that they take, in float32, and round once.

    Args:
        network: the network.
        name: the module's.
        own: the map at its output.
        arriving: the shift of the norm it reads, `[d of its input]`.
    """
    module: Any = network.get_submodule(name)
    device, bias = module.weight.device, getattr(module, "bias", None)
    new = None if bias is None else bias.float()
    if new is not None and arriving is not None:
        new = new + _through(module, arriving.to(device))
    if own is not None:
        scale = own.scale.to(device)
        if new is not None:
            new = new * scale + own.shift.to(device)
        if bool((scale != 1).any()):
            _untie(network, name)
            module.weight.copy_(_scaled(module, scale).to(module.weight.dtype))
    if bias is not None and new is not None:
        bias.copy_(new.to(bias.dtype))


def _scaled(module: Any, scale: torch.Tensor) -> torch.Tensor:
    """A weight that makes an output `scale` times as large, in float32."""
    weight = module.weight.float()
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return weight * scale.view(-1, *[1] * (weight.dim() - 1))
    if is_linear(module):  # GPT-2's, transposed
        return weight * scale
    offset = norm_offset(module)
    assert offset is not None
    return (weight + offset) * scale - offset


def _through(linear: Any, shift: torch.Tensor) -> torch.Tensor:
    """`V b` of a linear, in float32; a quantised one is asked for it."""
    if not is_quantised(linear):
        return shift @ (linear.weight.float().T if isinstance(linear, nn.Linear) else linear.weight.float())
    both = linear(torch.stack([shift, torch.zeros_like(shift)]).to(linear.bias.dtype)).float()
    return both[0] - both[1]


def _untie(network: Any, name: str) -> None:
    """Give a linear whose weight serves another module too (an output layer tied to the embedding) one of its own."""
    module: Any = network.get_submodule(name)
    if sum(m._parameters.get("weight") is module.weight for m in network.modules()) > 1:
        module.weight = nn.Parameter(module.weight.clone(), requires_grad=module.weight.requires_grad)
        network.config.tie_word_embeddings = False


# ---- where it came from


def _provenance(
    network: nn.Module,
    made: TextModel | ImageModel,
    intervention: Intervention,
    strength: float,
    places: dict[str, Slots],
) -> dict[str, Any]:
    base = intervention.base
    return {
        "made_by": "lineas.fold",
        "base": made.name,
        "base_revision": made.revision,
        "architecture": type(known_by(made.network)).__name__,
        "base_architecture": type(known_by(network)).__name__,
        "learned_on": vars(base) if base else None,
        "strength": strength,
        "sites": {name: {"weight": name, "shift_in": list(at.shift)} for name, at in places.items()},
        "intervention": intervention.facts,
        "dtype": str(made.dtype).removeprefix("torch."),
        **stamp(),
    }
