"""Folding: an intervention written into weights, so that the network needs no lineas any more."""

from __future__ import annotations

import copy
import warnings
from contextlib import ExitStack
from dataclasses import asdict
from functools import reduce
from operator import add
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from lineas.errors import LineasError, first_line, shown
from lineas.folding.biases import with_biases
from lineas.folding.comparison import coarsest, compare, live_outputs
from lineas.folding.slots import Slots, slots, switches_for
from lineas.folding.weights import Lost, Taken, new_weights, put
from lineas.folding.wrappers import why_not_whole
from lineas.intervention.intervention import Intervention
from lineas.intervention.maps import AffineMap, as_number
from lineas.intervention.model_identity import accepts_other, identifying_module
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.modules import type_name
from lineas.steering.exclusive import exclusively
from lineas.steering.strength import warn_if_outside
from lineas.versions import stamp

Foldable = TypeVar("Foldable", bound=TextModel | ImageModel | nn.Module)


class DoesNotFoldError(LineasError):
    """The refusal of maps that no weights take.

    Args:
        reasons: by site name, why not.
        of: number of sites in all.
        advice: what to do about them, such as ", leave them out".
    """

    def __init__(self, reasons: dict[str, str], of: int, advice: str = "") -> None:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        super().__init__(f"{len(reasons)} of {of} sites do not fold{advice}: {listed}.")
        self.reasons, self.of, self._advice = reasons, of, advice

    def __reduce__(self) -> tuple[Any, ...]:  # so that it goes from one process to another
        return type(self), (self.reasons, self.of, self._advice)


