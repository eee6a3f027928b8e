"""Folding: an intervention written into weights, so that the network needs no lineas any more."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import reduce
from numbers import Real
from operator import add
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn

from lineas.alone import undisturbed
from lineas.base import accepts_other, known_by
from lineas.biases import with_biases
from lineas.errors import LineasError, first_line
from lineas.folds import Slots, slots, switches_for
from lineas.intervention import Intervention
from lineas.maps import AffineMap
from lineas.models.image import ImageModel
from lineas.models.text import TextModel
from lineas.models.trial import trial_of
from lineas.stamp import stamp
from lineas.steering import steer, warn_if_outside
from lineas.weights import Lost, Taken, new_weights, put
from lineas.wrapping import why_not_whole

Foldable = TypeVar("Foldable", bound=TextModel | ImageModel | nn.Module)
ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4}
"""By type, how far the outputs of a folded network may be from the live one's, relative to them; else an eighth of the
type's own rounding."""
TF32 = 2**-10
"""The rounding of float32 in a GPU's products and convolutions."""
NOISE = 2
"""Further off they may be by so many times what the outputs move when the new weights move by their rounding."""


class DoesNotFoldError(LineasError):
    """The refusal of maps that no weights take.

    Args:
        reasons: by site name, why not.
        of: how many sites there are.
    """

    def __init__(self, reasons: dict[str, str], of: int) -> None:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        super().__init__(f"{len(reasons)} of {of} sites do not fold: {listed}.")
        self.reasons, self.of = reasons, of


@undisturbed
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
    live = _live(model, target, wanted) if places else None
    with ExitStack() as undo:
        remembered = undo if in_place else None
        folded = with_biases(target, switches, remembered)
        written = [(name, key) for name, (values, _) in new.items() for key in values]
        for name in taken:
            put(folded, name, new.pop(name)[0], remembered)
        if live is not None:
            _compare(model, folded, live, written)
        undo.pop_all()
    if str(lost):
        warnings.warn(
            f"{lost} are lost to {str(_coarsest(folded)).removeprefix('torch.')}"
            + (", so the folded model is the untouched one; " if lost.everything else "; ")
            + "fold in float32 (--dtype float32).",
            stacklevel=3,
        )
    if isinstance(model, nn.Module):
        return cast(Foldable, folded)
    made = model.with_network(folded)
    made.provenance = _provenance(network, made, intervention, strength, places, lost)
    return cast(Foldable, made)


def why_not(network: nn.Module, intervention: Intervention) -> dict[str, str]:
    """By site name, why its map does not fold into this network's weights; empty where all do."""
    return _refused(intervention, _places(network, intervention))


# ---- before anything is changed


def _as_number(strength: Any, intervention: Intervention) -> float:
    if isinstance(strength, str) and strength == "calibrated":
        return intervention.calibrated_strength
    if isinstance(strength, bool) or not isinstance(strength, Real):
        raise LineasError(f"the strength of a fold is a number or 'calibrated', not {strength!r}.")
    warn_if_outside(torch.tensor(float(strength)))
    return float(strength)


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
    hooks = (hook for m in network.modules() for hook in m._forward_hooks.values())
    if any(getattr(hook, "__module__", "") == "lineas.edits" for hook in hooks):
        raise LineasError("this model is being steered; detach first, then fold.")
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


# ---- comparing


def _live(model: Any, network: nn.Module, wanted: Intervention) -> torch.Tensor | None:
    """The outputs of a steered network for a few fixed inputs; None, with a warning, where it cannot be tried.

    Raises:
        LineasError: when they are not finite.
    """
    trial = trial_of(model)
    try:
        if trial is None:
            raise LineasError("it is no language model or pipeline whose inputs are known")
        with steer(network, Intervention(wanted.maps, wanted.sites)):  # without a base, which was checked
            live = trial(network)
    except Exception as error:  # a network that wants other inputs, or is compiled
        warnings.warn(f"the folded network was not compared with the steered one: {first_line(error)}.", stacklevel=5)
        return None
    if live.isnan().any() or not live.isfinite().any():
        raise LineasError(
            "what the steered model puts out is not finite, so there is nothing worth folding; take a smaller strength."
        )
    return live


def _compare(model: Any, folded: nn.Module, live: torch.Tensor, written: Sequence[tuple[str, str]]) -> None:
    """Refuse a folded network whose outputs are further from the steered one's than rounding carries them.

    Where they differ by more than a bound of their type, the new weights are moved by their rounding for a moment,
    which tells how far that alone carries the outputs.

    Args:
        model: that is folded.
        folded: its network.
        live: the outputs of the steered one.
        written: the module and the name of each tensor that is new.

    Raises:
        LineasError: saying how far they are off.
    """
    trial, kind = trial_of(model), _coarsest(folded)
    assert trial is not None
    made, finite, eps = trial(folded), live.isfinite(), torch.finfo(kind).eps
    on_gpu = kind == torch.float32 and live.device.type != "cpu"
    eps = TF32 if on_gpu else eps
    same = torch.equal(made.isfinite(), finite)
    off, size = (_size(values, finite, kind) for values in (made - live, live))
    allowed = (TF32 if on_gpu else ROUNDING.get(kind, eps / 8)) * size
    if same and off <= allowed:
        return
    with _jittered(folded, written, eps):
        allowed += NOISE * _size(trial(folded) - made, finite, kind)
    if not same or off > allowed:
        raise LineasError(
            f"folded, this {type(known_by(folded)).__name__} does not put out what it does steered: its outputs are "
            f"off by {off:.3g} of {size:.3g}, and rounding explains {allowed:.3g}; the model was left as it was. "
            "Something in it computes more than its weights say; steer it live."
        )


@contextmanager
def _jittered(network: nn.Module, tensors: Sequence[tuple[str, str]], eps: float) -> Iterator[None]:
    """Within the block some tensors are off by up to a rounding, at random."""
    generator = torch.Generator().manual_seed(0)
    exact = [(value := getattr(network.get_submodule(name), key).data, value.clone()) for name, key in tensors]
    try:
        for value, _ in exact:
            by = 2 * torch.rand(value.shape, generator=generator).to(value.device) - 1
            value.copy_(value.float() * (1 + eps * by))
        yield
    finally:
        for value, before in exact:
            value.copy_(before)


def _size(values: torch.Tensor, where: torch.Tensor, kind: torch.dtype) -> float:
    """The size of outputs `[..., d]`: the largest of them, or in half precision that of the median row.

    There rounding alone now and then sends a token to another expert, and its outputs far away.
    """
    rows = values.masked_fill(~where, 0).reshape(-1, values.shape[-1])
    return float(rows.abs().max() if kind in ROUNDING else rows.square().mean(-1).sqrt().median())


def _coarsest(network: nn.Module) -> torch.dtype:
    """The type of a network's weights that rounds most, of those in plain numbers."""
    plain = (p.dtype for p in network.parameters() if p.is_floating_point() and p.element_size() > 1)
    return max(plain, key=lambda kind: torch.finfo(kind).eps, default=torch.float32)


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
        "architecture": type(known_by(made.network)).__name__,
        "base_architecture": type(known_by(network)).__name__,
        "learned_on": vars(base) if base else None,
        "strength": strength,
        "sites": {name: {"weight": name, "shift_in": list(at.shift)} for name, at in places.items()},
        "intervention": intervention.facts,
        "dtype": str(made.dtype).removeprefix("torch."),
        "lost_to_rounding": asdict(lost),
        **stamp(),
    }
