"""The check that a folded network puts out what the steered one does, but for rounding."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError, first_line
from lineas.intervention.intervention import Intervention
from lineas.intervention.model_identity import identifying_module
from lineas.models.trial import trial_of
from lineas.steering.steer import steer

ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4}
"""By type, how far the outputs of a folded network may be from the live one's, relative to them; else an eighth of the
type's own rounding."""
TF32 = 2**-10
"""The rounding of float32 in a GPU's products and convolutions."""
NOISE = 2
"""Further off they may be by so many times what the outputs move when the modules with new weights move by rounding."""


def live_outputs(model: Any, network: nn.Module, wanted: Intervention) -> torch.Tensor | None:
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


def compare(model: Any, folded: nn.Module, live: torch.Tensor, written: Sequence[str]) -> None:
    """Refuse a folded network whose outputs are further from the steered one's than rounding carries them.

    Where they differ by more than a bound of their type, the weights of the modules that have new ones are moved by
    their rounding for a moment, which tells how far rounding alone, also of what these modules put out, carries the
    outputs.

    Args:
        model: that is folded.
        folded: its network.
        live: the outputs of the steered one.
        written: the modules that have new tensors.

    Raises:
        LineasError: saying how far they are off.
    """
    trial, kind = trial_of(model), coarsest(folded)
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
            f"folded, this {type(identifying_module(folded)).__name__} does not put out what it does steered: its "
            f"outputs are off by {off:.3g} of {size:.3g}, and rounding explains {allowed:.3g}; the model was left as "
            "it was. Something in it computes more than its weights say; steer it live."
        )


@contextmanager
def _jittered(network: nn.Module, names: Sequence[str], eps: float) -> Iterator[None]:
    """Within the block the weights of some modules are off by up to a rounding, at random."""
    generator = torch.Generator().manual_seed(0)
    weights = [weight.data for name in names for weight in network.get_submodule(name).parameters(recurse=False)]
    exact = [(value, value.clone()) for value in weights if value.is_floating_point() and value.element_size() > 1]
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


def coarsest(network: nn.Module) -> torch.dtype:
    """The type of a network's weights that rounds most, of those in plain numbers."""
    plain = (p.dtype for p in network.parameters() if p.is_floating_point() and p.element_size() > 1)
    return max(plain, key=lambda kind: torch.finfo(kind).eps, default=torch.float32)