@exclusively
@torch.no_grad()
def fold(
    model: Foldable,
    intervention: Intervention,
    strength: float | Literal["calibrated"] = 1.0,
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

    Every module that is written, or reads what is, must compute what its weights say (it is tried with a few numbers),
    and the folded network must put out what the steered one does, but for rounding.

    Args:
        model: a TextModel, an ImageModel, or a network of transformers.
        intervention: what to fold.
        strength: how much of it; every strength folds; "calibrated" is what `lineas calibrate` found.
        other_model: fold into another network than the one it was learned on (the widths must still fit).
        in_place: change the model itself and give it back, to spare the memory of a copy.
        force: the old name of `other_model`; it goes away after this version.

    Returns:
        a model of the same kind with `save_pretrained` and `provenance`, or a bare network where one was given.

    Raises:
        LineasError: naming every site that does not fold and the reason, or the adapter or wrapper that the network
            carries; when weights would not be finite, or the folded network puts out something else than the steered
            one; when the network cannot be copied, or not all of its weights are in memory. The model is then as it
            was.
    """
    network: nn.Module = model if isinstance(model, nn.Module) else model.network
    if not isinstance(intervention, Intervention):
        raise LineasError(f"fold takes an Intervention, not a {type(intervention).__name__}; see Intervention.load.")
    intervention.check_affine("folded")
    if intervention.unfinished:
        early = f"learning of this intervention was interrupted after {intervention.unfinished}; it is folded as it is."
        warnings.warn(early, stacklevel=3)
    strength = _as_number(strength, intervention)
    _check_plain(model, network)
    wanted = intervention.at(strength)
    wanted.check_fits(network, accepts_other(other_model, force))
    places = _places(network, wanted)
    refused = _refused(wanted, places)
    if refused:
        raise DoesNotFoldError(refused, len(wanted.maps))
    if not places:
        warnings.warn(
            f"at strength {strength:g} this intervention changes nothing, so there is nothing to fold: the folded "
            "model is the untouched one.",
            stacklevel=3,
        )
    taken = _taken(wanted, places)
    switches = switches_for(network, {name for name, part in taken.items() if part.shifts})
    target = network if in_place else _copy(network)
    kind = next((p.dtype for p in target.parameters() if p.is_floating_point()), torch.float32)
    new = {name: new_weights(target.get_submodule(name), part, kind) for name, part in taken.items()}
    lost = reduce(add, (one for _, one in new.values()), Lost())
    live = live_outputs(model, target, wanted) if places else None
    with ExitStack() as undo:
        remembered = undo if in_place else None
        folded = with_biases(target, switches, remembered)
        written = [name for name, (values, _) in new.items() if values]
        for name in taken:
            put(folded, name, new.pop(name)[0], remembered)
        if live is not None:
            compare(model, folded, live, written)
        undo.pop_all()
    if str(lost):
        warnings.warn(
            f"{lost} are lost to {str(coarsest(folded)).removeprefix('torch.')}"
            + (", so the folded model is the untouched one; " if lost.everything else "; ")
            + "fold in float32 (--dtype float32).",
            stacklevel=3,
        )
    if isinstance(model, nn.Module):
        return cast(Foldable, folded)
    made = model.with_network(folded)
    made.provenance = _provenance(network, made, intervention, strength, places, lost)
    return cast(Foldable, made)


def unfoldable_sites(network: nn.Module, intervention: Intervention) -> dict[str, str]:
    """By site name, why its map does not fold into this network's weights; empty where all do."""
    return _refused(intervention, _places(network, intervention))


# ---- before anything is changed


def _as_number(strength: Any, intervention: Intervention) -> float:
    if isinstance(strength, str) and strength == "calibrated":
        return intervention.calibrated_strength
    if isinstance(strength, str):
        raise LineasError(f"the strength of a fold is a number or 'calibrated', not {shown(strength)}.")
    number = as_number(strength, "the strength of a fold")
    warn_if_outside(torch.tensor(number))
    return number


def _check_plain(model: Any, network: nn.Module) -> None:
    """Refuse a network whose weights are not all that it computes.

    Raises:
        LineasError: naming what it carries.
    """
    reason = why_not_whole(network)
    if reason:
        raise LineasError(f"{reason}.")
    if any(weight.is_meta for weight in network.parameters()):
        raise LineasError("some weights of this model are not in memory; load it whole to fold it, without offloading.")
    if isinstance(model, ImageModel) and model.guidance == "conditional":
        raise LineasError(
            "this model steers the half with the prompt alone (guidance 'conditional'), and weights serve both halves; "
            "fold model.set(guidance='both')."
        )


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


def _taken(wanted: Intervention, places: dict[str, Slots]) -> dict[str, Taken]:
    """By module, all that its weights take."""
    found: dict[str, dict[str, Any]] = {}

    def part(module: str, site: str) -> dict[str, Any]:
        one = found.setdefault(module, {"modulated": [], "sites": []})
        one["sites"].append(site)
        return one

    for name, at in places.items():
        map_, module = wanted.maps[name], wanted.sites[name].module
        if at.modulation is not None:
            part(at.modulation.linear, name)["modulated"].append((at.modulation, map_))
            continue
        part(module, name)["own"] = map_ if module in at.shift else AffineMap(map_.scale, 0 * map_.shift)
        for reader in at.shift if map_.shift.any() else ():
            if reader != module:
                part(reader, name)["arriving"] = map_.shift
    for one in found.values():
        one["modulated"].sort(key=lambda pair: pair[0].after)  # what acts first, first
    return {module: Taken(**one) for module, one in found.items()}


def _copy(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:  # whatever a class of others cannot copy
        reason = first_line(error).partition(". ")[0]
        raise LineasError(f"this network cannot be copied ({reason}); fold it with in_place=True.") from None


# ---- where it came from


def _provenance(
    network: nn.Module,
    made: TextModel | ImageModel,
    intervention: Intervention,
    strength: float,
    places: dict[str, Slots],
    lost: Lost,
) -> dict[str, Any]:
    base = intervention.base
    return {
        "made_by": "lineas.fold",
        "base": made.name,
        "base_revision": made.revision,
        "architecture": type(identifying_module(made.network)).__name__,
        "base_architecture": type(identifying_module(network)).__name__,
        "learned_on": vars(base) if base else None,
        "strength": strength,
        "sites": {name: {"weight": name, "shift_in": list(at.shift)} for name, at in places.items()},
        "intervention": intervention.facts,
        "dtype": type_name(made.dtype),
        "lost_to_rounding": asdict(lost),
        **stamp(),
    }
