"""Intervention: maps by site, plus the facts that say where they belong; how interventions combine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lineas.errors import LineasError, shown
from lineas.intervention import artifact, maps, model_card
from lineas.intervention.gate import Gate
from lineas.intervention.maps import SUPPORT_TOLERANCE, AffineMap, as_number
from lineas.intervention.model_identity import ModelIdentity, accepts_other, check_sites
from lineas.intervention.schema import check_facts
from lineas.sites import Site


@dataclass(frozen=True, eq=False)
class Intervention:
    """Affine maps by site and the facts that belong to them; immutable, hashable by identity.

    Args:
        maps: by site name, the map over that site's neurons.
        sites: by site name, where it is; by default each name is a module's first output, neurons on the last axis.
        base: the network it was learned on; None skips the check of identity (never that of shape).
        facts: anything JSON holds: method and settings, seed, data hashes, versions, measurements, what folds.
        gates: by site name, for some or all sites, what decides how much of the map a token gets.

    Raises:
        LineasError: when one of them is of another type, or they do not belong together.

    >>> import torch
    >>> calm = Intervention({"norm": AffineMap(torch.tensor([3.0]), torch.tensor([1.0]))})
    >>> calm.at(0.5).maps["norm"].scale, calm.then(calm).maps["norm"].shift
    (tensor([2.]), tensor([4.]))
    """

    maps: dict[str, AffineMap]
    sites: dict[str, Site] = field(default_factory=dict)
    base: ModelIdentity | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("maps", AffineMap), ("sites", Site), ("gates", Gate)):
            object.__setattr__(self, name, _of_kind(getattr(self, name), name, kind))
        if not isinstance(self.facts, Mapping) or not all(isinstance(key, str) for key in self.facts):
            raise LineasError(f"the facts of an intervention are a dict with texts as keys, not {shown(self.facts)}.")
        object.__setattr__(self, "facts", dict(self.facts))
        if self.base is not None and not isinstance(self.base, ModelIdentity):
            raise LineasError(f"the base of an intervention is a ModelIdentity or None, not {shown(self.base)}.")
        if not self.maps:
            raise LineasError("an intervention needs at least one map.")
        if not self.sites:
            object.__setattr__(self, "sites", {name: Site(name) for name in self.maps})
        if self.sites.keys() != self.maps.keys():
            raise LineasError("an intervention needs exactly one site for every map.")
        for name, site in self.sites.items():
            if site.name != name:
                raise LineasError(f"the site {shown(site.name)} stands under another name, {shown(name)}.")
        for name, gate in self.gates.items():
            if name not in self.maps or gate.width != self.maps[name].width:
                raise LineasError(f"the gate at {shown(name)} belongs to no map of its width.")

    def __repr__(self) -> str:
        base = self.base.name if self.base else "any network"
        return f"Intervention({len(self.maps)} sites, support {self.support():.1%}, for {base})"

    # ---- algebra

    def at(self, strength: float) -> Intervention:
        """The intervention that at strength 1 does what this one does at `strength`, a finite number.

        Raises:
            LineasError: when it is none, or so large that the maps are no longer finite.
        """
        s = as_number(strength)
        return self._changed(lambda map_: map_.at(s), {"operation": "at", "strength": s})

    def inverse(self) -> Intervention:
        """The intervention that undoes this one, site by site; a removal becomes an induction."""
        self.check_affine("inverted")
        return self._changed(AffineMap.inverse, {"operation": "inverse"})

    def then(self, other: Intervention) -> Intervention:
        """This intervention followed by `other`, one map a site; a site that only one has keeps that one's map."""
        if not isinstance(other, Intervention):
            raise LineasError(f"an intervention is followed by another one, not by {shown(other)}.")
        return _combined([self, other], lambda pair: pair[0].then(pair[1]), {"operation": "then"})

    @property
    def calibrated_strength(self) -> float:
        """The strength that `lineas calibrate` found.

        Raises:
            LineasError: when it was never calibrated; what is composed of others has to be calibrated anew.
        """
        found = self.facts.get("calibration")
        if found is None:
            raise LineasError("this intervention has no calibrated strength; lineas calibrate finds one.")
        check_facts({"calibration": found})
        return float(found["strength"])

    @property
    def unfinished(self) -> str | None:
        """The steps that were done when learning was interrupted, such as "4 of 20 steps"; None when it was not."""
        return model_card.unfinished(self.facts)

    def support(self, tolerance: float = SUPPORT_TOLERANCE) -> float:
        """The share of all neurons at its sites that it touches, 0 to 1 (`|w - 1|` or `|b|` above the tolerance)."""
        touched = sum(int(map_.support(tolerance).sum()) for map_ in self.maps.values())
        return touched / sum(map_.width for map_ in self.maps.values())

    def gated(self, gates: dict[str, Gate]) -> Intervention:
        """The same maps with these gates, in place of any that there are; `lineas.learning.gate` learns them.

        What was measured and calibrated with other gates, or none, is left out of the facts.
        """
        facts = {name: fact for name, fact in self.facts.items() if name not in ("calibration", "measurements")}
        return Intervention(self.maps, self.sites, self.base, facts, gates)

    def check_affine(self, what: str) -> None:
        """Refuse what only affine maps allow.

        Raises:
            LineasError: when there are gates.
        """
        if self.gates:
            raise LineasError(
                f"a gated intervention cannot be {what}: how much it changes depends on the token; steer with it live, "
                "or take the one that was gated (in Python: .gated({}))."
            )

    def distance(self, other: Intervention) -> float:
        """How far the shifts are from those of another intervention, by the size of this one's: 0 is equal.

        For interventions in another order, whose scales are the same: `|b - b'| / |b|` over all sites.

        Args:
            other: with the same sites.

        Raises:
            LineasError: when its sites are others.
        """
        if not isinstance(other, Intervention) or other.sites != self.sites:
            raise LineasError("a distance is taken between interventions with the same sites.")
        if any(other.maps[name].width != map_.width for name, map_ in self.maps.items()):
            raise LineasError("a distance is taken between interventions of the same widths.")
        own, others = (torch.cat([one.maps[name].shift.cpu().double() for name in self.maps]) for one in (self, other))
        size = float(own.norm())
        return float((own - others).norm()) / size if size else float(others.norm() > 0)

    def digest(self) -> str:
        """sha256 of all sites and numbers: what is kept or cached for one intervention is never used for another."""
        found = hashlib.sha256()
        for name, map_ in sorted(self.maps.items()):
            gate, site = self.gates.get(name), self.sites[name]
            place = [name, site.module, site.output, site.axis, map_.width, gate is not None]
            found.update(json.dumps(place).encode() + b"\0")
            for tensor in (map_.scale, map_.shift, *((gate.weight, gate.bias) if gate else ())):
                found.update((tensor.detach().float().cpu() + 0.0).numpy().tobytes())  # + 0.0: no -0.0
        return found.hexdigest()

    def is_identity(self) -> bool:
        """Whether no neuron is changed at all."""
        return all(map_.is_identity() for map_ in self.maps.values())

    def _changed(self, change: Callable[[AffineMap], AffineMap], step: dict[str, Any]) -> Intervention:
        new: dict[str, AffineMap] = {}
        for name, map_ in self.maps.items():
            with _at(name):
                new[name] = change(map_)
        kept = {"folds": self.facts["folds"]} if "folds" in self.facts else {}
        return Intervention(new, self.sites, self.base, {"made_by": step, "of": [self.facts], **kept}, self.gates)

    # ---- the network it belongs to

    def check_fits(self, network: nn.Module, other_model: bool = False, force: bool = False) -> None:
        """Refuse a network this intervention was not learned on.

        Args:
            network: the network whose submodules the sites should name.
            other_model: accept another network as long as every site exists in it with its width.
            force: the old name of `other_model`; it goes away after this version.

        Raises:
            LineasError: saying what differs.
        """
        if not isinstance(network, nn.Module):
            raise LineasError(f"an intervention fits a network, a torch module, not {shown(network)}.")
        check_sites(network, {self.sites[name]: map_.width for name, map_ in self.maps.items()}, self.base)
        if self.base is not None and not accepts_other(other_model, force):
            self.base.check_is(network)

    # ---- the folder

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the artifact: a folder with `intervention.safetensors`, `intervention.json` and a model card.

        Args:
            path: the folder to make.
            overwrite: replace an earlier artifact there.

        Raises:
            LineasError: when the folder exists and `overwrite` is False, or for what `load` would refuse, such as facts
                that JSON cannot hold; then nothing is written.
        """
        if not isinstance(path, (str, PathLike)) or not str(path):
            raise LineasError(f"an intervention is saved as a folder; give its path, not {shown(path)}.")
        return artifact.write(Path(path), self._description(), self.maps, overwrite, self.gates)

    @classmethod
    def load(cls, source: str | Path, revision: str | None = None) -> Intervention:
        """Read an artifact: a folder, the name of one that ships with lineas, or a hub id, looked up in this order.

        Args:
            source: such as "calm/", "polite", or "someone/calm-smollm2".
            revision: the hub commit, for a hub id.

        Raises:
            LineasError: when there is none, it is damaged, or its format is not known (docs/reference/artifact.md).
        """
        parts = artifact.read(artifact.find(source, revision))
        return cls(parts.maps, parts.sites, parts.base, parts.facts, parts.gates)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload the artifact to the hub and return its address (needs a token, see `hf auth login`)."""
        return artifact.push(repo_id, self._description(), self.maps, private, self.gates)

    def with_facts(self, **facts: Any) -> Intervention:
        """The same intervention with further facts, such as measurements."""
        return Intervention(self.maps, self.sites, self.base, {**self.facts, **facts}, self.gates)

    def _folds(self) -> Mapping[str, str]:
        """Return how each site folds, where the facts say so."""
        check_facts({"folds": self.facts.get("folds", {})})
        return self.facts.get("folds", {})

    def _description(self) -> dict[str, Any]:
        folds = self._folds()
        return {
            "model": asdict(self.base) if self.base else None,
            "sites": [
                {
                    "module": site.module,
                    "output": site.output,
                    "neuron_axis": site.axis,
                    "width": self.maps[name].width,
                    "touched": int(self.maps[name].support().sum()),
                    "folds": folds.get(name, "unknown"),
                }
                for name, site in self.sites.items()
            ],
            "support": self.support(),
            "facts": self.facts,
        }


