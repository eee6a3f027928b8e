"""Intervention: maps by site with their facts and gates, and how interventions combine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lineas.checks import as_number
from lineas.errors import LineasError, shown
from lineas.intervention import artifact, maps, model_card
from lineas.intervention.facts import check_facts
from lineas.intervention.gate import Gate
from lineas.intervention.maps import SUPPORT_TOLERANCE, AffineMap
from lineas.intervention.model_identity import ModelIdentity, accepts_other, check_sites
from lineas.intervention.schema import Parts
from lineas.sites import Site


@dataclass(frozen=True, eq=False)
class Intervention:
    """Affine maps by site with their facts and gates; immutable, hashable by identity.

    Args:
        maps: map over each site's neurons, by site name.
        sites: sites by name. By default each name is a module's first output, with neurons on the last axis.
        base: network that the maps were learned on; None skips the check of identity, never that of shape.
        facts: method, settings, seed, measurements and so on (see `lineas.intervention.facts.Facts`).
        gates: gate of each site that has one, by site name; it decides how much of the map a token gets.

    Raises:
        LineasError: when an argument has a wrong type, or the arguments do not belong together.

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
            object.__setattr__(self, name, _by_site(getattr(self, name), name, kind))
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
        """Return the intervention that does at strength 1 what this one does at another strength.

        Args:
            strength: a finite number; 0 gives the identity.

        Raises:
            LineasError: when the strength is not finite, or so large that the maps are no longer finite.
        """
        s = as_number(strength)
        return self._changed(lambda map_: map_.at(s), {"operation": "at", "strength": s})

    def inverse(self) -> Intervention:
        """Return the intervention that undoes this one, site by site; a removal becomes an induction.

        Raises:
            LineasError: when there are gates, or a scale is 0 or so near 0 that its inverse is not finite.
        """
        self.check_affine("inverted")
        return self._changed(AffineMap.inverse, {"operation": "inverse"})

    def then(self, other: Intervention) -> Intervention:
        """Return this intervention followed by another one, as one map per site.

        Args:
            other: intervention that acts second. A site of only one of the two gets that one's map.

        Raises:
            LineasError: when one of them has gates, or the two do not fit together.
        """
        if not isinstance(other, Intervention):
            raise LineasError(f"an intervention is followed by another one, not by {shown(other)}.")
        return _combined([self, other], lambda pair: pair[0].then(pair[1]), {"operation": "then"})

    @property
    def calibrated_strength(self) -> float:
        """The strength that `lineas calibrate` found.

        Raises:
            LineasError: when it was not calibrated. A composed intervention must be calibrated anew.
        """
        calibration = self.facts.get("calibration")
        if calibration is None:
            raise LineasError("this intervention has no calibrated strength; lineas calibrate finds one.")
        check_facts({"calibration": calibration})
        return float(calibration["strength"])

    def strength_from(self, value: Any, what: str = "the strength") -> float:
        """Return a strength as a number; "calibrated" stands for the calibrated strength.

        Args:
            value: a finite number, or "calibrated".
            what: the name of the value in an error.

        Raises:
            LineasError: when the value is neither, or when the intervention was not calibrated.
        """
        if not isinstance(value, str):
            return as_number(value, what)
        if value != "calibrated":
            raise LineasError(f"{what} is a number or 'calibrated', not {shown(value)}.")
        return self.calibrated_strength

    @property
    def unfinished(self) -> str | None:
        """The steps that were done if learning was interrupted, such as "4 of 20 steps"; else None."""
        return model_card.unfinished(self.facts)

    def support(self, tolerance: float = SUPPORT_TOLERANCE) -> float:
        """Return the share of all neurons at its sites that it touches, 0 to 1.

        Args:
            tolerance: a neuron is touched when `|w - 1|` or `|b|` is above it.
        """
        touched = sum(int(map_.support(tolerance).sum()) for map_ in self.maps.values())
        return touched / sum(map_.width for map_ in self.maps.values())

    def gated(self, gates: dict[str, Gate]) -> Intervention:
        """Return the same maps with these gates, without the calibration and measurements of the old ones.

        Args:
            gates: gates by site name, such as from `lineas.learning.gate`; they replace all earlier ones.
        """
        facts = {name: fact for name, fact in self.facts.items() if name not in ("calibration", "measurements")}
        return Intervention(self.maps, self.sites, self.base, gates=gates).with_facts(**facts)

    def check_affine(self, what: str) -> None:
        """Refuse an operation that needs affine maps, if there are gates.

        Args:
            what: the operation, for the sentence, such as "inverted".

        Raises:
            LineasError: when there are gates.
        """
        if self.gates:
            raise LineasError(
                f"a gated intervention cannot be {what}: how much it changes depends on the token; steer with it live, "
                "or take the one that was gated (in Python: .gated({}))."
            )

    def distance(self, other: Intervention) -> float:
        """Return the distance of the shifts from those of another intervention, `|b - b'| / |b|` over all sites.

        It compares the two orders of two interventions, which give the same scales. 0 means equal.

        Args:
            other: intervention with the same sites.

        Raises:
            LineasError: when its sites or widths are different.
        """
        if not isinstance(other, Intervention) or other.sites != self.sites:
            raise LineasError("a distance is taken between interventions with the same sites.")
        if any(other.maps[name].width != map_.width for name, map_ in self.maps.items()):
            raise LineasError("a distance is taken between interventions of the same widths.")
        own, others = (torch.cat([one.maps[name].shift.cpu().double() for name in self.maps]) for one in (self, other))
        size = float(own.norm())
        return float((own - others).norm()) / size if size else float(others.norm() > 0)

    def digest(self) -> str:
        """Return the sha256 of all sites and numbers, as a key for caches."""
        digest = hashlib.sha256()
        for name, map_ in sorted(self.maps.items()):
            gate, site = self.gates.get(name), self.sites[name]
            place = [name, site.module, site.output, site.axis, map_.width, gate is not None]
            digest.update(json.dumps(place).encode() + b"\0")
            for tensor in (map_.scale, map_.shift, *((gate.weight, gate.bias) if gate else ())):
                digest.update((tensor.detach().float().cpu() + 0.0).numpy().tobytes())  # + 0.0: no -0.0
        return digest.hexdigest()

    def is_identity(self) -> bool:
        """Return whether no neuron is changed at all."""
        return all(map_.is_identity() for map_ in self.maps.values())

    def _changed(self, change: Callable[[AffineMap], AffineMap], step: dict[str, Any]) -> Intervention:
        new: dict[str, AffineMap] = {}
        for name, map_ in self.maps.items():
            with _error_at(name):
                new[name] = change(map_)
        facts: dict[str, Any] = {"made_by": step, "of": [self.facts]}
        if "folds" in self.facts:
            facts["folds"] = self.facts["folds"]
        return Intervention(new, self.sites, self.base, facts, self.gates)

    # ---- the network

    def check_fits(self, network: nn.Module, other_model: bool = False, force: bool = False) -> None:
        """Refuse a network that this intervention was not learned on.

        Args:
            network: network whose submodules the sites name.
            other_model: whether to accept another network if it has every site with its width.
            force: old name of `other_model`, which is removed after this version.

        Raises:
            LineasError: when the network differs; it says how.
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
            path: folder to write.
            overwrite: whether an earlier artifact there may be replaced.

        Returns:
            The path.

        Raises:
            LineasError: when the folder exists and `overwrite` is False, or when `load` would refuse the artifact, such
                as for facts that JSON cannot hold. Then nothing is written.
        """
        if not isinstance(path, (str, PathLike)) or not str(path):
            raise LineasError(f"an intervention is saved as a folder; give its path, not {shown(path)}.")
        return artifact.write(Path(path), self._parts(), overwrite)

    @classmethod
    def load(cls, source: str | Path, revision: str | None = None) -> Intervention:
        """Read an artifact.

        Args:
            source: folder, name of an artifact that ships with lineas, or hub id, tried in this order, such as "calm/",
                "polite", or "someone/calm-smollm2".
            revision: commit on the hub, for a hub id; None for the newest.

        Raises:
            LineasError: when there is none, or it is damaged or of an unknown format (see docs/reference/artifact.md).
        """
        return cls(**vars(artifact.read(artifact.find(source, revision))))

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """Upload the artifact to the hub and return its address (needs a token, see `hf auth login`).

        Args:
            repo_id: hub id of the repository, which is created if it is missing.
            private: whether a new repository is private.
        """
        return artifact.push(repo_id, self._parts(), private)

    def with_facts(self, **facts: Any) -> Intervention:
        """Return the same intervention with further facts, such as measurements.

        Args:
            facts: facts by name; they replace facts of the same names.
        """
        return Intervention(self.maps, self.sites, self.base, {**self.facts, **facts}, self.gates)

    def _parts(self) -> Parts:
        return Parts(self.maps, self.sites, self.base, self.facts, self.gates)


