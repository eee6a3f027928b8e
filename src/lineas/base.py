"""Which network an intervention belongs to: its name, its fingerprint, and what to say when another one is given."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError, shown
from lineas.sites import Site, is_norm


@dataclass(frozen=True)
class BaseModel:
    """The network an intervention was learned on.

    Args:
        name: hub id or folder name.
        architecture: class name of the network.
        fingerprint: sha256 of the norm weights; equal for every dtype and quantisation of one checkpoint.
        revision: the hub commit, where known.

    Raises:
        LineasError: when one of them is no text.
    """

    name: str
    architecture: str
    fingerprint: str
    revision: str | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not isinstance(value, str) and not (value is None and one.default is None):
                raise LineasError(f"the {one.name} of a network is a text, not {shown(value)}.")

    @classmethod
    def of(cls, network: nn.Module, name: str | None = None, revision: str | None = None) -> BaseModel:
        """The facts of a network at hand; a pipeline is known by what denoises in it."""
        network = known_by(network)
        return cls(name or type(network).__name__, type(network).__name__, fingerprint(network), revision)

    def check_is(self, network: nn.Module) -> None:
        """Refuse a network of another class or with other norm weights.

        Raises:
            LineasError: saying which of the two differs.
        """
        network = known_by(network)
        kind = type(network).__name__
        if self.architecture != kind:
            raise LineasError(
                f"the intervention was learned on {self.name} ({self.architecture}), not on a {kind}; "
                "pass --other-model (other_model=True) to apply it all the same."
            )
        if self.fingerprint != fingerprint(network):
            raise LineasError(
                f"the intervention was learned on {self.name}, and this {kind} has other norm weights, so it is "
                "another checkpoint; pass --other-model (other_model=True) to apply it all the same."
            )


def accepts_other(other_model: bool, force: bool) -> bool:
    """Return whether a network may be another than the learned one, and warn of the old name of that wish."""
    if force:
        warnings.warn("force=True is called other_model=True now; the old name goes away.", stacklevel=3)
    return other_model or force


def known_by(network: nn.Module) -> nn.Module:
    """The part of a network that says which one it is: all of it, or the denoiser, whatever pipeline it is in."""
    return getattr(network, "denoiser", network)


def check_sites(network: nn.Module, widths: Mapping[Site, int], base: BaseModel | None) -> None:
    """Refuse a network that lacks a site, or has another number of neurons there.

    Args:
        network: the network whose submodules the sites should name.
        widths: by site, the width of its map.
        base: what the maps were learned on, for the message.

    Raises:
        LineasError: naming the first site that differs.
    """
    modules = dict(network.named_modules())
    missing = [site.module for site in widths if site.module not in modules]
    if missing:
        learned = f" (learned on {base.name}, {base.architecture})" if base else ""
        others = f" and {len(missing) - 1} other modules" if len(missing) > 1 else ""
        wrapped = next((name for name in modules if name.endswith(f".{missing[0]}")), None)
        inside = f"; it wraps one that has it: give its {wrapped[: -len(missing[0]) - 1]}" if wrapped else ""
        raise LineasError(
            f"the intervention{learned} acts on {missing[0]!r}{others} that {type(network).__name__} does not have"
            f"{inside}."
        )
    for site, width in widths.items():
        here = width_of(modules[site.module])
        if here is not None and here != width:
            raise other_width(site, width, here)


def other_width(site: Site, ours: int, here: int) -> LineasError:
    """The error for a site where the network has another number of neurons than the map."""
    return LineasError(
        f"the intervention has {ours} neurons at {site.name!r}, this network has {here} there; "
        "it was learned on another network."
    )


def fingerprint(network: nn.Module) -> str:
    """sha256 over the names and weights of a network's norms, rounded to bfloat16: the same for every dtype.

    In a denoiser whose norms have no weights (a time step modulates them), over all biases.
    """
    digest = hashlib.sha256()
    known: list[Any] = [(name, _weight(module)) for name, module in network.named_modules() if is_norm(module)]
    if not known and type(network).__module__.startswith("diffusers."):
        known = [(name, vector) for name, vector in network.named_parameters() if name.endswith(".bias")]
    for name, vector in known:
        weight = vector.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(name.encode())
        digest.update(weight.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _weight(module: Any) -> torch.Tensor:
    """A module's weight, also where accelerate keeps it elsewhere until it is used."""
    elsewhere = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    return elsewhere["weight"] if module.weight.is_meta and elsewhere else module.weight


def width_of(module: nn.Module) -> int | None:
    """How many neurons a module returns, where that can be read off it: norms, linears and convolutions."""
    if is_norm(module):
        return module.weight.shape[0]  # type: ignore[union-attr,index]
    found = (getattr(module, name, None) for name in ("out_features", "out_channels", "nf"))
    width = next((width for width in found if width is not None), None)
    return width if isinstance(width, int) else None