def mix(weighted: Mapping[Intervention, float]) -> Intervention:
    """The weighted sum of several interventions' changes, `T(z) = z + sum_k s_k (T_k(z) - z)`; order plays no part.

    Args:
        weighted: by intervention, its weight.

    Raises:
        LineasError: for none, weights that are no finite numbers, or a sum that is not finite.
    """
    if not isinstance(weighted, Mapping) or not all(isinstance(one, Intervention) for one in weighted):
        raise LineasError(f"mix takes a dict of weights by intervention, not {shown(weighted)}.")
    if not weighted:
        raise LineasError("mix needs at least one intervention.")
    weights = [as_number(weight) for weight in weighted.values()]
    return _combined(
        list(weighted), lambda same_site: maps.mix(zip(same_site, weights)), {"operation": "mix", "weights": weights}
    )


def _combined(
    parts: list[Intervention], combine: Callable[[list[AffineMap]], AffineMap], step: dict[str, Any]
) -> Intervention:
    for part in parts:
        part.check_affine("combined with others")
    bases = [part.base for part in parts if part.base]
    for other in bases[1:]:
        if not bases[0].is_same(other):
            raise LineasError(
                f"interventions of different networks cannot be combined: {bases[0].name} and {other.name}."
            )
    sites: dict[str, Site] = {}
    for part in parts:
        for name, site in part.sites.items():
            if sites.setdefault(name, site) != site:
                raise LineasError(f"the interventions disagree about the neuron axis of {name!r}.")
    widths = {name: part.maps[name].width for part in reversed(parts) for name in part.maps}
    merged: dict[str, AffineMap] = {}
    for name in sites:
        with _at(name):
            merged[name] = combine([part.maps.get(name) or AffineMap.empty(widths[name]) for part in parts])
    folds = {name: how for part in parts for name, how in part._folds().items()}
    facts = {"made_by": step, "of": [part.facts for part in parts], "folds": folds}
    return Intervention(merged, sites, bases[0] if bases else None, facts)


def _of_kind(given: Any, name: str, kind: type) -> dict[str, Any]:
    """A copy of a dict that has site names as keys and one kind of value."""
    if not isinstance(given, Mapping):
        raise LineasError(f"the {name} of an intervention are a dict by site name, not {shown(given)}.")
    for key, value in given.items():
        if not isinstance(key, str) or not isinstance(value, kind):
            raise LineasError(
                f"the {name} of an intervention are {kind.__name__}s by site name, not {shown(value)} by {shown(key)}."
            )
    return dict(given)


@contextmanager
def _at(name: str) -> Iterator[None]:
    """Say at which site something is wrong."""
    try:
        yield
    except LineasError as error:
        raise LineasError(f"at {shown(name)}, {error}") from None
