"""fold: write an intervention into a network's weights, so that it no longer needs lineas."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from functools import reduce
from operator import add
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from lineas.errors import LineasError, first_line
from lineas.folding.biases import with_biases
from lineas.folding.comparison import coarsest, compare, live_outputs
from lineas.folding.slots import Slots, slots, switches_for
from lineas.folding.weights import ModuleMaps, RoundingLoss, new_weights, write_weights
from lineas.folding.wrappers import reason_not_plain
from lineas.intervention.intervention import Intervention
from lineas.intervention.maps import AffineMap
from lineas.intervention.model_identity import accepts_other, identifying_module
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.modules import type_name, weights_type
from lineas.steering.exclusive import exclusively
from lineas.steering.strength import warn_if_outside
from lineas.versions import stamp

Foldable = TypeVar("Foldable", bound=TextModel | ImageModel | nn.Module)


class DoesNotFoldError(LineasError):
    """The error for an intervention with maps that cannot be written into weights.

    Args:
        reasons: for each site that does not fold, the reason.
        total: number of all sites.
        advice: what to do about them, such as ", leave them out".
    """

    def __init__(self, reasons: dict[str, str], total: int, advice: str = "") -> None:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        super().__init__(f"{len(reasons)} of {total} sites do not fold{advice}: {listed}.")
        self.reasons, self.total, self._advice = reasons, total, advice

    def __reduce__(self) -> tuple[Any, ...]:  # else it cannot be pickled, and a worker process could not raise it
        return type(self), (self.reasons, self.total, self._advice)


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
    """Return a copy of a model whose own weights compute what the intervention does at a strength.

    A map `T(z) = w z + b` after a linear `z = W x + c` becomes `(w W) x + (w c + b)`. The weight and bias of a
    LayerNorm or GroupNorm change in the same way; for an adaptive norm, the linear that modulates it changes. After an
    RMSNorm, w goes into its weight, and b into every linear `V z + c` that reads it, as `c + V b`. All is computed
    in float32 and rounded once. Missing biases are added by the config's own settings, or Mistral and Qwen2 become the
    Llama architecture if they compute the same.

    Two checks are made. Each module that is changed, or reads a changed one, must compute what its weights say. The
    folded network must compute the same outputs as the steered one, up to rounding.

    Args:
        model: a TextModel, an ImageModel, or a network of transformers.
        intervention: the intervention to fold.
        strength: the strength to fold at, default 1; "calibrated" is the strength that `lineas calibrate` found.
        other_model: whether to fold into another network than the learned one, default False; the widths must fit.
        in_place: whether to change and return the model itself, default False; this saves the memory of a copy.
        force: the old name of `other_model`, to be removed after this version.

    Returns:
        a model of the same kind with `save_pretrained` and `provenance`, or a bare network if one was given.

    Raises:
        DoesNotFoldError: when maps cannot be written into weights; it names the sites and the reasons.
        LineasError: when the network has an adapter or a wrapper, does not match, cannot be copied or is not whole in
            memory, or when one of the checks fails or weights are not finite. The model is then unchanged.
    """
    network: nn.Module = model if isinstance(model, nn.Module) else model.network
    if not isinstance(intervention, Intervention):
        raise LineasError(f"fold takes an Intervention, not a {type(intervention).__name__}; see Intervention.load.")
    intervention.check_affine("folded")
    if intervention.unfinished:
        early = f"learning of this intervention was interrupted after {intervention.unfinished}; it is folded as it is."
        warnings.warn(early, stacklevel=3)
    strength = intervention.strength_from(strength, "the strength of a fold")
    warn_if_outside(strength, stacklevel=3)
    _check_plain(model, network)
    scaled = intervention.at(strength)
    scaled.check_fits(network, accepts_other(other_model, force))
    moving = [name for name, map_ in scaled.maps.items() if not map_.is_identity()]
    places = {name: slots(network, scaled.sites[name]) for name in moving}  # where weights can hold the maps
    reasons = {
        name: place.reason
        for name, place in places.items()
        if (not place.scale and (scaled.maps[name].scale != 1).any())
        or (not place.shift and scaled.maps[name].shift.any())
    }
    if reasons:
        raise DoesNotFoldError(reasons, len(scaled.maps))
    if not places:
        warnings.warn(
            f"at strength {strength:g} this intervention changes nothing, so there is nothing to fold: the folded "
            "model is the untouched one.",
            stacklevel=3,
        )
    maps = _maps_by_module(scaled, places)
    switches = switches_for(network, {name for name, part in maps.items() if part.shifts})
    target = network if in_place else _copy(network)
    kind = weights_type(target)
    new = {name: new_weights(target.get_submodule(name), part, kind) for name, part in maps.items()}
    lost = reduce(add, (loss for _, loss in new.values()), RoundingLoss())
    live = live_outputs(model, target, scaled) if places else None
    with ExitStack() as stack:
        undo = stack if in_place else None
        folded = with_biases(target, switches, undo)
        written = [name for name, (values, _) in new.items() if values]
        for name in maps:
            write_weights(folded, name, new.pop(name)[0], undo)
        if live is not None:
            compare(model, folded, live, written)
        stack.pop_all()
    if str(lost):
        result = ", so the folded model is the untouched one" if lost.everything else ""
        warnings.warn(
            f"{lost} are lost to {type_name(coarsest(folded))}{result}; a model loaded in float32 keeps them "
            '(dtype="float32", --dtype float32).',
            stacklevel=4,
        )
    if isinstance(model, nn.Module):
        return cast(Foldable, folded)
    folded_model = model.with_network(folded)
    folded_model.provenance = _provenance(network, folded_model, intervention, strength, places, lost)
    return cast(Foldable, folded_model)


def _check_plain(model: Any, network: nn.Module) -> None:
    """Refuse a network that computes more than its own weights say, or whose weights are not all in memory."""
    if reason := reason_not_plain(network):
        raise LineasError(f"{reason}.")
    if any(weight.is_meta for weight in network.parameters()):
        raise LineasError("some weights of this model are not in memory; load it whole to fold it, without offloading.")
    if isinstance(model, ImageModel) and model.guidance == "conditional":
        raise LineasError(
            "this model steers only the half with the prompt (guidance 'conditional'), but weights serve both halves; "
            "fold model.set(guidance='both')."
        )


def _maps_by_module(intervention: Intervention, places: dict[str, Slots]) -> dict[str, ModuleMaps]:
    """Return, by module name, the maps that its weights will hold."""
    by_module: defaultdict[str, ModuleMaps] = defaultdict(ModuleMaps)
    for name, place in places.items():
        map_, module = intervention.maps[name], intervention.sites[name].module
        readers = [reader for reader in place.shift if reader != module] if map_.shift.any() else []
        if place.modulation is not None:
            module, readers = place.modulation.linear, []
            by_module[module].modulated.append((place.modulation, map_))
        else:
            by_module[module].own = map_ if module in place.shift else AffineMap(map_.scale, 0 * map_.shift)
        for reader in readers:
            by_module[reader].arriving = map_.shift
        for holder in (module, *readers):
            by_module[holder].sites.append(name)
    for maps in by_module.values():
        maps.modulated.sort(key=lambda pair: pair[0].after)  # in the order in which the maps act
    return dict(by_module)


def _copy(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:  # any error of a class that lineas does not know
        reason = first_line(error).partition(". ")[0]
        raise LineasError(f"this network cannot be copied ({reason}); fold it with in_place=True.") from None


def _provenance(
    network: nn.Module,
    folded: TextModel | ImageModel,
    intervention: Intervention,
    strength: float,
    places: dict[str, Slots],
    lost: RoundingLoss,
) -> dict[str, Any]:
    base = intervention.base
    return {
        "made_by": "lineas.fold",
        "base": folded.name,
        "base_revision": folded.revision,
        "architecture": type(identifying_module(folded.network)).__name__,
        "base_architecture": type(identifying_module(network)).__name__,
        "learned_on": vars(base) if base else None,
        "strength": strength,
        "sites": {name: {"weight": name, "shift_in": list(place.shift)} for name, place in places.items()},
        "intervention": intervention.facts,
        "dtype": type_name(folded.dtype),
        "lost_to_rounding": asdict(lost),
        **stamp(),
    }
