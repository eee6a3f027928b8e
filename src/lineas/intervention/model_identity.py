"""The identity of the network that an intervention was learned on, and the errors for another network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import nn

from lineas.errors import LineasError, shown
from lineas.intervention import fingerprint as fingerprints
from lineas.intervention.fingerprint import Fingerprint, Verdict
from lineas.modules import width_of
from lineas.sites import Site


@dataclass(frozen=True)
class ModelIdentity:
    """The network an intervention was learned on.

    Args:
        name: hub id or folder name.
        architecture: class name of the network.
        fingerprint: fingerprint of the weights, the same for every dtype and quantisation of one checkpoint (see
            `lineas.intervention.fingerprint`); lineas 0.1 recorded the sha256 of the norm weights.
        revision: commit on the hub; None if it is not known.

    Raises:
        LineasError: when one of them is no text, or the fingerprint is invalid.
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
        fingerprints.check(self.fingerprint)

    @classmethod
    def of(cls, network: nn.Module, name: str | None = None, revision: str | None = None) -> ModelIdentity:
        """Return the identity of a network; that of a pipeline is its denoiser's."""
        network = identifying_module(network)
        return cls(name or type(network).__name__, type(network).__name__, fingerprint(network), revision)

    def check_is(self, network: nn.Module) -> None:
        """Refuse a network of another class or with other norm weights; warn if only its norms are the same.

        Raises:
            LineasError: when the network differs; it says how.
        """
        network = identifying_module(network)
        kind = type(network).__name__
        if self.architecture != kind:
            raise LineasError(
                f"the intervention was learned on {self.name} ({self.architecture}), not on a {kind}; "
                "pass --other-model (other_model=True) to apply it all the same."
            )
        verdict, weight = self.compared(network)
        if verdict == "other":
            raise LineasError(
                f"the intervention was learned on {self.name}, and this {kind} has other norm weights, so it is "
                "another checkpoint; pass --other-model (other_model=True) to apply it all the same."
            )
        if verdict == "close":
            such = f"such as {weight}" if weight else "or lacks some"
            _warn(
                f"the intervention was learned on {self.name}, and {_called(network)} has its norms but other weights, "
                f"{such}: a fine-tune, or with an adapter? What was learned may do less or more there."
            )
        if verdict == "unknown":
            _warn(
                f"{_called(network)} is in float16, where it cannot be told whether it is {self.name}, on which an "
                "older lineas learned the intervention; in float32 or bfloat16 it can."
            )

    def compared(self, network: nn.Module) -> tuple[Verdict, str]:
        """Return how alike the weights of a network are to those learned on, and a weight that differs."""
        return fingerprints.compared(self.fingerprint, identifying_module(network))

    def is_same(self, other: ModelIdentity) -> bool:
        """Return whether two interventions were learned on one checkpoint, or on fine-tunes of one."""
        return self.architecture == other.architecture and fingerprints.same(self.fingerprint, other.fingerprint)


def accepts_other(other_model: bool, force: bool) -> bool:
    """Return whether another network is accepted; warn if the old argument `force` says so."""
    if force:
        warnings.warn("force=True is called other_model=True now; the old name goes away.", stacklevel=3)
    return other_model or force


def identifying_module(network: nn.Module) -> nn.Module:
    """Return the part that identifies a network: the denoiser of a pipeline, else the network itself."""
    return getattr(network, "denoiser", network)


def check_sites(network: nn.Module, widths: Mapping[Site, int], base: ModelIdentity | None) -> None:
    """Refuse a network that lacks a site, or has another number of neurons there; the error names the first one."""
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
    """Return the error for a site where the network has another number of neurons than the map."""
    return LineasError(
        f"the intervention has {ours} neurons at {site.name!r}, this network has {here} there; "
        "it was learned on another network."
    )


def fingerprint(network: nn.Module) -> str:
    """Return the fingerprint of a network, as it is recorded."""
    return str(Fingerprint.of(network))


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=5)


def _called(network: nn.Module) -> str:
    """Return the name that a network was loaded from, if it knows it, and its class."""
    name = getattr(getattr(network, "config", None), "_name_or_path", "") or getattr(network, "name_or_path", "")
    return f"{name} ({type(network).__name__})" if name else f"this {type(network).__name__}"
