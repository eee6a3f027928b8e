"""The check that a folded network computes the same outputs as the steered one, up to rounding."""

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
"""For each type, the allowed difference between folded and live outputs, relative to them; for other types, an eighth
of the type's rounding."""
TF32 = 2**-10
"""The rounding of float32 in a GPU's products and convolutions."""
NOISE = 2
"""Factor on the effect of rounding (see `compare`), which is added to the allowed difference."""


def live_outputs(model: Any, network: nn.Module, intervention: Intervention) -> torch.Tensor | None:
    """Return a steered network's outputs for a few inputs of its model; None, with a warning, if it cannot run them."""
    trial = trial_of(model)
    try:
        if trial is None:
            raise LineasError("it is no language model or pipeline whose inputs are known")
        with steer(network, Intervention(intervention.maps, intervention.sites)):  # the base was checked before
            live = trial(network)
    except Exception as error:  # the network needs other inputs, or is compiled
        warnings.warn(f"the folded network was not compared with the steered one: {first_line(error)}.", stacklevel=5)
        return None
    if live.isnan().any() or not live.isfinite().any():
        raise LineasError(
            "the outputs of the steered model are not finite, so it is not folded; choose a smaller strength."
        )
    return live


def compare(model: Any, folded: nn.Module, live: torch.Tensor, written: Sequence[str]) -> None:
    """Refuse a folded network whose outputs differ from the steered one's, `live`, by more than rounding.

    If they differ by more than the bound of their type, the weights of the `written` modules are changed at random by
    up to their rounding. The change of the outputs then shows how much difference rounding alone can cause.
    """
    trial, kind = trial_of(model), coarsest(folded)
    assert trial is not None
    outputs, finite = trial(folded), live.isfinite()
    on_gpu = kind == torch.float32 and live.device.type != "cpu"
    eps = TF32 if on_gpu else torch.finfo(kind).eps
    same = torch.equal(outputs.isfinite(), finite)
    difference, size = (_size(values, finite, kind) for values in (outputs - live, live))
    allowed = (TF32 if on_gpu else ROUNDING.get(kind, eps / 8)) * size
    if same and difference <= allowed:
        return
    with _jittered(folded, written, eps):
        allowed += NOISE * _size(trial(folded) - outputs, finite, kind)
    if not same or difference > allowed:
        raise LineasError(
            f"folded, this {type(identifying_module(folded)).__name__} does not put out what it does steered: its "
            f"outputs differ by {difference:.3g} of {size:.3g}, and rounding explains {allowed:.3g}. The model is "
            "unchanged. A module computes more than its weights say; steer the model live."
        )


@contextmanager
def _jittered(network: nn.Module, names: Sequence[str], eps: float) -> Iterator[None]:
    """Change the weights of some modules at random by up to their rounding, within the block."""
    generator = torch.Generator().manual_seed(0)
    weights = [weight.data for name in names for weight in network.get_submodule(name).parameters(recurse=False)]
    exact = [(value, value.clone()) for value in weights if value.is_floating_point() and value.element_size() > 1]
    try:
        for value, _ in exact:
            noise = 2 * torch.rand(value.shape, generator=generator).to(value.device) - 1
            value.copy_(value.float() * (1 + eps * noise))
        yield
    finally:
        for value, before in exact:
            value.copy_(before)


def _size(values: torch.Tensor, where: torch.Tensor, kind: torch.dtype) -> float:
    """Return the size of outputs `[..., d]`: their maximum, or in half precision the root mean square of a median row.

    In half precision, rounding may send a token to another expert, which changes its whole row.
    """
    rows = values.masked_fill(~where, 0).reshape(-1, values.shape[-1])
    return float(rows.abs().max() if kind in ROUNDING else rows.square().mean(-1).sqrt().median())


def coarsest(network: nn.Module) -> torch.dtype:
    """Return the least precise floating-point type of a network's weights; quantised weights do not count."""
    plain = (p.dtype for p in network.parameters() if p.is_floating_point() and p.element_size() > 1)
    return max(plain, key=lambda kind: torch.finfo(kind).eps, default=torch.float32)