def mix(weighted: Mapping[Intervention, float]) -> Intervention:
    """Return the weighted sum of several interventions' changes, `T(z) = z + sum_k s_k (T_k(z) - z)`, in any order.

    Args:
        weighted: weights by intervention; they need not sum to 1.

    Raises:
        LineasError: when there is no intervention, one has gates or belongs to another network, or a weight or the sum
            is not finite.
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
        with _error_at(name):
            merged[name] = combine([part.maps.get(name) or AffineMap.empty(widths[name]) for part in parts])
    folds: dict[str, str] = {}
    for part in parts:
        check_facts({"folds": part.facts.get("folds", {})})
        folds |= part.facts.get("folds", {})
    facts: dict[str, Any] = {"made_by": step, "of": [part.facts for part in parts], "folds": folds}
    return Intervention(merged, sites, bases[0] if bases else None, facts)


def _by_site(values: Any, name: str, kind: type) -> dict[str, Any]:
    """Return a copy of a dict whose keys are site names and whose values are of one kind."""
    if not isinstance(values, Mapping):
        raise LineasError(f"the {name} of an intervention are a dict by site name, not {shown(values)}.")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, kind):
            raise LineasError(
                f"the {name} of an intervention are {kind.__name__}s by site name, not {shown(value)} by {shown(key)}."
            )
    return dict(values)


@contextmanager
def _error_at(name: str) -> Iterator[None]:
    """Add the name of a site to the beginning of an error."""
    try:
        yield
    except LineasError as error:
        raise LineasError(f"at {shown(name)}, {error}") from None
